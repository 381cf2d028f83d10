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

  /// Drops records at or above `end`.
  mutating func cut(to end: Offset) {
    guard end < self.endOffset else { return }
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
  /// The partitions with a span in it, in the order of their first frame.
  var logs: [LogReference] = []
  /// The footer's group; nil in the active segment and in one that was cut by recovery.
  var footer: FooterPlace?
  /// Where the search for something that keeps the segment stands in `logs`.
  var reclaimCursor = 0
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
