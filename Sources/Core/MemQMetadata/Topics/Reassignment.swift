// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where one replica of a partition is wanted.
public struct ReplicaWish: Hashable, Sendable {
  public var node: NodeID
  /// Nil: the volume the node has the partition on, else its volume with the fewest replicas.
  public var volume: VolumeID?

  public init(_ node: NodeID, _ volume: VolumeID? = nil) {
    self.node = node
    self.volume = volume
  }
}

// A partition's replicas change without a moment in which fewer copies count than before (KIP-455).
//
//     state      event                                       state      replicas                     leader epoch
//     at rest    wish with new nodes                         growing    target, then those to go     same
//     at rest    wish for another order                      at rest    in that order                same
//     at rest    wish for another volume of a member's node  at rest    that one, empty              rises
//     growing    all added in the ISR, ISR within the
//                target ≥ min.insync.replicas                at rest    target                       rises
//     growing    cancel, some of the original in the ISR     at rest    original                     rises
//     growing    the same wish again                         growing    unchanged                    same
//
// Nodes learn the replicas of the moment with the image and need to have seen none of these steps.
extension MetadataState {
  /// Has a partition's replicas stand where they are wished, preferred leader first. Added ones catch up first; `reconcile` completes the
  /// change. A replica that goes to another volume of its node leaves the ISR, begins empty there and is filled by the leader.
  ///
  /// - Throws: `.partitionNotFound`; `.reassignmentInProgress` while another change is under way; `.replicationFactorInvalid` for
  ///   another number of replicas than the topic's; `.invalidArgument` for a node that stands twice, holds no logs, does not live or is
  ///   about to leave, or lacks the volume; `.limitReached` for a volume without room for what the topic may keep on it; `.notEnoughReplicas` when a replica can't leave its volume without too few staying in sync.
  public func reassign(
    _ id: TopicPartition, to wishes: [ReplicaWish]
  ) throws(MemQError) -> Plan<PartitionImage> {
    let known = try self.partition(id)
    let partition = known.value
    let topic = try self.topic(id.topic).value
    let subject = "\(topic.name)/\(id.partition)"
    let target = try self.target(wishes, partition, topic, subject)
    if let running = partition.reassignment {
      guard running.target == target else {
        throw MemQError(
          .reassignmentInProgress, "the partition's replicas are being changed: wait or cancel",
          subject: subject)
      }
      return Plan(outcome: self.shown(partition))
    }
    guard target != partition.replicas else { return Plan(outcome: self.shown(partition)) }
    var next = partition
    let isMoved = try self.moveVolumes(&next, to: target, topic, subject)
    let reassignment = PartitionReassignment(target: target, original: next.replicas)
    if reassignment.adding.isEmpty {
      next.replicas = target
    } else {
      next.reassignment = reassignment
      next.replicas =
        target + next.replicas.filter { reassignment.removing.contains($0.node) }
    }
    // A leader that hears of a move late, or of two that end where they began, must not count what was said of the earlier log.
    if isMoved { next.leaderEpoch = partition.leaderEpoch.next }
    next.epoch = partition.epoch.next
    return self.replacing(known, next, claiming: reassignment.adding, minInSync: true)
  }

  /// Goes back to the replicas from before a change that is under way.
  ///
  /// - Throws: `.partitionNotFound`; `.reassignmentNotFound` when none is under way; `.notEnoughReplicas` while no replica from before is in
  ///   sync: only the added ones hold all that was committed.
  public func cancelReassignment(
    of id: TopicPartition
  ) throws(MemQError) -> Plan<PartitionImage> {
    let known = try self.partition(id)
    let settings = try self.topic(id.topic).value.settings
    let subject = "\(try self.topic(id.topic).value.name)/\(id.partition)"
    guard let running = known.value.reassignment else {
      throw MemQError(
        .reassignmentNotFound, "the partition's replicas are not being changed", subject: subject)
    }
    var next = known.value
    guard next.keepOnly(running.original, minInSync: settings.minInSyncReplicas) else {
      throw MemQError(
        .notEnoughReplicas, "no replica from before the change is in sync", subject: subject,
        limit: 1, actual: 0)
    }
    self.elect(&next, settings)
    next.leaderEpoch = known.value.leaderEpoch.next
    next.epoch = known.value.epoch.next
    return self.replacing(known, next, minInSync: true)
  }

  private func target(
    _ wishes: [ReplicaWish], _ partition: PartitionImage, _ topic: TopicImage, _ subject: String
  ) throws(MemQError) -> [ReplicaID] {
    guard wishes.count == topic.replicationFactor else {
      throw MemQError(
        .replicationFactorInvalid, "a partition has as many replicas as its topic says",
        subject: subject, limit: Int64(topic.replicationFactor), actual: Int64(wishes.count))
    }
    var target: [ReplicaID] = []
    for wish in wishes {
      guard !target.contains(where: { $0.node == wish.node }) else {
        throw MemQError(
          .invalidArgument, "a node holds one replica of a partition", subject: subject,
          actual: Int64(wish.node.rawValue))
      }
      target.append(try self.place(wish, partition, subject))
    }
    return target
  }

