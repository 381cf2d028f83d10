// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// A metadata service that never fails: registers nodes, judges their liveness, elects leaders from ISR
/// and ELR (KIP-966), and takes or refuses ISR proposals by compare-and-set.
struct MetadataOracle {
  struct NodeRecord {
    var epoch = NodeEpoch.zero
    var attempt = -1
    var isAlive = false
    var heardAt: Int64 = 0
  }

  struct PartitionRecord {
    var replicas: [Int]
    var isr: [Int]
    var elr: [Int] = []
    var leader: Int?
    var leaderEpoch = LeaderEpoch.zero
    var epoch = PartitionEpoch.zero
    var minISR: Int
  }

  static let sessionTimeout: Int64 = 1_500_000_000

  private(set) var nodes: [NodeRecord]
  private(set) var partitions: [PartitionRecord]
  private var lastNodeEpoch = NodeEpoch.zero
  private(set) var elections = 0
  private(set) var changes = 0

  init(nodes: Int, partitions: [PartitionRecord]) {
    self.nodes = Array(repeating: NodeRecord(), count: nodes)
    self.partitions = partitions
  }

  static func replica(_ node: Int) -> ReplicaID {
    ReplicaID(NodeID(Int32(node + 1)), VolumeID(UniqueID(high: 0, low: UInt64(node + 1))))
  }
  static func node(_ replica: ReplicaID) -> Int { Int(replica.node.rawValue) - 1 }

  /// Who may be elected without losing anything.
  func electable(_ partition: Int) -> [Int] {
    self.partitions[partition].isr + self.partitions[partition].elr
  }

  var assignments: [PartitionAssignment] {
    self.partitions.map { record in
      PartitionAssignment(
        leaderEpoch: record.leaderEpoch, partitionEpoch: record.epoch,
        leader: record.leader.map(Self.replica),
        replicas: record.replicas.map { ReplicaMember(Self.replica($0), self.nodes[$0].epoch) },
        isr: record.isr.map(Self.replica), minISR: record.minISR)
    }
  }

  /// A node's new life. The life before is fenced first, so that no leadership crosses it.
  mutating func register(_ node: Int, attempt: Int, at now: Int64) -> NodeEpoch? {
    guard attempt >= self.nodes[node].attempt else { return nil }
    if attempt == self.nodes[node].attempt { return self.nodes[node].epoch }
    self.fence(node)
    self.lastNodeEpoch = self.lastNodeEpoch.next
    self.nodes[node] = NodeRecord(
      epoch: self.lastNodeEpoch, attempt: attempt, isAlive: true, heardAt: now)
    self.changes += 1
    for at in self.partitions.indices where self.partitions[at].leader == nil { self.elect(at) }
    return self.lastNodeEpoch
  }

  /// False: that life of the node is fenced and must register again.
  mutating func heard(_ node: Int, _ epoch: NodeEpoch, at now: Int64) -> Bool {
    guard self.nodes[node].isAlive, self.nodes[node].epoch == epoch else {
      return epoch > self.nodes[node].epoch
    }
    self.nodes[node].heardAt = now
    return true
  }

  mutating func expireSessions(at now: Int64) {
    for node in self.nodes.indices where self.nodes[node].isAlive {
      if now - self.nodes[node].heardAt > Self.sessionTimeout { self.fence(node) }
    }
  }

  private mutating func fence(_ node: Int) {
    guard self.nodes[node].isAlive else { return }
    self.nodes[node].isAlive = false
    self.changes += 1
    for at in self.partitions.indices where self.partitions[at].isr.contains(node) {
      self.setISR(self.partitions[at].isr.filter { $0 != node }, of: at)
      if self.partitions[at].leader == node { self.elect(at) }
    }
  }

  private mutating func setISR(_ isr: [Int], of at: Int) {
    let removed = self.partitions[at].isr.filter { !isr.contains($0) }
    self.partitions[at].isr = isr.sorted()
    self.partitions[at].elr =
      isr.count >= self.partitions[at].minISR
      ? [] : (self.partitions[at].elr + removed).filter { !isr.contains($0) }.sorted()
    self.partitions[at].epoch = self.partitions[at].epoch.next
    self.changes += 1
  }

  private mutating func elect(_ at: Int) {
    let record = self.partitions[at]
    let alive = self.electable(at).filter { self.nodes[$0].isAlive }
    // The preferred order is that of the replicas, rotated so that leadership moves around.
    let order = record.replicas.sorted {
      ($0 + Int(record.leaderEpoch.rawValue)) % 7 < ($1 + Int(record.leaderEpoch.rawValue)) % 7
    }
    let chosen = order.first { alive.contains($0) }
    guard chosen != nil || record.leader != nil else { return }
    self.partitions[at].leader = chosen
    self.partitions[at].leaderEpoch = record.leaderEpoch.next
    if let chosen, !record.isr.contains(chosen) { self.setISR(record.isr + [chosen], of: at) }
    self.partitions[at].epoch = self.partitions[at].epoch.next
    self.elections += 1
    self.changes += 1
  }

  mutating func propose(_ at: Int, _ proposal: ISRProposal) -> ISRAnswer {
    let record = self.partitions[at]
    guard let leader = record.leader, Self.replica(leader) == proposal.leader.id,
      record.leaderEpoch == proposal.leaderEpoch, record.epoch == proposal.base,
      proposal.isr.contains(where: { $0.id == proposal.leader.id })
    else { return .refused }
    for member in proposal.isr {
      let node = Self.node(member.id)
      guard record.replicas.contains(node), self.nodes[node].isAlive,
        self.nodes[node].epoch == member.nodeEpoch
      else { return .refused }
    }
    self.setISR(proposal.isr.map { Self.node($0.id) }, of: at)
    return .accepted(
      self.partitions[at].epoch, isr: self.partitions[at].isr.map(Self.replica))
  }

  /// Leadership moves to another in-sync replica, as a balancer would ask.
  mutating func moveLeader(_ at: Int) {
    let record = self.partitions[at]
    guard let leader = record.leader,
      let next = record.isr.first(where: { $0 != leader && self.nodes[$0].isAlive })
    else { return }
    self.partitions[at].leader = next
    self.partitions[at].leaderEpoch = record.leaderEpoch.next
    self.partitions[at].epoch = record.epoch.next
    self.elections += 1
    self.changes += 1
  }
}
