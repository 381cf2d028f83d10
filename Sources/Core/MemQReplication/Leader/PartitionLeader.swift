// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Decides, for one partition and one leader epoch, what is appended, what is committed and who is in sync.
///
///     event            effects
///     append           write + a reply that waits; or a reply at once
///     durable          replies of acks=leader; high watermark → replies of acks=all
///     open             answer: accepted, diverged or rejected
///     position         high watermark → replies of acks=all
///     assignment       other members → high watermark, proposals
///     proposal answer  committed ISR or roll back → high watermark
///     tick             replies past their deadline, lagging members, returning members
///
/// Invariants: the high watermark never falls; it is at or below the durable end of every member of the
/// maximal ISR; it moves only while the committed ISR has `minISR` members. Acknowledgement and
/// visibility both follow from that one move.
/// Source: Kafka's ISR, KIP-101, KIP-279, KIP-966; docs/protocols/replication.md.
public struct PartitionLeader: Sendable {
  public enum Event: Sendable {
    case append(AppendRequest)
    case opened(OpenRequest)
    case positioned(FollowerPosition)
    /// The stream that carried this open ended.
    case closed(ReplicaID, OpenNumber)
    case proposalAnswered(ISRProposal, ISRAnswer)
    case tick
  }

  public let member: ReplicaMember
  public let epoch: LeaderEpoch
  /// Where this epoch begins: its high watermark is sure to be the true one from here on.
  public let epochStart: Offset
  public internal(set) var log: ReplicaLog
  public internal(set) var minISR: Int

  var isr: ISRTracker
  var followers: [FollowerProgress]
  var durableReplies = ReplyQueue()
  var committedReplies = ReplyQueue()
  /// The write that logs this epoch. Until it is durable nothing leaves this node: a crash must not bring
  /// the same epoch back with other records.
  let epochWrite: WriteNumber
  var isEpochDurable = false
  let configuration: ReplicationConfiguration
  let weaknesses: Weaknesses

  /// Takes the lead. The assignment's epoch must be above all in the log.
  init(
    _ log: ReplicaLog, as member: ReplicaMember, _ assignment: PartitionAssignment,
    _ configuration: ReplicationConfiguration, _ weaknesses: Weaknesses, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    precondition(assignment.leaderEpoch > log.epochs.lastEpoch, "an epoch begins once")
    self.member = member
    self.epoch = assignment.leaderEpoch
    self.epochStart = log.end
    self.log = log
    self.log.forgetProducersAboveEnd()
    let isLimited = self.log.limitHighWatermark()
    self.minISR = assignment.minISR
    self.isr = ISRTracker(assignment.isr, assignment.partitionEpoch, at: now)
    self.followers = assignment.replicas.filter { $0.id != member.id }.map {
      FollowerProgress($0, end: log.end, at: now)
    }
    self.configuration = configuration
    self.weaknesses = weaknesses
    self.epochWrite = self.log.begin(self.epoch)
    effects.append(
      .startEpoch(self.epochWrite, EpochStart(epoch: self.epoch, start: self.epochStart)))
    if isLimited { effects.append(.highWatermark(self.highWatermark)) }
    self.advanceHighWatermark(into: &effects)
    // The watermark may be at the end already: without this a log full of batches above its snapshot would take no more.
    self.takeSnapshotIfDue(into: &effects)
  }

  public var highWatermark: Offset { self.log.highWatermark }
  public var inSyncReplicas: [ReplicaID] { self.isr.committed }
  public var partitionEpoch: PartitionEpoch { self.isr.partitionEpoch }
  package func position(of follower: ReplicaID) -> Offset? {
    self.followers.first { $0.member.id == follower }?.position
  }
  package var isrStanding: ISRTracker.Standing { self.isr.standing }
  public var replicaCount: Int { self.followers.count + 1 }
  /// Records that the follower furthest behind lacks, of those with an open.
  public var followerLagMax: Int64 {
    self.followers.reduce(0) {
      $1.open == nil ? $0 : Swift.max($0, self.log.end - $1.position)
    }
  }

  /// False while an earlier leader may have told of a higher watermark: an answer that must never go
  /// back (the end of the log, say) waits.
  public var isHighWatermarkCurrent: Bool { self.highWatermark >= self.epochStart }

  /// Replies that wait for durability or commitment.
  public var pendingReplies: Int { self.durableReplies.count + self.committedReplies.count }

  public mutating func handle(
    _ event: Event, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    switch event {
    case .append(let request): self.append(request, at: now, into: &effects)
    case .opened(let request): self.open(request, at: now, into: &effects)
    case .positioned(let position): self.position(position, at: now, into: &effects)
    case .closed(let replica, let number): self.close(replica, number)
    case .proposalAnswered(let proposal, let answer):
      self.proposalAnswered(proposal, answer, at: now, into: &effects)
    case .tick: self.tick(at: now, into: &effects)
    }
  }

  /// All writes up to `number` are durable here.
  mutating func durable(
    through number: WriteNumber, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    let moved = self.log.settle(through: number)
    if number >= self.epochWrite { self.isEpochDurable = true }
    guard moved else { return }
    self.durableReplies.release(through: self.countedEnd, into: &effects)
    self.advanceHighWatermark(into: &effects)
  }

  /// Ends this leadership: what waits is told that its outcome is open.
  mutating func resign(into effects: inout [ReplicationEffect]) -> ReplicaLog {
    let why: (AppendOutcome) -> AppendRefusal = { outcome in
      switch outcome {
      case .appended: .outcomeUnknown
      case .duplicate, .refused: .notLeader
      }
    }
    self.durableReplies.failAll(into: &effects, because: why)
    self.committedReplies.failAll(into: &effects, because: why)
    for follower in self.followers where follower.open != nil {
      effects.append(.stopPushing(follower.member.id))
    }
    return self.log
  }

  private mutating func tick(at now: MonotonicInstant, into effects: inout [ReplicationEffect]) {
    let (inSync, minimum) = (self.isr.committed.count, self.minISR)
    let late: (AppendOutcome) -> AppendRefusal = { outcome in
      guard case .appended = outcome, inSync < minimum else { return .outcomeUnknown }
      return .notEnoughReplicasAfterAppend(inSync: inSync, minimum: minimum)
    }
    self.durableReplies.expire(at: now, into: &effects, late: late)
    self.committedReplies.expire(at: now, into: &effects, late: late)
    self.isr.expire(at: now, self.configuration)
    for at in self.followers.indices where self.followers[at].open != nil {
      // An idle follower sends nothing: being at the end is being caught up.
      if self.followers[at].position >= self.log.end { self.followers[at].caughtUpAt = now }
    }
    self.proposeIfNeeded(at: now, into: &effects)
  }
}
