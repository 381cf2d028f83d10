// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What reconciling did, for logs and metrics.
public struct ReconcileSummary: Hashable, Sendable {
  /// Partitions that have another leader, or none any more.
  public var elected: [PartitionImage] = []
  /// Partitions whose leader may lack committed records: the loud ones.
  public var unclean: [TopicPartition] = []
  /// Partitions whose topic allows an unclean election, and that wait for a node that may come back with all that was committed.
  public var awaiting: [TopicPartition] = []
  /// Elections among replicas that all restarted uncleanly.
  public var recovered: [RecoveryElection] = []
  public var changed = 0
}

/// Partitions of one transaction: each needs a put and a condition, and another one for its topic; an upload group one pair more.
private let partitionsPerTransaction = 60

/// Whether a replica can take over, best first.
private enum Fitness: Int, Comparable {
  case ready, starting, draining
  static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

// Who leads after a member of the ISR, or the leader, is gone (KIP-966):
//
//     who lives                          leader     ISR                   ELR
//     the leader, and it stays           unchanged  members that live     below the minimum: those that left, too
//     a member of the ISR                that one   members that live     below the minimum: those that left, too
//     only an eligible one               that one   it alone              the others of both
//     only ones of several that          longest    it alone              the others of both
//     restarted uncleanly                log
//     none, unclean election allowed,    longest    it alone              empty; the history epoch rises
//     and none of them may come back     log
//     none                               none       unchanged             unchanged
//
// Each change of the leader raises the leader epoch, each change the partition epoch. Until the longest log is known nobody leads.
extension MetadataState {
  /// Brings every partition in line with who lives: members that are gone, whose volume failed or that are damaged leave the ISR
  /// (the last ones stay), a leader that is gone or drains is replaced by an in-sync replica, else by an eligible one (KIP-966),
  /// else, where the topic allows it, by any, at the price of a new history epoch. A damaged one leads where nobody else can: what
  /// is whole of it can be read. Asked again it changes nothing more.
  ///
  /// - Parameters:
  ///   - since: a `settlementRevision` whose consequences are drawn: what did not change after it is left out. `.zero`: nothing is.
  ///   - also: looked at besides, changed or not.
  ///   - recovery: what replicas that restarted said of their logs, as of `now`.
  ///   - mayReturn: whether a node that does not live may yet come back: nobody is elected uncleanly while one that is in sync or
  ///     eligible may. When that changes, everything is to be looked at.
  public func reconcile(
    since: Revision = .zero, also: [TopicPartition] = [], recovery: RecoveryElections? = nil,
    at now: MonotonicInstant = .zero, mayReturn: (NodeID) -> Bool = { _ in false }
  ) -> Plan<ReconcileSummary> {
    var summary = ReconcileSummary()
    // What replicas that begin anew on another volume add to it. Made when the first one does.
    var claims: VolumeClaims?
    var changes: [(old: Versioned<PartitionImage>, new: PartitionImage)] = []
    for partition in self.unsettledPartitions(since: since, also: also) {
      guard let topic = self.topics[partition.value.id.topic]?.value else { continue }
      var settings = topic.settings
      if settings.uncleanLeaderElection, self.awaitsReturn(partition.value, mayReturn) {
        settings.uncleanLeaderElection = false
        summary.awaiting.append(partition.value.id)
      }
      let logs = recovery.map { LogsKnown(recovery: $0, now: now) }
      let (next, election) = self.reconciled(partition.value, settings, logs, &claims)
      if let election { summary.recovered.append(election) }
      guard let next else { continue }
      changes.append((partition, next))
      if next.leader != partition.value.leader { summary.elected.append(next) }
      if next.historyEpoch != partition.value.historyEpoch { summary.unclean.append(next.id) }
    }
    summary.changed = changes.count
    return Plan(self.transactions(changes), outcome: summary)
  }

  /// Nobody can lead who has all that was committed, and somebody who does may come back.
  private func awaitsReturn(
    _ partition: PartitionImage, _ mayReturn: (NodeID) -> Bool
  ) -> Bool {
    let members = partition.inSync + partition.eligible
    return self.best(of: members.filter { !partition.isDamaged($0) }, partition) == nil
      && members.contains { node in
        !(self.nodes[node]?.value.state.isLive ?? true) && !partition.isDamaged(node)
          && mayReturn(node)
      }
  }

