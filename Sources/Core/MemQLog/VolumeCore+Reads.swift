// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where the bytes of a read are.
public enum ReadPlan: Hashable, Sendable {
  /// Nothing stands between `from` and `below`.
  case nothing
  /// These runs of one segment, in order.
  case runs(SegmentRuns)
  /// The segment's footer knows: load it and ask `Footer.plan(_:)`.
  case footer(FooterRead)
}

/// Runs of one segment that a read wants.
public struct SegmentRuns: Hashable, Sendable {
  public var slot: SegmentSlot
  public var segment: SegmentSequence
  public var log: LogID
  /// The first holds `from`; never empty.
  public var runs: [RunEntry]
  public var from: Offset
  /// Exclusive: batches that end above stay out.
  public var below: Offset
}

/// A sealed segment's part of a read.
public struct FooterRead: Hashable, Sendable {
  public var slot: SegmentSlot
  public var segment: SegmentSequence
  public var place: FooterPlace
  public var log: LogID
  public var from: Offset
  public var below: Offset
  public var maxBytes: Int
}

extension ReadPlan {
  /// The segment it reads; nil where there is nothing to read.
  public var place: (slot: SegmentSlot, segment: SegmentSequence)? {
    switch self {
    case .nothing: nil
    case .runs(let runs): (runs.slot, runs.segment)
    case .footer(let read): (read.slot, read.segment)
    }
  }

  /// Where the read begins.
  public var from: Offset? {
    switch self {
    case .nothing: nil
    case .runs(let runs): runs.from
    case .footer(let read): read.from
    }
  }
}

extension VolumeCore {
  /// Whether the segment is one of the two youngest hot ones: what reads there keeps up with the log. Cold ones, which take their
  /// sequences from the same count, never are.
  public func isNearEnd(_ segment: SegmentSequence) -> Bool {
    self.segments.suffix(2).contains { $0.sequence == segment }
  }

  /// The partition's state with everything accepted; nil when it has no log here.
  public func state(of partition: TopicPartition) -> PartitionState? {
    guard let index = self.byName[partition], let log = self.logs[index] else { return nil }
    return PartitionState(
      logStart: log.accepted.logStart, end: log.accepted.end, epochs: log.accepted.epochs,
      highWatermark: log.highWatermark, uploadedOffset: log.uploadedOffset,
      localStart: log.localStart, localBytes: log.localBytes)
  }

  /// From the local start to the end, exclusive, with everything accepted; nil when it has no log here.
  public func offsets(of partition: TopicPartition) -> Range<Offset>? {
    guard let index = self.byName[partition], let log = self.logs[index] else { return nil }
    return log.localStart..<log.accepted.end
  }

  /// Finds the bytes of batches from the one that holds `from`, below `below`, about `maxBytes` (at least one batch) of one
  /// segment. Batches that have no place yet aren't found: the driver keeps those at hand.
  ///
  /// - Throws: `.partitionNotFound`; `.offsetOutOfRange` below the local start or above the end.
  public func locate(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) throws(MemQError) -> ReadPlan {
    guard let index = self.byName[partition], let log = self.logs[index] else {
      throw MemQError(
        .partitionNotFound, "the partition has no log on this volume",
        subject: partition.description)
    }
    let localStart = log.localStart
    guard from >= localStart, from <= log.accepted.end else {
      throw MemQError(
        .offsetOutOfRange,
        "this volume has offsets \(localStart) to \(log.accepted.end), exclusive",
        subject: partition.description, limit: localStart.rawValue, actual: from.rawValue)
    }
    let below = min(below, log.accepted.end)
    guard from < below, let span = log.spans.first(endingAbove: from), span.baseOffset < below
    else {
      return .nothing
    }
    return self.plan(
      log, span, from: max(from, span.baseOffset), below: min(below, span.endOffset), maxBytes)
  }

