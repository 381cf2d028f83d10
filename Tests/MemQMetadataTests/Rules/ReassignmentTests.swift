// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct ReassignmentTests {
  /// Four nodes; node 2 has a second volume, 2002.
  private func cluster() throws -> (PureCluster, TopicImage) {
    var cluster = try PureCluster()
    try cluster.joinReplicas(4)
    try cluster.join(.replication, uuid: 2, volumes: [1_002, 2_002])
    let topic = try cluster.makeTopic("t", replicas: 3, settings: ["min.insync.replicas": "2"])
    return (cluster, topic)
  }

  private func nodes(_ ids: Int32...) -> [NodeID] { ids.map { NodeID($0) } }
  private func wishes(_ ids: Int32...) -> [ReplicaWish] { ids.map { ReplicaWish(NodeID($0)) } }

  @Test func `replicas grow, catch up, and only then those that go lose their place`() throws {
    var (cluster, topic) = try self.cluster()
    let before = cluster.partition(topic)
    #expect(before.replicas.map(\.node) == nodes(1, 2, 3) && before.reassignment == nil)
    let growing = try cluster.reassign(topic, wishes(4, 2, 3))
    #expect(growing.replicas.map(\.node) == nodes(4, 2, 3, 1))
    #expect(growing.inSync == before.inSync && growing.leaderEpoch == before.leaderEpoch)
    #expect(growing.epoch > before.epoch)
    #expect(growing.reassignment?.adding == nodes(4) && growing.reassignment?.removing == nodes(1))
    try cluster.run { $0.reconcile() }
    #expect(cluster.partition(topic) == growing, "nobody has caught up yet")
    try cluster.propose(topic, nodes(1, 2, 3, 4))
    try cluster.run { $0.reconcile() }
    let after = cluster.partition(topic)
    #expect(after.replicas.map(\.node) == nodes(4, 2, 3) && after.reassignment == nil)
    #expect(Set(after.inSync) == Set(nodes(2, 3, 4)) && after.leader == NodeID(4))
    #expect(after.leaderEpoch > growing.leaderEpoch)
  }

  @Test func `a completed change raises the leader epoch even when the leader stays`() throws {
    var (cluster, topic) = try self.cluster()
    let before = cluster.partition(topic)
    #expect(before.leader == NodeID(1))
    try cluster.reassign(topic, wishes(1, 2, 4))
    try cluster.propose(topic, nodes(1, 2, 3, 4))
    try cluster.run { $0.reconcile() }
    let after = cluster.partition(topic)
    #expect(after.leader == NodeID(1) && after.leaderEpoch == before.leaderEpoch.next)
  }

  @Test func `it is not complete while too few of the target are in sync`() throws {
    var (cluster, topic) = try self.cluster()
    try cluster.reassign(topic, wishes(4, 2, 3))
    try cluster.propose(topic, nodes(1, 4))
    try cluster.run { $0.reconcile() }
    #expect(cluster.partition(topic).reassignment != nil)
    try cluster.propose(topic, nodes(1, 4, 2))
    try cluster.run { $0.reconcile() }
    let after = cluster.partition(topic)
    #expect(after.reassignment == nil && Set(after.inSync) == Set(nodes(4, 2)))
  }

  @Test func `the same wish again changes nothing, another has to wait`() throws {
    var (cluster, topic) = try self.cluster()
    let growing = try cluster.reassign(topic, wishes(4, 2, 3))
    #expect(try cluster.reassign(topic, wishes(4, 2, 3)) == growing)
    let error = thrown { () throws(MemQError) in
      try cluster.state.reassign(growing.id, to: self.wishes(1, 2, 4))
    }
    #expect(error?.code == .reassignmentInProgress && error?.code.isRetriable == true)
    let order = thrown { () throws(MemQError) in
      try cluster.state.cancelReassignment(of: TopicPartition(topic.id, PartitionIndex(7)))
    }
    #expect(order?.code == .partitionNotFound)
  }

  @Test func `another order of the same replicas is taken over at once`() throws {
    var (cluster, topic) = try self.cluster()
    let before = cluster.partition(topic)
    let after = try cluster.reassign(topic, wishes(3, 1, 2))
    #expect(after.replicas.map(\.node) == nodes(3, 1, 2) && after.reassignment == nil)
    #expect(after.leader == before.leader && after.leaderEpoch == before.leaderEpoch)
  }

  @Test func `a cancel at any phase goes back to the replicas from before`() throws {
    for caughtUp in [false, true] {
      var (cluster, topic) = try self.cluster()
      let before = cluster.partition(topic)
      try cluster.reassign(topic, wishes(4, 2, 3))
      // In sync, and not yet looked at by the controller.
      if caughtUp { try cluster.propose(topic, nodes(1, 2, 3, 4)) }
      let after = try cluster.run { (state) throws(MemQError) in
        try state.cancelReassignment(of: before.id)
      }
      #expect(after.replicas == before.replicas && Set(after.inSync) == Set(before.inSync))
      #expect(after.leader == NodeID(1) && after.leaderEpoch > before.leaderEpoch)
      let again = thrown { () throws(MemQError) in
        try cluster.state.cancelReassignment(of: before.id)
      }
      #expect(again?.code == .reassignmentNotFound)
    }
  }

  @Test func `a cancel is refused while only the added replicas hold what is committed`() throws {
    var (cluster, topic) = try self.cluster()
    try cluster.reassign(topic, wishes(4, 2, 3))
    try cluster.transfer(topic, to: 2)
    try cluster.propose(topic, nodes(2, 4))
    try cluster.fence(2)
    #expect(cluster.partition(topic).inSync == nodes(4))
    let error = thrown { () throws(MemQError) in
      try cluster.state.cancelReassignment(of: cluster.partition(topic).id)
    }
    #expect(error?.code == .notEnoughReplicas)
  }

  @Test func `a move to another volume and back leaves nothing that was said of the earlier log`()
    throws
  {
    var (cluster, topic) = try self.cluster()
    // In sync or not: a leader that hears of neither move has its positions still.
    for inSync in [nodes(1, 2, 3), nodes(1, 3)] {
      try cluster.propose(topic, inSync)
      let before = cluster.partition(topic)
      for volume: UInt64 in [2_002, 1_002] {
        let epoch = cluster.partition(topic).leaderEpoch
        let moved = try cluster.reassign(
          topic,
          [
            ReplicaWish(NodeID(1)), ReplicaWish(NodeID(2), VolumeID(test: volume)),
            ReplicaWish(NodeID(3)),
          ])
        #expect(moved.leader == before.leader && moved.leaderEpoch > epoch)
      }
      let late = InSyncProposal(
        partition: before.id, node: before.leader!,
        nodeEpoch: cluster.state.nodes[before.leader!]!.value.epoch,
        leaderEpoch: before.leaderEpoch, partitionEpoch: cluster.partition(topic).epoch,
        members: nodes(1, 2, 3).map { .init($0, cluster.state.nodes[$0]!.value.epoch) })
      let error = thrown { () throws(MemQError) in try cluster.state.alterPartition(late) }
      #expect(error?.code == .fencedLeaderEpoch)
    }
  }

  @Test func `a replica goes to another volume of its node only while enough others are in sync`()
    throws
  {
    var (cluster, topic) = try self.cluster()
    let second = VolumeID(test: 2_002)
    let wish = [ReplicaWish(NodeID(1)), ReplicaWish(NodeID(2), second), ReplicaWish(NodeID(3))]
    let moved = try cluster.reassign(topic, wish)
    #expect(moved.replicas[1] == ReplicaID(NodeID(2), second))
    #expect(moved.inSync == nodes(1, 3) && moved.eligible.isEmpty && moved.reassignment == nil)
    try cluster.propose(topic, nodes(1, 2, 3))
    // A leader goes, too: another takes over first.
    try cluster.transfer(topic, to: 2)
    let led = cluster.partition(topic)
    let back = try cluster.reassign(
      topic,
      [
        ReplicaWish(NodeID(1)), ReplicaWish(NodeID(2), VolumeID(test: 1_002)),
        ReplicaWish(NodeID(3)),
      ])
    #expect(back.leader == NodeID(1) && back.leaderEpoch > led.leaderEpoch)
    let error = thrown { () throws(MemQError) in try cluster.state.reassign(back.id, to: wish) }
    #expect(error == nil, "it is out of the ISR: nothing is lost by moving it again")
    try cluster.propose(topic, nodes(1, 2))
    let refused = thrown { () throws(MemQError) in try cluster.state.reassign(back.id, to: wish) }
    #expect(refused?.code == .notEnoughReplicas && refused?.limit == 2 && refused?.actual == 1)
  }

  @Test(arguments: [
    ("no such node", ["9", "2", "3"], ErrorCode.invalidArgument),
    ("a node twice", ["2", "2", "3"], .invalidArgument),
    ("too few", ["2", "3"], .replicationFactorInvalid),
    ("another node's volume", ["4:2002", "2", "3"], .invalidArgument),
  ])
  func `a wish that can't be is refused and changes nothing`(
    what: String, wishes: [String], code: ErrorCode
  ) throws {
    let (cluster, topic) = try self.cluster()
    let list = wishes.map { text in
      let parts = text.split(separator: ":")
      return ReplicaWish(
        NodeID(Int32(parts[0])!), parts.count > 1 ? VolumeID(test: UInt64(parts[1])!) : nil)
    }
    let error = thrown { () throws(MemQError) in
      try cluster.state.reassign(cluster.partition(topic).id, to: list)
    }
    #expect(error?.code == code, "\(what)")
  }

  @Test(arguments: 1...40)
  func `whatever happens meanwhile, nobody is in sync who was not, and the replicas are legal`(
    seed: UInt64
  ) throws {
    var random = SplitMix(seed)
    var (cluster, topic) = try self.cluster()
    var before = cluster.partition(topic)
    var settled = Revision.zero
    for _ in 0..<120 {
      var proposed: [NodeID] = []
      switch random.below(8) {
      case 0, 1:
        let order = [1, 2, 3, 4].map { Int32($0) }.shuffled(using: &random)
        let volume: UInt64 = random.below(2) == 0 ? 1_002 : 2_002
        let wish = order.prefix(3).map {
          ReplicaWish(NodeID($0), $0 == 2 && random.below(3) == 0 ? VolumeID(test: volume) : nil)
        }
        _ = try? cluster.run { (state) throws(MemQError) in try state.reassign(before.id, to: wish)
        }
      case 2:
        _ = try? cluster.run { (state) throws(MemQError) in
          try state.cancelReassignment(of: before.id)
        }
      case 3: try cluster.fence(Int32(random.below(4) + 1))
      case 4:
        let id = UInt64(random.below(4) + 1)
        try cluster.join(
          .replication, uuid: id, volumes: id == 2 ? [1_002, 2_002] : [1_000 + id])
      default:
        guard let leader = before.leader else { break }
        let others = before.replicas.map(\.node).filter { $0 != leader && random.below(3) > 0 }
        if (try? cluster.propose(topic, [leader] + others)) != nil { proposed = others }
      }
      // What did not change since the last time needs no look.
      let changed = cluster.state.reconcile(since: settled)
      settled = cluster.state.settlementRevision
      let reconciled = try cluster.run { $0.reconcile() }
      #expect(changed.outcome == reconciled, "seed \(seed)")
      let after = cluster.partition(topic)
      let nodes = after.replicas.map(\.node)
      #expect(Set(nodes).count == nodes.count)
      #expect(nodes.count == 3 || after.reassignment != nil)
      #expect(!after.inSync.isEmpty && after.inSync.allSatisfy(nodes.contains))
      #expect(after.eligible.allSatisfy { nodes.contains($0) && !after.inSync.contains($0) })
      #expect(after.leader.map(after.inSync.contains) ?? true)
      #expect(after.inSync.count < 2 || after.eligible.isEmpty)
      let known = before.inSync + before.eligible + proposed
      #expect(after.inSync.allSatisfy(known.contains), "seed \(seed)")
      for replica in after.replicas
      where !before.replicas.contains(replica) && !proposed.contains(replica.node) {
        #expect(!after.inSync.contains(replica.node) && !after.eligible.contains(replica.node))
      }
      #expect(after.leaderEpoch >= before.leaderEpoch && after.epoch >= before.epoch)
      if after.leader != before.leader, after.leader != nil {
        #expect(after.leaderEpoch > before.leaderEpoch)
      }
      #expect(after == before || after.epoch > before.epoch || after.logStart != before.logStart)
      before = after
    }
  }
}

