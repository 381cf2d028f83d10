// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRecords

/// Gathers one partition's batches for an object: offsets, epochs, times, blocks and CRCs, but no bytes, which stay
/// where they are.
public struct RunBuilder: Sendable {
  public let partition: TopicPartition
  public let baseOffset: Offset
  public let historyEpoch: HistoryEpoch
  public let leaseEpoch: LeaseEpoch
  public private(set) var endOffset: Offset
  public private(set) var byteCount: Int64 = 0
  private var minTimestamp = Timestamp.none
  private var maxTimestamp = Timestamp.none
  private var epochStarts: [EpochStart] = []
  private var blocks: [RunBlock] = []
  private var crc = CRC32C()

  /// - Parameter baseOffset: where the upload of the partition goes on; the first batch must hold it.
  public init(
    partition: TopicPartition, baseOffset: Offset, historyEpoch: HistoryEpoch,
    leaseEpoch: LeaseEpoch
  ) {
    self.partition = partition
    self.baseOffset = baseOffset
    self.endOffset = baseOffset
    self.historyEpoch = historyEpoch
    self.leaseEpoch = leaseEpoch
  }

  public var isEmpty: Bool { self.blocks.isEmpty }

  /// Takes the next whole batch, stamped as in the log. Its own CRC is the caller's to check.
  ///
  /// - Throws: `.logCorrupt` for a gap, an overlap, or a leader epoch that goes back; nothing is taken then.
  public mutating func append(
    _ header: RecordBatchHeader, _ bytes: UnsafeRawBufferPointer
  ) throws(MemQError) {
    precondition(bytes.count == header.batchLength)
    let fits =
      self.isEmpty
      ? header.baseOffset <= self.baseOffset && self.baseOffset < header.endOffset
      : header.baseOffset == self.endOffset
    guard fits else {
      throw MemQError(
        .logCorrupt, "a batch does not follow the one before it", subject: "\(self.partition)",
        limit: self.endOffset.rawValue, actual: header.baseOffset.rawValue)
    }
    if let last = self.epochStarts.last, header.leaderEpoch < last.epoch {
      throw MemQError(
        .logCorrupt, "a batch has a lower leader epoch than the one before it",
        subject: "\(self.partition)", limit: last.epoch.rawValue,
        actual: header.leaderEpoch.rawValue)
    }
    self.note(header)
    self.crc.update(bytes)
    self.addToBlock(header, bytes)
    self.endOffset = header.endOffset
    self.byteCount += Int64(bytes.count)
  }

  private mutating func note(_ header: RecordBatchHeader) {
    if self.epochStarts.last.map({ $0.epoch < header.leaderEpoch }) ?? true {
      self.epochStarts.append(EpochStart(epoch: header.leaderEpoch, start: header.baseOffset))
    }
    self.minTimestamp =
      self.isEmpty ? header.baseTimestamp : min(self.minTimestamp, header.baseTimestamp)
    self.maxTimestamp = max(self.maxTimestamp, header.maxTimestamp)
  }

  private mutating func addToBlock(_ header: RecordBatchHeader, _ bytes: UnsafeRawBufferPointer) {
    if let last = self.blocks.last, last.byteCount < ObjectLayout.blockByteCount {
      self.blocks[self.blocks.count - 1].byteCount += bytes.count
      self.blocks[self.blocks.count - 1].crc = CRC32C.checksum(bytes, seed: last.crc)
      self.blocks[self.blocks.count - 1].maxTimestamp = max(last.maxTimestamp, header.maxTimestamp)
    } else {
      self.blocks.append(
        RunBlock(
          baseOffset: self.isEmpty ? self.baseOffset : header.baseOffset, byteCount: bytes.count,
          crc: CRC32C.checksum(bytes), maxTimestamp: header.maxTimestamp))
    }
  }

  /// The run at its place in the object.
  ///
  /// - Parameter producerSnapshot: producer state at the end offset; empty when there is none.
  public func run(at position: Int64, producerSnapshot: [UInt8] = []) -> ObjectRun {
    precondition(!self.isEmpty)
    return ObjectRun(
      partition: self.partition, baseOffset: self.baseOffset, endOffset: self.endOffset,
      historyEpoch: self.historyEpoch, leaseEpoch: self.leaseEpoch, epochStarts: self.epochStarts,
      producerSnapshot: producerSnapshot, minTimestamp: self.minTimestamp,
      maxTimestamp: self.maxTimestamp, position: position, byteCount: self.byteCount,
      crc: self.crc.value, blocks: self.blocks)
  }
}
