// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// The rows of the transition tables that stand on top of the cores. A step that none of them describes breaks a rule.
public enum TransitionRow: Int, CaseIterable, Sendable {
  // PartitionReplica
  case replicaIdle, replicaLeads, replicaRefuses, replicaFollows, leaderUpdated, followerUnchanged
  case replicaIgnoresOlder, replicaNewLife
  // PartitionFollower
  case settledOpens, openAccepted, openDiverged, openRejected, openUnanswered, waitOver
  case followingWrites, followingMissed, followingPosition, followingSilence, followerDisconnected
  case followerDropsStale
  // FollowerProgress
  case progressOpens, progressRises, progressLost
  // ISRTracker
  case isrProposes, isrRefused, isrRefusedInDoubt, isrUnanswered, isrProposesInDoubt, isrCommitted
  // PartitionLeader
  case appendWrites, appendAnswered, durableAnswers, durableCommits, openCommits, positionCommits
  case assignmentCommits, answerCommits, tickAnswersLate, tickProposes
  // SequenceVerdict
  case producerFresh, producerDuplicate, producerStraddles, producerOutOfOrder, producerFenced
  case producerUnknown
  // MetadataState: elections
  case leaderElectedInSync, leaderElectedEligible, leaderElectedUncleanly, leaderLost, memberLeaves,
    memberLeavesToELR
  // MetadataState: nodes
  case nodeRegisters, nodeReady, nodeDrains, nodeFenced, nodeGone
  // MetadataState: changes of replicas
  case replicasGrow, replicasReordered, replicasCompleted, replicasCancelled, replicasSameWish

  public var name: String {
    switch self {
    case .replicaIdle: "replica: no leader is named → idle"
    case .replicaLeads: "replica: leads, epoch above all in the log → leader"
    case .replicaRefuses: "replica: leads, epoch already in the log → idle, refuses"
    case .replicaFollows: "replica: led by another → follower"
    case .leaderUpdated: "replica: leader, same epoch → members updated"
    case .followerUnchanged: "replica: follower, same epoch → unchanged"
    case .replicaIgnoresOlder: "replica: an older leader epoch → unchanged"
    case .replicaNewLife: "replica: registered again → idle"
    case .settledOpens: "follower: settling, nothing on its way → opening"
    case .openAccepted: "follower: opening, accepted → following"
    case .openDiverged: "follower: opening, diverged → settling, cut"
    case .openRejected: "follower: opening, rejected → waiting"
    case .openUnanswered: "follower: opening, no answer → opens again"
    case .waitOver: "follower: waiting, pause over → settling"
    case .followingWrites: "follower: following, push at the end → write"
    case .followingMissed: "follower: following, something beyond the end → settling"
    case .followingPosition: "follower: following, durable or heartbeat → position"
    case .followingSilence: "follower: following, silence → settling"
    case .followerDisconnected: "follower: disconnected → waiting"
    case .followerDropsStale: "follower: another open number or epoch → dropped"
    case .progressOpens: "progress: open accepted → pushed to"
    case .progressRises: "progress: position → higher"
    case .progressLost: "progress: closed, or a new life → unknown"
    case .isrProposes: "ISR: settled, propose → in flight"
    case .isrRefused: "ISR: in flight, refused → settled"
    case .isrRefusedInDoubt: "ISR: in flight, refused, an earlier one in doubt → in doubt"
    case .isrUnanswered: "ISR: in flight, no answer → in doubt"
    case .isrProposesInDoubt: "ISR: in doubt, propose → in flight"
    case .isrCommitted: "ISR: a higher partition epoch → settled"
    case .appendWrites: "leader: append → write"
    case .appendAnswered: "leader: append → answered at once"
    case .durableAnswers: "leader: durable → replies"
    case .durableCommits: "leader: durable → high watermark"
    case .openCommits: "leader: open → high watermark"
    case .positionCommits: "leader: position → high watermark"
    case .assignmentCommits: "leader: assignment → high watermark"
    case .answerCommits: "leader: proposal answer → high watermark"
    case .tickAnswersLate: "leader: tick → replies past their deadline"
    case .tickProposes: "leader: tick → proposal"
    case .producerFresh: "producer: next sequence → appended"
    case .producerDuplicate: "producer: at or below the last → duplicate"
    case .producerStraddles: "producer: begins at or below, ends above → straddles"
    case .producerOutOfOrder: "producer: gap → out of order"
    case .producerFenced: "producer: older epoch → fenced"
    case .producerUnknown: "producer: unknown, not from 0 → refused"
    case .leaderElectedInSync: "election: an in-sync replica lives → it leads"
    case .leaderElectedEligible: "election: only an eligible replica lives → it leads"
    case .leaderElectedUncleanly: "election: none of them lives, unclean ones are allowed → any"
    case .leaderLost: "election: none lives → no leader"
    case .memberLeaves: "ISR member leaves, enough stay → ELR empty"
    case .memberLeavesToELR: "ISR member leaves, too few stay → ELR"
    case .nodeRegisters: "node: registers → starting"
    case .nodeReady: "node: starting → ready"
    case .nodeDrains: "node: live → draining"
    case .nodeFenced: "node: live → fenced"
    case .nodeGone: "node: live → gone"
    case .replicasGrow: "replicas: wish with new nodes → growing"
    case .replicasReordered: "replicas: wish for another order → in that order"
    case .replicasCompleted: "replicas: growing, all added in sync → target"
    case .replicasCancelled: "replicas: growing, cancelled → original"
    case .replicasSameWish: "replicas: growing, the same wish → unchanged"
    }
  }
}

