// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel

// A member of a group follows what the group assigns (docs/protocols/groups.md). Heartbeats say what it reads and bring what it is to
// read. What goes is stopped, finished by the application, committed, and only then left out of the next heartbeat; what comes begins
// at the committed offset. So nobody reads what another has not let go, and nothing committed is read again.
extension Consumer {
  /// One heartbeat and what follows from it. False: it was the last.
  func followGroup() async -> Bool {
    guard !self.isClosed, self.failure == nil, self.membership != nil else { return false }
    self.assignment.beginTurn()
    let version = self.assignment.version
    let reading = version == self.assignment.reportedVersion ? nil : self.assignment.held.keys
    let request = self.membership!.nextHeartbeat(reading: reading)
    let call = Task { [membership = self.membership!] in
      do throws(MemQError) {
        return Result<_, MemQError>.success(try await membership.send(request))
      } catch {
        return .failure(error)
      }
    }
    self.assignment.beginsWaiting(call.cancel)
    let result = await call.value
    self.assignment.endsWaiting()
    guard !self.isClosed else { return false }
    switch result {
    case .success(let place):
      self.groupBackoff.reset()
      self.assignment.reportedVersion = version
      self.follow(place)
      await self.pause(place.next)
    case .failure(let error) where error.code == .groupMemberUnknown:
      await self.rejoin()
    case .failure(let error) where error.isRetriable || error.code == .cancelled:
      await self.pause(self.groupBackoff.step())
    case .failure(let error):
      self.groupFailed(error)
    }
    return true
  }

  /// Until something is to be told.
  private func pause(_ time: Duration) async {
    guard time > .zero, !self.assignment.wasNudged else { return }
    let sleep = Task { _ = try? await Task.sleep(for: time) }
    self.assignment.beginsWaiting(sleep.cancel)
    await sleep.value
    self.assignment.endsWaiting()
  }

  private func follow(_ place: GroupMembership.Place) {
    // An answer to an earlier call may come late.
    guard place.epoch >= self.membership!.epoch else { return }
    if place.epoch > self.membership!.epoch { self.assignment.epochChanged() }
    self.membership!.epoch = place.epoch
    self.assignment.isWaiting = place.isWaiting
    if let assigned = place.assigned {
      let wanted = Set(assigned)
      let gone = self.assignment.held.filter { !$0.1.isLeaving && !wanted.contains($0.0) }.map(\.0)
      let new = assigned.filter { self.assignment.held[$0] == nil }
      if !gone.isEmpty { self.release(gone) }
      if !new.isEmpty { self.take(new) }
    }
    self.changed()
  }

  // MARK: Coming

  private func take(_ partitions: [PartitionIndex]) {
    let grant = self.assignment.take(partitions)
    self.logger.debug("The group assigned partitions", metadata: self.named(partitions))
    Task { await self.begin(partitions, grant) }
  }

  /// Finds out where to begin, and begins.
  private func begin(_ partitions: [PartitionIndex], _ grant: Int) async {
    while !self.isClosed, let membership = self.membership {
      let open = partitions.filter { self.assignment.isHeld($0, by: grant) }
      guard !open.isEmpty else { return }
      do throws(MemQError) {
        let (committed, epochs) = try await membership.offsets(of: open)
        let positions = try await self.positions(of: open, committed)
        await self.configuration.onAssignment?(.assigned(open))
        self.begin(open, grant, positions, committed, epochs)
        return
      } catch {
        guard error.isRetriable || error.code == .cancelled else {
          return self.groupFailed(error)
        }
      }
      try? await Task.sleep(for: self.groupBackoff.step())
    }
  }

  private func positions(
    of open: [PartitionIndex], _ committed: SortedMap<PartitionIndex, Offset>
  ) async throws(MemQError) -> SortedMap<PartitionIndex, Offset> {
    // A partition that is younger than this consumer has nothing that came before it.
    let known = open.filter { Int($0.rawValue) < self.partitionCount }
    let added = open.filter { Int($0.rawValue) >= self.partitionCount }
    var positions = try await self.admin.begin(
      self.topic, known, self.configuration.start, committed.filtered(known))
    for (partition, offset) in try await self.admin.begin(
      self.topic, added, .beginning, committed.filtered(added))
    {
      positions[partition] = offset
    }
    return positions
  }

  private func begin(
    _ partitions: [PartitionIndex], _ grant: Int, _ positions: SortedMap<PartitionIndex, Offset>,
    _ committed: SortedMap<PartitionIndex, Offset>,
    _ epochs: SortedMap<PartitionIndex, LeaderEpoch>
  ) {
    for partition in partitions where self.assignment.isHeld(partition, by: grant) {
      guard let position = positions[partition] else { continue }
      // The fetch under way does not ask for it; what it brings of an earlier grant is not for this one.
      self.assignment.begin(partition, at: position, firstFetch: self.nextFetchNumber)
      self.deliveredPositions[partition] = position
      self.committed[partition] = committed[partition]
      self.trails[partition] = committed[partition].map {
        EpochTrail(epochs[partition], before: $0)
      }
      if position < self.end(of: partition) { self.fetchPositions[partition] = position }
    }
    self.fixPlaces(partitions)
    self.fetching?.cancel()
    self.fetchAhead()
    self.changed()
  }

  /// Without a committed offset the next reader would begin where `start` leads it then, and leave out what came meanwhile.
  func fixPlaces(_ partitions: [PartitionIndex]) {
    guard self.configuration.start != .beginning else { return }
    var isAny = false
    for partition in partitions where self.committed[partition] == nil {
      guard self.consumed[partition] == nil, let begin = self.assignment.begin(partition) else {
        continue
      }
      self.consumed[partition] = begin
      isAny = true
    }
    if isAny { Task { await self.commitInBackground() } }
  }

