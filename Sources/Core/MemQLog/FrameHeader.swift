// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// What a frame carries. Numbers are part of the format and never reused.
///
/// Reserved: 10; 12 a run of batches in one frame, 14 such a run carried to a cold segment.
public enum FrameType: UInt8, Sendable, CaseIterable {
  /// One record batch v2, stamped.
  case batch = 1
  /// A leader epoch begins at the base offset.
  case epochStart = 2
  /// The log ends at the base offset; payload: the epoch starts that remain.
  case truncate = 3
  /// The log starts at the base offset (and ends there, where it ended below).
  case logStart = 4
  /// A partition's log begins, empty, at the base offset; payload: epoch starts.
  case partitionOpen = 5
  case partitionDrop = 6
  /// State of the idempotent producers for the records below the base offset.
  case producerSnapshot = 7
  /// Part of the state of everything on the volume.
  case checkpoint = 8
  /// Part of a segment's index.
  case footer = 9
  /// High watermarks and uploaded offsets.
  case positions = 11
  /// A batch once more, in a cold segment: it changes no end offset and undoes no truncate.
  case carriedBatch = 13
  /// A cold segment belongs to the log from here on; payload: `ColdSegment`.
  case coldSegment = 15

  /// Its payload is one record batch v2.
  var isBatch: Bool { self == .batch || self == .carriedBatch }
}

/// The 80 bytes before each payload. Big-endian. See docs/formats/volume.md.
public struct FrameHeader: Hashable, Sendable {
  public static let byteCount = 80
  /// "MQLF".
  public static let magic: UInt32 = 0x4D51_4C46
  /// No frame is larger: a largest batch, or one part of a checkpoint or footer.
  public static let payloadBytesMax = 16 << 20

  public var type: FrameType
  /// Payload bytes right after the header.
  public var payloadBytes: Int
  /// A batch's own CRC (its bytes 17..<21); any other payload's CRC-32C.
  public var payloadChecksum: UInt32
  /// `.none` in frames that concern the volume.
  public var log: LogID
  public var partition: TopicPartition
  public var baseOffset: Offset
  /// End offset minus base offset; 0 where the frame has no records.
  public var offsetDelta: Int32
  public var leaderEpoch: LeaderEpoch
  /// The leader's wall clock when it appended.
  public var appendTime: Timestamp
  /// The CRC of the frame before (or of the group header before the group's first).
  public var previousChecksum: UInt32

  public init(
    type: FrameType, payloadBytes: Int, payloadChecksum: UInt32, log: LogID = .none,
    partition: TopicPartition = .volume, baseOffset: Offset = .zero, offsetDelta: Int32 = 0,
    leaderEpoch: LeaderEpoch = .none, appendTime: Timestamp = .none, previousChecksum: UInt32
  ) {
    self.type = type
    self.payloadBytes = payloadBytes
    self.payloadChecksum = payloadChecksum
    self.log = log
    self.partition = partition
    self.baseOffset = baseOffset
    self.offsetDelta = offsetDelta
    self.leaderEpoch = leaderEpoch
    self.appendTime = appendTime
    self.previousChecksum = previousChecksum
  }

  public var endOffset: Offset { self.baseOffset + Int64(self.offsetDelta) }

  /// Writes the header for `position` and returns its CRC, which the next header names.
  @discardableResult
  public func encode(
    into bytes: UnsafeMutableRawBufferPointer, at position: Int64, seal: HeaderSeal
  ) -> UInt32 {
    bytes.store(Self.magic, at: 0)
    bytes.store(LogFormat.version, at: 4)
    bytes.store(self.type.rawValue, at: 5)
    bytes.store(UInt16(0), at: 6)
    bytes.store(UInt32(self.payloadBytes), at: 8)
    bytes.store(self.payloadChecksum, at: 12)
    bytes.store(self.log.rawValue, at: 16)
    bytes.store(self.partition.topic, at: 24)
    bytes.store(self.partition.partition.rawValue, at: 40)
    bytes.store(self.offsetDelta, at: 44)
    bytes.store(self.baseOffset.rawValue, at: 48)
    bytes.store(self.leaderEpoch.rawValue, at: 56)
    bytes.store(self.appendTime.milliseconds, at: 64)
    bytes.store(self.previousChecksum, at: 72)
    let checksum = seal.checksum(UnsafeRawBufferPointer(bytes.part(0..<76)), at: position)
    bytes.store(checksum, at: 76)
    return checksum
  }

  /// Reads a header at `position`: nil unless it was written for this volume, segment life and place.
  public static func decode(
    _ bytes: UnsafeRawBufferPointer, at position: Int64, seal: HeaderSeal
  ) -> (header: FrameHeader, checksum: UInt32)? {
    guard bytes.count >= Self.byteCount, bytes.integer(at: 0) == Self.magic,
      bytes.integer(at: 4) == LogFormat.version, bytes.integer(at: 6) == UInt16(0),
      let type = FrameType(rawValue: bytes.integer(at: 5))
    else { return nil }
    let payloadBytes = Int(bytes.integer(at: 8, as: UInt32.self))
    let checksum: UInt32 = bytes.integer(at: 76)
    guard payloadBytes <= Self.payloadBytesMax,
      seal.checksum(bytes.part(0..<76), at: position) == checksum
    else { return nil }
    let header = FrameHeader(
      type: type, payloadBytes: payloadBytes, payloadChecksum: bytes.integer(at: 12),
      log: LogID(bytes.integer(at: 16)),
      partition: TopicPartition(bytes.identifier(at: 24), PartitionIndex(bytes.integer(at: 40))),
      baseOffset: Offset(bytes.integer(at: 48)), offsetDelta: bytes.integer(at: 44),
      leaderEpoch: LeaderEpoch(bytes.integer(at: 56)),
      appendTime: Timestamp(milliseconds: bytes.integer(at: 64)),
      previousChecksum: bytes.integer(at: 72))
    return (header, checksum)
  }

  /// Whether `payload` is what this header was written for. A batch is checked to its last byte: its own CRC covers bytes
  /// 21 on, this header names that CRC and bytes 0..<16, and the magic has one value.
  public func verifies(_ payload: UnsafeRawBufferPointer) -> Bool {
    guard payload.count == self.payloadBytes else { return false }
    guard self.type.isBatch else { return CRC32C.checksum(payload) == self.payloadChecksum }
    guard payload.count >= RecordBatchHeader.byteCount else { return false }
    return payload.integer(at: 0) == self.baseOffset.rawValue
      && payload.integer(at: 8) == Int32(truncatingIfNeeded: payload.count - 12)
      && payload.integer(at: 12) == Int32(truncatingIfNeeded: self.leaderEpoch.rawValue)
      && payload.integer(at: 16) == Int8(2)
      && payload.integer(at: 17) == self.payloadChecksum
      && CRC32C.checksum(payload.part(21..<payload.count)) == self.payloadChecksum
  }
}

extension TopicPartition {
  /// Stands in frames that concern the whole volume.
  public static let volume = TopicPartition(TopicID(.zero), PartitionIndex(-1))
}