  private func plan(
    _ log: PartitionLog, _ span: SegmentSpan, from: Offset, below: Offset, _ maxBytes: Int
  ) -> ReadPlan {
    let found =
      self.segments.last { $0.sequence == span.segment }
      ?? self.cold.first { $0.sequence == span.segment }
    guard let segment = found else {
      preconditionFailure("a span without its segment")
    }
    if span.isInFooter, let place = segment.footer {
      return .footer(
        FooterRead(
          slot: segment.slot, segment: segment.sequence, place: place, log: log.id, from: from,
          below: below, maxBytes: maxBytes))
    }
    let runs = RunEntry.select(span.runs, from: from, below: below, maxBytes: maxBytes)
    guard !runs.isEmpty else { return .nothing }
    return .runs(
      SegmentRuns(
        slot: segment.slot, segment: segment.sequence, log: log.id, runs: runs, from: from,
        below: below))
  }

  /// Where to begin to look for the first batch whose max timestamp is at or above `timestamp`: the first offset of the first
  /// span or run that may hold it, with where that one ends. Nil: no placed batch is that young.
  public func locate(
    _ partition: TopicPartition, timestamp: Timestamp
  ) -> Range<Offset>? {
    guard let index = self.byName[partition], let log = self.logs[index] else { return nil }
    let start = log.localStart
    var from = start
    while let span = log.spans.first(youngerThan: timestamp, endingAbove: from) {
      let run = span.runs.first { $0.maxTimestamp >= timestamp && $0.endOffset > start }
      let base = max(start, run?.baseOffset ?? span.baseOffset)
      let end = min(run?.endOffset ?? span.endOffset, log.accepted.end)
      if base < end { return base..<end }
      from = span.endOffset
    }
    return nil
  }

  /// The lowest offset that retention by size and age keeps, whole segments at a time, and by age also run by run in the
  /// segment that is being written, as a quiet volume may not fill that for weeks: the log start to set. Never above the end
  /// of what has its place. Nil: nothing goes. Where this volume's copy begins says nothing of that: what is below may
  /// stand in the object tier.
  public func retentionStart(
    _ partition: TopicPartition, bytes: Int64?, appendedSince: Timestamp?
  ) -> Offset? {
    guard let index = self.byName[partition], let log = self.logs[index] else { return nil }
    var start: Offset?
    var remaining = log.localBytes
    for span in log.spans where span.hasRecords {
      guard span.segment != self.active?.sequence else {
        let old = appendedSince.map { since in span.runs.prefix { $0.maxAppendTime < since } }
        start = old?.last?.endOffset ?? start
        break
      }
      let isOver = bytes.map { remaining - span.byteCount >= $0 } ?? false
      let isOld = appendedSince.map { span.maxAppendTime < $0 } ?? false
      guard isOver || isOld else { break }
      remaining -= span.byteCount
      start = span.endOffset
    }
    return start.map { min(max($0, log.accepted.logStart), log.accepted.end) }
  }
}

extension RunEntry {
  /// From the run that holds `from`: runs that begin below `below`, until they have `maxBytes`; at least one.
  static func select(
    _ runs: [RunEntry], from: Offset, below: Offset, maxBytes: Int
  ) -> [RunEntry] {
    var low = 0
    var high = runs.count
    while low < high {
      let middle = (low + high) / 2
      if runs[middle].endOffset <= from { low = middle + 1 } else { high = middle }
    }
    var selected: [RunEntry] = []
    var bytes = 0
    while low < runs.count, runs[low].baseOffset < below, bytes < maxBytes || selected.isEmpty {
      var run = runs[low]
      run.endOffset = min(run.endOffset, below)
      bytes += run.byteCount
      selected.append(run)
      low += 1
    }
    return selected
  }
}

extension Footer {
  /// Answers a footer read; nil when the footer does not hold the offsets, which is damage.
  public func plan(_ read: FooterRead) -> SegmentRuns? {
    let runs = RunEntry.select(
      self.runs(of: read.log), from: read.from, below: read.below, maxBytes: read.maxBytes)
    guard !runs.isEmpty else { return nil }
    return SegmentRuns(
      slot: read.slot, segment: read.segment, log: read.log, runs: runs, from: read.from,
      below: read.below)
  }
}
