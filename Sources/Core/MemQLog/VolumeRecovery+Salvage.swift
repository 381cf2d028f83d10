// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What recovery found damaged below what was durable, while it went on.
struct SalvageNotes {
  struct LogNote {
    /// A sealed segment, whose records may have been cut since; nil: the tail, where the log's state is known.
    var segment: SegmentSequence?
    /// The records that are damaged or missing; from there on the log is not whole.
    var offsets: Range<Offset>
    var error: MemQError
  }

  /// What is damaged of each partition log.
  private(set) var logs: [LogID: [LogNote]] = [:]
  /// Each damage with its place.
  private(set) var errors: [MemQError] = []
  /// Somewhere in a sealed segment frames of unknown partitions are gone.
  var isSealedUnknown = false
  /// Bounds what a disk in ruins makes us remember.
  private static let errorsMax = 1_000

  mutating func note(_ error: MemQError) {
    if self.errors.count < Self.errorsMax { self.errors.append(error) }
  }

  /// - Parameter end: of what is damaged; nil: nobody knows.
  mutating func note(
    _ log: LogID, from offset: Offset, to end: Offset? = nil, in segment: SegmentSequence? = nil,
    _ error: MemQError
  ) {
    guard self.logs[log]?.count ?? 0 < Self.errorsMax else { return }
    self.logs[log, default: []].append(
      LogNote(segment: segment, offsets: offset..<max(offset, end ?? .max), error: error))
  }

  /// The log was cut behind the damage.
  mutating func cut(_ log: LogID, to end: Offset) {
    self.logs[log]?.removeAll { $0.segment == nil && $0.offsets.lowerBound >= end }
  }

  /// Where a log stops being whole, and why: of what the log still needs.
  func damage(of log: PartitionLog) -> (from: Offset, error: MemQError)? {
    let live = (self.logs[log.id] ?? []).filter { note in
      guard note.offsets.upperBound > log.laid.logStart else { return false }
      guard let segment = note.segment else { return true }
      // A cold segment has several spans of a log, and what was carried since counts no longer.
      let end = max(note.offsets.upperBound, note.offsets.lowerBound + 1)
      return log.spans.contains {
        $0.segment == segment && $0.hasRecords && $0.endOffset > note.offsets.lowerBound
          && $0.baseOffset < end
      }
    }
    return live.min { $0.offsets.lowerBound < $1.offsets.lowerBound }
      .map { ($0.offsets.lowerBound, $0.error) }
  }
}

/// A stretch of a cold segment where frames may be gone. Its frames stand by log id, then by offset: so those around it say whose.
struct LostFrames {
  /// Where the last frame before it ends; nil: it is the first.
  var last: (log: LogID, end: Offset)?
  /// Where the first frame after it begins; nil: it is the last.
  var next: (log: LogID, base: Offset)?
  let error: MemQError

  /// The offsets of the log that may have stood there.
  func offsets(of log: LogID) -> Range<Offset>? {
    var (from, to) = (Offset.zero, Offset.max)
    if let last {
      if log < last.log { return nil }
      if log == last.log { from = last.end }
    }
    if let next {
      if log > next.log { return nil }
      if log == next.log { to = next.base }
    }
    return from < to ? from..<to : nil
  }
}

extension SegmentSalvage.Stretch {
  var what: String {
    switch self.kind {
    case .groupHeader: "a group's header is damaged"
    case .padding: "a group's padding is damaged"
    case .chain: "a group does not follow the one before"
    case .unknown: "frames are damaged"
    case .payload: "a frame's payload is damaged"
    }
  }
}

extension Recovery {
  /// A file whose header is lost though its life was durable: its groups say the rest.
  ///
  /// - Parameter kind: as which of them the log names it.
  mutating func revive(_ slot: HeaderlessSlot, _ kind: SegmentKind) throws(MemQError) {
    let bytes = UnsafeMutableRawBufferPointer.allocate(
      byteCount: GroupHeader.byteCount, alignment: 16)
    defer { bytes.deallocate() }
    let first = LogFormat.firstGroupPosition
    try self.source.read(slot.slot, at: first, into: bytes)
    let group = GroupHeader.decode(
      UnsafeRawBufferPointer(bytes), at: first, volume: self.identity.volume)
    let header = SegmentHeader(
      kind: kind, slot: slot.slot, cluster: self.identity.cluster, volume: self.identity.volume,
      sequence: slot.sequence, segmentBytes: self.identity.segmentBytes, previousEnd: .start,
      previousChecksum: 0, openCount: group?.header.openCount ?? 0, writeTime: .none)
    self.notes.note(.corrupt(LogPlace(slot.sequence, 0), "a segment's header is damaged"))
    let found = Found(header: header, checksum: group?.header.previousChecksum ?? 0)
    guard kind == .hot else { return self.foundCold.append(found) }
    self.found.append(found)
    self.found.sort { $0.sequence < $1.sequence }
  }