/// What the tables speak of, as it stands before or after a step.
struct ReplicaStanding {
  enum Role { case idle, leader, follower }

  var role: Role
  var leaderEpoch: LeaderEpoch
  var end: Offset
  // Follower
  var phase: PartitionFollower.Phase?
  var number: OpenNumber?
  var leader: ReplicaID?
  // Leader
  var isr: ISRTracker.Standing?
  var partitionEpoch: PartitionEpoch?
  /// Of the follower that speaks.
  var position: Offset?

  /// - Parameter replica: inout, because to lend out what lies in a box would copy it.
  init(_ replica: inout PartitionReplica, _ event: PartitionReplica.Event) {
    if case .leader(.positioned(let position)) = event {
      self.position = replica.position(of: position.follower.id)
    }
    self.leaderEpoch = replica.leaderEpoch
    self.end = replica.end
    if let standing = replica.leaderStanding {
      self.role = .leader
      self.isr = standing.isr
      self.partitionEpoch = standing.partitionEpoch
    } else if let standing = replica.followerStanding {
      self.role = .follower
      self.phase = standing.phase
      self.number = standing.number
      self.leader = standing.leader
    } else {
      self.role = .idle
    }
  }
}

/// Finds the rows a step took, by what stood before, what came, and what stands after.
struct StepReader {
  let before: ReplicaStanding
  let after: ReplicaStanding
  let event: PartitionReplica.Event
  let effects: [ReplicationEffect]

  func read(into counters: inout Counters) throws(Shadow.Broken) {
    self.readEffects(into: &counters)
    if case .assigned(let assignment) = self.event {
      self.readAssigned(assignment, into: &counters)
    } else if case .registered = self.event, self.before.role != .idle, self.after.role == .idle {
      counters.hit(.replicaNewLife)
    }
    if self.before.role == .leader, self.after.role == .leader,
      self.before.leaderEpoch == self.after.leaderEpoch
    {
      try self.readISR(into: &counters)
      self.readLeader(into: &counters)
    }
    if self.before.role == .follower, self.after.role == .follower,
      self.before.leaderEpoch == self.after.leaderEpoch, self.before.leader == self.after.leader
    {
      try self.readFollower(into: &counters)
    }
  }