private struct SplitMix: RandomNumberGenerator {
  private var state: UInt64
  init(_ seed: UInt64) { self.state = seed }

  mutating func next() -> UInt64 {
    self.state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = self.state
    mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
    return mixed ^ mixed >> 31
  }

  mutating func below(_ bound: Int) -> Int { Int(self.next() % UInt64(bound)) }
}

extension PureCluster {
  @discardableResult
  fileprivate mutating func reassign(
    _ topic: TopicImage, _ wishes: [ReplicaWish]
  ) throws -> PartitionImage {
    let id = self.partition(topic).id
    return try self.run { (state) throws(MemQError) in try state.reassign(id, to: wishes) }
  }

  fileprivate mutating func transfer(_ topic: TopicImage, to node: Int32) throws {
    let id = self.partition(topic).id
    try self.run { (state) throws(MemQError) in
      try state.transferLeadership(of: id, to: NodeID(node))
    }
  }

  /// The leader finds these in sync.
  fileprivate mutating func propose(_ topic: TopicImage, _ nodes: [NodeID]) throws {
    let partition = self.partition(topic)
    guard let leader = partition.leader else {
      throw MemQError(.leaderNotAvailable, "nobody leads")
    }
    let proposal = InSyncProposal(
      partition: partition.id, node: leader, nodeEpoch: self.state.nodes[leader]!.value.epoch,
      leaderEpoch: partition.leaderEpoch, partitionEpoch: partition.epoch,
      members: nodes.map { .init($0, self.state.nodes[$0]!.value.epoch) })
    try self.run { (state) throws(MemQError) in try state.alterPartition(proposal) }
  }
}
