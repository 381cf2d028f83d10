// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A leader's wish for its partition's ISR.
public struct InSyncProposal: Hashable, Sendable {
  /// A replica's node, and the epoch in which the leader found it in sync: a later life of it may have lost what the earlier one
  /// had confirmed.
  public struct Member: Hashable, Sendable {
    public var node: NodeID
    public var epoch: NodeEpoch

    public init(_ node: NodeID, _ epoch: NodeEpoch) {
      self.node = node
      self.epoch = epoch
    }
  }

  public var partition: TopicPartition
  public var node: NodeID
  public var nodeEpoch: NodeEpoch
  public var leaderEpoch: LeaderEpoch
  public var partitionEpoch: PartitionEpoch
  public var members: [Member]

  public init(
    partition: TopicPartition, node: NodeID, nodeEpoch: NodeEpoch, leaderEpoch: LeaderEpoch,
    partitionEpoch: PartitionEpoch, members: [Member]
  ) {
    self.partition = partition
    self.node = node
    self.nodeEpoch = nodeEpoch
    self.leaderEpoch = leaderEpoch
    self.partitionEpoch = partitionEpoch
    self.members = members
  }

  var inSync: [NodeID] { self.members.map(\.node) }
}

/// A leader's ISR, as it was taken over.
public struct AlteredPartition: Hashable, Sendable {
  public var partition: PartitionImage
  /// The `min.insync.replicas` that decided who stays eligible. The leader commits with no smaller ISR until its image is as new.
  public var minInSyncReplicas: Int
}

extension MetadataState {
  /// Takes over a leader's ISR, if the leader and what it knows are current. The partition epoch rises even when the ISR is the
  /// one that stands: an earlier proposal of the leader that is still on its way must not be accepted after this answer.
  ///
  /// - Throws: `.partitionNotFound`, `.staleNodeEpoch` for an earlier life of the leader or of a member, `.fencedLeaderEpoch`,
  ///   `.unknownLeaderEpoch`, `.revisionConflict`, `.invalidArgument` for an ISR without the leader, with strangers, or with a
  ///   new member that does not live, is about to leave or is damaged.
  public func alterPartition(
    _ proposal: InSyncProposal
  ) throws(MemQError) -> Plan<AlteredPartition> {
    let known = try self.partition(proposal.partition)
    let partition = known.value
    let topic = try self.topic(proposal.partition.topic).value
    let subject = "\(topic.name)/\(partition.id.partition)"
    try self.checkLeader(
      proposal.node, proposal.nodeEpoch, proposal.leaderEpoch, of: partition, subject)
    guard proposal.partitionEpoch == partition.epoch else {
      throw MemQError(
        .revisionConflict, "the partition has changed since", subject: subject,
        limit: partition.epoch.rawValue, actual: proposal.partitionEpoch.rawValue)
    }
    try self.check(proposal.inSync, for: partition, subject)
    try self.checkEpochs(of: proposal.members, subject)
    var next = partition
    next.setInSync(
      proposal.inSync, minInSync: topic.settings.minInSyncReplicas,
      keepsEligible: self.weaknesses.contains(.keepEligible))
    next.epoch = partition.epoch.next
    let added = proposal.inSync.filter { !partition.inSync.contains($0) }
    let plan = self.replacing(
      known, next, while: self.weaknesses.contains(.joinUnconditionally) ? [] : added,
      minInSync: true)
    return Plan(
      plan.transactions,
      outcome: AlteredPartition(
        partition: plan.outcome, minInSyncReplicas: topic.settings.minInSyncReplicas))
  }

  /// Whether the node, in this life and with this leader epoch, leads the partition.
  private func checkLeader(
    _ node: NodeID, _ nodeEpoch: NodeEpoch, _ leaderEpoch: LeaderEpoch,
    of partition: PartitionImage, _ subject: String
  ) throws(MemQError) {
    guard let known = self.nodes[node]?.value, known.epoch == nodeEpoch, known.state.isLive else {
      throw MemQError(
        .staleNodeEpoch, "the proposal comes from an earlier life of node \(node)",
        subject: subject, limit: self.nodes[node]?.value.epoch.rawValue, actual: nodeEpoch.rawValue)
    }
    guard leaderEpoch <= partition.leaderEpoch else {
      throw MemQError(
        .unknownLeaderEpoch, "that leader epoch does not exist yet", subject: subject,
        limit: partition.leaderEpoch.rawValue, actual: leaderEpoch.rawValue)
    }
    guard leaderEpoch == partition.leaderEpoch, partition.leader == node else {
      throw MemQError(
        .fencedLeaderEpoch, "another leader was elected", subject: subject,
        limit: partition.leaderEpoch.rawValue, actual: leaderEpoch.rawValue)
    }
  }

  /// Takes over where a leader says its partition begins, retention or somebody having deleted what was below. Never lowers it.
  ///
  /// The partition epoch stays: no ISR proposal on its way is made wrong by it.
  /// - Throws: `.partitionNotFound`, `.staleNodeEpoch`, `.fencedLeaderEpoch`, `.unknownLeaderEpoch`, `.invalidArgument` below 0.
  public func raiseLogStart(
    of id: TopicPartition, to offset: Offset, node: NodeID, nodeEpoch: NodeEpoch,
    leaderEpoch: LeaderEpoch
  ) throws(MemQError) -> Plan<PartitionImage> {
    let known = try self.partition(id)
    let name = try self.topic(id.topic).value.name
    let subject = "\(name)/\(id.partition)"
    guard offset >= .zero else {
      throw MemQError(
        .invalidArgument, "a log start is not negative", subject: subject, limit: 0,
        actual: offset.rawValue)
    }
    try self.checkLeader(node, nodeEpoch, leaderEpoch, of: known.value, subject)
    guard offset > known.value.logStart else { return Plan(outcome: self.shown(known.value)) }
    var next = known.value
    next.logStart = offset
    return self.replacing(known, next)
  }

