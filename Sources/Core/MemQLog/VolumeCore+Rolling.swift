// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What a segment's end takes, in slices: with ten thousand partitions each of its steps is some milliseconds of cache misses, for
/// which neither what is appended nor the disk waits.
///
/// - The footer is kept ready while frames get their places: `FooterDraft`.
/// - The next segment's checkpoint is made while the footer is written and synced: `CheckpointDraft`.
/// - The index goes over to the footer once that is durable, while the next segment takes groups: `Settling`.
extension VolumeCore {
  /// The partitions of the next segment's checkpoint. Between the footer and the next head nothing gets a place, so what a
  /// checkpoint states stays as it is, but for positions, which the next mark states once more.
  struct CheckpointDraft: Sendable {
    /// Places of the logs, by log id.
    let order: [Int32]
    /// The cold segments as the draft began.
    let cold: [SegmentSequence]
    var next = 0
    var bodies = Checkpoint.Bodies()

    var isDone: Bool { self.next == self.order.count }
  }

  /// A segment whose footer is durable, and whose spans move there: those below `cursor` have, others still know their runs, which
  /// is as good for whoever reads.
  struct Settling: Sendable {
    let segment: SegmentSequence
    var cursor = LogPlaces.Cursor()
    /// When the next few do.
    var at: MonotonicInstant
  }

  /// Between two slices of the index: a sixth of a core.
  private static let settlePause: Duration = .microseconds(500)

  // MARK: - Checkpoint

  func newCheckpointDraft() -> CheckpointDraft {
    var order: [Int32] = []
    order.reserveCapacity(self.logIDs.count)
    var isSorted = true
    var last = LogID.none
    for (place, id) in self.logIDs.enumerated() where id != .none {
      if id < last { isSorted = false }
      last = id
      order.append(Int32(place))
    }
    if !isSorted { order.sort { self.logIDs[Int($0)] < self.logIDs[Int($1)] } }
    // Those that wait to be retired may still be part of what it states.
    let freeing = self.freeing.map(\.segment).filter { $0.state == .cold }.map(\.sequence)
    return CheckpointDraft(order: order, cold: (freeing + self.cold.map(\.sequence)).sorted())
  }

  mutating func extend(_ draft: inout CheckpointDraft, by count: Int) {
    let end = count < draft.order.count - draft.next ? draft.next + count : draft.order.count
    // In place: a copy of each log would cost four reference counts.
    for place in draft.order[draft.next..<end] {
      let index = Int(place)
      guard self.logs[index]!.isLaid else { continue }
      if !self.logs[index]!.coldCuts.isEmpty {
        self.logs[index]!.coldCuts.prune(cold: draft.cold)
      }
      draft.bodies.append(
        Checkpoint.Partition(
          log: self.logIDs[index], partition: self.logs[index]!.partition,
          state: self.logs[index]!.laid, highWatermark: self.logs[index]!.highWatermark,
          uploadedOffset: self.logs[index]!.uploadedOffset,
          snapshot: self.logs[index]!.snapshotPlace,
          coldEnd: self.logs[index]!.coldEnd, coldCuts: self.logs[index]!.coldCuts))
    }
    draft.next = end
  }

  /// Goes on with the next checkpoint while its segment can't begin yet.
  private mutating func extendCheckpointDraft() {
    guard var draft = self.checkpointDraft else { return }
    self.checkpointDraft = nil
    switch self.phase {
    case .sealWritten:
      if !draft.isDone { self.extend(&draft, by: self.configuration.rollSlice) }
    case .slotWanted where !self.readySlots.isEmpty:
      break
    case .slotWanted, .running, .sealing, .opening, .closing, .closed:
      // Who knows when a slot comes: positions are to be those of then.
      return
    }
    self.checkpointDraft = draft
  }

  // MARK: - Index

  /// The footer is durable: the index goes there, at once where that is little.
  mutating func beginSettling(at now: MonotonicInstant) {
    self.finishSettling()
    let last = self.segments.count - 1
    self.segments[last].logs.sort()
    self.segments[last].reclaimCursor = .init()
    let isLittle = self.segments[last].logs.count <= self.configuration.rollSlice / 2
    self.settling = Settling(
      segment: self.segments[last].sequence, at: isLittle ? now : now + Self.settlePause)
    if isLittle { self.finishSettling() }
  }

  /// Slices that are due.
  mutating func workOnRolling(at now: MonotonicInstant, _ effects: inout [Effect]) {
    self.extendCheckpointDraft()
    if let settling = self.settling, settling.at <= now {
      self.settle(self.configuration.rollSlice / 2)
      self.settling?.at = now + Self.settlePause
      // What is due and was not done waits for an event (`planWake`), and this look is over: the next one comes at once.
      if self.settling == nil { self.cleanAt = now + .nanoseconds(1) }
    }
    guard !self.producersEnds.isEmpty else { return }
    for (log, end) in self.producersEnds where self.isHere(log) {
      self.askForSnapshot(log.index, end, &effects)
    }
    self.producersEnds = []
  }

  /// The next checkpoint is being made, and nothing is waited for.
  var isSliceLeft: Bool {
    self.phase == .sealWritten && self.checkpointDraft.map { !$0.isDone } ?? false
  }

  private mutating func finishSettling() { self.settle(.max) }

  private mutating func settle(_ count: Int) {
    guard let settling = self.settling else { return }
    guard let at = self.segments.lastIndex(where: { $0.sequence == settling.segment }) else {
      // Freed: its spans are gone.
      return self.settling = nil
    }
    var cursor = settling.cursor
    var left = count
    while left > 0, let place = self.segments[at].logs.next(&cursor) {
      self.settle(place, in: settling.segment)
      left -= 1
    }
    self.settling!.cursor = cursor
    if left > 0 { self.settling = nil }
  }

  /// Moves the log's span to the footer, where that is durable.
  mutating func settle(_ place: Int, in segment: SegmentSequence) {
    guard self.settling?.segment == segment, self.logIDs[place] != .none,
      self.logs[place]!.spans.openSegment == segment
    else { return }
    if let end = self.logs[place]!.spans.lastOpen!.producersEnd {
      self.producersEnds.append((LogReference(index: place, log: self.logIDs[place]), end))
    }
    self.logs[place]!.spans.seal(segment)
  }
}
