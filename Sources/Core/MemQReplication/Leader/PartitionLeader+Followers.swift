// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension PartitionLeader {
  /// What to tell a follower whose open was accepted, from time to time.
  ///
  /// - Parameter pushedThrough: all below has been pushed on that open.
  public func heartbeat(_ number: OpenNumber, pushedThrough: Offset) -> Heartbeat {
    Heartbeat(
      leaderEpoch: self.epoch, number: number, highWatermark: self.highWatermark,
      pushedThrough: pushedThrough)
  }

  mutating func open(
    _ request: OpenRequest, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    guard let at = self.followers.firstIndex(where: { $0.member.id == request.follower.id }) else {
      return self.answer(request, .rejected(.notAReplica), into: &effects)
    }
    if let rejection = self.rejection(of: request, from: self.followers[at]) {
      return self.answer(request, .rejected(rejection), into: &effects)
    }
    // An earlier open of the same life arrived late.
    guard
      request.number > self.followers[at].highestOpen || self.weaknesses.contains(.takeStaleOpens)
    else { return }
    self.followers[at].highestOpen = request.number
    self.followers[at].closed()
    effects.append(.stopPushing(request.follower.id))
    let result = self.compare(request)
    if case .accepted(let from) = result {
      self.noteLoss(of: at, opensAt: from, knowsHistory: !request.needsHistory)
      self.followers[at].opened(
        request.number, at: from, leaderEnd: self.log.end, needsHistory: request.needsHistory,
        now: now)
    }
    self.answer(request, result, into: &effects)
    self.advanceHighWatermark(into: &effects)
    self.proposeIfNeeded(at: now, into: &effects)
  }

  private func history(for request: OpenRequest, _ result: OpenAnswer.Result) -> LogHistory? {
    guard request.needsHistory, case .accepted(let from) = result else { return nil }
    return self.log.history(below: from)
  }

  private func rejection(
    of request: OpenRequest, from follower: FollowerProgress
  ) -> OpenRejection? {
    guard !self.weaknesses.contains(.takeStaleOpens) else { return nil }
    if request.leaderEpoch < self.epoch { return .fencedLeaderEpoch(current: self.epoch) }
    if request.leaderEpoch > self.epoch { return .unknownLeaderEpoch(current: self.epoch) }
    let known = follower.member.nodeEpoch
    if request.follower.nodeEpoch < known { return .staleNodeEpoch(current: known) }
    if request.follower.nodeEpoch > known { return .unknownNodeEpoch(current: known) }
    return self.isEpochDurable ? nil : .notReady
  }

  /// KIP-101 and KIP-279: logs agree when the follower's last epoch is in this log too and ends there no
  /// earlier than the follower's log.
  private func compare(_ request: OpenRequest) -> OpenAnswer.Result {
    let (local, end) = (self.log.localStart, self.log.end)
    guard request.end >= local else { return .rejected(.belowLocalStart(local)) }
    if request.lastEpoch == .none {
      // An empty log agrees with everything up to its place.
      return request.end <= end
        ? .accepted(from: request.end) : .diverged(EpochEnd(epoch: .none, end: end))
    }
    guard let known = self.log.epochs.end(of: request.lastEpoch, logEnd: end) else {
      // All epochs here are above the follower's: none of its records can be compared.
      return .diverged(EpochEnd(epoch: .none, end: self.log.start))
    }
    if self.weaknesses.contains(.compareEndsOnly), end >= request.end {
      return .accepted(from: request.end)
    }
    guard known.epoch == request.lastEpoch, known.end >= request.end else {
      return .diverged(known)
    }
    return .accepted(from: request.end)
  }

  /// An in-sync replica that opens below the high watermark, or asks what came before its log, lost what it had promised: out at once.
  private mutating func noteLoss(of at: Int, opensAt position: Offset, knowsHistory: Bool) {
    guard position < self.highWatermark || !knowsHistory,
      self.isr.committed.contains(self.followers[at].member.id)
    else { return }
    self.followers[at].lostCommitted = true
  }

  mutating func position(
    _ position: FollowerPosition, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    guard
      let at = self.followers.firstIndex(where: { $0.member.id == position.follower.id }),
      self.counts(position, from: self.followers[at]), position.durableEnd <= self.log.end
    else { return }
    self.followers[at].advanced(to: position.durableEnd, leaderEnd: self.log.end, now: now)
    self.advanceHighWatermark(into: &effects)
    self.proposeIfNeeded(at: now, into: &effects)
  }

  private func counts(_ position: FollowerPosition, from follower: FollowerProgress) -> Bool {
    guard let open = follower.open else { return false }
    if self.weaknesses.contains(.countStalePositions) { return true }
    return position.leaderEpoch == self.epoch && position.number == open
      && position.follower.nodeEpoch == follower.member.nodeEpoch
  }

  mutating func close(_ replica: ReplicaID, _ number: OpenNumber) {
    guard let at = self.followers.firstIndex(where: { $0.member.id == replica }),
      self.followers[at].open == number
    else { return }
    self.followers[at].closed()
  }

  private func answer(
    _ request: OpenRequest, _ result: OpenAnswer.Result, into effects: inout [ReplicationEffect]
  ) {
    effects.append(
      .answer(
        OpenAnswer(
          follower: request.follower.id, leaderEpoch: self.epoch, number: request.number,
          result: result, history: self.history(for: request, result))))
  }
}