  private func place(
    _ wish: ReplicaWish, _ partition: PartitionImage, _ subject: String
  ) throws(MemQError) -> ReplicaID {
    func refuse(_ why: String) -> MemQError {
      MemQError(
        .invalidArgument, "node \(wish.node) \(why)", subject: subject,
        actual: Int64(wish.node.rawValue))
    }
    let present = partition.replicas.first { $0.node == wish.node }
    if let present, wish.volume ?? present.volume == present.volume { return present }
    guard let node = self.nodes[wish.node]?.value, node.service == .replication,
      !node.placeableVolumes.isEmpty
    else { throw refuse("holds no logs, or all its volumes failed") }
    guard node.state == .ready || node.state == .starting else {
      throw refuse("does not live or is about to leave")
    }
    if let volume = wish.volume {
      guard node.placeableVolumes.contains(where: { $0.id == volume }) else {
        throw refuse("has no volume \(volume) that works")
      }
      return try self.checked(ReplicaID(node.id, volume), partition, subject)
    }
    let volumes = node.placeableVolumes.map(\.id)
    let load = self.replicaCounts
    var best = volumes[0]
    for volume in volumes where (load[volume] ?? 0) < (load[best] ?? 0) { best = volume }
    return try self.checked(ReplicaID(node.id, best), partition, subject)
  }

  /// - Throws: `.limitReached` when the volume has no room for what the partition may keep on it.
  private func checked(
    _ replica: ReplicaID, _ partition: PartitionImage, _ subject: String
  ) throws(MemQError) -> ReplicaID {
    let claim = try self.topic(partition.id.topic).value.settings.claimBytes
    guard claim > 0 else { return replica }
    let room = VolumeClaims(self).room(replica.volume)
    guard claim <= room else {
      throw MemQError(
        .limitReached, "volume \(replica.volume) has no room for what the partition may keep on it",
        subject: subject, limit: room, actual: claim)
    }
    return replica
  }

  /// Replicas that go to another volume of their node: what they hold stops counting at once, so enough others must be in sync.
  ///
  /// - Returns: whether there are such.
  private func moveVolumes(
    _ partition: inout PartitionImage, to target: [ReplicaID], _ topic: TopicImage,
    _ subject: String
  ) throws(MemQError) -> Bool {
    let moved = target.filter { wanted in
      partition.replicas.contains { $0.node == wanted.node && $0 != wanted }
    }
    guard !moved.isEmpty else { return false }
    let nodes = moved.map(\.node)
    let staying = partition.inSync.filter { !nodes.contains($0) }
    let isCounted = nodes.contains {
      partition.inSync.contains($0) || partition.eligible.contains($0)
    }
    let wanted = topic.settings.minInSyncReplicas
    guard !isCounted || staying.count >= max(1, wanted) else {
      throw MemQError(
        .notEnoughReplicas,
        "too few replicas would stay in sync while this one is filled on its new volume",
        subject: subject, limit: Int64(max(1, wanted)), actual: Int64(staying.count))
    }
    for replica in moved {
      guard let old = partition.replicas.first(where: { $0.node == replica.node }) else { continue }
      partition.replace(old, with: replica)
    }
    guard isCounted else { return true }
    partition.setInSync(staying, minInSync: wanted)
    self.elect(&partition, topic.settings)
    return true
  }
}

extension PartitionImage {
  /// Another replica in the place of one, wherever it is named.
  mutating func replace(_ old: ReplicaID, with new: ReplicaID) {
    func replaced(_ replicas: [ReplicaID]) -> [ReplicaID] {
      replicas.map { $0 == old ? new : $0 }
    }
    self.replicas = replaced(self.replicas)
    if let running = self.reassignment {
      self.reassignment = PartitionReassignment(
        target: replaced(running.target), original: replaced(running.original))
    }
    // What was damaged is left behind.
    self.damaged.removeAll { $0.node == old.node }
  }

  /// Ends a reassignment whose added replicas are all in sync, when enough of the target's are.
  ///
  /// - Returns: whether it ended one; the leader epoch rises then even if the leader stays, so that nobody counts the others any more.
  mutating func completeReassignment(minInSync: Int) -> Bool {
    guard let running = self.reassignment,
      running.adding.allSatisfy({ self.inSync.contains($0) })
    else { return false }
    let staying = self.inSync.filter { node in running.target.contains { $0.node == node } }
    guard staying.count >= max(1, minInSync) else { return false }
    return self.keepOnly(running.target, minInSync: minInSync)
  }

  /// Takes away all replicas but these, with their places in ISR and ELR. The leader may be one that goes: somebody has to be elected.
  ///
  /// - Returns: false, and nothing changes, when none of them is in sync.
  fileprivate mutating func keepOnly(_ replicas: [ReplicaID], minInSync: Int) -> Bool {
    func stays(_ node: NodeID) -> Bool { replicas.contains { $0.node == node } }
    let inSync = self.inSync.filter(stays)
    guard !inSync.isEmpty else { return false }
    self.dropEligible(minInSync: minInSync)
    self.replicas = replicas
    self.inSync = inSync
    // Those in the ELR hold all that was committed, whoever else goes: the high watermark stood still since they left.
    self.eligible = inSync.count >= minInSync ? [] : self.eligible.filter(stays)
    self.damaged.removeAll { !stays($0.node) }
    self.reassignment = nil
    return true
  }
}
