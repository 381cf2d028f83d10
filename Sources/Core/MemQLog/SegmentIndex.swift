// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Frames of one partition's consecutive batches that stand next to each other in a segment: one index entry.
public struct RunEntry: Hashable, Sendable {
  /// Of the first frame's header, from the start of the segment.
  public var position: Int64
  /// Frame headers and payloads.
  public var byteCount: Int
  public var baseOffset: Offset
  /// Exclusive. May stand below the last frame's own end after a truncate: such frames are dead.
  public var endOffset: Offset
  public var maxTimestamp: Timestamp
  public var maxAppendTime: Timestamp
  /// Whether its batches have a producer id: all of them, or none.
  public var hasProducers: Bool

  public init(
    position: Int64, byteCount: Int, baseOffset: Offset, endOffset: Offset, maxTimestamp: Timestamp,
    maxAppendTime: Timestamp, hasProducers: Bool
  ) {
    self.position = position
    self.byteCount = byteCount
    self.baseOffset = baseOffset
    self.endOffset = endOffset
    self.maxTimestamp = maxTimestamp
    self.maxAppendTime = maxAppendTime
    self.hasProducers = hasProducers
  }

  var frameEnd: Int64 { self.position + Int64(self.byteCount) }
}

/// What one partition has in one segment.
struct SegmentSpan: Hashable, Sendable {
  let segment: SegmentSequence
  var baseOffset: Offset
  /// Exclusive; equal to `baseOffset` when only a cut is left.
  var endOffset: Offset
  var maxTimestamp: Timestamp
  var maxAppendTime: Timestamp
  var byteCount: Int64
  /// The exclusive end of the last batch with a producer id; nil: there is none.
  var producersEnd: Offset?
  /// The lowest truncate in this segment: where earlier segments' records of the partition end.
  var cutTo: Offset?
  /// Rising; empty when `isInFooter`.
  var runs: [RunEntry]
  /// The runs are in the segment's footer and are paged in from there.
  var isInFooter: Bool
  /// How many runs the footer has of it, at most.
  var footerRuns = 0

  init(segment: SegmentSequence, at offset: Offset) {
    self.segment = segment
    self.baseOffset = offset
    self.endOffset = offset
    self.maxTimestamp = .none
    self.maxAppendTime = .none
    self.byteCount = 0
    self.producersEnd = nil
    self.cutTo = nil
    self.runs = []
    self.isInFooter = false
  }

  var hasRecords: Bool { self.baseOffset < self.endOffset }
  /// Nothing is left of it.
  var isVoid: Bool { !self.hasRecords && self.cutTo == nil }
  var runCount: Int { self.isInFooter ? self.footerRuns : self.runs.count }

  /// Bytes of its records from `offset` on, to a run's size; of runs that are in the footer by the share of their offsets.
  func bytes(from offset: Offset) -> Int64 {
    guard offset > self.baseOffset else { return self.byteCount }
    guard offset < self.endOffset else { return 0 }
    guard !self.isInFooter else {
      let share = Double(self.endOffset - offset) / Double(self.endOffset - self.baseOffset)
      return Int64(Double(self.byteCount) * share)
    }
    var bytes: Int64 = 0
    for run in self.runs.reversed() {
      if run.endOffset <= offset { break }
      bytes += Int64(run.byteCount)
    }
    return bytes
  }

  /// The footer is durable: the runs are found there.
  mutating func moveToFooter() {
    self.footerRuns = self.runs.count
    self.runs = []
    self.isInFooter = true
  }

  /// What is left of it between these offsets, or nil. Its bytes and runs are those of the runs that reach into it, or, where only
  /// the footer knows these, still all: never less than there are.
  func part(from start: Offset, to end: Offset) -> SegmentSpan? {
    let (start, end) = (max(start, self.baseOffset), min(end, self.endOffset))
    guard start < end else { return nil }
    guard start > self.baseOffset || end < self.endOffset else { return self }
    var part = self
    part.baseOffset = start
    part.endOffset = end
    part.producersEnd = self.producersEnd.flatMap { $0 > start ? min($0, end) : nil }
    guard !self.isInFooter else { return part }
    part.runs = self.runs.filter { $0.endOffset > start && $0.baseOffset < end }
    part.byteCount = part.runs.reduce(0) { $0 + Int64($1.byteCount) }
    return part
  }

