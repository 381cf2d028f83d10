// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension VolumeCore {
  /// Starts the next write, if one is possible.
  mutating func startWrite(at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]) {
    guard !self.isWriting else { return }
    switch self.phase {
    case .running:
      if self.shouldRollWhenIdle(at: now, wall: wall, &effects) {
        self.phase = .sealing
        return self.startWrite(at: now, wall: wall, &effects)
      }
      if !self.pending.isEmpty {
        guard self.mayStartGroup else { return }
        guard let group = self.layOutPending(at: now, wall: wall) else {
          self.phase = .sealing
          return self.startWrite(at: now, wall: wall, &effects)
        }
        effects.append(.write(group))
      } else if self.inFlight.isEmpty {
        self.startIdleWrite(at: now, wall: wall, &effects)
      }
    case .sealing:
      guard self.inFlight.isEmpty else { return }
      effects.append(.write(self.layOutFooter(wall: wall)))
      self.phase = .sealWritten
    case .slotWanted:
      guard self.inFlight.isEmpty else { return }
      if self.finishCloseWithoutSlot(&effects) { return }
      guard !self.readySlots.isEmpty else { return }
      effects.append(.write(self.layOutHead(self.readySlots.removeFirst(), wall: wall)))
      self.phase = .opening
    case .sealWritten, .opening, .closing, .closed:
      return
    }
  }

  /// A group may start when nothing is under way, or early when much waits and only one group is being synced.
  private var mayStartGroup: Bool {
    self.inFlight.isEmpty
      || (self.inFlight.count == 1 && self.syncing != nil
        && self.pending.cost >= self.configuration.earlyWriteBytes)
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

  mutating func startSync(_ effects: inout [Effect]) {
    guard self.syncing == nil, let last = self.inFlight.last(where: \.isWritten) else { return }
    self.syncing = last.number
    effects.append(.sync(last.slot, last.number))
  }

  mutating func written(_ group: GroupNumber) {
    guard let index = self.inFlight.firstIndex(where: { $0.number == group }) else { return }
    self.inFlight[index].isWritten = true
    self.isWriting = false
  }

  mutating func synced(_ group: GroupNumber, at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard self.failure == nil else { return }
    precondition(self.syncing == group)
    self.syncing = nil
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
      self.sealActive(&effects)
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
