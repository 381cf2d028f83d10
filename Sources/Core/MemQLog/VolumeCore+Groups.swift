// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension VolumeCore {
  /// Groups that are not durable.
  static let groupsInFlightMax = 12
  /// Syncs under way at a time.
  public static let syncsMax = 2
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
        if self.isSyncDue(at: now) {
          (self.isSyncHeld, self.isToppedUp) = (true, true)
        } else {
          self.pace.writes(at: now)
        }
        effects.append(.write(group))
      } else if self.inFlight.isEmpty {
        self.startIdleWrite(at: now, wall: wall, &effects)
      }
    case .sealing:
      // Behind groups that are not durable yet: the sync that they wait for will do for the footer, too. Without a segment to go on in no
      // group comes for long whose mark could say that they are durable: then the footer's own says so.
      guard !self.readySlots.isEmpty || self.inFlight.isEmpty || self.sealsUnmarked else { return }
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

  private var sealsUnmarked: Bool {
    self.configuration.mutations.contains(.sealsUnmarkedWithoutSlot)
  }

  /// A group may start when nothing is under way; early, while syncs are, when much waits or the next will soon begin; and right before a
  /// sync: behind a segment's head whatever waits, as that needs a sync anyway, otherwise when it is little, or all there is.
  private func mayStartGroup(at now: MonotonicInstant) -> Bool {
    guard !self.inFlight.isEmpty else { return true }
    guard self.inFlight.count < Self.groupsInFlightMax else { return false }
    guard self.isSyncDue(at: now) else {
      return self.pace.writeAt.map { $0 <= now } ?? false
        || (self.inFlight.count == 1 && self.pending.cost >= self.configuration.earlyWriteBytes)
    }
    guard !self.isToppedUp else { return false }
    return self.phase == .opening || self.pending.cost <= Self.topUpBytesMax
      || self.nextSynced == nil
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

  /// Whether a sync may begin: none is under way, or one, and half of its time is over. Then two take turns, each with what came in
  /// half of that time; groups that others wait for, at a segment's end, have none to wait for themselves.
  private func isSyncDue(at now: MonotonicInstant) -> Bool {
    guard !self.syncs.isEmpty else { return true }
    guard self.syncs.count < Self.syncsMax, let at = self.pace.besideAt else { return false }
    return at <= now || self.phase == .sealWritten || self.phase == .opening
  }

  /// The last group that the next sync would make durable; nil: none.
  private var nextSynced: GroupInFlight? {
    guard let last = self.inFlight.last(where: \.isWritten) else { return nil }
    if let covered = self.syncs.last, last.number <= covered { return nil }
    return last
  }

  mutating func startSync(at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard !self.isSyncHeld, self.isSyncDue(at: now), let last = self.nextSynced else { return }
    self.isToppedUp = false
    self.pace.begin(last.number, at: now, floor: self.configuration.syncsOverlapAbove)
    self.syncs.append(last.number)
    effects.append(.sync(last.slot, last.number))
  }

  /// When a second sync may begin, where something waits for it.
  private var besideDueAt: MonotonicInstant? {
    guard self.syncs.count == 1, !self.isWriting, !self.pending.isEmpty || self.nextSynced != nil
    else { return nil }
    return self.pace.besideAt
  }

  mutating func written(_ group: GroupNumber) {
    guard let index = self.inFlight.firstIndex(where: { $0.number == group }) else { return }
    self.inFlight[index].isWritten = true
    self.isWriting = false
    self.isSyncHeld = false
    // Nothing was written behind a head yet.
    if self.inFlight[index].kind == .head { self.isToppedUp = false }
  }

  /// A sync has ended. It began after all groups up to this one were written, to the same file as they all are, for a segment's head
  /// is written once nothing else is in flight. So it made them all durable, also where the sync before is still under way; that one
  /// then has nothing left to tell. Where that one fails, this one did: each has an open file of its own, by which the kernel
  /// tells it of every write-back that failed.
  mutating func synced(_ group: GroupNumber, at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard self.failure == nil else { return }
    guard let index = self.syncs.firstIndex(of: group) else {
      preconditionFailure("a sync ended that nobody began")
    }
    self.syncs.remove(at: index)
    self.pace.end(group, at: now)
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

  /// Names the next time at which something may have to be done without an event. What is due and was not done waits for something
  /// that ends with an event; slices that are left are the only work for which it is always time.
  mutating func planWake(at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard self.phase != .closed else { return }
    var next = self.isSliceLeft || self.isReclaimLeft ? now : nil
    func consider(_ time: MonotonicInstant?) {
      if let time, time > now, time < (next ?? MonotonicInstant(nanoseconds: .max)) { next = time }
    }
    consider(self.markDueAt)
    if let active = self.active, active.isWantedEmpty, let last = active.lastBatchAt {
      consider(last + self.configuration.rollIdle)
    }
    consider(self.settling?.at)
    consider(self.besideDueAt)
    consider(self.allocationRetryAt)
    consider(self.segments.first?.snapshotsDueAt)
    consider(self.segments.last?.snapshotsDueAt)
    if self.isCleanWanted { consider(self.cleanAt) }
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