  private func transactions(
    _ changes: [(old: Versioned<PartitionImage>, new: PartitionImage)]
  ) -> [Transaction] {
    var transactions: [Transaction] = []
    // A group must not stand in two transactions of one plan: its revision would be stale in the second.
    var unclean: SortedMap<Int32, [PartitionImage]> = [:]
    var current = Transaction()
    for (index, change) in changes.enumerated() {
      if change.new.historyEpoch != change.old.value.historyEpoch {
        unclean[change.new.uploadGroup, default: []].append(change.new)
        continue
      }
      current.replace(.partition(change.new.id), change.old, with: change.new)
      self.requireSettings(of: change.new.id.topic, in: &current)
      if current.operations.count == partitionsPerTransaction || index == changes.count - 1 {
        transactions.append(current)
        current = Transaction()
      }
    }
    transactions.append(current)
    for (id, partitions) in unclean { transactions.append(self.uncleanElections(id, partitions)) }
    return transactions
  }

  /// Elections of one group that raise the history epoch: partitions and group in one transaction, as many as fit; the next
  /// reconciling takes the others.
  private func uncleanElections(_ id: Int32, _ partitions: [PartitionImage]) -> Transaction {
    var transaction = Transaction()
    let group = self.uploadGroups[id]
    var record = group?.value
    for partition in partitions.prefix(partitionsPerTransaction) {
      transaction.replace(
        .partition(partition.id), self.partitions[partition.id], with: partition)
      self.requireSettings(of: partition.id.topic, in: &transaction)
      record?.positions[partition.id]?.historyEpoch = partition.historyEpoch
    }
    if let record { transaction.replace(.uploadGroup(id), group, with: record) }
    return transaction
  }

  /// Who is eligible rests on the topic's minimum: whoever changes that meanwhile has the plan made anew.
  func requireSettings(of id: TopicID, in transaction: inout Transaction) {
    transaction.require(.revision(.topic(id), self.topics[id]?.revision ?? .zero))
  }

  /// Nil: nothing to change.
  private func reconciled(
    _ partition: PartitionImage, _ settings: TopicSettings, _ logs: LogsKnown?,
    _ claims: inout VolumeClaims?
  ) -> (PartitionImage?, RecoveryElection?) {
    var next = partition
    // First, so that nobody stays eligible for an ISR that was large enough meanwhile.
    if !self.weaknesses.contains(.keepEligible) {
      next.dropEligible(minInSync: settings.minInSyncReplicas)
    }
    let trust = self.trust(in: next)
    let sound = partition.inSync.filter {
      self.fitness($0, partition) != nil && !partition.isDamaged($0) && trust.mayLead($0)
    }
    if sound.count < partition.inSync.count, !sound.isEmpty {
      next.setInSync(
        sound, minInSync: settings.minInSyncReplicas,
        keepsEligible: self.weaknesses.contains(.keepEligible))
    }
    // What it held when it left the ISR it holds no more.
    next.eligible.removeAll { partition.isDamaged($0) }
    let isCompleted = next.completeReassignment(minInSync: settings.minInSyncReplicas)
    let election = self.elect(&next, settings, logs)
    self.replaceLostVolumes(&next, settings.claimBytes, &claims)
    guard next != partition else { return (nil, nil) }
    if next.leader != partition.leader || isCompleted,
      !self.weaknesses.contains(.keepLeaderEpoch)
    {
      next.leaderEpoch = partition.leaderEpoch.next
    }
    next.epoch = partition.epoch.next
    return (next, election)
  }

