// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension Recovery {
  /// What stands for a tail's damaged head.
  enum Base {
    /// Its checkpoint, which holds though the group does not.
    case checkpoint(Checkpoint, in: SegmentSequence, end: Int64)
    /// The segments from the newest checkpoint that holds, or from the log's very beginning, oldest first, and where each ends.
    case segments([(segment: Found, end: Int64)])

    /// The segment of the newest checkpoint that holds; nil: the tail is the first of all.
    var checkpointSegment: SegmentSequence? {
      switch self {
      case .checkpoint(_, let segment, _): segment
      case .segments(let segments): segments.first?.segment.sequence
      }
    }
  }

  /// Nil: the segments before are gone, and with them what the head stated.
  mutating func base(of tail: Found) throws(MemQError) -> Base? {
    if let (checkpoint, end) = try self.looseCheckpoint(of: tail) {
      return .checkpoint(checkpoint, in: tail.sequence, end: end)
    }
    var segments: [(segment: Found, end: Int64)] = []
    var first = tail
    while let found = self.found.first(where: { $0.sequence == first.header.previousEnd.segment }) {
      segments.insert((found, first.header.previousEnd.position), at: 0)
      if try self.hasWholeHead(found) { return .segments(segments) }
      first = found
    }
    // The first segment of a volume begins from nothing. A header that was made up says nothing of what was before.
    let isFirst =
      first.header.previousEnd.segment == .none
      && !self.headerless.contains { $0.sequence == first.sequence }
    return isFirst ? .segments(segments) : nil
  }

  /// Applies what stands for the tail's head.
  ///
  /// - Returns: where that ends, where it can be told.
  mutating func replayBase(of tail: Found) throws(MemQError) -> Int64? {
    switch self.base {
    case nil: return nil
    case .checkpoint(let checkpoint, _, let end):
      self.state.load(checkpoint, isHead: true)
      return end
    case .segments(let segments):
      var headEnd = try self.headEnd(of: segments.first?.segment ?? tail, after: GroupNumber(0))
      for (index, (segment, end)) in segments.enumerated() {
        let (salvaged, _) = try self.salvageTail(
          segment, limit: end, mark: .start, headEnd: headEnd)
        self.state.segments.append(
          Checkpoint.Segment(sequence: segment.sequence, slot: segment.header.slot, end: end))
        let next = index + 1 < segments.count ? segments[index + 1].segment : tail
        headEnd = try self.headEnd(of: next, after: salvaged.lastGroup?.number)
      }
      return headEnd
    }
  }

  /// The checkpoint of a head that does not hold as a group, where all its frames do, and where the head ends.
  private mutating func looseCheckpoint(
    of tail: Found
  ) throws(MemQError) -> (checkpoint: Checkpoint, end: Int64)? {
    var parts: [[UInt8]] = []
    var end = LogFormat.firstGroupPosition
    guard let limit = try self.firstGroup(of: tail, from: end)?.end else { return nil }
    _ = try SegmentSalvage.run(
      tail.header, tail.checksum, limit: limit, mark: .start, from: &self.source
    ) { (piece, bytes) throws(MemQError) in
      guard case .frame(let frame, holds: true) = piece, frame.header.type == .checkpoint else {
        return
      }
      parts.append(Array(bytes.part(frame.payload)))
      end = frame.position + Int64(FrameHeader.byteCount + frame.payload.count)
    }
    guard !parts.isEmpty, let checkpoint = try? Checkpoint(parts: parts) else { return nil }
    return (checkpoint, Int64(LogFormat.blocks(Int(end))))
  }

  /// Where a damaged head ends, of which only the checkpoint's frames are part. Nil: it can't be told.
  ///
  /// - Parameter last: the last group's number in the segment before.
  private mutating func headEnd(
    of segment: Found, after last: GroupNumber?
  ) throws(MemQError) -> Int64? {
    let first = LogFormat.firstGroupPosition
    guard let group = try self.firstGroup(of: segment, from: first) else { return nil }
    if group.position == first { return group.header.kind == .head ? group.end : nil }
    // The head and nothing else stood before it.
    return group.header.number == last?.next.next ? group.position : nil
  }

  /// The first group whose header holds.
  private mutating func firstGroup(
    of segment: Found, from start: Int64
  ) throws(MemQError) -> (header: GroupHeader, position: Int64, end: Int64)? {
    let bytes = UnsafeMutableRawBufferPointer.allocate(
      byteCount: GroupHeader.byteCount, alignment: 16)
    defer { bytes.deallocate() }
    var position = start
    while position < self.identity.segmentBytes - Int64(LogFormat.blockBytes) {
      try self.source.read(segment.header.slot, at: position, into: bytes)
      if let (group, _) = GroupHeader.decode(
        UnsafeRawBufferPointer(bytes), at: position, volume: self.identity.volume),
        group.segment == segment.sequence, group.byteCount > 0
      {
        return (group, position, position == start ? position + Int64(group.byteCount) : position)
      }
      position += Int64(LogFormat.blockBytes)
    }
    return nil
  }
}
