// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A piece of a run that can be read and checked alone: whole record batches, about 1 MiB.
public struct RunBlock: Hashable, Sendable {
  /// First offset of its first batch (in the first block: the run's base offset).
  public var baseOffset: Offset
  public var byteCount: Int
  /// CRC-32C of its bytes.
  public var crc: UInt32
  /// Largest record timestamp in it.
  public var maxTimestamp: Timestamp

  public init(baseOffset: Offset, byteCount: Int, crc: UInt32, maxTimestamp: Timestamp) {
    self.baseOffset = baseOffset
    self.byteCount = byteCount
    self.crc = crc
    self.maxTimestamp = maxTimestamp
  }

  func write(into writer: inout ByteWriter) {
    writer.integer(self.baseOffset.rawValue)
    writer.integer(UInt32(self.byteCount))
    writer.integer(self.crc)
    writer.integer(self.maxTimestamp.milliseconds)
  }

  init(from reader: inout ByteReader) throws(MemQError) {
    self.baseOffset = Offset(try reader.integer())
    self.byteCount = Int(try reader.integer(UInt32.self))
    self.crc = try reader.integer()
    self.maxTimestamp = Timestamp(milliseconds: try reader.integer())
  }
}

/// One partition's range inside an object: its record batches stand one after another, byte for byte as in the log.
public struct ObjectRun: Hashable, Sendable {
  public var partition: TopicPartition
  /// First offset it stands for. Its first batch may begin below (when the log began inside a batch).
  public var baseOffset: Offset
  /// Exclusive.
  public var endOffset: Offset
  /// The history it was read under: ranks runs that claim the same offsets.
  public var historyEpoch: HistoryEpoch
  /// The lease it was written under: the second rank.
  public var leaseEpoch: LeaseEpoch
  /// Where the leader epochs of its batches begin, by offset; never empty.
  public var epochStarts: [EpochStart]
  /// Producer state at `endOffset`; empty when the leader gave none.
  public var producerSnapshot: [UInt8]
  /// Smallest base timestamp of its batches.
  public var minTimestamp: Timestamp
  public var maxTimestamp: Timestamp
  /// Place of its first byte in the object.
  public var position: Int64
  public var byteCount: Int64
  /// CRC-32C of all its bytes.
  public var crc: UInt32
  public var blocks: [RunBlock]

  public var endPosition: Int64 { self.position + self.byteCount }
  public var recordCount: Int64 { self.endOffset - self.baseOffset }

  public func contains(_ offset: Offset) -> Bool {
    self.baseOffset <= offset && offset < self.endOffset
  }

  /// Index of the block that holds `offset`.
  ///
  /// - Precondition: the run contains it.
  public func block(holding offset: Offset) -> Int {
    precondition(self.contains(offset))
    var low = 0
    var high = self.blocks.count
    while high - low > 1 {
      let middle = (low + high) / 2
      if self.blocks[middle].baseOffset <= offset { low = middle } else { high = middle }
    }
    return low
  }

  /// One past the last offset of a block.
  public func endOffset(ofBlock index: Int) -> Offset {
    index + 1 < self.blocks.count ? self.blocks[index + 1].baseOffset : self.endOffset
  }

  func write(into writer: inout ByteWriter) {
    writer.id(self.partition.topic)
    writer.integer(self.partition.partition.rawValue)
    writer.integer(self.baseOffset.rawValue)
    writer.integer(self.endOffset.rawValue)
    writer.integer(self.historyEpoch.rawValue)
    writer.integer(self.leaseEpoch.rawValue)
    writer.integer(self.minTimestamp.milliseconds)
    writer.integer(self.maxTimestamp.milliseconds)
    writer.integer(self.position)
    writer.integer(self.byteCount)
    writer.integer(self.crc)
    writer.list(self.epochStarts) { writer, start in
      writer.integer(start.epoch.rawValue)
      writer.integer(start.start.rawValue)
    }
    writer.list(self.blocks) { writer, block in block.write(into: &writer) }
    writer.data(self.producerSnapshot)
  }

  init(from reader: inout ByteReader) throws(MemQError) {
    self.partition = TopicPartition(try reader.id(), PartitionIndex(try reader.integer()))
    self.baseOffset = Offset(try reader.integer())
    self.endOffset = Offset(try reader.integer())
    self.historyEpoch = HistoryEpoch(try reader.integer())
    self.leaseEpoch = LeaseEpoch(try reader.integer())
    self.minTimestamp = Timestamp(milliseconds: try reader.integer())
    self.maxTimestamp = Timestamp(milliseconds: try reader.integer())
    self.position = try reader.integer()
    self.byteCount = try reader.integer()
    self.crc = try reader.integer()
    self.epochStarts = try reader.list { reader throws(MemQError) in
      EpochStart(
        epoch: LeaderEpoch(try reader.integer()), start: Offset(try reader.integer()))
    }
    self.blocks = try reader.list { reader throws(MemQError) in try RunBlock(from: &reader) }
    self.producerSnapshot = try reader.data()
  }

  init(
    partition: TopicPartition, baseOffset: Offset, endOffset: Offset, historyEpoch: HistoryEpoch,
    leaseEpoch: LeaseEpoch, epochStarts: [EpochStart], producerSnapshot: [UInt8],
    minTimestamp: Timestamp, maxTimestamp: Timestamp, position: Int64, byteCount: Int64,
    crc: UInt32, blocks: [RunBlock]
  ) {
    self.partition = partition
    self.baseOffset = baseOffset
    self.endOffset = endOffset
    self.historyEpoch = historyEpoch
    self.leaseEpoch = leaseEpoch
    self.epochStarts = epochStarts
    self.producerSnapshot = producerSnapshot
    self.minTimestamp = minTimestamp
    self.maxTimestamp = maxTimestamp
    self.position = position
    self.byteCount = byteCount
    self.crc = crc
    self.blocks = blocks
  }
}
