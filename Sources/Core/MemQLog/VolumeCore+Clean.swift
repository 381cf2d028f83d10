// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// The cleaner: what must stay in the oldest hot segments moves to cold ones, so that the hot ones can go.
///
/// One plan at a time: a free file becomes a cold segment of copies (`SegmentCarrier`), durable as a whole before a
/// `coldSegment` frame in the log makes it count. Until then a crash leaves only a free file with dead bytes. From that
/// frame on a log's records below its `coldEnd` are in cold segments; the originals go once the frame is durable, by the
/// rules that free any segment.
///
/// Per log, records below `coldEnd` are in cold segments, younger segments winning over older ones. A truncate lowers `coldEnd`,
/// and what the segments begun by then have at or above is dead for good: `coldCuts` says so, for `coldEnd` rises again with
/// what is carried later, which need not cover all in between.
extension VolumeCore {
  struct CarryUnderWay: Sendable {
    let slot: SegmentSlot
    /// The files it reads: not written over until it is done.
    let sources: [SegmentSlot]
    /// Room kept for the frame that will name the cold segment; 0 once that waits with the others.
    var cost: Int
  }

  /// Segments with the pieces that keep them, and what those take in a cold segment.
  private struct Candidate {
    let segment: SegmentSequence
    var pieces: [(piece: CarryPlan.Piece, cost: CarryCost)] = []
    var cost = CarryCost()
  }

  private struct CarryCost {
    var bytes = 0
    var runs = 0
    var pieces = 0

    static func + (a: Self, b: Self) -> Self {
      Self(bytes: a.bytes + b.bytes, runs: a.runs + b.runs, pieces: a.pieces + b.pieces)
    }
  }

  /// Spans looked at for one plan: bounds the time it holds the core, a few nanoseconds each.
  private static let looksMax = 1_000_000

  /// Whether anything may be to do for the cleaner.
  var isCleanWanted: Bool {
    self.closeRequest == nil && self.carry == nil
      && (!self.cold.isEmpty || self.freeSegments + self.freeing.count <= 4 * self.userReserve)
  }

