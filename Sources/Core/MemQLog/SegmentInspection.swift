// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One frame, for people.
public struct FrameDescription: Hashable, Sendable {
  public var place: LogPlace
  public var group: GroupNumber
  public var header: FrameHeader
  /// Header and payload.
  public var byteCount: Int
}

/// What reading one segment through found.
public struct SegmentInspection: Hashable, Sendable {
  public var header: SegmentHeader
  /// After the last group that holds.
  public var end: Int64
  public var groups: Int
  public var frames: Int
  /// What does not hold at `end`, with its place; nil when the segment holds to its very end. In the active segment this is simply
  /// where the log ends.
  public var damage: MemQError?
  /// The highest durable mark found. Damage below it is corruption, at or above it the log's end.
  public var durable: LogPlace
  /// The segment was sealed and its footer holds.
  public var hasFooter: Bool

  public var isCorrupt: Bool {
    self.damage != nil && LogPlace(self.header.sequence, self.end) < self.durable
  }
}

/// Reads segments through without owning the volume: for dumps, scrubbing and tests.
public enum SegmentInspector {
  /// The segment a file holds; nil when its header does not hold (a file never used, or damage).
  public static func header(
    _ slot: SegmentSlot, from source: inout some SegmentSource
  ) throws(MemQError) -> SegmentHeader? {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    try source.read(slot, at: 0, into: block)
    return SegmentHeader.decode(UnsafeRawBufferPointer(block))?.header
  }

  /// Reads every group and verifies every byte up to the first that does not hold.
  ///
  /// - Parameters:
  ///   - end: where the segment's groups end, when the log states it; nothing after is looked at.
  ///   - body: each frame with its payload; false ends the walk.
  /// - Throws: `.logCorrupt` when the header block does not hold.
  public static func inspect(
    _ slot: SegmentSlot, end: Int64? = nil, from source: inout some SegmentSource,
    body: (FrameDescription, UnsafeRawBufferPointer) -> Bool = { _, _ in true }
  ) throws(MemQError) -> SegmentInspection {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    try source.read(slot, at: 0, into: block)
    guard let (header, checksum) = SegmentHeader.decode(UnsafeRawBufferPointer(block)) else {
      throw MemQError(
        .logCorrupt, "the segment header is damaged or blank", subject: "segment file \(slot)")
    }
    var groups = 0
    var frames = 0
    var goesOn = true
    let scan = try SegmentScan.run(
      header, checksum, limit: end, probes: end == nil, from: &source
    ) { (group, _, walked, bytes) throws(MemQError) in
      groups += 1
      frames += walked.count
      for frame in walked where goesOn {
        let description = FrameDescription(
          place: LogPlace(header.sequence, frame.position), group: group.number,
          header: frame.header, byteCount: FrameHeader.byteCount + frame.header.payloadBytes)
        goesOn = body(description, bytes.part(frame.payload))
      }
    }
    let footer = try SealedSegment.footer(of: header, end: scan.end, from: &source)
    let damage = scan.damage.map {
      MemQError.corrupt(LogPlace(header.sequence, $0.position), $0.what)
    }
    return SegmentInspection(
      header: header, end: scan.end, groups: groups, frames: frames, damage: damage,
      durable: scan.mark, hasFooter: footer != nil)
  }
}