  /// Replays a tail that is damaged below its mark: whatever still holds counts, and who lost something is noted.
  ///
  /// - Parameters:
  ///   - limit: where it ends, of a segment that is not the last.
  ///   - headEnd: where its damaged head ends; nil: it is whole, or nobody knows.
  mutating func salvageTail(
    _ tail: Found, limit: Int64? = nil, mark: LogPlace, headEnd: Int64?
  ) throws(MemQError) -> (end: SegmentSalvage, index: SegmentIndexer) {
    var index = SegmentIndexer(segment: tail.sequence, runBytesMax: self.runBytesMax)
    var (state, notes) = (self.state, self.notes)
    var lastUnknown: MemQError?
    var unnamed: UnnamedLosses = []
    // Those of whom something was seen behind the last unknown stretch that says where their log stood.
    var confirmed: Set<LogID> = []
    func apply(
      _ group: GroupHeader?, _ frames: [WalkedFrame], _ bytes: UnsafeRawBufferPointer
    ) throws(MemQError) {
      for frame in frames {
        let header = frame.header
        if header.log != .none, header.type != .partitionOpen, header.type != .partitionDrop,
          state.end(of: header.log) == nil
        {
          state.adopt(header)
          notes.note(
            header.log, from: header.baseOffset,
            .corrupt(
              LogPlace(tail.sequence, frame.position),
              "\(header.partition) has lost the beginning of its log"))
        }
        do throws(MemQError) {
          try state.apply(frame, bytes, in: tail.sequence, kind: group?.kind)
        } catch {
          guard let end = state.end(of: frame.header.log) else { continue }
          notes.note(frame.header.log, from: min(end, frame.header.baseOffset), error)
          continue
        }
        index.add(frame, bytes.part(frame.payload))
        confirmed.insert(frame.header.log)
        if frame.header.type == .truncate {
          notes.cut(frame.header.log, to: frame.header.baseOffset)
        }
      }
    }
    let end = try SegmentSalvage.run(
      tail.header, tail.checksum, limit: limit, mark: mark, from: &self.source
    ) { (piece, bytes) throws(MemQError) in
      switch piece {
      case .group(let group, let frames):
        guard frames.contains(where: { $0.header.type == .checkpoint }) else {
          return try apply(group, frames, bytes)
        }
        // A checkpoint says where every log stood: what replay has not seen of it is gone.
        let before = state
        try state.apply(group, frames, bytes)
        lastUnknown = nil
        unnamed = []
        for log in state.logs {
          guard let seen = before.end(of: log.id), seen != log.laid.end else { continue }
          notes.note(
            log.id, from: min(seen, log.laid.end),
            .corrupt(
              LogPlace(tail.sequence, 0), "\(log.partition) lost what stood behind \(seen)"))
        }
      case .frame(let frame, let holds):
        guard frame.header.type != .checkpoint, frame.header.type != .positions || holds else {
          return
        }
        let isRecords = frame.header.type.carriesRecords
        if holds || isRecords { try apply(nil, [frame], bytes) }
        if !holds, frame.header.type == .coldSegment { unnamed.insert(.coldSegments) }
        guard !holds, frame.header.log != .none else { return }
        if frame.header.type == .partitionOpen { state.adopt(frame.header) }
        let from = min(frame.header.baseOffset, state.end(of: frame.header.log) ?? .max)
        notes.note(
          frame.header.log, from: from,
          .corrupt(LogPlace(tail.sequence, frame.position), "a frame's payload is damaged"))
      case .damage(let stretch):
        let error = MemQError.corrupt(
          LogPlace(tail.sequence, stretch.range.lowerBound), stretch.what)
        notes.note(error)
        // A head is the checkpoint alone, which was made up for.
        guard case .unknown = stretch.kind, stretch.range.upperBound > headEnd ?? 0 else {
          return
        }
        lastUnknown = error
        confirmed = []
        unnamed = [.partitions, .coldSegments]
      }
    }
    self.result.unnamed.formUnion(unnamed)
    if let lastUnknown {
      for log in state.logs where !confirmed.contains(log.id) {
        notes.note(log.id, from: log.laid.end, lastUnknown)
      }
    }
    (self.state, self.notes) = (state, notes)
    return (end, index)
  }

