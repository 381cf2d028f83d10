// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A leader's wish for its partition's ISR.
public struct InSyncProposal: Hashable, Sendable {
  public var partition: TopicPartition
  public var node: NodeID
  public var nodeEpoch: NodeEpoch
  public var leaderEpoch: LeaderEpoch
  public var partitionEpoch: PartitionEpoch
  public var inSync: [NodeID]

  public init(
    partition: TopicPartition, node: NodeID, nodeEpoch: NodeEpoch, leaderEpoch: LeaderEpoch,
    partitionEpoch: PartitionEpoch, inSync: [NodeID]
  ) {
    self.partition = partition
    self.node = node
    self.nodeEpoch = nodeEpoch
    self.leaderEpoch = leaderEpoch
    self.partitionEpoch = partitionEpoch
    self.inSync = inSync
  }
}

extension MetadataState {
  /// Takes over a leader's ISR, if the leader and what it knows are current.
  ///
  /// - Throws: `.partitionNotFound`, `.staleNodeEpoch`, `.fencedLeaderEpoch`, `.unknownLeaderEpoch`, `.revisionConflict`,
  ///   `.invalidArgument` for an ISR without the leader, with strangers, or with a new member that does not live.
  public func alterPartition(
    _ proposal: InSyncProposal
  ) throws(MemQError) -> Plan<PartitionImage> {
    let known = try self.partition(proposal.partition)
    let partition = known.value
    let topic = try self.topic(proposal.partition.topic).value
    let subject = "\(topic.name)/\(partition.id.partition)"
    guard let node = self.nodes[proposal.node]?.value, node.epoch == proposal.nodeEpoch,
      node.state.isLive
    else {
      throw MemQError(
        .staleNodeEpoch, "the proposal comes from an earlier life of node \(proposal.node)",
        subject: subject, limit: self.nodes[proposal.node]?.value.epoch.rawValue,
        actual: proposal.nodeEpoch.rawValue)
    }
    guard proposal.leaderEpoch <= partition.leaderEpoch else {
      throw MemQError(
        .unknownLeaderEpoch, "that leader epoch does not exist yet", subject: subject,
        limit: partition.leaderEpoch.rawValue, actual: proposal.leaderEpoch.rawValue)
    }
    guard proposal.leaderEpoch == partition.leaderEpoch, partition.leader == proposal.node else {
      throw MemQError(
        .fencedLeaderEpoch, "another leader was elected", subject: subject,
        limit: partition.leaderEpoch.rawValue, actual: proposal.leaderEpoch.rawValue)
    }
    guard proposal.partitionEpoch == partition.epoch else {
      throw MemQError(
        .revisionConflict, "the partition has changed since", subject: subject,
        limit: partition.epoch.rawValue, actual: proposal.partitionEpoch.rawValue)
    }
    try self.check(proposal.inSync, for: partition, subject)
    guard proposal.inSync != partition.inSync else {
      return Plan(outcome: self.shown(partition))
    }
    var next = partition
    next.setInSync(proposal.inSync, minInSync: topic.settings.minInSyncReplicas)
    next.epoch = partition.epoch.next
    return self.replacing(known, next)
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
      guard partition.inSync.contains(node) || self.isFit(node, partition) else {
        throw refuse("node \(node) does not live and can't join the ISR")
      }
    }
  }

  /// Moves leadership to an in-sync replica.
  ///
  /// - Throws: `.partitionNotFound`; `.invalidArgument` when the node is not in sync or does not live.
  public func transferLeadership(
    of id: TopicPartition, to node: NodeID
  ) throws(MemQError) -> Plan<PartitionImage> {
    let known = try self.partition(id)
    let name = try self.topic(id.topic).value.name
    guard known.value.inSync.contains(node), self.isFit(node, known.value) else {
      throw MemQError(
        .invalidArgument, "node \(node) is not an in-sync replica",
        subject: "\(name)/\(id.partition)")
    }
    guard known.value.leader != node else { return Plan(outcome: self.shown(known.value)) }
    var next = known.value
    next.leader = node
    next.leaderEpoch = next.leaderEpoch.next
    next.epoch = next.epoch.next
    return self.replacing(known, next)
  }

  private func replacing(
    _ known: Versioned<PartitionImage>, _ next: PartitionImage
  ) -> Plan<PartitionImage> {
    var transaction = Transaction()
    transaction.replace(.partition(next.id), known, with: next)
    return Plan([transaction], outcome: self.shown(next))
  }

  /// With its uploaded offset.
  private func shown(_ partition: PartitionImage) -> PartitionImage {
    var shown = partition
    let group = self.uploadGroups[partition.uploadGroup]?.value
    shown.uploadedOffset = group?.positions[partition.id]?.next ?? .zero
    return shown
  }
}