  mutating func clean(at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]) {
    guard self.cleanAt <= now, self.isCleanWanted else { return }
    self.cleanAt = now + self.configuration.housekeeping
    self.reclaimCold(wall: wall, &effects)
    guard self.phase == .running, let plan = self.planCarry(wall: wall) else { return }
    self.readySlots.removeFirst()
    self.nextSequence = plan.segment.next
    let cost = PendingFrame.overhead + Self.coldFrameBytes(entries: plan.pieces.count)
    self.carry = CarryUnderWay(slot: plan.slot, sources: plan.sources, cost: cost)
    for source in plan.sources { self.readers[source, default: 0] += 1 }
    effects.append(.carry(plan))
  }

  // MARK: - Planning

  private mutating func planCarry(wall: Timestamp) -> CarryPlan? {
    let free = self.freeSegments + self.freeing.count
    guard free <= 4 * self.userReserve,
      let slot = self.readySlots.first
    else { return nil }
    let isTight = free <= 2 * self.userReserve
    var pieces = self.hotPieces(isTight: isTight, wall: wall)
    self.addColdPieces(to: &pieces, wall: wall)
    guard pieces.emptied >= 2 || pieces.isWorthwhile, !pieces.taken.isEmpty else { return nil }
    // Below the second reserve only what gives the segment back at once. The frame that names the cold segment must fit into
    // this segment, or into one that is left.
    let frame = PendingFrame.overhead + Self.coldFrameBytes(entries: pieces.taken.count)
    guard pieces.emptied >= 1 || self.freeSegments > self.stateReserve + 1,
      self.remaining > frame + self.pending.cost + Int(self.identity.segmentBytes) / 64
        || self.readySlots.count >= 2
    else { return nil }
    pieces.taken.sort { $0.log.log != $1.log.log ? $0.log.log < $1.log.log : $0.from < $1.from }
    let header = SegmentHeader(
      kind: .cold, slot: slot, cluster: self.identity.cluster, volume: self.identity.volume,
      sequence: self.nextSequence, segmentBytes: self.identity.segmentBytes, previousEnd: .start,
      previousChecksum: 0, openCount: self.openCount, writeTime: wall)
    let isShort = self.freeSegments <= self.userReserve
    return CarryPlan(
      slot: slot, segment: self.nextSequence,
      bytesPerSecond: self.configuration.carryBytesPerSecond.map { isShort ? 4 * $0 : $0 },
      pieces: pieces.taken, isPart: pieces.isPart, header: header,
      groupBytes: self.configuration.carryGroupBytes,
      runBytesMax: self.configuration.runBytesMax,
      footerBytesMax: self.configuration.footerBytesMax)
  }

  private struct Pieces {
    var taken: [CarryPlan.Piece] = []
    var cost = CarryCost()
    /// Segments that nothing keeps once the pieces are elsewhere.
    var emptied = 0
    /// Going on like this frees more segments than it takes.
    var isWorthwhile = false
    var isPart = false
    var looks = 0

    mutating func add(_ candidate: Candidate) {
      self.taken += candidate.pieces.map(\.piece)
      self.cost = self.cost + candidate.cost
      self.emptied += 1
    }
  }

  /// What keeps the oldest hot segments, as much of it as one cold segment takes.
  private func hotPieces(isTight: Bool, wall: Timestamp) -> Pieces {
    var found = Pieces()
    var isFull = false
    var seen = 0
    var needed = 0
    for segment in self.segments {
      // One whose index is still on its way to its footer waits for a moment.
      guard segment.sequence < self.checkpointSegment, segment.sequence != self.settling?.segment,
        let candidate = self.candidate(
          segment, isCold: false, isTight: isTight, wall: wall, &found.looks)
      else { break }
      seen += 1
      needed += self.carryBytes(candidate.cost)
      if !isFull, self.fits(found.cost + candidate.cost) {
        found.add(candidate)
      } else {
        if seen == 1 { self.addPart(of: candidate, to: &found) }
        isFull = true
      }
      let takes = (needed + Int(self.identity.segmentBytes) - 1) / Int(self.identity.segmentBytes)
      if seen - takes >= (isTight ? 1 : (seen + 1) / 2) { found.isWorthwhile = true }
      if found.isWorthwhile, isFull { break }
      guard found.looks < Self.looksMax else {
        found.isWorthwhile = found.isWorthwhile || isTight
        break
      }
    }
    // Nothing is freed by a part: only with a segment to spare.
    if found.emptied == 0, self.freeSegments <= self.stateReserve + 1 {
      found = Pieces(looks: found.looks)
    }
    return found
  }

  /// A segment that is too full for one cold segment goes in parts, whole pieces first.
  private func addPart(of candidate: Candidate, to found: inout Pieces) {
    found.isPart = true
    for (piece, cost) in candidate.pieces.sorted(by: { $0.piece.log.log < $1.piece.log.log }) {
      found.taken.append(piece)
      found.cost = found.cost + cost
      // The last one is copied as far as there is room.
      if !self.fits(found.cost) { return }
    }
  }

  /// Fills what room is left with the cold segments that have least in them.
  private func addColdPieces(to found: inout Pieces, wall: Timestamp) {
    var candidates: [(candidate: Candidate, bytes: Int)] = []
    for segment in self.cold {
      guard found.looks < Self.looksMax else { break }
      guard
        let candidate = self.candidate(
          segment, isCold: true, isTight: true, wall: wall, &found.looks)
      else {
        continue
      }
      candidates.append((candidate, self.carryBytes(candidate.cost)))
    }
    candidates.sort { $0.bytes < $1.bytes }
    for (candidate, _) in candidates {
      guard self.fits(found.cost + candidate.cost) else { return }
      found.add(candidate)
    }
  }

  /// What keeps the segment; nil when that can't be carried, or is better waited for.
  private func candidate(
    _ segment: LiveSegment, isCold: Bool, isTight: Bool, wall: Timestamp, _ looks: inout Int
  ) -> Candidate? {
    let isShort = self.isShortOfRoom
    var candidate = Candidate(segment: segment.sequence)
    for index in segment.logs {
      guard let log = self.logs[index] else { continue }
      looks += log.spans.count
      var standings: [SpanList.Standing] = []
      log.spans.visit(segment.sequence) { standing in
        standings.append(standing)
        return false
      }
      for standing in standings {
        guard let hold = self.hold(log, standing, isShort: isShort, wall: wall) else { continue }
        let span = standing.span
        guard !log.isDamaged, !log.isCarryStopped,
          isCold || self.mayCarry(log, span, hold, isTight: isTight)
        else { return nil }
        let from = self.carryStart(log, standing)
        let part = span.part(from: from, to: span.endOffset)!
        let cost = CarryCost(bytes: Int(part.byteCount), runs: part.runCount, pieces: 1)
        let piece = CarryPlan.Piece(
          log: LogReference(index: index, log: log.id), partition: log.partition,
          segment: segment.sequence, slot: segment.slot,
          footer: span.isInFooter ? segment.footer : nil,
          runs: RunEntry.select(span.runs, from: from, below: span.endOffset, maxBytes: .max),
          from: from, below: span.endOffset)
        candidate.pieces.append((piece, cost))
        candidate.cost = candidate.cost + cost
      }
    }
    return candidate
  }

  /// What is below the log start stays behind, but not batches whose producers no snapshot knows, nor what lies between them and
  /// the log start: recovery takes cold records that don't reach up to the next ones for released.
  private func carryStart(_ log: PartitionLog, _ standing: SpanList.Standing) -> Offset {
    let span = standing.span
    var start = log.laid.logStart
    let known = log.snapshotPlace?.end ?? .zero
    if let end = standing.producersEnd, end > known { start = min(start, known) }
    start = max(start, span.baseOffset)
    return start < span.endOffset ? start : span.baseOffset
  }

  /// Records that only this disk will have. What is uploaded and kept for a while leaves by itself; what is not uploaded yet
  /// has a while to be, until room is tight.
  private func mayCarry(
    _ log: PartitionLog, _ span: SegmentSpan, _ hold: Hold, isTight: Bool
  ) -> Bool {
    guard hold == .records, log.retention.hasObjectTier else { return true }
    return isTight && span.endOffset > log.uploadedOffset
  }

  /// Bytes of a cold segment for so much, at most: its groups end early where the next run does not fit.
  private func carryBytes(_ cost: CarryCost) -> Int {
    guard cost.pieces > 0 else { return 0 }
    let groups = 2 * cost.bytes / self.configuration.carryGroupBytes + 2
    return Int(LogFormat.firstGroupPosition) + LogFormat.blocks(cost.bytes)
      + groups * (GroupHeader.byteCount + LogFormat.blockBytes)
      + Footer.groupBytes(self.carryFooterBytes(cost, groups: groups)) + LogFormat.blockBytes
  }

  private func carryFooterBytes(_ cost: CarryCost, groups: Int) -> Int {
    (cost.pieces + 1) * Footer.entryBytes + (cost.runs + groups + 1) * Footer.runBytes
  }

  private func fits(_ cost: CarryCost) -> Bool {
    let groups = 2 * cost.bytes / self.configuration.carryGroupBytes + 2
    return self.carryBytes(cost) <= Int(self.identity.segmentBytes)
      && self.carryFooterBytes(cost, groups: groups) <= self.configuration.footerBytesMax
      && ColdSegment.byteCount(entries: cost.pieces) <= Int(self.identity.segmentBytes) / 8
  }

  /// What stopped the carrying of a partition is over.
  mutating func carryAgain(_ partition: TopicPartition) {
    guard let index = self.byName[partition], self.logs[index]!.isCarryStopped else { return }
    self.logs[index]!.isCarryStopped = false
    self.cleanAt = .zero
  }

  // MARK: - A cold segment is there

  mutating func carried(_ result: CarryResult, _ effects: inout [Effect]) {
    guard self.failure == nil, let carry = self.carry else { return }
    precondition(carry.slot == result.slot)
    for source in carry.sources { _ = self.readEnded(source) }
    for reference in result.damaged where self.log(reference) != nil {
      self.logs[reference.index]!.isCarryStopped = true
    }
    for (partition, error, from) in result.damage {
      effects.append(.damageFound(partition, error, from: from))
    }
    self.counters.bytesCarried += result.bytesCarried
    guard !result.moved.isEmpty, self.closeRequest == nil else {
      return self.endCarry(unused: true, isComplete: false)
    }
    self.carry!.cost = 0
    self.pending.append(
      PendingFrame(
        content: .coldSegment(result), log: LogReference(index: -1, log: .none), request: nil,
        cost: PendingFrame.overhead + Self.coldFrameBytes(entries: result.moved.count)))
  }

  /// What the frame that names a cold segment takes, with the positions that may have to stand before it.
  static func coldFrameBytes(entries: Int) -> Int {
    ColdSegment.byteCount(entries: entries) + FrameHeader.byteCount + self.positionsBytes(entries)
  }

  /// Goes on at once after what went as planned; else only after a while, so that nothing is copied round and round.
  private mutating func endCarry(unused: Bool, isComplete: Bool) {
    if unused { self.readySlots.append(self.carry!.slot) }
    if isComplete { self.cleanAt = .zero }
    self.carry = nil
  }

  /// From this frame on what was carried is read from the cold segment, as far as it still belongs to its log.
  mutating func placeColdSegment(_ result: CarryResult, into builder: inout GroupBuilder) {
    var entries: [ColdSegment.Entry] = []
    var cold = LiveSegment(sequence: result.segment, slot: result.slot, end: result.end)
    cold.footer = result.footer
    var isUsed = false
    var dead: [Int] = []
    for moved in result.moved where self.log(moved.log) != nil {
      let end = self.move(moved, to: result.segment)
      isUsed = isUsed || end != nil
      if entries.last?.log != moved.log.log {
        entries.append(ColdSegment.Entry(log: moved.log.log, coldEnd: .zero))
        cold.logs.append(moved.log.index)
      }
      let last = entries.count - 1
      entries[last].coldEnd = self.logs[moved.log.index]!.coldEnd
      if end != moved.span.endOffset { entries[last].hasDead = true }
      if entries[last].hasDead, dead.last != moved.log.index { dead.append(moved.log.index) }
    }
    self.endCarry(unused: !isUsed, isComplete: result.isComplete)
    guard isUsed else { return }
    for index in dead {
      let end = self.logs[index]!.coldEnd
      self.logs[index]!.coldCuts.cut(result.segment, to: end)
    }
    cold.logs.sort()
    self.cold.append(cold)
    self.counters.segmentsCarried += 1
    self.resetReclaimCursors()
    // Below the cold end a restart takes hot records for carried: of those that were not, as they are uploaded, it must know that.
    let unstated = self.unstated(cold.logs)
    if !unstated.isEmpty {
      builder.add(.ofVolume(.positions), payload: self.positions(unstated))
    }
    let frame = ColdSegment(
      sequence: result.segment, slot: result.slot, end: result.end, entries: entries)
    builder.add(.ofVolume(.coldSegment), payload: frame.encoded())
  }

  /// Those of which more is uploaded than the log says.
  private func unstated(_ logs: LogPlaces) -> [LogReference] {
    guard !self.configuration.mutations.contains(.freesBeforePositions) else { return [] }
    var unstated: [LogReference] = []
    for index in logs where self.logIDs[index] != .none {
      guard self.logs[index]!.retention.hasObjectTier,
        self.logs[index]!.uploadedStated < self.logs[index]!.uploadedOffset
      else { continue }
      unstated.append(LogReference(index: index, log: self.logIDs[index]))
    }
    return unstated
  }

  /// Where what is left of it ends; nil: nothing is. A truncate, an upload or a drop may have come in between.
  private mutating func move(_ moved: CarryResult.Moved, to segment: SegmentSequence) -> Offset? {
    guard self.isHere(moved.log) else { return nil }
    let mutates = self.configuration.mutations.contains(.carriesOverTruncates)
    let base = moved.span.baseOffset
    var counts: Offset?
    self.logs[moved.log.index]!.spans.replace(in: moved.source, holding: base) { spans, found in
      let source = spans[found]
      let end = mutates ? moved.span.endOffset : min(moved.span.endOffset, source.endOffset)
      guard let span = moved.span.part(from: base, to: end) else { return }
      counts = end
      let rest = source.rest(from: end, to: source.endOffset, of: moved.span)
      spans.replaceSubrange(found...found, with: [span] + rest)
      guard found > 0, spans[found - 1].segment == segment,
        spans[found - 1].endOffset == span.baseOffset
      else { return }
      spans[found - 1].join(span)
      spans.remove(at: found)
    }
    guard let counts else { return nil }
    self.logs[moved.log.index]!.coldEnd = max(self.logs[moved.log.index]!.coldEnd, counts)
    return counts
  }

  // MARK: - Cold segments that nothing keeps

  private mutating func reclaimCold(wall: Timestamp, _ effects: inout [Effect]) {
    let isShort = self.isShortOfRoom
    for index in self.cold.indices.reversed() {
      // The search goes on where something kept it last time; at the end once more from the start.
      let segment = self.cold[index]
      let keeper =
        self.keeper(segment, from: segment.reclaimCursor, isShort, wall)
        ?? self.keeper(segment, from: .init(), isShort, wall)
      if let keeper {
        self.cold[index].reclaimCursor = keeper
        continue
      }
      self.cold.remove(at: index)
      self.retireLater(segment, .cold, carries: 0, &effects)
    }
  }

  /// The first log from there on that keeps something it has in the cold segment.
  private func keeper(
    _ segment: LiveSegment, from: LogPlaces.Cursor, _ isShort: Bool, _ wall: Timestamp
  ) -> LogPlaces.Cursor? {
    var (here, cursor) = (from, from)
    while let index = segment.logs.next(&cursor) {
      if let log = self.logs[index], self.keeps(log, segment.sequence, isShort, wall) {
        return here
      }
      here = cursor
    }
    return nil
  }

  private func keeps(
    _ log: PartitionLog, _ segment: SegmentSequence, _ isShort: Bool, _ wall: Timestamp
  ) -> Bool {
    var last: SpanList.Standing?
    log.spans.visit(segment) { standing in
      last = standing
      return false
    }
    guard let last else { return false }
    return self.hold(log, last, isShort: isShort, wall: wall) != nil
  }
}
