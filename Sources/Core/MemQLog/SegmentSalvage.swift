// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Reads a segment through and goes on behind what does not hold: which bytes are damaged, and what still stands around them.
///
/// A frame is believed on its own when its header verifies, as that names volume, life and place; the chain to the frame
/// before only says whether something between the two is gone.
struct SegmentSalvage {
  enum Piece {
    /// Holds to its last byte.
    case group(GroupHeader, [WalkedFrame])
    /// In a group that does not: a frame, and whether its payload holds.
    case frame(WalkedFrame, holds: Bool)
    case damage(Stretch)
  }

  /// Bytes that do not hold.
  struct Stretch: Hashable, Sendable {
    enum Kind: Hashable, Sendable {
      /// All frames around it are there.
      case groupHeader, padding, chain
      /// Frames of unknown partitions may have stood here.
      case unknown
      /// The payload of a frame whose header holds.
      case payload(FrameHeader)
    }
    var kind: Kind
    var range: Range<Int64>
  }

  typealias Visit = (Piece, UnsafeRawBufferPointer) throws(MemQError) -> Void

  /// After the last group that belongs to the log.
  var end = LogFormat.firstGroupPosition
  /// Of the last group header that holds.
  var checksum: UInt32
  var lastGroup: GroupHeader?
  var groups = 0
  private let header: SegmentHeader
  private let seal: HeaderSeal
  private let window: SegmentWindow

  /// - Parameters:
  ///   - limit: where the log states that the segment's groups end. Nil in the tail: the first place at or above `mark` where no
  ///     group holds.
  ///   - visit: gets payload ranges relative to the bytes passed along.
  static func run(
    _ header: SegmentHeader, _ checksum: UInt32, limit: Int64?, mark: LogPlace,
    from source: inout some SegmentSource, visit: Visit
  ) throws(MemQError) -> SegmentSalvage {
    var salvage = SegmentSalvage(
      checksum: checksum, header: header,
      seal: HeaderSeal(volume: header.volume, segment: header.sequence),
      window: SegmentWindow(header.slot, segmentBytes: header.segmentBytes))
    try salvage.walk(limit, mark, &source, visit)
    return salvage
  }

  private mutating func walk(
    _ limit: Int64?, _ mark: LogPlace, _ source: inout some SegmentSource, _ visit: Visit
  ) throws(MemQError) {
    let until = min(limit ?? .max, self.header.segmentBytes)
    var chain: UInt32? = self.checksum
    while self.end < until {
      let position = self.end
      let isOwed = limit != nil || LogPlace(self.header.sequence, position) < mark
      if let (group, checksum) = try self.group(at: position, &source),
        position + Int64(group.byteCount) <= until,
        let bytes = try self.window.bytes(at: position, count: group.byteCount, from: &source)
      {
        let frames = FrameWalk.group(
          in: bytes, header: group, position: position, seal: self.seal,
          previousChecksum: chain ?? group.previousChecksum)
        switch frames {
        case .success(let frames):
          self.groups += 1
          try visit(.group(group, frames), bytes)
        case .failure:
          guard isOwed else { return }
          try self.damaged(group, at: position, chain, &source, visit)
        }
        self.end += Int64(group.byteCount)
        self.checksum = checksum
        self.lastGroup = group
        chain = checksum
        continue
      }
      guard isOwed else { return }
      let next = try self.nextGroup(after: position, below: until, &source)
      // Without a later group, the log states how far it goes.
      let stop = next ?? limit ?? max(mark.position, position + Int64(LogFormat.blockBytes))
      try self.headless(position..<min(stop, until), chain, &source, visit)
      self.end = min(stop, until)
      chain = nil
    }
  }

  private func group(
    at position: Int64, _ source: inout some SegmentSource
  ) throws(MemQError) -> (GroupHeader, UInt32)? {
    guard
      let bytes = try self.window.bytes(
        at: position, count: GroupHeader.byteCount, from: &source),
      let (group, checksum) = GroupHeader.decode(bytes, at: position, volume: self.header.volume),
      group.segment == self.header.sequence, group.byteCount > 0
    else { return nil }
    return (group, checksum)
  }

  private func nextGroup(
    after position: Int64, below: Int64, _ source: inout some SegmentSource
  ) throws(MemQError) -> Int64? {
    var position = position + Int64(LogFormat.blockBytes)
    while position < below {
      if try self.group(at: position, &source) != nil { return position }
      position += Int64(LogFormat.blockBytes)
    }
    return nil
  }

  /// A group whose header holds.
  private func damaged(
    _ group: GroupHeader, at position: Int64, _ chain: UInt32?,
    _ source: inout some SegmentSource, _ visit: Visit
  ) throws(MemQError) {
    let content = (position + Int64(GroupHeader.byteCount))..<(position + Int64(group.contentBytes))
    let isWhole = try self.frames(content, &source, visit)
    if isWhole, let chain, chain != group.previousChecksum {
      try visit(
        .damage(Stretch(kind: .chain, range: position..<content.lowerBound)),
        UnsafeRawBufferPointer(start: nil, count: 0))
    }
    try self.padding(content.upperBound..<(position + Int64(group.byteCount)), &source, visit)
  }