  private func has(_ matches: (ReplicationEffect) -> Bool) -> Bool {
    self.effects.contains(where: matches)
  }
  private var movesWatermark: Bool {
    self.has { if case .highWatermark = $0 { true } else { false } }
  }
  private var replies: Bool { self.has { if case .reply = $0 { true } else { false } } }
  private var proposes: Bool { self.has { if case .propose = $0 { true } else { false } } }
  private var opens: Bool { self.has { if case .open = $0 { true } else { false } } }
  private var writes: Bool { self.has { if case .write = $0 { true } else { false } } }
  private var cuts: Bool { self.has { if case .truncate = $0 { true } else { false } } }
  private var tellsPosition: Bool { self.has { if case .position = $0 { true } else { false } } }

  private func readEffects(into counters: inout Counters) {
    for effect in self.effects {
      switch effect {
      case .refuseLeadership: counters.hit(.replicaRefuses)
      case .stopPushing: counters.hit(.progressLost)
      case .answer(let answer):
        if case .accepted = answer.result { counters.hit(.progressOpens) }
      case .reply(_, let outcome): Self.read(outcome, into: &counters)
      default: break
      }
    }
  }

  private static func read(_ outcome: AppendOutcome, into counters: inout Counters) {
    switch outcome {
    case .duplicate: counters.hit(.producerDuplicate)
    case .refused(.sequenceStraddles): counters.hit(.producerStraddles)
    case .refused(.outOfOrderSequence): counters.hit(.producerOutOfOrder)
    case .refused(.producerFenced): counters.hit(.producerFenced)
    case .refused(.unknownProducer): counters.hit(.producerUnknown)
    case .appended, .refused: break
    }
  }

  private func readAssigned(_ assignment: PartitionAssignment, into counters: inout Counters) {
    if assignment.leaderEpoch < self.before.leaderEpoch { counters.hit(.replicaIgnoresOlder) }
    let isSame = self.before.leaderEpoch == self.after.leaderEpoch
    switch (self.before.role, self.after.role) {
    case (.leader, .leader) where isSame: counters.hit(.leaderUpdated)
    case (.follower, .follower) where isSame && self.before.leader == self.after.leader:
      if assignment.leaderEpoch == self.before.leaderEpoch { counters.hit(.followerUnchanged) }
    case (_, .leader): counters.hit(.replicaLeads)
    case (_, .follower): counters.hit(.replicaFollows)
    case (_, .idle): if assignment.leader == nil { counters.hit(.replicaIdle) }
    }
  }

  private func readISR(into counters: inout Counters) throws(Shadow.Broken) {
    guard let old = self.before.isr, let new = self.after.isr else { return }
    var from = old
    if self.before.partitionEpoch != self.after.partitionEpoch {
      counters.hit(.isrCommitted)
      from = .settled
    }
    switch (from, new) {
    case (.settled, .settled), (.inFlight, .inFlight), (.inDoubt, .inDoubt): break
    case (.settled, .inFlight): counters.hit(.isrProposes)
    case (.inDoubt, .inFlight): counters.hit(.isrProposesInDoubt)
    case (.inFlight, .settled): counters.hit(.isrRefused)
    case (.inFlight, .inDoubt):
      if case .leader(.proposalAnswered(_, .refused)) = self.event {
        counters.hit(.isrRefusedInDoubt)
      } else {
        counters.hit(.isrUnanswered)
      }
    case (.settled, .inDoubt), (.inDoubt, .settled): throw self.outside("ISR \(old) → \(new)")
    }
  }

