// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One replica of one partition through all its roles. What the service and the simulator drive.
///
///     role      assignment                                   role
///     any       names no leader, or not this replica         idle
///     any       leads here, epoch above all in the log       leader
///     any       leads here, epoch already in the log         idle + refuseLeadership
///     any       led by another replica                       follower
///     leader    same leader epoch                            leader, members updated
///     follower  same leader epoch                            follower
///     any       an older leader epoch                        unchanged
public struct PartitionReplica: Sendable {
  public enum Event: Sendable {
    /// What metadata says now; any number of changes may have been missed in between.
    case assigned(PartitionAssignment)
    /// The node registered again: what it said in its earlier life no longer counts, to anybody.
    case registered(NodeEpoch)
    /// The replica isn't assigned here any more, its volume failed, or the node stops.
    case retired
    /// The volume made all writes up to this one durable.
    case durable(through: WriteNumber)
    /// The log begins later now: what lies below is deleted.
    case logStartMoved(Offset)
    /// Below this offset the volume holds nothing any more.
    case localStartMoved(Offset)
    case uploadedOffsetMoved(Offset)
    /// The volume needs a producer snapshot to let go of records.
    case snapshotWanted
    case leader(PartitionLeader.Event)
    case follower(PartitionFollower.Event)
    case tick
  }

  public private(set) var member: ReplicaMember
  public private(set) var leader: PartitionLeader?
  public private(set) var follower: PartitionFollower?
  public private(set) var leaderEpoch = LeaderEpoch.none
  /// The log while the replica is idle.
  private var idleLog: ReplicaLog
  private var lastOpen: OpenNumber
  private var refused = LeaderEpoch.none
  private let configuration: ReplicationConfiguration
  private let weaknesses: Weaknesses

  /// - Parameter opens: above all open numbers this replica used in this life of its node, when it was made before.
  public init(
    _ member: ReplicaMember, log: ReplicaLog, configuration: ReplicationConfiguration,
    after opens: OpenNumber = .zero
  ) {
    self.init(member, log: log, configuration: configuration, after: opens, weaknesses: [])
  }

  package init(
    _ member: ReplicaMember, log: ReplicaLog, configuration: ReplicationConfiguration,
    after opens: OpenNumber = .zero, weaknesses: Weaknesses
  ) {
    self.lastOpen = opens
    self.member = member
    self.idleLog = log
    self.configuration = configuration
    self.weaknesses = weaknesses
  }

  public var log: ReplicaLog { self.leader?.log ?? self.follower?.log ?? self.idleLog }
  public var highWatermark: Offset { self.log.highWatermark }

  // For the simulator, which counts the rows of the tables.
  package var end: Offset { self.leader?.log.end ?? self.follower?.log.end ?? self.idleLog.end }
  package var leaderStanding: (isr: ISRTracker.Standing, partitionEpoch: PartitionEpoch)? {
    guard let isr = self.leader?.isrStanding, let epoch = self.leader?.partitionEpoch else {
      return nil
    }
    return (isr, epoch)
  }
  package var leads: Bool { self.leader != nil }
  /// What a push takes from a leader.
  package var pushing: (epoch: LeaderEpoch, localStart: Offset, end: Offset, highWatermark: Offset)?
  {
    guard let epoch = self.leader?.epoch, let localStart = self.leader?.log.localStart,
      let end = self.leader?.log.end, let highWatermark = self.leader?.log.highWatermark
    else { return nil }
    return (epoch, localStart, end, highWatermark)
  }
  package func heartbeat(_ number: OpenNumber, pushedThrough end: Offset) -> Heartbeat? {
    self.leader?.heartbeat(number, pushedThrough: end)
  }
  package func position(of follower: ReplicaID) -> Offset? { self.leader?.position(of: follower) }
  package var followerStanding:
    (phase: PartitionFollower.Phase, number: OpenNumber, leader: ReplicaID)?
  {
    guard let phase = self.follower?.phase, let number = self.follower?.number,
      let leader = self.follower?.leader
    else { return nil }
    return (phase, number, leader)
  }
  /// The last open number it used, in this life of the node.
  public var opens: OpenNumber { self.follower?.number ?? self.lastOpen }

  /// False while time alone changes nothing: a leader without followers whose replies are all given.
  public var needsTick: Bool {
    if let leader = self.leader { return leader.replicaCount > 1 || leader.pendingReplies > 0 }
    return self.follower != nil
  }