  // MARK: Going

  private func release(_ partitions: [PartitionIndex]) {
    self.assignment.leave(partitions)
    self.logger.debug("The group takes partitions back", metadata: self.named(partitions))
    self.stop(partitions)
    Task { await self.giveBack(partitions) }
  }

  /// Hands out nothing more of them.
  private func stop(_ partitions: [PartitionIndex]) {
    let gone = Set(partitions)
    for partition in partitions { self.fetchPositions[partition] = nil }
    self.ready.removeAll { gone.contains($0.records.partition) }
    self.readyBytes = self.ready.reduce(0) { $0 + $1.bytes }
  }

  private func giveBack(_ partitions: [PartitionIndex]) async {
    let begun = partitions.filter { self.assignment.begin($0) != nil }
    if !begun.isEmpty {
      await self.configuration.onAssignment?(.revoked(begun))
      await self.waitForMarks(begun, atMost: self.configuration.rebalanceTimeout / 2)
      do throws(MemQError) {
        try await self.commit(begun)
      } catch {
        // The next reader goes on where the last commit stands.
        self.logger.warning(
          "Offsets of partitions that go could not be committed",
          metadata: self.named(begun).merging(["error": "\(error)"]) { $1 })
      }
    }
    for partition in partitions where self.assignment.held[partition]?.isLeaving ?? false {
      self.drop(partition)
    }
    self.assignment.nudge()
    self.changed()
  }

  private func drop(_ partition: PartitionIndex) {
    self.assignment.drop(partition)
    self.deliveredPositions[partition] = nil
    self.consumed[partition] = nil
    self.committed[partition] = nil
    self.trails[partition] = nil
    self.truncatedPartitions.remove(partition)
    if self.unmarked?.partition == partition { self.unmarked = nil }
  }

  /// Until all that was handed out is consumed.
  private func waitForMarks(_ partitions: [PartitionIndex], atMost limit: Duration) async {
    let deadline = ContinuousClock.now + limit
    while !self.isClosed, ContinuousClock.now < deadline,
      partitions.contains(where: self.isUnfinished)
    {
      let timer = Task {
        guard (try? await Task.sleep(until: deadline)) != nil else { return }
        self.assignment.marked()
      }
      await withCheckedContinuation { self.assignment.waitForMark($0) }
      timer.cancel()
    }
  }

  private func isUnfinished(_ partition: PartitionIndex) -> Bool {
    guard let delivered = self.deliveredPositions[partition],
      let begin = self.assignment.begin(partition)
    else { return false }
    return delivered > (self.consumed[partition] ?? begin)
  }

  /// The group has given this member up: what it read may be another's already. It comes back as a new one.
  private func rejoin() async {
    let lost = self.assignment.held.filter { $0.1.begin != nil }.map(\.0)
    self.logger.warning(
      "The group has given this member up: it joins again", metadata: self.named(lost))
    self.assignment.isWaiting = true
    if self.consumed.contains(where: { self.committed[$0.0] != $0.1 }) { self.hasLostMarks = true }
    self.stop(self.assignment.held.keys)
    for partition in self.assignment.held.keys { self.drop(partition) }
    self.assignment.marked()
    if !lost.isEmpty { await self.configuration.onAssignment?(.lost(lost)) }
    while !self.isClosed {
      var membership = self.membership!
      do throws(MemQError) {
        let place = try await membership.join()
        guard !self.isClosed else { return await membership.leave() }
        self.membership = membership
        self.assignment.epochChanged()
        self.assignment.isWaiting = place.isWaiting
        if !place.assigned.isEmpty { self.take(place.assigned) }
        return self.changed()
      } catch {
        guard error.isRetriable || error.code == .cancelled else {
          return self.groupFailed(error)
        }
      }
      await self.pause(self.groupBackoff.step())
    }
  }

  // MARK: Commits

  /// Commits what is consumed of these partitions. One at a time: a commit never overtakes a later one.
  func commit(_ partitions: [PartitionIndex]) async throws(MemQError) {
    while self.assignment.isCommitting {
      await withCheckedContinuation { self.assignment.commitWaiters.append($0) }
    }
    guard let membership = self.membership else { return }
    let changed = partitions.compactMap { partition in
      self.consumed[partition].flatMap { offset in
        self.committed[partition] == offset
          ? nil : (partition, offset, self.assignment.held[partition]?.grant)
      }
    }
    guard !changed.isEmpty else { return }
    self.assignment.isCommitting = true
    defer {
      self.assignment.isCommitting = false
      let waiters = self.assignment.commitWaiters
      self.assignment.commitWaiters = []
      for waiter in waiters { waiter.resume() }
    }
    try await membership.commit(
      changed.map { ($0.0, $0.1, self.trails[$0.0]?.epoch(before: $0.1)) })
    for (partition, offset, grant) in changed
    where self.assignment.held[partition]?.grant == grant {
      self.committed[partition] = offset
    }
  }

  func commitInBackground() async {
    do throws(MemQError) {
      try await self.commit(self.consumed.keys)
    } catch {
      self.groupFailed(error)
    }
  }

  private func named(_ partitions: [PartitionIndex]) -> Logger.Metadata {
    [
      "group": "\(self.membership?.group ?? "")", "topic": "\(self.topic)",
      "partitions": "\(partitions.map(\.rawValue))",
    ]
  }
}

extension SortedMap {
  /// The entries of these keys.
  fileprivate func filtered(_ keys: [Key]) -> SortedMap {
    var found = SortedMap()
    for key in keys { found[key] = self[key] }
    return found
  }
}
