// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// What a segment holds. Numbers are part of the format.
public enum SegmentKind: UInt8, Sendable {
  case hot = 0
  /// Batches carried from older segments; part of the log once a frame or a checkpoint there names it.
  case cold = 1
  /// Nothing: the life named here is over, and the file may be written over.
  case freed = 2
}

/// The first block of a segment file, rewritten at each life. Big-endian. See docs/formats/volume.md.
public struct SegmentHeader: Hashable, Sendable {
  /// Bytes that carry something; the rest of the block is zero.
  public static let byteCount = 128
  /// "MQSG".
  public static let magic: UInt32 = 0x4D51_5347

  public var kind: SegmentKind
  public var slot: SegmentSlot
  public var cluster: ClusterID
  public var volume: VolumeID
  public var sequence: SegmentSequence
  public var segmentBytes: Int64
  /// The segment before this one in the log, and where it ends: everything below is durable, and nothing at or above belongs
  /// to the log, whatever it looks like. `.start` in a volume's first segment and in cold ones.
  public var previousEnd: LogPlace
  /// CRC of the last group header below `previousEnd`.
  public var previousChecksum: UInt32
  /// The opening that wrote it (`VolumeIdentity.openCount`): no two lives have equal headers.
  public var openCount: UInt64
  public var writeTime: Timestamp

  public init(
    kind: SegmentKind, slot: SegmentSlot, cluster: ClusterID, volume: VolumeID,
    sequence: SegmentSequence, segmentBytes: Int64, previousEnd: LogPlace, previousChecksum: UInt32,
    openCount: UInt64, writeTime: Timestamp
  ) {
    self.kind = kind
    self.slot = slot
    self.cluster = cluster
    self.volume = volume
    self.sequence = sequence
    self.segmentBytes = segmentBytes
    self.previousEnd = previousEnd
    self.previousChecksum = previousChecksum
    self.openCount = openCount
    self.writeTime = writeTime
  }

  /// One block. Returns its CRC, which the first group header names.
  @discardableResult
  public func encode(into bytes: UnsafeMutableRawBufferPointer) -> UInt32 {
    bytes.part(0..<LogFormat.blockBytes).initializeMemory(as: UInt8.self, repeating: 0)
    bytes.store(Self.magic, at: 0)
    bytes.store(LogFormat.version, at: 4)
    bytes.store(self.kind.rawValue, at: 5)
    bytes.store(self.slot.rawValue, at: 8)
    bytes.store(self.previousChecksum, at: 12)
    bytes.store(self.cluster, at: 16)
    bytes.store(self.volume, at: 32)
    bytes.store(self.sequence.rawValue, at: 48)
    bytes.store(self.segmentBytes, at: 56)
    bytes.store(self.previousEnd.segment.rawValue, at: 64)
    bytes.store(self.previousEnd.position, at: 72)
    bytes.store(self.openCount, at: 80)
    bytes.store(self.writeTime.milliseconds, at: 88)
    let checksum = Self.checksum(UnsafeRawBufferPointer(bytes))
    bytes.store(checksum, at: 124)
    return checksum
  }

  private static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
    CRC32C.checksum(bytes.part(0..<124))
  }

  /// Nil unless the block is a whole header.
  public static func decode(
    _ bytes: UnsafeRawBufferPointer
  ) -> (header: SegmentHeader, checksum: UInt32)? {
    guard bytes.count >= LogFormat.blockBytes, bytes.integer(at: 0) == Self.magic,
      bytes.integer(at: 4) == LogFormat.version,
      let kind = SegmentKind(rawValue: bytes.integer(at: 5))
    else { return nil }
    let checksum: UInt32 = bytes.integer(at: 124)
    guard Self.checksum(bytes) == checksum, bytes.part(128..<LogFormat.blockBytes).isZero else {
      return nil
    }
    let header = SegmentHeader(
      kind: kind, slot: SegmentSlot(bytes.integer(at: 8)), cluster: bytes.identifier(at: 16),
      volume: bytes.identifier(at: 32), sequence: SegmentSequence(bytes.integer(at: 48)),
      segmentBytes: bytes.integer(at: 56),
      previousEnd: LogPlace(SegmentSequence(bytes.integer(at: 64)), bytes.integer(at: 72)),
      previousChecksum: bytes.integer(at: 12), openCount: bytes.integer(at: 80),
      writeTime: Timestamp(milliseconds: bytes.integer(at: 88)))
    return (header, checksum)
  }
}

/// The last block of a sealed segment: where its footer is. Only a hint; without it the segment is read through.
public struct SegmentTrailer: Hashable, Sendable {
  /// "MQST".
  public static let magic: UInt32 = 0x4D51_5354

  public var volume: VolumeID
  public var sequence: SegmentSequence
  /// Position and bytes of the footer's group.
  public var footerPosition: Int64
  public var footerBytes: Int64

  public var end: Int64 { self.footerPosition + self.footerBytes }

  public init(
    volume: VolumeID, sequence: SegmentSequence, footerPosition: Int64, footerBytes: Int64
  ) {
    self.volume = volume
    self.sequence = sequence
    self.footerPosition = footerPosition
    self.footerBytes = footerBytes
  }