  /// A leader's log already holds the leader epoch it was elected under, or a later one: this state forgot elections, as a store does that
  /// was restored. The partition gets a leader epoch above all of them, under the same leader. Asked again it changes nothing.
  ///
  /// - Returns: whether it changed something.
  /// - Throws: `.nodeUnknown`, `.nodeFenced`, `.partitionNotFound`, `.topicNotFound`, `.topicDeleted`.
  public func refuseLeadership(
    of id: TopicPartition, _ refused: LeaderEpoch, holding logEpoch: LeaderEpoch, node: NodeID,
    _ nodeEpoch: NodeEpoch
  ) throws(MemQError) -> Plan<Bool> {
    _ = try self.session(node, nodeEpoch)
    let known = try self.partition(id)
    guard known.value.leader == node, known.value.leaderEpoch == refused, logEpoch >= refused else {
      return Plan(outcome: false)
    }
    var next = known.value
    next.leaderEpoch = logEpoch.next
    next.epoch = next.epoch.next
    return Plan(self.replacing(known, next).transactions, outcome: true)
  }

  private func check(
    _ inSync: [NodeID], for partition: PartitionImage, _ subject: String
  ) throws(MemQError) {
    func refuse(_ why: String) -> MemQError { MemQError(.invalidArgument, why, subject: subject) }
    guard let leader = partition.leader, inSync.contains(leader) else {
      throw refuse("the leader belongs to the ISR")
    }
    guard Set(inSync).count == inSync.count else { throw refuse("a node stands twice in the ISR") }
    for node in inSync {
      guard partition.replicas.contains(where: { $0.node == node }) else {
        throw refuse("node \(node) has no replica of the partition")
      }
      guard partition.inSync.contains(node) || self.mayTakeOn(node, partition) else {
        throw refuse(
          "node \(node) does not live, is about to leave or is damaged, and can't join the ISR")
      }
    }
  }

  private func checkEpochs(
    of members: [InSyncProposal.Member], _ subject: String
  ) throws(MemQError) {
    for member in members where !self.weaknesses.contains(.ignoreMemberEpochs) {
      let registered = self.nodes[member.node]?.value.epoch
      guard registered == member.epoch else {
        throw MemQError(
          .staleNodeEpoch,
          "node \(member.node) was found in sync in a life that is not its registered one",
          subject: subject, limit: registered?.rawValue, actual: member.epoch.rawValue)
      }
    }
  }

  /// Moves leadership to an in-sync replica.
  ///
  /// - Throws: `.partitionNotFound`; `.invalidArgument` when the node is not in sync, does not live or is about to leave.
  public func transferLeadership(
    of id: TopicPartition, to node: NodeID
  ) throws(MemQError) -> Plan<PartitionImage> {
    let known = try self.partition(id)
    let name = try self.topic(id.topic).value.name
    guard known.value.inSync.contains(node), self.mayTakeOn(node, known.value) else {
      throw MemQError(
        .invalidArgument, "node \(node) is not an in-sync replica that lives, stays and is whole",
        subject: "\(name)/\(id.partition)")
    }
    guard known.value.leader != node else { return Plan(outcome: self.shown(known.value)) }
    var next = known.value
    next.leader = node
    next.leaderEpoch = next.leaderEpoch.next
    next.epoch = next.epoch.next
    return self.replacing(known, next, while: [node])
  }

  /// - Parameter unchanged: nodes whose records must stand as they were read: one that is fenced or registers anew meanwhile changes
  ///   what the plan rests on, and nothing of the partition shows it.
  /// - Parameter claimed: nodes that get a replica. Their records are written again as they are: a node that leaves at the same time is
  ///   forgotten only while no partition names it, and whichever comes second is asked anew.
  /// - Parameter minInSync: whether the plan rests on the topic's minimum.
  func replacing(
    _ known: Versioned<PartitionImage>, _ next: PartitionImage, while unchanged: [NodeID] = [],
    claiming claimed: [NodeID] = [], minInSync: Bool = false
  ) -> Plan<PartitionImage> {
    var transaction = Transaction()
    if minInSync { self.requireSettings(of: next.id.topic, in: &transaction) }
    for node in claimed {
      guard let record = self.nodes[node] else { continue }
      transaction.replace(.node(node), record, with: record.value)
    }
    for node in unchanged {
      transaction.require(.revision(.node(node), self.nodes[node]?.revision ?? .zero))
    }
    transaction.replace(.partition(next.id), known, with: next)
    return Plan([transaction], outcome: self.shown(next))
  }

  /// With its uploaded offset.
  func shown(_ partition: PartitionImage) -> PartitionImage {
    var shown = partition
    let group = self.uploadGroups[partition.uploadGroup]?.value
    shown.setUploaded(group?.positions[partition.id])
    return shown
  }
}
