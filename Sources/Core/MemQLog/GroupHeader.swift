// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// Why a group was written. Numbers are part of the format.
public enum GroupKind: UInt8, Sendable {
  /// Frames of requests.
  case data = 1
  /// Makes durability known after idle time; may carry positions.
  case mark = 2
  /// First of a segment: its checkpoint.
  case head = 3
  /// Last of a segment: its footer.
  case seal = 4
  /// The volume was closed in order; nothing follows it in that opening.
  case close = 5
}

/// The 80 bytes at the start of a group commit. Big-endian. See docs/formats/volume.md.
///
/// A group is all or nothing: its header names the CRC of its last frame, frames chain back to the group before, and
/// each frame names its payload's CRC.
public struct GroupHeader: Hashable, Sendable {
  public static let byteCount = 80
  /// "MQGR".
  public static let magic: UInt32 = 0x4D51_4752

  public var kind: GroupKind
  /// Bytes with header and padding: a multiple of the block.
  public var byteCount: Int
  /// Bytes with header, without padding; the padding is zero.
  public var contentBytes: Int
  public var frameCount: Int
  public var number: GroupNumber
  public var segment: SegmentSequence
  /// Everything below was known durable when this group was written.
  public var durable: LogPlace
  /// Wall clock of the write: for people.
  public var writeTime: Timestamp
  /// The opening that wrote it, from 1.
  public var openCount: UInt64
  /// The last frame's CRC; without frames, `previousChecksum`.
  public var lastFrameChecksum: UInt32
  /// The CRC of the group header before, or of the segment header.
  public var previousChecksum: UInt32

  public init(
    kind: GroupKind, byteCount: Int, contentBytes: Int, frameCount: Int, number: GroupNumber,
    segment: SegmentSequence, durable: LogPlace, writeTime: Timestamp, openCount: UInt64,
    lastFrameChecksum: UInt32, previousChecksum: UInt32
  ) {
    self.kind = kind
    self.byteCount = byteCount
    self.contentBytes = contentBytes
    self.frameCount = frameCount
    self.number = number
    self.segment = segment
    self.durable = durable
    self.writeTime = writeTime
    self.openCount = openCount
    self.lastFrameChecksum = lastFrameChecksum
    self.previousChecksum = previousChecksum
  }

  /// Writes the header for `position` and returns its CRC.
  @discardableResult
  public func encode(
    into bytes: UnsafeMutableRawBufferPointer, at position: Int64, seal: HeaderSeal
  ) -> UInt32 {
    bytes.store(Self.magic, at: 0)
    bytes.store(LogFormat.version, at: 4)
    bytes.store(self.kind.rawValue, at: 5)
    bytes.store(UInt16(0), at: 6)
    bytes.store(UInt32(self.byteCount), at: 8)
    bytes.store(UInt32(self.contentBytes), at: 12)
    bytes.store(UInt32(self.frameCount), at: 16)
    bytes.store(self.lastFrameChecksum, at: 20)
    bytes.store(self.number.rawValue, at: 24)
    bytes.store(self.segment.rawValue, at: 32)
    bytes.store(self.durable.segment.rawValue, at: 40)
    bytes.store(self.durable.position, at: 48)
    bytes.store(self.writeTime.milliseconds, at: 56)
    bytes.store(self.openCount, at: 64)
    bytes.store(self.previousChecksum, at: 72)
    let checksum = seal.checksum(UnsafeRawBufferPointer(bytes.part(0..<76)), at: position)
    bytes.store(checksum, at: 76)
    return checksum
  }

  /// Reads a header at `position`; nil unless it was written for this volume and place. The segment's life is taken from the
  /// header itself: the caller compares it.
  public static func decode(
    _ bytes: UnsafeRawBufferPointer, at position: Int64, volume: VolumeID
  ) -> (header: GroupHeader, checksum: UInt32)? {
    guard bytes.count >= Self.byteCount, bytes.integer(at: 0) == Self.magic,
      bytes.integer(at: 4) == LogFormat.version, bytes.integer(at: 6) == UInt16(0),
      let kind = GroupKind(rawValue: bytes.integer(at: 5))
    else { return nil }
    let segment = SegmentSequence(bytes.integer(at: 32))
    let checksum: UInt32 = bytes.integer(at: 76)
    let seal = HeaderSeal(volume: volume, segment: segment)
    guard seal.checksum(bytes.part(0..<76), at: position) == checksum else { return nil }
    let header = GroupHeader(
      kind: kind, byteCount: Int(bytes.integer(at: 8, as: UInt32.self)),
      contentBytes: Int(bytes.integer(at: 12, as: UInt32.self)),
      frameCount: Int(bytes.integer(at: 16, as: UInt32.self)),
      number: GroupNumber(bytes.integer(at: 24)), segment: segment,
      durable: LogPlace(SegmentSequence(bytes.integer(at: 40)), bytes.integer(at: 48)),
      writeTime: Timestamp(milliseconds: bytes.integer(at: 56)), openCount: bytes.integer(at: 64),
      lastFrameChecksum: bytes.integer(at: 20), previousChecksum: bytes.integer(at: 72))
    guard header.byteCount % LogFormat.blockBytes == 0, header.contentBytes >= Self.byteCount,
      header.contentBytes <= header.byteCount,
      header.byteCount - header.contentBytes < LogFormat.blockBytes
    else { return nil }
    return (header, checksum)
  }
}