  public func encode(into bytes: UnsafeMutableRawBufferPointer) {
    bytes.part(0..<LogFormat.blockBytes).initializeMemory(as: UInt8.self, repeating: 0)
    bytes.store(Self.magic, at: 0)
    bytes.store(LogFormat.version, at: 4)
    bytes.store(self.volume, at: 8)
    bytes.store(self.sequence.rawValue, at: 24)
    bytes.store(self.footerPosition, at: 32)
    bytes.store(self.footerBytes, at: 40)
    bytes.store(CRC32C.checksum(UnsafeRawBufferPointer(bytes.part(0..<60))), at: 60)
  }

  public static func decode(_ bytes: UnsafeRawBufferPointer) -> SegmentTrailer? {
    guard bytes.count >= LogFormat.blockBytes, bytes.integer(at: 0) == Self.magic,
      bytes.integer(at: 4) == LogFormat.version,
      CRC32C.checksum(bytes.part(0..<60)) == bytes.integer(at: 60),
      bytes.part(64..<LogFormat.blockBytes).isZero
    else { return nil }
    return SegmentTrailer(
      volume: bytes.identifier(at: 8), sequence: SegmentSequence(bytes.integer(at: 24)),
      footerPosition: bytes.integer(at: 32), footerBytes: bytes.integer(at: 40))
  }
}

/// The file `volume`: whose log the folder is. Replaced as a whole at each opening.
public struct VolumeHeader: Hashable, Sendable {
  public static let byteCount = 128
  /// "MQVO".
  public static let magic: UInt32 = 0x4D51_564F

  public var identity: VolumeIdentity
  /// The highest incarnation of the cluster that opened the volume.
  public var incarnation: Incarnation
  public var incarnationID: UniqueID
  /// The volume has had a durable segment: finding none means they were lost.
  public var hasLog: Bool
  /// What an opening found that may be lost, and nobody settled since.
  public var unnamed: UnnamedLosses
  /// Where the last opening found the log to end: everything below is durable, whether a group says so or not. Where that opening had no
  /// segment to go on in, none does.
  public var durableEnd: LogPlace
  public var created: Timestamp

  public init(
    identity: VolumeIdentity, incarnation: Incarnation, incarnationID: UniqueID, hasLog: Bool,
    unnamed: UnnamedLosses = [], durableEnd: LogPlace = .start, created: Timestamp
  ) {
    self.identity = identity
    self.incarnation = incarnation
    self.incarnationID = incarnationID
    self.hasLog = hasLog
    self.unnamed = unnamed
    self.durableEnd = durableEnd
    self.created = created
  }

  public func encoded() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.byteCount)
    bytes.withUnsafeMutableBytes { bytes in
      bytes.store(Self.magic, at: 0)
      bytes.store(LogFormat.version, at: 4)
      bytes.store(UInt8(self.hasLog ? 1 : 0), at: 5)
      bytes.store(self.unnamed.rawValue, at: 6)
      bytes.store(self.identity.cluster, at: 8)
      bytes.store(self.identity.volume, at: 24)
      bytes.store(self.identity.segmentBytes, at: 40)
      bytes.store(self.identity.openCount, at: 48)
      bytes.store(self.incarnation.rawValue, at: 56)
      bytes.store(self.incarnationID.high, at: 64)
      bytes.store(self.incarnationID.low, at: 72)
      bytes.store(self.created.milliseconds, at: 80)
      bytes.store(self.durableEnd.segment.rawValue, at: 88)
      bytes.store(self.durableEnd.position, at: 96)
      bytes.store(CRC32C.checksum(UnsafeRawBufferPointer(bytes.part(0..<124))), at: 124)
    }
    return bytes
  }

  /// - Throws: `.logCorrupt` when it isn't a whole header of this version.
  public init(decoding bytes: [UInt8]) throws(MemQError) {
    let header: VolumeHeader? = bytes.withUnsafeBytes { bytes in
      guard bytes.count == Self.byteCount, bytes.integer(at: 0) == Self.magic,
        bytes.integer(at: 4) == LogFormat.version,
        CRC32C.checksum(bytes.part(0..<124)) == bytes.integer(at: 124)
      else { return nil }
      let identity = VolumeIdentity(
        cluster: bytes.identifier(at: 8), volume: bytes.identifier(at: 24),
        segmentBytes: bytes.integer(at: 40), openCount: bytes.integer(at: 48))
      return VolumeHeader(
        identity: identity, incarnation: Incarnation(bytes.integer(at: 56)),
        incarnationID: UniqueID(high: bytes.integer(at: 64), low: bytes.integer(at: 72)),
        hasLog: bytes.integer(at: 5) == UInt8(1),
        unnamed: UnnamedLosses(rawValue: bytes.integer(at: 6)),
        durableEnd: LogPlace(SegmentSequence(bytes.integer(at: 88)), bytes.integer(at: 96)),
        created: Timestamp(milliseconds: bytes.integer(at: 80)))
    }
    guard let header else {
      throw MemQError(.logCorrupt, "the volume file is damaged or of another version")
    }
    self = header
  }
}