  private func readLeader(into counters: inout Counters) {
    switch self.event {
    case .leader(.append(let request)):
      counters.hit(self.writes ? .appendWrites : .appendAnswered)
      if self.writes, request.producerID != .none { counters.hit(.producerFresh) }
    case .durable:
      if self.replies { counters.hit(.durableAnswers) }
      if self.movesWatermark { counters.hit(.durableCommits) }
    case .leader(.opened): if self.movesWatermark { counters.hit(.openCommits) }
    case .leader(.positioned):
      if self.before.position != self.after.position { counters.hit(.progressRises) }
      if self.movesWatermark { counters.hit(.positionCommits) }
    case .assigned: if self.movesWatermark { counters.hit(.assignmentCommits) }
    case .leader(.proposalAnswered): if self.movesWatermark { counters.hit(.answerCommits) }
    case .leader(.closed): counters.hit(.progressLost)
    case .tick, .leader(.tick):
      if self.replies { counters.hit(.tickAnswersLate) }
      if self.proposes { counters.hit(.tickProposes) }
    default: break
    }
  }

  private func readFollower(into counters: inout Counters) throws(Shadow.Broken) {
    guard let old = self.before.phase, let new = self.after.phase else { return }
    if self.opens { counters.hit(.settledOpens) }
    switch self.event {
    case .follower(.answered(let answer)):
      guard old == .opening, answer.number == self.before.number,
        answer.leaderEpoch == self.before.leaderEpoch
      else { return counters.hit(.followerDropsStale) }
      try self.readAnswer(answer, new, into: &counters)
    case .follower(.pushed(let push, _)):
      guard old == .following, push.number == self.before.number else {
        return counters.hit(.followerDropsStale)
      }
      if self.writes { counters.hit(.followingWrites) }
      try self.readMissed(new, into: &counters)
    case .follower(.heartbeat(let heartbeat)):
      guard old == .following, heartbeat.number == self.before.number else {
        return counters.hit(.followerDropsStale)
      }
      if self.tellsPosition { counters.hit(.followingPosition) }
      try self.readMissed(new, into: &counters)
    case .durable:
      if self.tellsPosition { counters.hit(.followingPosition) }
      guard new == old || old == .settling && new == .opening else {
        throw self.outside("\(old) → \(new)")
      }
    case .follower(.disconnected):
      counters.hit(.followerDisconnected)
      guard new == .waiting else { throw self.outside("\(old) → \(new)") }
    case .tick, .follower(.tick):
      try self.readTick(old, new, into: &counters)
    default:
      guard new == old else { throw self.outside("\(old) → \(new)") }
    }
  }

  private func readAnswer(
    _ answer: OpenAnswer, _ new: PartitionFollower.Phase, into counters: inout Counters
  ) throws(Shadow.Broken) {
    switch (answer.result, new) {
    case (.accepted, .following): counters.hit(.openAccepted)
    // What came is not what was asked for: asked again.
    case (.accepted, .waiting), (.diverged, .waiting): break
    case (.diverged, .settling), (.diverged, .opening):
      counters.hit(.openDiverged)
      guard self.cuts else { throw self.outside("diverged, and nothing is cut") }
      counters.truncations += 1
    case (.rejected, .waiting): counters.hit(.openRejected)
    default: throw self.outside("\(answer.result) → \(new)")
    }
  }

  private func readMissed(
    _ new: PartitionFollower.Phase, into counters: inout Counters
  ) throws(Shadow.Broken) {
    switch new {
    case .following: break
    case .settling, .opening: counters.hit(.followingMissed)
    case .waiting: throw self.outside("following → waiting")
    }
  }

  private func readTick(
    _ old: PartitionFollower.Phase, _ new: PartitionFollower.Phase, into counters: inout Counters
  ) throws(Shadow.Broken) {
    switch (old, new) {
    case (.opening, .opening) where self.after.number != self.before.number,
      (.opening, .settling):
      counters.hit(.openUnanswered)
    case (.waiting, .settling), (.waiting, .opening): counters.hit(.waitOver)
    case (.following, .settling), (.following, .opening): counters.hit(.followingSilence)
    case (.settling, .opening): break
    default: guard new == old else { throw self.outside("\(old) → \(new)") }
    }
  }

  private func outside(_ what: String) -> Shadow.Broken {
    Shadow.Broken(rule: "a step outside the transition tables", detail: "\(what) by \(self.event)")
  }
}