  public mutating func handle(
    _ event: Event, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    switch event {
    case .assigned(let assignment): self.assigned(assignment, at: now, into: &effects)
    case .registered(let epoch):
      guard epoch > self.member.nodeEpoch else { return }
      self.becomeIdle(into: &effects)
      self.member.nodeEpoch = epoch
    case .retired: self.becomeIdle(into: &effects)
    case .durable(let number): self.durable(through: number, at: now, into: &effects)
    case .logStartMoved(let offset): self.updateLog { $0.setStart(offset) }
    case .localStartMoved(let offset): self.updateLog { $0.setLocalStart(offset) }
    case .uploadedOffsetMoved(let offset): self.updateLog { $0.setUploadedOffset(offset) }
    case .snapshotWanted:
      // A follower that waits for the history must not take the little it knows for all of it.
      let leads = self.leader != nil
      var snapshot: (bytes: [UInt8], at: Offset)?
      self.updateLog { if leads || !$0.needsHistory { snapshot = $0.takeSnapshot() } }
      if let snapshot { effects.append(.producerSnapshot(snapshot.bytes, at: snapshot.at)) }
    case .leader(let event): self.lead(event, at: now, into: &effects)
    case .follower(let event): self.follower?.handle(event, at: now, into: &effects)
    case .tick:
      self.leader?.handle(.tick, at: now, into: &effects)
      self.follower?.handle(.tick, at: now, into: &effects)
    }
  }

  private mutating func lead(
    _ event: PartitionLeader.Event, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    if self.leader != nil {
      self.leader?.handle(event, at: now, into: &effects)
    } else if case .append(let request) = event {
      effects.append(.reply(token: request.token, .refused(.notLeader)))
    }
  }

  private mutating func assigned(
    _ assignment: PartitionAssignment, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    guard assignment.leaderEpoch >= self.leaderEpoch,
      assignment.nodeEpoch(of: self.member.id) == self.member.nodeEpoch
    else { return }
    let isNews = assignment.leaderEpoch > self.leaderEpoch
    self.leaderEpoch = assignment.leaderEpoch
    guard let leader = assignment.leader else { return self.becomeIdle(into: &effects) }
    if leader == self.member.id {
      self.assignedToLead(assignment, at: now, into: &effects)
    } else if isNews || self.follower?.leader != leader {
      self.becomeIdle(into: &effects)
      self.follower = PartitionFollower(
        self.takeLog(), as: self.member, of: leader, assignment.leaderEpoch, after: self.lastOpen,
        self.configuration, self.weaknesses, at: now, into: &effects)
    }
  }

  private mutating func assignedToLead(
    _ assignment: PartitionAssignment, at now: MonotonicInstant,
    into effects: inout [ReplicationEffect]
  ) {
    if self.leader?.epoch == assignment.leaderEpoch {
      self.leader?.assigned(assignment, at: now, into: &effects)
      return
    }
    self.becomeIdle(into: &effects)
    guard assignment.leaderEpoch > self.idleLog.epochs.lastEpoch else {
      if self.refused < assignment.leaderEpoch {
        self.refused = assignment.leaderEpoch
        effects.append(.refuseLeadership(assignment.leaderEpoch))
      }
      return
    }
    self.leader = PartitionLeader(
      self.takeLog(), as: self.member, assignment, self.configuration, self.weaknesses, at: now,
      into: &effects)
  }

  /// Leaves an empty log behind, so that the role owns the only reference to the tables inside.
  private mutating func takeLog() -> ReplicaLog {
    let log = self.idleLog
    self.idleLog = ReplicaLog(emptyAt: log.end, limits: self.configuration.producers)
    return log
  }

  private mutating func becomeIdle(into effects: inout [ReplicationEffect]) {
    if var leader = self.leader {
      self.leader = nil
      self.idleLog = leader.resign(into: &effects)
    }
    if let follower = self.follower {
      self.follower = nil
      self.idleLog = follower.log
      self.lastOpen = follower.number
    }
  }

  private mutating func durable(
    through number: WriteNumber, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    if self.leader != nil {
      self.leader?.durable(through: number, at: now, into: &effects)
    } else if self.follower != nil {
      self.follower?.durable(through: number, at: now, into: &effects)
    } else {
      _ = self.idleLog.settle(through: number)
    }
  }

  private mutating func updateLog(_ body: (inout ReplicaLog) -> Void) {
    if self.leader != nil {
      body(&self.leader!.log)
    } else if self.follower != nil {
      body(&self.follower!.log)
    } else {
      body(&self.idleLog)
    }
  }
}