  /// A node that lives without the volume its replica stood on gets a new, empty replica in its place. Not while the lost one is in
  /// sync or eligible: it may hold what no other does, and its disk may come back. Nor on account of a volume that the node still
  /// names: one that failed may be whole after a restart.
  ///
  /// What is to keep bytes on the volume goes where most of them are unclaimed, wherever that is: without a replica more would be at
  /// stake than room.
  private func replaceLostVolumes(
    _ partition: inout PartitionImage, _ claim: Int64, _ claims: inout VolumeClaims?
  ) {
    for replica in partition.replicas {
      guard !partition.inSync.contains(replica.node), !partition.eligible.contains(replica.node),
        let node = self.nodes[replica.node]?.value, node.state == .ready,
        node.volume(replica.volume) == nil
      else { continue }
      let volumes = node.placeableVolumes.map(\.id)
      guard !volumes.isEmpty else { continue }
      let turn = Int(partition.id.partition.rawValue) % volumes.count
      var volume = volumes[turn]
      if claim > 0 {
        var known = claims ?? VolumeClaims(self)
        for other in volumes[turn...] + volumes[..<turn]
        where known.room(other) > known.room(volume) {
          volume = other
        }
        known.add(claim, to: volume)
        claims = known
      }
      partition.replace(replica, with: ReplicaID(replica.node, volume))
    }
  }

  /// - Parameter logs: nil: nothing is known of logs, so that nobody is elected where they have to be compared.
  /// - Returns: the election, where logs were compared.
  @discardableResult
  func elect(
    _ partition: inout PartitionImage, _ settings: TopicSettings, _ logs: LogsKnown? = nil
  ) -> RecoveryElection? {
    let sound = partition.inSync.filter { !partition.isDamaged($0) }
    let trust = self.trust(in: partition)
    if case .nobody(let candidates) = trust {
      let found = logs?.longest(of: candidates, partition, self)
      partition.leader = found?.leader
      guard let found else { return nil }
      partition.inSync = [found.leader]
      let others = candidates.filter { $0 != found.leader }
      partition.eligible = settings.minInSyncReplicas > 1 ? others : []
      return found
    }
    let best = self.best(of: sound.filter(trust.mayLead), partition)
    if let leader = partition.leader, let fitness = self.fitness(leader, partition),
      sound.contains(leader), fitness != .draining || best?.fitness == .draining
    {
      return nil
    }
    if let best {
      partition.leader = best.node
    } else if let best = self.best(of: partition.eligible.filter(trust.mayLead), partition) {
      // What left the ISR last is behind nothing that was committed; the old members may hold more, and stay eligible.
      let others = (partition.eligible + sound).filter { $0 != best.node }
      partition.leader = best.node
      partition.inSync = [best.node]
      partition.eligible = settings.minInSyncReplicas > 1 ? unique(others) : []
    } else if let found = self.unclean(partition, settings, logs) {
      partition.leader = found.leader
      guard let leader = found.leader else { return nil }
      partition.inSync = [leader]
      partition.eligible = []
      partition.historyEpoch = partition.historyEpoch.next
      return found.election
    } else if let leader = partition.leader, partition.inSync.contains(leader),
      self.fitness(leader, partition) != nil
    {
      // Damaged, and nobody else can: it goes on giving what is whole.
    } else {
      partition.leader = self.best(of: partition.inSync, partition)?.node
    }
    return nil
  }

  /// Who may be elected without all that was committed; nil: nobody. Without a leader: it is still to be found out who holds most.
  private func unclean(
    _ partition: PartitionImage, _ settings: TopicSettings, _ logs: LogsKnown?
  ) -> (leader: NodeID?, election: RecoveryElection?)? {
    let isForced = self.weaknesses.contains(.electAnyReplica)
    guard settings.uncleanLeaderElection || isForced else { return nil }
    let whole = partition.replicas.map(\.node).filter {
      !partition.isDamaged($0) && self.fitness($0, partition) != nil
    }
    guard let best = self.best(of: whole, partition) else { return nil }
    if whole.count == 1 || isForced { return (best.node, nil) }
    let found = logs?.longest(of: whole, partition, self)
    return (found?.leader, found)
  }

  // MARK: Who restarted

  /// Whose log is known to be what it was.
  private enum Trust {
    /// Whoever leads, or nothing could be compared.
    case everybody
    case some([NodeID])
    /// Several could lead, and all that live restarted uncleanly: in this order of preference.
    case nobody([NodeID])

    func mayLead(_ node: NodeID) -> Bool {
      switch self {
      case .everybody: true
      case .some(let nodes): nodes.contains(node)
      case .nobody: false
      }
    }
  }

