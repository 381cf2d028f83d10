// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// How long syncs take, and so when to write while one is under way: the next sync can then begin the moment it ends, with nearly
/// all that came meanwhile.
struct SyncPace: Sendable {
  /// A shorter sync is over before an early write would have helped.
  private static let shortest: Duration = .microseconds(500)

  private var takes: Duration = .zero
  private var begunAt = MonotonicInstant.zero
  /// Then what waits is written: after half of the time, then of what is left of it, down to a sixteenth of the whole.
  private(set) var writeAt: MonotonicInstant?

  mutating func begin(at now: MonotonicInstant) {
    self.begunAt = now
    self.writeAt = self.takes < Self.shortest ? nil : now + self.takes / 2
  }

  mutating func writes(at now: MonotonicInstant) {
    guard self.writeAt != nil else { return }
    let half = (self.begunAt + self.takes - now) / 2
    self.writeAt = half < self.takes / 16 ? nil : now + half
  }

  /// The last few syncs count.
  mutating func end(at now: MonotonicInstant) {
    let took = now - self.begunAt
    self.takes = self.takes == .zero ? took : (self.takes * 3 + took) / 4
    self.writeAt = nil
  }
}

extension VolumeCore {
  /// Groups that are not durable.
  static let groupsInFlightMax = 8
  /// What is written before a sync that could begin at once: a tenth of a millisecond or so of an SSD's bandwidth.
  private static let topUpBytesMax = 256 << 10