  /// As `part`, where `moved` is what a carry took of it: the bytes that are left are known then.
  func rest(from start: Offset, to end: Offset, of moved: SegmentSpan) -> [SegmentSpan] {
    guard var rest = self.part(from: start, to: end) else { return [] }
    if rest.isInFooter, rest.baseOffset > self.baseOffset || rest.endOffset < self.endOffset {
      rest.byteCount = max(0, self.byteCount - moved.byteCount)
      rest.footerRuns = max(1, self.footerRuns - moved.footerRuns)
    }
    return [rest]
  }

  mutating func add(_ run: RunEntry, joinsBelow runBytesMax: Int) {
    if !self.hasRecords { self.baseOffset = run.baseOffset }
    self.endOffset = run.endOffset
    self.maxTimestamp = max(self.maxTimestamp, run.maxTimestamp)
    self.maxAppendTime = max(self.maxAppendTime, run.maxAppendTime)
    self.byteCount += Int64(run.byteCount)
    if run.hasProducers { self.producersEnd = run.endOffset }
    if let last = self.runs.indices.last {
      let joins =
        self.runs[last].frameEnd == run.position && self.runs[last].endOffset == run.baseOffset
        && self.runs[last].hasProducers == run.hasProducers
        && self.runs[last].byteCount + run.byteCount <= runBytesMax
      if joins {
        self.runs[last].byteCount += run.byteCount
        self.runs[last].endOffset = run.endOffset
        self.runs[last].maxTimestamp = max(self.runs[last].maxTimestamp, run.maxTimestamp)
        self.runs[last].maxAppendTime = max(self.runs[last].maxAppendTime, run.maxAppendTime)
        return
      }
    }
    self.runs.append(run)
  }

  /// Takes up what follows right after in the same segment. Both are in its footer.
  mutating func join(_ next: SegmentSpan) {
    self.endOffset = next.endOffset
    self.maxTimestamp = max(self.maxTimestamp, next.maxTimestamp)
    self.maxAppendTime = max(self.maxAppendTime, next.maxAppendTime)
    self.byteCount += next.byteCount
    self.producersEnd = next.producersEnd ?? self.producersEnd
    self.footerRuns += next.footerRuns
  }

  /// Drops records at or above `end`. Bytes are counted by runs, or, where only the footer knows these, by the share of the offsets.
  mutating func cut(to end: Offset) {
    guard end < self.endOffset else { return }
    if self.isInFooter { self.byteCount -= self.bytes(from: end) }
    self.endOffset = max(self.baseOffset, end)
    while let last = self.runs.last, last.baseOffset >= end {
      self.byteCount -= Int64(last.byteCount)
      self.runs.removeLast()
    }
    if let last = self.runs.indices.last, self.runs[last].endOffset > end {
      self.runs[last].endOffset = end
    }
    if self.isInFooter {
      // Where exactly the last one ends now, only the footer says.
      self.producersEnd = self.hasRecords ? self.producersEnd.map { min($0, end) } : nil
    } else {
      self.producersEnd = self.runs.last { $0.hasProducers }?.endOffset
    }
  }
}

/// A segment that holds something the log still needs.
struct LiveSegment: Hashable, Sendable {
  let sequence: SegmentSequence
  let slot: SegmentSlot
  /// Where its groups end: the next one's position in the active segment.
  var end: Int64
  /// The partitions with a span in it: in the order of their first frame, once it is sealed in that of their places.
  var logs = LogPlaces()
  /// The partitions whose newest producer snapshot has a place in it, and some that have a newer one since.
  var snapshots = LogPlaces()
  /// The footer's group; nil in the active segment and in one that was cut by recovery.
  var footer: FooterPlace?
  /// Where the search for something that keeps the segment stands in `logs`.
  var reclaimCursor = LogPlaces.Cursor()
  /// Only missing producer snapshots keep it; they were asked for, and are again at this time.
  var snapshotsDueAt: MonotonicInstant?
}

/// A partition log's place in the core's table; stale once the entry there has another id.
struct LogReference: Hashable, Sendable {
  let index: Int
  let log: LogID
}

/// A footer's group in its segment.
public struct FooterPlace: Hashable, Sendable {
  public let position: Int64
  public let byteCount: Int

  public init(position: Int64, byteCount: Int) {
    self.position = position
    self.byteCount = byteCount
  }
}
