// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// A sealed segment's footer and trailer, made anew from its frames. Nothing else refers to either: writing them in place, in
/// part or twice, loses nothing.
public struct RebuiltFooter: Sendable {
  /// What goes where, in the order of writing, each to be synced before the next.
  public var writes: [(position: Int64, bytes: [UInt8])]

  /// Reads the segment through.
  ///
  /// - Parameters:
  ///   - end: where the segment's groups end.
  ///   - runBytesMax: as `LogConfiguration.runBytesMax`.
  /// - Returns: nil when frames before the footer do not hold, or the footer had another size.
  public static func make(
    _ slot: SegmentSlot, end: Int64, from source: inout some SegmentSource,
    runBytesMax: Int = LogConfiguration().runBytesMax
  ) throws(MemQError) -> RebuiltFooter? {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    try source.read(slot, at: 0, into: block)
    guard let (header, checksum) = SegmentHeader.decode(UnsafeRawBufferPointer(block)) else {
      return nil
    }
    let trailerPosition = header.segmentBytes - Int64(LogFormat.blockBytes)
    try source.read(slot, at: trailerPosition, into: block)
    let trailer = SegmentTrailer.decode(UnsafeRawBufferPointer(block))
    var index = SegmentIndexer(segment: header.sequence, runBytesMax: runBytesMax)
    var last: (group: GroupHeader, position: Int64)?
    var before: (group: GroupHeader, checksum: UInt32)?
    let scan = try SegmentScan.run(
      header, checksum, limit: end, probes: false, from: &source
    ) { (group, position, frames, bytes) throws(MemQError) in
      if let last { before = (last.group, group.previousChecksum) }
      last = (group, position)
      for frame in frames { index.add(frame, bytes.part(frame.payload)) }
    }
    guard let last else { return nil }
    if scan.damage == nil {
      guard last.group.kind == .seal, let before else { return nil }
      return Self.make(
        header, index, after: before.group, before.checksum, last.group, last.position..<end)
    }
    // The footer's group is the last one, and where it begins its own header or the trailer says.
    try source.read(slot, at: scan.end, into: block)
    let group = GroupHeader.decode(
      UnsafeRawBufferPointer(block), at: scan.end, volume: header.volume)?.header
    let isSeal = group?.kind == .seal && group?.segment == header.sequence
    let isNamed =
      trailer?.sequence == header.sequence && trailer?.volume == header.volume
      && trailer?.footerPosition == scan.end && trailer?.end == end
    guard isSeal || isNamed else { return nil }
    return Self.make(
      header, index, after: last.group, scan.checksum, isSeal ? group : nil, scan.end..<end)
  }

  private static func make(
    _ header: SegmentHeader, _ index: SegmentIndexer, after last: GroupHeader,
    _ previousChecksum: UInt32, _ group: GroupHeader?, _ range: Range<Int64>
  ) -> RebuiltFooter? {
    let entries = index.entries.map { entry in
      Footer.Entry(
        log: entry.log, partition: entry.partition, cutTo: entry.span.cutTo,
        baseOffset: entry.span.baseOffset, runs: entry.span.runs)
    }
    let payloads = Footer(entries: entries.sorted { $0.log < $1.log }).encoded()
    let content = payloads.reduce(GroupHeader.byteCount) { $0 + FrameHeader.byteCount + $1.count }
    guard LogFormat.blocks(content) == range.count else { return nil }
    let seal = HeaderSeal(volume: header.volume, segment: header.sequence)
    var bytes = [UInt8](repeating: 0, count: range.count)
    bytes.withUnsafeMutableBytes { bytes in
      var offset = GroupHeader.byteCount
      var previous = previousChecksum
      for payload in payloads {
        var frame = FrameHeader.ofVolume(.footer)
        frame.payloadBytes = payload.count
        frame.payloadChecksum = CRC32C.checksum(payload)
        frame.previousChecksum = previous
        let target = bytes.part(offset..<(offset + FrameHeader.byteCount))
        previous = frame.encode(into: target, at: range.lowerBound + Int64(offset), seal: seal)
        offset += FrameHeader.byteCount
        bytes.part(offset..<(offset + payload.count)).copyBytes(from: payload)
        offset += payload.count
      }
      let rebuilt = GroupHeader(
        kind: .seal, byteCount: range.count, contentBytes: content, frameCount: payloads.count,
        number: group?.number ?? last.number.next, segment: header.sequence,
        // A later head says that all of it is durable; a cold segment has no marks.
        durable: group?.durable
          ?? (header.kind == .cold ? .start : LogPlace(header.sequence, range.lowerBound)),
        writeTime: group?.writeTime ?? last.writeTime,
        openCount: group?.openCount ?? last.openCount, lastFrameChecksum: previous,
        previousChecksum: previousChecksum)
      rebuilt.encode(
        into: bytes.part(0..<GroupHeader.byteCount), at: range.lowerBound, seal: seal)
    }
    let trailer = SegmentTrailer(
      volume: header.volume, sequence: header.sequence, footerPosition: range.lowerBound,
      footerBytes: Int64(range.count))
    var block = [UInt8](repeating: 0, count: LogFormat.blockBytes)
    block.withUnsafeMutableBytes { trailer.encode(into: $0) }
    return RebuiltFooter(
      writes: [
        (range.lowerBound, bytes), (header.segmentBytes - Int64(LogFormat.blockBytes), block),
      ])
  }
}