  /// Starts the next write, if one is possible.
  mutating func startWrite(at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]) {
    guard !self.isWriting else { return }
    switch self.phase {
    case .running, .opening:
      if self.phase == .running, self.shouldRollWhenIdle(at: now, wall: wall, &effects) {
        self.phase = .sealing
        return self.startWrite(at: now, wall: wall, &effects)
      }
      if !self.pending.isEmpty {
        guard self.mayStartGroup(at: now) else { return }
        guard let group = self.layOutPending(at: now, wall: wall) else {
          guard self.phase == .running else { return }
          self.phase = .sealing
          return self.startWrite(at: now, wall: wall, &effects)
        }
        if self.syncing != nil { self.pace.writes(at: now) }
        self.isSyncHeld = self.mayTopUp
        effects.append(.write(group))
      } else if self.inFlight.isEmpty {
        self.startIdleWrite(at: now, wall: wall, &effects)
      }
    case .sealing:
      // Behind groups that are not durable yet: the sync that they wait for will do for the footer, too.
      effects.append(.write(self.layOutFooter(wall: wall)))
      self.phase = .sealWritten
    case .slotWanted:
      guard self.inFlight.isEmpty else { return }
      if self.finishCloseWithoutSlot(&effects) { return }
      guard !self.readySlots.isEmpty else { return }
      effects.append(.write(self.layOutHead(self.readySlots.removeFirst(), wall: wall)))
      self.phase = .opening
    case .sealWritten, .closing, .closed:
      return
    }
  }

  /// A group may start when nothing is under way; early, while a sync is, when much waits or the sync will soon end; and right before a
  /// sync: behind a segment's head whatever waits, as that needs a sync anyway, otherwise when it is little.
  private func mayStartGroup(at now: MonotonicInstant) -> Bool {
    guard !self.inFlight.isEmpty else { return true }
    guard self.inFlight.count < Self.groupsInFlightMax else { return false }
    guard self.syncing == nil else {
      return self.pace.writeAt.map { $0 <= now } ?? false
        || (self.inFlight.count == 1 && self.pending.cost >= self.configuration.earlyWriteBytes)
    }
    return self.mayTopUp
      && (self.phase == .opening || self.pending.cost <= Self.topUpBytesMax)
  }

  private mutating func startIdleWrite(
    at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]
  ) {
    let isMarkDue = self.markDueAt.map { $0 <= now } ?? false
    guard self.closeRequest != nil || isMarkDue else { return }
    guard self.remaining >= LogFormat.blockBytes else {
      self.phase = .sealing
      return self.startWrite(at: now, wall: wall, &effects)
    }
    if self.closeRequest != nil {
      effects.append(.write(self.layOutClose(wall: wall)))
      self.phase = .closing
    } else {
      effects.append(.write(self.layOutMark(wall: wall)))
    }
  }

  mutating func startSync(at now: MonotonicInstant, _ effects: inout [Effect]) {
    self.mayTopUp = false
    guard self.syncing == nil, !self.isSyncHeld, let last = self.inFlight.last(where: \.isWritten)
    else { return }
    self.syncing = last.number
    self.pace.begin(at: now)
    effects.append(.sync(last.slot, last.number))
  }

  mutating func written(_ group: GroupNumber) {
    guard let index = self.inFlight.firstIndex(where: { $0.number == group }) else { return }
    self.inFlight[index].isWritten = true
    self.isWriting = false
    self.isSyncHeld = false
    self.mayTopUp = self.inFlight[index].kind == .head
  }

  mutating func synced(_ group: GroupNumber, at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard self.failure == nil else { return }
    precondition(self.syncing == group)
    self.syncing = nil
    self.pace.end(at: now)
    self.mayTopUp = true
    while let first = self.inFlight.first, first.number <= group {
      self.inFlight.removeFirst()
      self.inFlightCost -= first.cost
      self.durable = first.end
      self.durableGroup = first.number
      self.counters.groupsDurable += 1
      for request in first.requests { effects.append(.complete(request, .success(()))) }
      self.finish(first.kind, at: now, &effects)
    }
  }

  /// What a durable group of each kind makes possible.
  private mutating func finish(
    _ kind: GroupKind, at now: MonotonicInstant, _ effects: inout [Effect]
  ) {
    switch kind {
    case .data:
      if self.inFlight.isEmpty { self.markDueAt = now + self.configuration.markIdle }
    case .mark:
      break
    case .head:
      self.phase = .running
      self.cleanAt = .zero
      self.checkpointSegment = self.active!.sequence
      self.resetReclaimCursors()
      self.markDueAt = now + self.configuration.markIdle
    case .seal:
      self.sealActive(at: now, &effects)
    case .close:
      self.phase = .closed
      effects.append(.complete(self.closeRequest!, .success(())))
    }
  }

  /// A full disk keeps no volume from closing: what waits is refused, and the log simply ends here.
  private mutating func finishCloseWithoutSlot(_ effects: inout [Effect]) -> Bool {
    guard let close = self.closeRequest, self.readySlots.isEmpty, self.allocating == nil else {
      return false
    }
    let error = MemQError(
      .volumeFull, "the volume closed before it found room",
      subject: "volume \(self.identity.volume)")
    for frame in self.pending.removeFirst(self.pending.count) {
      if let request = frame.request { effects.append(.complete(request, .failure(error))) }
    }
    self.phase = .closed
    effects.append(.complete(close, .success(())))
    return true
  }

  // MARK: - Time

  /// Names the next time at which something may have to be done without an event.
  mutating func planWake(at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard self.phase != .closed else { return }
    var next = self.markDueAt
    func consider(_ time: MonotonicInstant?) {
      if let time, time < (next ?? MonotonicInstant(nanoseconds: .max)) { next = time }
    }
    if let active = self.active, active.isWantedEmpty, let last = active.lastBatchAt {
      let due = last + self.configuration.rollIdle
      if due > now { consider(due) }
    }
    consider(self.rollingWorkAt(now))
    consider(self.allocationRetryAt)
    if let due = self.segments.first?.snapshotsDueAt, due > now { consider(due) }
    if let due = self.segments.last?.snapshotsDueAt, due > now { consider(due) }
    if self.isCleanWanted, self.cleanAt > now { consider(self.cleanAt) }
    // A short disk is looked at again: something else may have freed room.
    if self.hasTimedRetention || self.isShortOfRoom {
      if self.housekeepingAt == nil || self.housekeepingAt! <= now {
        self.housekeepingAt = now + self.configuration.housekeeping
      }
      consider(self.housekeepingAt)
    }
    guard let next, next != self.wakeAt || next <= now else { return }
    self.wakeAt = next
    effects.append(.wake(at: next))
  }
}
