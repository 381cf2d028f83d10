// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

extension UnsafeRawBufferPointer {
  /// The big-endian integer at `offset`; the caller has checked the bounds.
  @inline(__always)
  func integer<T: FixedWidthInteger>(at offset: Int, as _: T.Type = T.self) -> T {
    T(bigEndian: self.loadUnaligned(fromByteOffset: offset, as: T.self))
  }

  @inline(__always)
  func identifier<Tag>(
    at offset: Int, as _: TaggedID<Tag>.Type = TaggedID<Tag>.self
  ) -> TaggedID<Tag> {
    TaggedID(UniqueID(high: self.integer(at: offset), low: self.integer(at: offset + 8)))
  }

  func part(_ range: Range<Int>) -> UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(rebasing: self[range])
  }

  /// Whether every byte is zero; looks at eight at a time.
  var isZero: Bool {
    var offset = 0
    while offset + 8 <= self.count {
      if self.loadUnaligned(fromByteOffset: offset, as: UInt64.self) != 0 { return false }
      offset += 8
    }
    while offset < self.count {
      if self[offset] != 0 { return false }
      offset += 1
    }
    return true
  }
}

extension UnsafeMutableRawBufferPointer {
  @inline(__always)
  func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
    self.storeBytes(of: value.bigEndian, toByteOffset: offset, as: T.self)
  }

  @inline(__always)
  func store<Tag>(_ value: TaggedID<Tag>, at offset: Int) {
    self.store(value.value.high, at: offset)
    self.store(value.value.low, at: offset + 8)
  }

  func part(_ range: Range<Int>) -> UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(rebasing: self[range])
  }
}

/// What a header's CRC covers besides the header: volume, segment's life and place. A header of another volume, of an
/// earlier life of the file or at another place never verifies.
public struct HeaderSeal: Sendable {
  public let volume: VolumeID
  public let segment: SegmentSequence
  private let seed: UInt32

  public init(volume: VolumeID, segment: SegmentSequence) {
    self.volume = volume
    self.segment = segment
    self.seed = withUnsafeTemporaryAllocation(byteCount: 24, alignment: 8) { bytes in
      bytes.store(volume, at: 0)
      bytes.store(segment.rawValue, at: 16)
      return CRC32C.checksum(UnsafeRawBufferPointer(bytes))
    }
  }

  /// CRC-32C of volume, segment sequence, position, then `header` (without its own CRC field).
  func checksum(_ header: UnsafeRawBufferPointer, at position: Int64) -> UInt32 {
    let placed = withUnsafeBytes(of: position.bigEndian) { CRC32C.checksum($0, seed: self.seed) }
    return CRC32C.checksum(header, seed: placed)
  }
}
