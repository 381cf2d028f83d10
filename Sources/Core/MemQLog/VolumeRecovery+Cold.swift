// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension Recovery {
  /// Puts what the cold segments hold before what the hot ones have of each log.
  mutating func loadCold() throws(MemQError) {
    var spans: [LogID: [SegmentSpan]] = [:]
    let segments = self.state.segments.filter { $0.state == .cold }
    for segment in segments.sorted(by: { $0.sequence < $1.sequence }) {
      var live = LiveSegment(sequence: segment.sequence, slot: segment.slot, end: segment.end)
      var lost: [LostFrames] = []
      let entries = try self.coldIndex(segment, &live, &lost)
      self.note(lost, in: spans)
      for (log, found) in entries {
        guard let index = self.state.index(of: log) else { continue }
        live.logs.append(index)
        let (coldEnd, cuts) = (self.state.logs[index].coldEnd, self.state.logs[index].coldCuts)
        for span in found {
          var end = coldEnd
          if let cut = cuts.end(in: segment.sequence),
            !self.mutations.contains(.ignoresColdCuts)
          {
            end = min(end, cut)
          }
          guard var span = span.part(from: span.baseOffset, to: end) else { continue }
          if live.footer != nil { span.moveToFooter() }
          spans[log] = Self.overlay(spans[log] ?? [], with: span)
        }
      }
      live.logs.sort()
      self.result.cold.append(live)
    }
    let (isSealedUnknown, unnamed) = (self.notes.isSealedUnknown, self.unnamedCold)
    self.state.withLogs { logs in
      for index in logs.indices {
        let log = logs[index].id
        Self.join(&logs[index], spans[log] ?? []) { gap in
          isSealedUnknown || unnamed.contains { $0.holds(gap, of: log) }
        }
      }
    }
  }

  /// What older segments have of lost offsets is what these replaced, maybe truncated since: it must not pass for whole.
  private mutating func note(_ lost: [LostFrames], in older: [LogID: [SegmentSpan]]) {
    for lost in lost {
      for (log, spans) in older {
        guard let offsets = lost.offsets(of: log) else { continue }
        for span in spans
        where span.hasRecords && offsets.overlaps(span.baseOffset..<span.endOffset) {
          self.notes.note(
            log, from: max(offsets.lowerBound, span.baseOffset),
            to: min(offsets.upperBound, span.endOffset), in: span.segment, lost.error)
        }
      }
    }
  }

  private mutating func coldIndex(
    _ segment: Checkpoint.Segment, _ live: inout LiveSegment, _ lost: inout [LostFrames]
  ) throws(MemQError) -> [(log: LogID, spans: [SegmentSpan])] {
    let found = try Self.file(of: segment, in: self.foundCold)
    if let (footer, place) = try SealedSegment.footer(
      of: found.header, end: segment.end, from: &self.source)
    {
      live.footer = place
      return footer.entries.map {
        ($0.log, SegmentSpan.cold($0.runs, segment: segment.sequence))
      }
    }
    self.result.segmentsReadThrough += 1
    var index = SegmentIndexer(segment: segment.sequence, runBytesMax: self.runBytesMax)
    let scan = try SegmentScan.run(
      found.header, found.checksum, limit: segment.end, probes: false, from: &self.source
    ) { (_, _, frames, bytes) throws(MemQError) in
      for frame in frames { index.add(frame, bytes.part(frame.payload)) }
    }
    if let damage = scan.damage {
      guard self.salvage != .refuse else {
        throw .corrupt(LogPlace(segment.sequence, damage.position), damage.what)
      }
      index = try self.salvageIndex(found, segment, lost: { lost.append($0) })
    }
    return index.entries.map {
      ($0.log, SegmentSpan.cold($0.span.runs, segment: segment.sequence))
    }
  }

  /// A younger copy counts instead of what older segments have of the same offsets.
  private static func overlay(_ spans: [SegmentSpan], with new: SegmentSpan) -> [SegmentSpan] {
    var result: [SegmentSpan] = []
    for span in spans { result += span.rest(from: span.baseOffset, to: new.baseOffset, of: new) }
    result.append(new)
    for span in spans { result += span.rest(from: new.endOffset, to: span.endOffset, of: new) }
    return result
  }

  /// What was carried counts instead of the originals. Cold records that don't reach up to the hot ones were released before
  /// the segments in between went.
  ///
  /// - Parameter mayBeLost: whether frames may be gone there: where nothing may have been released yet, what is below such a gap stays.
  private static func join(
    _ log: inout PartitionLog, _ cold: [SegmentSpan], mayBeLost: (Range<Offset>) -> Bool
  ) {
    guard !cold.isEmpty || log.coldEnd > .zero else { return }
    let coldEnd = log.coldEnd
    let hot = log.spans.compactMap { span in
      guard span.hasRecords else { return span }
      return span.part(from: coldEnd, to: span.endOffset)
    }
    var end = hot.first { $0.hasRecords }?.baseOffset ?? log.laid.end
    var kept: [SegmentSpan] = []
    let (logStart, known) = (log.laid.logStart, log.snapshotPlace?.end ?? .zero)
    let releasedBelow = max(logStart, log.uploadedOffset)
    for span in cold.reversed() {
      // A log that was emptied by a log start above its end goes on there: what it lacks in between never was.
      guard
        span.endOffset == end || span.endOffset <= logStart
          || (span.endOffset >= releasedBelow && span.endOffset < end
            && mayBeLost(span.endOffset..<end))
      else { break }
      end = span.baseOffset
      kept.append(span)
    }
    // Below the log start only what no snapshot has the producers of.
    while let first = kept.last, first.endOffset <= logStart, first.producersEnd ?? .zero <= known {
      kept.removeLast()
    }
    log.spans = SpanList(kept.reversed() + hot)
  }
}
