// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// One partition's log on the volume: what is accepted, what has its place, and where it stands.
struct PartitionLog: Sendable {
  struct Snapshot: Hashable, Sendable {
    var bytes: [UInt8]
    /// It holds the producers of all records below.
    var end: Offset
  }

  let id: LogID
  let partition: TopicPartition
  /// With everything accepted, placed or not.
  var accepted: LogState
  /// As of the last frame that has a place: what a checkpoint states.
  var laid: LogState
  /// False until the open frame has its place.
  var isLaid: Bool
  var highWatermark: Offset = .zero
  var uploadedOffset: Offset = .zero
  /// As the newest positions frame that has a place states it: after a restart no less is known.
  var uploadedStated: Offset = .zero
  var retention = LocalRetention()
  /// The newest producer snapshot that has a place, and where.
  var snapshot: Snapshot?
  var snapshotPlace: SnapshotPlace?
  /// Bytes of frames that are accepted and wait for their place.
  var waitingBytes: Int64 = 0
  /// Snapshot frames that wait for their place.
  var snapshotsPending = 0
  /// The next mark-only group states the positions.
  var arePositionsDue = false
  /// Recovery found damage: its segments stay for whoever repairs it.
  var isDamaged = false
  /// Where what has been carried to cold segments ends: records below are there, all others of the log in hot segments, and
  /// what a cold segment has at or above is dead.
  var coldEnd = Offset.zero
  /// What of it in cold segments is dead for good, below `coldEnd` too once that rises again.
  var coldCuts: [ColdCut] = []
  /// The cleaner found damage in what it was to carry: nothing of it is carried any more.
  var isCarryStopped = false
  var spans = SpanList()
  /// The highest local start that its owner knows of. It never falls: what is cut and written anew
  /// below it is uploaded, and read from there.
  var toldStart = Offset.zero

  /// What counts against the partition's cap: frames that nothing but this disk has, placed or not.
  var cappedBytes: Int64 {
    let gone = self.retention.hasObjectTier ? self.uploadedOffset : .zero
    let start = max(gone, self.accepted.logStart)
    guard start < self.accepted.end else { return 0 }
    return self.waitingBytes + self.spans.bytes(from: start)
  }

  var localBytes: Int64 { self.spans.byteCount }

  /// The lowest offset that may be read here; the end when nothing is.
  var localStart: Offset { max(self.placedStart, self.releasedBelow) }

  /// Records below have left the SSD for readers: uploaded ones of a partition that keeps none. Their bytes follow with
  /// their segment, which other partitions may still need.
  var releasedBelow: Offset {
    guard self.retention.hasObjectTier, self.retention.bytes == 0 else { return .zero }
    return min(self.uploadedOffset, self.accepted.end)
  }

  private var placedStart: Offset {
    let first = self.spans.first(endingAbove: self.accepted.logStart)
    guard let first, first.baseOffset < self.accepted.end else {
      // Accepted records without a place yet begin where the placed ones end.
      return max(self.accepted.logStart, min(self.laid.end, self.accepted.end))
    }
    return max(self.accepted.logStart, first.baseOffset)
  }

  /// Removes what a truncate to `end` cuts from the index.
  ///
  /// - Parameter newest: the youngest segment begun.
  mutating func cutSpans(
    to end: Offset, in segment: SegmentSequence, newest: SegmentSequence
  ) {
    self.spans.withOpen { span in
      precondition(span.segment == segment)
      span.cutTo = min(span.cutTo ?? end, end)
    }
    self.spans.cut(to: end)
    if end < self.coldEnd {
      // What is being carried as well: it was taken from the log as it was before.
      self.coldCuts.cut(newest, to: end)
      self.coldEnd = end
    }
    if let place = self.snapshotPlace, place.end > end {
      self.snapshotPlace = nil
      self.snapshot = nil
    }
  }
}
