// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The bytes of a volume's segment files, for recovery and for looking at them.
public protocol SegmentSource {
  /// Every segment file, in order.
  var slots: [SegmentSlot] { get }
  /// Fills `bytes` from the file at `position`.
  ///
  /// - Throws: `.volumeFailed` when the disk can't give them; `.resourceExhausted` when the disk could not be asked for now.
  mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError)
}

/// A window of a segment's bytes that is refilled as it is read through.
final class SegmentWindow {
  /// 1 MiB: a few hundred reads per segment, and little memory.
  private static let windowBytes = 1 << 20

  private let slot: SegmentSlot
  private let segmentBytes: Int64
  private var buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 0, alignment: 16)
  private var start: Int64 = 0
  private var filled = 0

  init(_ slot: SegmentSlot, segmentBytes: Int64) {
    self.slot = slot
    self.segmentBytes = segmentBytes
  }

  deinit { self.buffer.deallocate() }

  /// `count` bytes at `position`, valid until the next call; nil past the segment's end.
  func bytes(
    at position: Int64, count: Int, from source: inout some SegmentSource
  ) throws(MemQError) -> UnsafeRawBufferPointer? {
    guard position >= 0, count >= 0, position + Int64(count) <= self.segmentBytes else {
      return nil
    }
    if position < self.start || position + Int64(count) > self.start + Int64(self.filled) {
      let wanted = min(max(count, Self.windowBytes), Int(self.segmentBytes - position))
      if wanted > self.buffer.count {
        self.buffer.deallocate()
        self.buffer = .allocate(byteCount: wanted, alignment: 16)
      }
      self.filled = 0
      try source.read(self.slot, at: position, into: self.buffer.part(0..<wanted))
      self.start = position
      self.filled = wanted
    }
    let offset = Int(position - self.start)
    return UnsafeRawBufferPointer(self.buffer.part(offset..<(offset + count)))
  }
}

/// What reading through a segment's groups found.
struct SegmentScan {
  /// After the last group that holds.
  var end: Int64
  /// Of the last group header, or of the segment header.
  var checksum: UInt32
  var lastGroup: GroupHeader?
  /// Why the next group doesn't hold; nil at the segment's end.
  var damage: FrameWalk.Damage?
  /// The highest durable mark of any group header in the segment, damage or not.
  var mark: LogPlace = .start
  /// A group of this life stands after `end`.
  var hasLaterGroup = false
  var lastNumber = GroupNumber(0)

  typealias Visit = (
    _ group: GroupHeader, _ position: Int64, _ frames: [WalkedFrame],
    _ bytes: UnsafeRawBufferPointer
  ) throws(MemQError) -> Void

  /// Reads groups in order up to the first that doesn't hold, or to `limit`.
  ///
  /// - Parameter probes: whether to look for groups after the damage, for their marks.
  static func run(
    _ header: SegmentHeader, _ checksum: UInt32, limit: Int64? = nil, probes: Bool,
    from source: inout some SegmentSource, visit: Visit
  ) throws(MemQError) -> SegmentScan {
    let window = SegmentWindow(header.slot, segmentBytes: header.segmentBytes)
    let seal = HeaderSeal(volume: header.volume, segment: header.sequence)
    let limit = limit ?? header.segmentBytes
    var scan = SegmentScan(end: LogFormat.firstGroupPosition, checksum: checksum)
    scan.mark = header.previousEnd
    while scan.end < limit {
      guard
        let (group, groupChecksum) = try Self.groupHeader(at: scan.end, header, window, &source),
        group.segment == header.sequence,
        let bytes = try window.bytes(at: scan.end, count: group.byteCount, from: &source)
      else {
        scan.damage = FrameWalk.Damage(position: scan.end, what: "a group's header is damaged")
        break
      }
      scan.note(group)
      let frames = FrameWalk.group(
        in: bytes, header: group, position: scan.end, seal: seal, previousChecksum: scan.checksum)
      switch frames {
      case .success(let frames): try visit(group, scan.end, frames, bytes)
      case .failure(let damage): scan.damage = damage
      }
      if scan.damage != nil { break }
      scan.end += Int64(group.byteCount)
      scan.checksum = groupChecksum
      scan.lastGroup = group
    }
    if probes { try scan.probe(header, window, &source) }
    return scan
  }

  private static func groupHeader(
    at position: Int64, _ segment: SegmentHeader, _ window: SegmentWindow,
    _ source: inout some SegmentSource
  ) throws(MemQError) -> (header: GroupHeader, checksum: UInt32)? {
    guard let bytes = try window.bytes(at: position, count: GroupHeader.byteCount, from: &source)
    else { return nil }
    return GroupHeader.decode(bytes, at: position, volume: segment.volume)
  }

  private mutating func note(_ group: GroupHeader) {
    self.mark = max(self.mark, group.durable)
    self.lastNumber = max(self.lastNumber, group.number)
  }

  /// Looks at every block after the end for group headers of this life.
  private mutating func probe(
    _ header: SegmentHeader, _ window: SegmentWindow, _ source: inout some SegmentSource
  ) throws(MemQError) {
    var position = self.end + Int64(LogFormat.blockBytes)
    while position < header.segmentBytes {
      if let (group, _) = try Self.groupHeader(at: position, header, window, &source),
        group.segment == header.sequence
      {
        self.note(group)
        self.hasLaterGroup = true
      }
      position += Int64(LogFormat.blockBytes)
    }
  }
}

/// What stands in a file whose segment header does not hold.
struct HeaderlessSlot {
  let slot: SegmentSlot
  /// The youngest life with a group in it; `.none` for a blank file.
  var sequence = SegmentSequence.none
  /// The highest durable mark of that life's groups.
  var mark = LogPlace.start
  var lastNumber = GroupNumber(0)

  static func probe(
    _ slot: SegmentSlot, _ identity: VolumeIdentity, from source: inout some SegmentSource
  ) throws(MemQError) -> HeaderlessSlot {
    var found = HeaderlessSlot(slot: slot)
    let window = SegmentWindow(slot, segmentBytes: identity.segmentBytes)
    var position = LogFormat.firstGroupPosition
    while let bytes = try window.bytes(
      at: position, count: GroupHeader.byteCount, from: &source)
    {
      if let (group, _) = GroupHeader.decode(bytes, at: position, volume: identity.volume) {
        if group.segment > found.sequence { found.mark = .start }
        if group.segment >= found.sequence {
          found.sequence = group.segment
          found.mark = max(found.mark, group.durable)
        }
        found.lastNumber = max(found.lastNumber, group.number)
      }
      position += Int64(LogFormat.blockBytes)
    }
    return found
  }
}
