// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQLog
public import MemQModel
public import NIOCore

extension Volume {
  public typealias RecoveredPartition = MemQLog.RecoveredPartition
  /// Called on a thread of the volume: do little there.
  public typealias Completion = @Sendable (Result<Void, MemQError>) -> Void

  /// One record batch to append.
  public struct Append: Sendable {
    public var partition: TopicPartition
    /// Its base offset is the partition's end.
    public var summary: BatchSummary
    /// One whole record batch v2 that was validated, in slices. The log writes base offset and leader epoch over its first 16 bytes.
    public var batch: [ByteBuffer]

    public init(partition: TopicPartition, summary: BatchSummary, batch: [ByteBuffer]) {
      self.partition = partition
      self.summary = summary
      self.batch = batch
    }

    public init(
      partition: TopicPartition, baseOffset: Offset, endOffset: Offset, leaderEpoch: LeaderEpoch,
      appendTime: Timestamp, maxTimestamp: Timestamp, producerID: ProducerID = .none,
      producerEpoch: ProducerEpoch = .none, baseSequence: Int32 = -1, batch: [ByteBuffer]
    ) {
      self.partition = partition
      self.summary = BatchSummary(
        baseOffset: baseOffset, endOffset: endOffset, leaderEpoch: leaderEpoch,
        producerID: producerID, producerEpoch: producerEpoch, baseSequence: baseSequence,
        maxTimestamp: maxTimestamp, appendTime: appendTime)
      self.batch = batch
    }

    public var baseOffset: Offset { self.summary.baseOffset }
    public var endOffset: Offset { self.summary.endOffset }
  }

  /// Batches that a read found.
  public struct ReadResult: Sendable {
    public struct Batch: Hashable, Sendable {
      public var summary: BatchSummary
      public var byteCount: Int
    }

    /// Whole batches with their stamps, one after the other; a batch may span slices and a slice hold several.
    public var slices: [ByteBuffer]
    /// Where to read on: the last batch's end, or `from` when there is none.
    public var nextOffset: Offset
    /// What the slices hold, in order.
    public var batches: [Batch]
    public var byteCount: Int { self.slices.reduce(0) { $0 + $1.readableBytes } }

    public init(slices: [ByteBuffer] = [], nextOffset: Offset, batches: [Batch] = []) {
      self.slices = slices
      self.nextOffset = nextOffset
      self.batches = batches
    }
  }
}

/// A volume in numbers.
public struct VolumeStats: Hashable, Sendable {
  public enum State: String, Sendable { case open, closed, failed }

  public var state: State
  public var log: LogStats
  public var segmentBytes: Int64
  /// Written since the open, headers and padding counted.
  public var bytesWritten: Int64 { self.log.counters.bytesWritten }
  public var groups: UInt64 { self.log.counters.groupsWritten }
  public var pendingBytes: Int { self.log.pendingBytes }
  /// fdatasync calls that succeeded, and the time they took together and at most.
  public var syncs: UInt64
  public var syncTotal: Duration
  public var syncMax: Duration
  public var bytesRead: Int64
  /// Reads that failed or found damage.
  public var readErrors: UInt64
  public var tailCacheBytes: Int
  /// Read ahead of sequential readers and not taken yet.
  public var readAheadBytes: Int
}
