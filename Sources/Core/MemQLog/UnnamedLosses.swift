// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What may be gone of a volume without anything left that names it. Kept in the volume file until it is settled, as the damage that
/// tells of it may be gone sooner.
public struct UnnamedLosses: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8

  public init(rawValue: UInt8) { self.rawValue = rawValue }

  /// Whole partition logs that were opened in what is damaged: who knows which partitions are to be here must not take one that is
  /// missing for one that never was.
  public static let partitions = UnnamedLosses(rawValue: 1)
  /// The frame that made a cold segment part of the log: its file looks like a free one.
  public static let coldSegments = UnnamedLosses(rawValue: 2)
}

/// A cold segment's file that nothing names.
struct UnnamedCold {
  var slot: SegmentSlot
  /// What it has of each log.
  var offsets: [LogID: [Range<Offset>]] = [:]

  func holds(_ lost: Range<Offset>, of log: LogID) -> Bool {
    self.offsets[log]?.contains { $0.overlaps(lost) } ?? false
  }
}

extension Recovery {
  /// Looks at what the cold segments hold that nothing names, where the frame that named one may be gone. Records that a log lacks and
  /// that stand there were not released: they are lost with that frame.
  mutating func loadUnnamed() throws(MemQError) {
    guard self.result.unnamed.contains(.coldSegments) else { return }
    for found in self.foundCold {
      let isNamed = self.state.segments.contains {
        $0.sequence == found.sequence && $0.slot == found.header.slot
      }
      guard !isNamed else { continue }
      var unnamed = UnnamedCold(slot: found.header.slot)
      for (log, runs) in try self.unnamedIndex(found) {
        for run in runs {
          let last = (unnamed.offsets[log]?.count ?? 0) - 1
          if last >= 0, unnamed.offsets[log]![last].upperBound == run.baseOffset {
            let base = unnamed.offsets[log]![last].lowerBound
            unnamed.offsets[log]![last] = base..<run.endOffset
          } else {
            unnamed.offsets[log, default: []].append(run.baseOffset..<run.endOffset)
          }
        }
      }
      self.unnamedCold.append(unnamed)
    }
  }

  private mutating func unnamedIndex(
    _ found: Found
  ) throws(MemQError) -> [(log: LogID, runs: [RunEntry])] {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    let position = found.header.segmentBytes - Int64(LogFormat.blockBytes)
    try self.source.read(found.header.slot, at: position, into: block)
    if let trailer = SegmentTrailer.decode(UnsafeRawBufferPointer(block)),
      trailer.volume == found.header.volume, trailer.sequence == found.sequence,
      let (footer, _) = try SealedSegment.footer(
        of: found.header, end: trailer.end, from: &self.source)
    {
      return footer.entries.map { ($0.log, $0.runs) }
    }
    // Its end may not hold though it was part of the log: as far as it does.
    var index = SegmentIndexer(segment: found.sequence, runBytesMax: self.runBytesMax)
    _ = try SegmentScan.run(
      found.header, found.checksum, probes: false, from: &self.source
    ) { (_, _, frames, bytes) throws(MemQError) in
      for frame in frames { index.add(frame, bytes.part(frame.payload)) }
    }
    return index.entries.map { ($0.log, $0.span.runs) }
  }

  /// Whether the records stand in a cold segment that nothing names.
  func isUnnamed(_ lost: Range<Offset>, of log: LogID) -> Bool {
    self.unnamedCold.contains { $0.holds(lost, of: log) }
  }

  /// The files that hold what a damaged log may lack: they are not written over.
  mutating func holdUnnamed() -> [SegmentSlot] {
    let damaged = self.result.logs.filter(\.isDamaged)
    let held = self.unnamedCold.filter { file in
      damaged.contains { log in
        log.laid.logStart < log.laid.end && file.holds(log.laid.logStart..<log.laid.end, of: log.id)
      }
    }
    if held.isEmpty { self.result.unnamed.remove(.coldSegments) }
    return held.map(\.slot)
  }
}
