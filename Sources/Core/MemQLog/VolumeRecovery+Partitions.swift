// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension Recovery {
  /// Checks that each partition's index reaches its end, and reads what its owner needs.
  mutating func finishPartitions() throws(MemQError) {
    var logs = self.state.logs
    for index in logs.indices {
      logs[index].accepted = logs[index].laid
      var damage = self.notes.damage(of: logs[index])
      if let gap = self.gap(logs[index]), gap.from < damage?.from ?? .max { damage = gap }
      do throws(MemQError) {
        if let damage { throw damage.error }
        try self.finish(&logs[index])
      } catch {
        // Damage of one partition is no reason to refuse the others.
        guard error.code == .logCorrupt else { throw error }
        logs[index].isDamaged = true
        var damaged = self.describe(logs[index], producers: [])
        damaged.damage = error
        // Where only the producers' state is damaged, all records are whole.
        damaged.damagedFrom = max(damage?.from ?? logs[index].laid.end, logs[index].laid.logStart)
        self.result.partitions.append(damaged)
      }
    }
    self.result.partitions.sort { $0.partition < $1.partition }
    self.result.logs = logs
  }

  private mutating func finish(_ log: inout PartitionLog) throws(MemQError) {
    if let place = log.snapshotPlace {
      do throws(MemQError) {
        log.snapshot = PartitionLog.Snapshot(
          bytes: try self.readSnapshot(log, place), end: place.end)
      } catch {
        guard self.salvage == .acceptLoss, error.code == .logCorrupt else { throw error }
        // The producers of what is left count; older ones are forgotten.
        log.snapshotPlace = nil
      }
    }
    let producers = try self.summaries(log, from: Self.producerSnapshotEnd(log))
    self.result.partitions.append(self.describe(log, producers: producers))
  }

  /// Without a snapshot every batch that is left counts, those below the log start too: their producers may still write.
  private static func producerSnapshotEnd(_ log: PartitionLog) -> Offset {
    log.snapshotPlace?.end
      ?? min(log.laid.logStart, log.spans.first?.baseOffset ?? log.laid.logStart)
  }

  private func describe(
    _ log: PartitionLog, producers: [BatchSummary]
  ) -> RecoveredPartition {
    RecoveredPartition(
      partition: log.partition, logStart: log.laid.logStart, end: log.laid.end,
      localStart: log.localStart, epochs: log.laid.epochs,
      highWatermark: min(log.highWatermark, log.laid.end), uploadedOffset: log.uploadedOffset,
      producerSnapshot: log.snapshot?.bytes, producerSnapshotEnd: Self.producerSnapshotEnd(log),
      batchesAfterSnapshot: producers)
  }

  private mutating func readSnapshot(
    _ log: PartitionLog, _ snapshot: SnapshotPlace
  ) throws(MemQError) -> [UInt8] {
    let segment = self.result.segments.first { $0.sequence == snapshot.place.segment }
    let whole = FrameHeader.byteCount + snapshot.payloadBytes
    guard let segment, snapshot.place.position + Int64(whole) <= self.identity.segmentBytes else {
      throw .corrupt(snapshot.place, "a producer snapshot's segment is missing")
    }
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: whole, alignment: 16)
    defer { bytes.deallocate() }
    try self.source.read(segment.slot, at: snapshot.place.position, into: bytes)
    let seal = HeaderSeal(volume: self.identity.volume, segment: snapshot.place.segment)
    let view = UnsafeRawBufferPointer(bytes)
    guard
      let frame = FrameWalk.frame(
        in: view, at: 0, position: snapshot.place.position, seal: seal),
      frame.header.type == .producerSnapshot, frame.header.log == log.id,
      frame.header.verifies(view.part(frame.payload))
    else { throw .corrupt(snapshot.place, "a producer snapshot is damaged") }
    return Array(view.part(frame.payload))
  }

  /// The batches with a producer id from `from` on: older segments' read by their runs, the tail's kept from its replay.
  private mutating func summaries(
    _ log: PartitionLog, from: Offset
  ) throws(MemQError) -> [BatchSummary] {
    var summaries: [BatchSummary] = []
    for span in log.spans
    where (span.producersEnd ?? from) > from && span.segment != self.result.end.segment {
      summaries += try self.summaries(log, span, from: from)
    }
    summaries += self.state.tailSummaries(of: log.id).filter { $0.endOffset > from }
    return summaries
  }

  private mutating func summaries(
    _ log: PartitionLog, _ span: SegmentSpan, from: Offset
  ) throws(MemQError) -> [BatchSummary] {
    let segment = (self.result.segments + self.result.cold).first {
      $0.sequence == span.segment
    }
    guard let segment else { throw .corrupt(LogPlace(span.segment, 0), "a segment is missing") }
    var runs = span.runs
    if span.isInFooter {
      let file = (self.found + self.foundCold).first {
        $0.sequence == span.segment && $0.header.slot == segment.slot
      }
      guard let header = file?.header else {
        throw .corrupt(LogPlace(span.segment, 0), "a segment is missing")
      }
      let footer = try SealedSegment.footer(of: header, end: segment.end, from: &self.source)
      runs = footer?.footer.runs(of: log.id) ?? []
    }
    let from = max(from, span.baseOffset)
    let seal = HeaderSeal(volume: self.identity.volume, segment: span.segment)
    var summaries: [BatchSummary] = []
    for run in runs
    where run.hasProducers && run.endOffset > from && run.baseOffset < span.endOffset {
      let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: run.byteCount, alignment: 16)
      defer { bytes.deallocate() }
      try self.source.read(segment.slot, at: run.position, into: bytes)
      let view = UnsafeRawBufferPointer(bytes)
      let frames = try FrameWalk.batches(
        in: view, run: run, log: log.id, seal: seal, from: from, below: span.endOffset)
      for frame in frames {
        let summary = frame.header.summary(of: view.part(frame.payload))
        if summary.producerID.rawValue >= 0 { summaries.append(summary) }
      }
    }
    return summaries
  }
}