  private func trust(in partition: PartitionImage) -> Trust {
    if let leader = partition.leader, self.fitness(leader, partition) != nil { return .everybody }
    let members = partition.inSync + partition.eligible
    let candidates = partition.replicas.map(\.node).filter {
      members.contains($0) && !partition.isDamaged($0)
    }
    guard candidates.count > 1 else { return .everybody }
    let trusted = candidates.filter { self.isTrusted($0, partition) }
    let lives: (NodeID) -> Bool = { self.fitness($0, partition) != nil }
    return candidates.contains(where: lives) && !trusted.contains(where: lives)
      ? .nobody(candidates) : .some(trusted)
  }

  /// Whether a candidate's log is what it was when it last counted. Who is in sync with a leader came, or stayed, so in its present life;
  /// where nobody leads it came back.
  private func isTrusted(_ id: NodeID, _ partition: PartitionImage) -> Bool {
    if partition.leader != nil && partition.inSync.contains(id) { return true }
    return self.nodes[id].map { !$0.value.restartedUncleanly } ?? false
  }

  /// Whether a replica can say where its log ends: it is there, in this life of its node.
  func isAnswerable(
    _ id: NodeID, _ epoch: NodeEpoch, _ volume: VolumeID, _ partition: PartitionImage
  ) -> Bool {
    self.nodes[id]?.value.epoch == epoch && self.fitness(id, partition) != nil
      && partition.replicas.contains(ReplicaID(id, volume))
  }

  /// The fittest of some replicas; the preferred order decides between equals.
  private func best(
    of nodes: [NodeID], _ partition: PartitionImage
  ) -> (node: NodeID, fitness: Fitness)? {
    var best: (node: NodeID, fitness: Fitness)?
    for replica in partition.replicas where nodes.contains(replica.node) {
      guard let fitness = self.fitness(replica.node, partition) else { continue }
      if best == nil || fitness < best!.fitness { best = (replica.node, fitness) }
    }
    return best
  }

  /// Nil: the node does not live, or the volume of its replica failed or is not the node's any more.
  private func fitness(_ id: NodeID, _ partition: PartitionImage) -> Fitness? {
    guard let node = self.nodes[id]?.value,
      let replica = partition.replicas.first(where: { $0.node == id }),
      let volume = node.volume(replica.volume), volume.state != .failed
    else { return nil }
    switch node.state {
    case .ready: return volume.state == .opening ? .starting : .ready
    case .starting: return .starting
    case .draining: return .draining
    case .fenced, .gone: return nil
    }
  }

  /// Whether a node may join the ISR or be given the leadership: one that drains keeps what it has and gets nothing new, one whose
  /// replica is damaged is to be filled anew first.
  func mayTakeOn(_ id: NodeID, _ partition: PartitionImage) -> Bool {
    // One that came back leads by an election only.
    if partition.isDamaged(id) || !self.trust(in: partition).mayLead(id) { return false }
    return switch self.fitness(id, partition) {
    case .ready, .starting: true
    case .draining, nil: false
    }
  }
}

extension PartitionImage {
  /// Sets the ISR, and with it who else is eligible: those that leave while the ISR is below its minimum hold all that was
  /// committed, because the high watermark stands still then.
  mutating func setInSync(_ nodes: [NodeID], minInSync: Int, keepsEligible: Bool = false) {
    if !keepsEligible { self.dropEligible(minInSync: minInSync) }
    let left = self.inSync.filter { !nodes.contains($0) }
    self.inSync = nodes
    self.eligible = unique(self.eligible + left).filter { !nodes.contains($0) }
    if !keepsEligible { self.dropEligible(minInSync: minInSync) }
  }

  /// While the ISR alone may commit, whoever is outside of it can be behind. It became large enough by a new member, or because the
  /// topic's minimum was lowered: then this comes before anything that makes it smaller.
  mutating func dropEligible(minInSync: Int) {
    if self.inSync.count >= minInSync { self.eligible = [] }
  }
}

private func unique(_ nodes: [NodeID]) -> [NodeID] {
  var seen: [NodeID] = []
  for node in nodes where !seen.contains(node) { seen.append(node) }
  return seen
}