  private func padding(
    _ range: Range<Int64>, _ source: inout some SegmentSource, _ visit: Visit
  ) throws(MemQError) {
    guard !range.isEmpty,
      let bytes = try self.window.bytes(at: range.lowerBound, count: range.count, from: &source),
      !bytes.isZero
    else { return }
    try visit(.damage(Stretch(kind: .padding, range: range)), bytes)
  }

  /// Blocks that begin with no group header that holds.
  private func headless(
    _ range: Range<Int64>, _ chain: UInt32?, _ source: inout some SegmentSource, _ visit: Visit
  ) throws(MemQError) {
    let header =
      range
      .lowerBound..<min(
        range.lowerBound + Int64(GroupHeader.byteCount), range.upperBound)
    // A first frame right behind it that follows the group before: only the header itself is gone.
    var isOnlyHeader = false
    if let (frame, _) = try self.frame(at: header.upperBound, below: range.upperBound, &source) {
      isOnlyHeader = chain == nil || frame.header.previousChecksum == chain
    }
    let none = UnsafeRawBufferPointer(start: nil, count: 0)
    if isOnlyHeader {
      try visit(.damage(Stretch(kind: .groupHeader, range: header)), none)
      _ = try self.frames(header.upperBound..<range.upperBound, isPadded: true, &source, visit)
    } else {
      _ = try self.frames(range, isPadded: true, &source, visit)
    }
  }

  private func frame(
    at position: Int64, below: Int64, _ source: inout some SegmentSource
  ) throws(MemQError) -> (WalkedFrame, UnsafeRawBufferPointer)? {
    let count = FrameHeader.byteCount
    guard position + Int64(count) <= below,
      let head = try self.window.bytes(at: position, count: count, from: &source),
      let (header, _) = FrameHeader.decode(head, at: position, seal: self.seal),
      position + Int64(count + header.payloadBytes) <= below,
      let bytes = try self.window.bytes(
        at: position, count: count + header.payloadBytes, from: &source),
      let frame = FrameWalk.frame(in: bytes, at: 0, position: position, seal: self.seal)
    else { return nil }
    return (frame, bytes)
  }

  /// Every frame in `range` whose header holds, searched for byte by byte behind what does not.
  ///
  /// - Parameter isPadded: zeros of less than a block at the end are no damage.
  /// - Returns: whether nothing is damaged.
  private func frames(
    _ range: Range<Int64>, isPadded: Bool = false, _ source: inout some SegmentSource,
    _ visit: Visit
  ) throws(MemQError) -> Bool {
    var position = range.lowerBound
    var unknown: Int64?
    var isWhole = true
    let none = UnsafeRawBufferPointer(start: nil, count: 0)
    while position < range.upperBound {
      guard let (frame, bytes) = try self.frame(at: position, below: range.upperBound, &source)
      else {
        unknown = unknown ?? position
        position = try self.nextMagic(after: position, below: range.upperBound, &source)
        continue
      }
      if let start = unknown {
        isWhole = false
        try visit(.damage(Stretch(kind: .unknown, range: start..<position)), none)
        // The window may have moved.
        unknown = nil
        continue
      }
      let holds = frame.header.verifies(bytes.part(frame.payload))
      try visit(.frame(frame, holds: holds), bytes)
      let end = position + Int64(frame.payload.upperBound)
      if !holds {
        isWhole = false
        let payload = (position + Int64(FrameHeader.byteCount))..<end
        try visit(.damage(Stretch(kind: .payload(frame.header), range: payload)), none)
      }
      position = end
    }
    guard let start = unknown else { return isWhole }
    if isPadded, range.upperBound - start < Int64(LogFormat.blockBytes), start > range.lowerBound,
      let rest = try self.window.bytes(
        at: start, count: Int(range.upperBound - start), from: &source), rest.isZero
    {
      return isWhole
    }
    try visit(.damage(Stretch(kind: .unknown, range: start..<range.upperBound)), none)
    return false
  }

  /// The next place where a frame may begin.
  private func nextMagic(
    after position: Int64, below: Int64, _ source: inout some SegmentSource
  ) throws(MemQError) -> Int64 {
    var position = position + 1
    while position + 4 <= below {
      let count = Int(min(below - position, 256 << 10))
      guard let bytes = try self.window.bytes(at: position, count: count, from: &source) else {
        return below
      }
      var offset = 0
      while offset + 4 <= bytes.count {
        if bytes[offset] == 0x4D, bytes.integer(at: offset, as: UInt32.self) == FrameHeader.magic {
          return position + Int64(offset)
        }
        offset += 1
      }
      position += Int64(max(1, count - 3))
    }
    return below
  }
}

extension FrameType {
  /// Whether the payload is records of a partition.
  var carriesRecords: Bool { self.isBatch }
}
