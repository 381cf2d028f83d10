// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Where a leader epoch begins in a partition's log. An epoch without records has a start too.
public struct EpochStart: Hashable, Sendable {
  public var epoch: LeaderEpoch
  /// The first offset the epoch's leader could assign: its log end when it took over.
  public var start: Offset
  public init(epoch: LeaderEpoch, start: Offset) {
    self.epoch = epoch
    self.start = start
  }
}

/// What recovery and replication need to know of one record batch without its bytes.
public struct BatchSummary: Hashable, Sendable {
  public var baseOffset: Offset
  /// Exclusive; one above the last record's offset.
  public var endOffset: Offset
  public var leaderEpoch: LeaderEpoch
  /// `.none` when the batch isn't an idempotent producer's.
  public var producerID: ProducerID
  public var producerEpoch: ProducerEpoch
  /// Sequence of the first record; wraps from Int32.max to 0. Negative: none.
  public var baseSequence: Int32
  /// The highest timestamp of the batch's records.
  public var maxTimestamp: Timestamp
  /// When the leader appended it, by its wall clock.
  public var appendTime: Timestamp

  public init(
    baseOffset: Offset, endOffset: Offset, leaderEpoch: LeaderEpoch,
    producerID: ProducerID = .none, producerEpoch: ProducerEpoch = .none, baseSequence: Int32 = -1,
    maxTimestamp: Timestamp = .none, appendTime: Timestamp = .none
  ) {
    self.baseOffset = baseOffset
    self.endOffset = endOffset
    self.leaderEpoch = leaderEpoch
    self.producerID = producerID
    self.producerEpoch = producerEpoch
    self.baseSequence = baseSequence
    self.maxTimestamp = maxTimestamp
    self.appendTime = appendTime
  }

  /// The number of offsets, which is the number of records.
  public var recordCount: Int64 { self.endOffset - self.baseOffset }
}