/// Reads a sealed segment's footer by its trailer.
public enum SealedSegment {
  /// Nil when trailer or footer do not hold: the caller reads the segment through instead.
  ///
  /// - Parameter end: where the segment's groups end, as the log states.
  static func footer(
    of header: SegmentHeader, end: Int64, from source: inout some SegmentSource
  ) throws(MemQError) -> (footer: Footer, place: FooterPlace)? {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    try source.read(
      header.slot, at: header.segmentBytes - Int64(LogFormat.blockBytes), into: block)
    guard let trailer = SegmentTrailer.decode(UnsafeRawBufferPointer(block)),
      trailer.volume == header.volume, trailer.sequence == header.sequence, trailer.end == end,
      trailer.footerPosition >= LogFormat.firstGroupPosition, trailer.footerBytes > 0
    else { return nil }
    let place = FooterPlace(position: trailer.footerPosition, byteCount: Int(trailer.footerBytes))
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: place.byteCount, alignment: 16)
    defer { bytes.deallocate() }
    try source.read(header.slot, at: place.position, into: bytes)
    let seal = HeaderSeal(volume: header.volume, segment: header.sequence)
    return Self.footer(in: UnsafeRawBufferPointer(bytes), at: place, seal: seal).map { ($0, place) }
  }

  /// The footer whose group `bytes` are; nil when it does not hold.
  public static func footer(
    in bytes: UnsafeRawBufferPointer, at place: FooterPlace, seal: HeaderSeal
  ) -> Footer? {
    guard let (group, _) = GroupHeader.decode(bytes, at: place.position, volume: seal.volume),
      group.kind == .seal, group.byteCount == bytes.count,
      case .success(let frames) = FrameWalk.group(
        in: bytes, header: group, position: place.position, seal: seal,
        previousChecksum: group.previousChecksum)
    else { return nil }
    let parts = frames.filter { $0.header.type == .footer }.map { Array(bytes.part($0.payload)) }
    return try? Footer(parts: parts)
  }
}
