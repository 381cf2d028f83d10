// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension PartitionLeader {
  /// The leader's own position, as far as it counts.
  var countedEnd: Offset {
    self.weaknesses.contains(.ackBeforeSync) ? self.log.end : self.log.durableEnd
  }

  /// Whether the committed ISR is large enough to commit.
  var isLargeEnough: Bool {
    self.isr.committed.count >= self.minISR || self.weaknesses.contains(.ignoreMinISR)
  }

  /// Moves the high watermark to the lowest position over the maximal ISR. The size test looks at the
  /// committed ISR, the position test at all that may be in it: whoever can be elected has it all.
  mutating func advanceHighWatermark(into effects: inout [ReplicationEffect]) {
    guard self.isLargeEnough else { return }
    var lowest = self.countedEnd
    for follower in self.followers where self.holdsBack(follower.member.id) {
      // A member not heard of in this epoch may hold anything.
      guard follower.open != nil else {
        if self.weaknesses.contains(.passUnopened) { continue }
        return
      }
      lowest = Swift.min(lowest, follower.position)
    }
    guard lowest > self.highWatermark, self.log.setHighWatermark(lowest) else { return }
    effects.append(.highWatermark(lowest))
    self.committedReplies.release(through: lowest, into: &effects)
    self.takeSnapshotIfDue(into: &effects)
  }

  mutating func takeSnapshotIfDue(into effects: inout [ReplicationEffect]) {
    guard let snapshot = self.log.takeSnapshot(batches: self.configuration.snapshotBatches) else {
      return
    }
    effects.append(.producerSnapshot(snapshot.bytes, at: snapshot.at))
  }

  private func holdsBack(_ replica: ReplicaID) -> Bool {
    if self.weaknesses.contains(.leaderAloneCommits) { return false }
    if self.weaknesses.contains(.forgetProposedISR) { return self.isr.committed.contains(replica) }
    return self.isr.isMaximal(replica)
  }

  /// Takes over what metadata says, if it is news. Same leader epoch.
  mutating func assigned(
    _ assignment: PartitionAssignment, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    precondition(assignment.leaderEpoch == self.epoch, "another epoch is another leader")
    // One from before an answer may name a minimum from before it, too.
    self.minISR =
      assignment.partitionEpoch >= self.isr.partitionEpoch
      ? assignment.minISR : Swift.max(self.minISR, assignment.minISR)
    self.updateMembers(assignment.replicas, at: now, into: &effects)
    self.commit(assignment.isr, assignment.partitionEpoch, at: now)
    self.advanceHighWatermark(into: &effects)
    self.proposeIfNeeded(at: now, into: &effects)
  }

  /// False when `epoch` is not news.
  @discardableResult
  private mutating func commit(
    _ isr: [ReplicaID], _ epoch: PartitionEpoch, at now: MonotonicInstant
  ) -> Bool {
    let before = self.isr.committed
    guard self.isr.commit(isr, epoch, evenOld: self.weaknesses.contains(.takeOldISR)) else {
      return false
    }
    for at in self.followers.indices {
      let replica = self.followers[at].member.id
      if before.contains(replica) && !isr.contains(replica) {
        self.followers[at].left(at: now, self.configuration)
      }
    }
    return true
  }

  /// A node epoch rises with each life of a node; what the earlier life said no longer counts.
  private mutating func updateMembers(
    _ members: [ReplicaMember], at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    var followers: [FollowerProgress] = []
    for member in members where member.id != self.member.id {
      guard let known = self.followers.first(where: { $0.member.id == member.id }) else {
        followers.append(FollowerProgress(member, end: self.log.end, at: now))
        continue
      }
      var follower = known
      if member.nodeEpoch > known.member.nodeEpoch {
        follower.member = member
        follower.highestOpen = .zero
        follower.closed()
        effects.append(.stopPushing(member.id))
      }
      followers.append(follower)
    }
    for old in self.followers where !members.contains(where: { $0.id == old.member.id }) {
      effects.append(.stopPushing(old.member.id))
    }
    self.followers = followers
  }

  mutating func proposalAnswered(
    _ proposal: ISRProposal, _ answer: ISRAnswer, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    // Asked by this node in an earlier leadership.
    guard proposal.leaderEpoch == self.epoch else { return }
    let number = proposal.number
    switch answer {
    case .accepted(let epoch, let isr, let minISR):
      // The image may not show yet that the minimum was raised. Who left by this answer is eligible by metadata's minimum: with a
      // lower one something would be committed without it.
      if self.commit(isr, epoch, at: now) { self.minISR = Swift.max(self.minISR, minISR) }
    case .refused: self.isr.refused(number, at: now, pause: self.configuration.proposalPause)
    case .unknown: self.isr.unanswered(number, at: now, pause: self.configuration.proposalPause)
    }
    self.advanceHighWatermark(into: &effects)
    self.proposeIfNeeded(at: now, into: &effects)
  }

  /// Asks metadata for the ISR that this leader sees, when it differs from the committed one.
  mutating func proposeIfNeeded(
    at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    guard self.isEpochDurable, self.isr.mayPropose(at: now) else { return }
    var wanted = [self.member]
    for follower in self.followers {
      let isMember = self.isr.committed.contains(follower.member.id)
      if isMember ? !self.mustLeave(follower, at: now) : self.mayJoin(follower, at: now) {
        wanted.append(follower.member)
      }
    }
    wanted.sort { $0.id < $1.id }
    guard wanted.map(\.id) != self.isr.committed || self.isr.needsBarrier else { return }
    let number = self.isr.propose(wanted.map(\.id), at: now)
    effects.append(
      .propose(
        ISRProposal(
          number: number, leader: self.member, leaderEpoch: self.epoch,
          base: self.isr.partitionEpoch, isr: wanted)))
  }

  private func mustLeave(_ follower: FollowerProgress, at now: MonotonicInstant) -> Bool {
    if follower.lostCommitted { return true }
    if follower.open != nil && follower.position >= self.log.end { return false }
    return now - follower.caughtUpAt > self.configuration.replicaLagMax
  }

  /// Past the watermark, past this epoch's start, in this epoch's open, and not again too soon.
  private func mayJoin(_ follower: FollowerProgress, at now: MonotonicInstant) -> Bool {
    follower.open != nil && !follower.awaitsHistory
      && (follower.position >= self.highWatermark && follower.position >= self.epochStart
        || self.weaknesses.contains(.joinEarly))
      && now >= follower.mayRejoinAt
      && now - follower.caughtUpAt <= self.configuration.replicaLagMax
  }
}