  /// The index of a sealed segment whose footer and frames are both damaged.
  ///
  /// - Parameters:
  ///   - isDead: frames to pass over: the log says something else of their offsets.
  ///   - lost: called with each stretch where frames may be gone.
  mutating func salvageIndex(
    _ found: Found, _ segment: Checkpoint.Segment,
    isDead: (FrameHeader) -> Bool = { _ in false }, lost: (LostFrames) -> Void = { _ in }
  ) throws(MemQError) -> SegmentIndexer {
    let isCold = segment.state == .cold
    var last: (log: LogID, end: Offset)?
    var stretch: LostFrames?
    func add(_ frame: WalkedFrame, _ bytes: UnsafeRawBufferPointer, _ notes: inout SalvageNotes) {
      guard !isDead(frame.header) else { return }
      // A cold segment has what was carried, with gaps: those of the log are told once all are known.
      guard isCold else { return index.add(frame, bytes, in: segment.sequence, &notes) }
      index.add(frame, bytes.part(frame.payload))
      guard frame.header.type.carriesRecords else { return }
      if var before = stretch {
        before.next = (frame.header.log, frame.header.baseOffset)
        lost(before)
        stretch = nil
      }
      last = (frame.header.log, frame.header.endOffset)
    }
    var index = SegmentIndexer(segment: segment.sequence, runBytesMax: self.runBytesMax)
    var notes = self.notes
    _ = try SegmentSalvage.run(
      found.header, found.checksum, limit: segment.end, mark: .start, from: &self.source
    ) { (piece, bytes) throws(MemQError) in
      switch piece {
      case .group(_, let frames):
        for frame in frames { add(frame, bytes, &notes) }
      case .frame(let frame, _):
        // One whose payload is damaged is found damaged when it is read.
        add(frame, bytes, &notes)
      case .damage(let damaged):
        let place = LogPlace(segment.sequence, damaged.range.lowerBound)
        notes.note(.corrupt(place, damaged.what))
        switch damaged.kind {
        case .unknown:
          notes.isSealedUnknown = true
          if stretch == nil {
            stretch = LostFrames(last: last, error: .corrupt(place, damaged.what))
          }
        case .payload(let header) where header.type.carriesRecords:
          notes.note(
            header.log, from: header.baseOffset, to: header.endOffset, in: segment.sequence,
            .corrupt(place, "a record batch is damaged"))
        case .payload, .groupHeader, .padding, .chain: break
        }
      }
    }
    if let stretch { lost(stretch) }
    self.notes = notes
    return index
  }

  /// Where a partition's records stop being whole, and why; nil: they are.
  func gap(_ log: PartitionLog) -> (from: Offset, error: MemQError)? {
    var end: Offset?
    for span in log.spans where span.hasRecords && span.endOffset > log.laid.logStart {
      if let end, span.baseOffset != end {
        return (
          end,
          .corrupt(
            LogPlace(span.segment, 0),
            "\(log.partition) has a gap from \(end) to \(span.baseOffset)")
        )
      }
      end = span.endOffset
    }
    if let end, end != log.laid.end {
      return (
        min(end, log.laid.end),
        .corrupt(
          self.result.end, "\(log.partition) ends at \(log.laid.end), its records at \(end)")
      )
    }
    // Records leave from the front only where they were uploaded or the log start passed them.
    let left = max(log.laid.logStart, log.uploadedOffset)
    let first = log.spans.first(endingAbove: log.laid.logStart)?.baseOffset ?? log.laid.end
    guard left < first, self.notes.isSealedUnknown || self.isUnnamed(left..<first, of: log.id)
    else { return nil }
    return (
      left,
      .corrupt(
        self.result.end,
        "\(log.partition) has nothing from \(left) to \(first)")
    )
  }
}

extension SegmentIndexer {
  /// As `add`, and notes where the frame does not follow the one before of its log in this segment.
  fileprivate mutating func add(
    _ frame: WalkedFrame, _ bytes: UnsafeRawBufferPointer, in segment: SegmentSequence,
    _ notes: inout SalvageNotes
  ) {
    if frame.header.type.carriesRecords, let end = self.end(of: frame.header.log),
      end != frame.header.baseOffset
    {
      notes.note(
        frame.header.log, from: min(end, frame.header.baseOffset), to: frame.header.baseOffset,
        in: segment,
        .corrupt(
          LogPlace(segment, frame.position),
          "\(frame.header.partition) has a gap from \(end) to \(frame.header.baseOffset)"))
    }
    self.add(frame, bytes.part(frame.payload))
  }
}
