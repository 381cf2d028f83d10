// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct ElectionTests {
  @Test func `the same node keeps its number and gets a higher epoch`() throws {
    var cluster = try PureCluster()
    let first = try cluster.join(.replication, uuid: 1, volumes: [11])
    try cluster.join(.ingest, uuid: 2)
    let again = try cluster.join(.replication, uuid: 1, volumes: [11])
    #expect(first.id == NodeID(1) && again.id == NodeID(1))
    #expect(first.epoch == NodeEpoch(1) && again.epoch == NodeEpoch(2))
    let old = thrown { () throws(MemQError) in try cluster.state.session(first.id, first.epoch) }
    #expect(old?.code == .nodeFenced)
    #expect(
      thrown { () throws(MemQError) in try cluster.state.session(NodeID(9), NodeEpoch(1)) }?.code
        == .nodeUnknown)
  }

  @Test func `a restarted node's partitions get a new leader epoch`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let topic = try cluster.makeTopic("t", partitions: 2)
    let before = cluster.partition(topic)
    try cluster.joinReplicas(1)
    let after = cluster.partition(topic)
    #expect(after.leader == NodeID(1) && after.inSync == [NodeID(1)])
    #expect(after.leaderEpoch > before.leaderEpoch && after.epoch > before.epoch)
    #expect(after.historyEpoch == before.historyEpoch)
  }

  @Test func `who takes over another's address ends its session`() throws {
    var cluster = try PureCluster()
    try cluster.join(.ingest, uuid: 1)
    let registration = NodeRegistration(
      uuid: NodeUUID(test: 2), service: .ingest, address: "host1:1")
    try cluster.run { $0.fencePredecessors(of: registration) }
    #expect(cluster.state.nodes.isEmpty && cluster.deltas.last?.deletedNodes == [NodeID(1)])
    let node = try cluster.run { (state) throws(MemQError) in try state.register(registration) }
    #expect(node.id == NodeID(2))
  }

  @Test func `a node of another cluster is refused`() throws {
    let cluster = try PureCluster()
    let error = thrown { () throws(MemQError) in
      try cluster.state.register(
        NodeRegistration(
          uuid: NodeUUID(test: 1), service: .replication, address: "a:1",
          clusterID: ClusterID(test: 99)))
    }
    #expect(error?.code == .wrongCluster)
  }

  @Test func `when a leader is lost an in-sync replica leads`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    let before = cluster.partition(topic)
    #expect(before.leader == NodeID(1))
    try cluster.fence(1)
    let after = cluster.partition(topic)
    #expect(after.leader == NodeID(2) && after.inSync == [NodeID(2), NodeID(3)])
    #expect(after.leaderEpoch == before.leaderEpoch.next)
    #expect(after.eligible.isEmpty, "two in sync are enough: nobody else is needed")
    #expect(try cluster.run { $0.reconcile() }.changed == 0)
  }

  @Test func `who is not in sync does not lead, and the last in sync stays so`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", replicas: 2, settings: ["min.insync.replicas": "1"])
    let shrink = proposal(cluster.partition(topic), cluster, inSync: [1])
    let shrunk = try cluster.run { (state) throws(MemQError) in try state.alterPartition(shrink) }
    #expect(shrunk.partition.inSync == [NodeID(1)] && shrunk.partition.eligible.isEmpty)
    try cluster.fence(1)
    let lost = cluster.partition(topic)
    #expect(lost.leader == nil && lost.inSync == [NodeID(1)])
    try cluster.join(.replication, uuid: 1, volumes: [1_001])
    let back = cluster.partition(topic)
    #expect(back.leader == NodeID(1) && back.leaderEpoch > lost.leaderEpoch)
  }

  @Test func `who left the ISR below its minimum may lead when all in sync are lost`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    try cluster.fence(3)
    try cluster.fence(2)
    let eligible = cluster.partition(topic)
    #expect(eligible.inSync == [NodeID(1)] && eligible.eligible == [NodeID(2)])
    try cluster.fence(1)
    #expect(cluster.partition(topic).leader == nil)
    try cluster.join(.replication, uuid: 3, volumes: [1_003])
    #expect(cluster.partition(topic).leader == nil, "it left while the others went on")
    try cluster.join(.replication, uuid: 2, volumes: [1_002])
    #expect(cluster.partition(topic).leader == nil, "it restarted: the first may hold more")
    try cluster.join(.replication, uuid: 1, volumes: [1_001])
    try cluster.tell(topic, by: 1, 0, end: 7)
    try cluster.tell(topic, by: 2, 0, end: 8)
    let elected = cluster.partition(topic)
    #expect(elected.leader == NodeID(2) && elected.inSync == [NodeID(2)])
    #expect(elected.eligible == [NodeID(1)] && elected.historyEpoch == HistoryEpoch(0))
  }

  @Test func `an unclean election needs the topic's leave and raises the history epoch`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic(
      "t", replicas: 2,
      settings: ["min.insync.replicas": "1", "unclean.leader.election.enable": "true"])
    let shrink = proposal(cluster.partition(topic), cluster, inSync: [1])
    try cluster.run { (state) throws(MemQError) in try state.alterPartition(shrink) }
    try cluster.run { $0.fence(NodeID(1)) }
    let waiting = try cluster.run { $0.reconcile { $0 == NodeID(1) } }
    #expect(waiting.awaiting == [cluster.partition(topic).id] && waiting.unclean.isEmpty)
    #expect(cluster.partition(topic).leader == nil, "the first may come back with everything")
    let summary = try cluster.run { $0.reconcile { $0 == NodeID(2) } }
    let partition = cluster.partition(topic)
    #expect(summary.unclean == [partition.id] && summary.awaiting.isEmpty)
    #expect(partition.leader == NodeID(2) && partition.inSync == [NodeID(2)])
    #expect(partition.historyEpoch == HistoryEpoch(1))
    let group = cluster.state.uploadGroups[1]!.value
    #expect(group.positions[partition.id]?.historyEpoch == HistoryEpoch(1))
  }

  @Test func `a node that comes back without its volume does not lead what it lost`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let topic = try cluster.makeTopic("t")
    try cluster.join(.replication, uuid: 1, volumes: [77])
    #expect(cluster.partition(topic).leader == nil)
    try cluster.join(.replication, uuid: 1, volumes: [77, 1_001])
    #expect(cluster.partition(topic).leader == NodeID(1))
  }

  @Test func `a node that lost its disk gets new replicas, unless the lost ones may be needed`()
    throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    let alone = try cluster.makeTopic("alone")
    let owner = cluster.partition(alone).replicas[0]
    try cluster.fence(owner.node.rawValue)
    #expect(!cluster.partition(topic).inSync.contains(owner.node))
    try cluster.join(.replication, uuid: UInt64(owner.node.rawValue), volumes: [77])
    try cluster.run { $0.reconcile() }
    let replicas = cluster.partition(topic).replicas
    #expect(replicas.map(\.node).sorted() == [NodeID(1), NodeID(2), NodeID(3)])
    #expect(
      cluster.state.nodes[owner.node]!.value.volumes.map(\.id)
        == [replicas.first { $0.node == owner.node }!.volume])
    #expect(!cluster.partition(topic).inSync.contains(owner.node))
    #expect(cluster.partition(alone).replicas == [owner] && cluster.partition(alone).leader == nil)
  }

  @Test func `a draining leader hands over, if somebody can take it`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", replicas: 2)
    let alone = try cluster.makeTopic("alone")
    let node = cluster.state.nodes[NodeID(1)]!.value
    try cluster.run { (state) throws(MemQError) in
      try state.setState(of: node.id, node.epoch, to: .draining)
    }
    try cluster.run { $0.reconcile() }
    #expect(cluster.partition(topic).leader == NodeID(2))
    #expect(cluster.partition(topic).inSync.contains(NodeID(1)))
    let single = cluster.partition(alone)
    #expect(single.leader == single.replicas[0].node)
  }

  @Test func `a proposal must come from the leader and know the partition as it is`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    let good = proposal(cluster.partition(topic), cluster, inSync: [1, 2])
    func refused(_ change: (inout InSyncProposal) -> Void) -> ErrorCode? {
      var proposal = good
      change(&proposal)
      return thrown { () throws(MemQError) in try cluster.state.alterPartition(proposal) }?.code
    }
    #expect(refused { $0.nodeEpoch = NodeEpoch(0) } == .staleNodeEpoch)
    #expect(refused { $0.leaderEpoch = LeaderEpoch(7) } == .unknownLeaderEpoch)
    #expect(refused { $0.leaderEpoch = LeaderEpoch(-1) } == .fencedLeaderEpoch)
    #expect(refused { $0.node = NodeID(2) } == .fencedLeaderEpoch)
    #expect(refused { $0.partitionEpoch = PartitionEpoch(9) } == .revisionConflict)
    #expect(refused { $0.members.removeFirst() } == .invalidArgument)
    #expect(refused { $0.members[1] = $0.members[0] } == .invalidArgument)
    #expect(refused { $0.members[1].node = NodeID(9) } == .invalidArgument)
    #expect(refused { $0.members[1].epoch = NodeEpoch(0) } == .staleNodeEpoch)
    #expect(refused { $0.members[1].epoch = NodeEpoch(2) } == .staleNodeEpoch)
    #expect(
      refused { $0.partition = TopicPartition(topic.id, PartitionIndex(5)) } == .partitionNotFound)
    let changed = try cluster.run { (state) throws(MemQError) in try state.alterPartition(good) }
      .partition
    #expect(changed.inSync == [NodeID(1), NodeID(2)] && changed.epoch == PartitionEpoch(1))
    #expect(changed.leaderEpoch == good.leaderEpoch)
    #expect(refused { _ in } == .revisionConflict, "the same proposal is old now")
    try cluster.fence(3)
    let dead = proposal(cluster.partition(topic), cluster, inSync: [1, 2, 3])
    #expect(
      thrown { () throws(MemQError) in try cluster.state.alterPartition(dead) }?.code
        == .invalidArgument)
  }

  @Test func `a member that registered again since it was found in sync is refused`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    try cluster.fence(3)
    let without = cluster.partition(topic)
    try cluster.join(.replication, uuid: 3, volumes: [1_003])
    #expect(cluster.partition(topic) == without, "it comes back as a follower, not in sync")
    var old = proposal(without, cluster, inSync: [1, 2, 3])
    if let at = old.members.firstIndex(where: { $0.node == NodeID(3) }) {
      old.members[at].epoch = NodeEpoch(1)
    }
    old.node = without.leader!
    #expect(
      thrown { () throws(MemQError) in try cluster.state.alterPartition(old) }?.code
        == .staleNodeEpoch)
    let current = proposal(without, cluster, inSync: [1, 2, 3])
    let grown = try cluster.run { (state) throws(MemQError) in try state.alterPartition(current) }
      .partition
    #expect(grown.inSync.count == 3 && grown.epoch == without.epoch.next)
  }

  @Test func `an unchanged ISR raises the partition epoch, so that an older proposal is void`()
    throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    let before = cluster.partition(topic)
    let late = proposal(before, cluster, inSync: [1, 2])
    let same = proposal(before, cluster, inSync: [1, 2, 3])
    let answer = try cluster.run { (state) throws(MemQError) in try state.alterPartition(same) }
      .partition
    #expect(answer.inSync == before.inSync && answer.epoch == before.epoch.next)
    #expect(answer.leaderEpoch == before.leaderEpoch)
    #expect(
      thrown { () throws(MemQError) in try cluster.state.alterPartition(late) }?.code
        == .revisionConflict)
  }

  @Test func `a node that drains joins no ISR and is given no leadership`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    let shrink = proposal(cluster.partition(topic), cluster, inSync: [1, 2])
    try cluster.run { (state) throws(MemQError) in try state.alterPartition(shrink) }
    for id in [Int32(2), 3] {
      try cluster.run { (state) throws(MemQError) in
        try state.setState(of: NodeID(id), NodeEpoch(1), to: .draining)
      }
    }
    let grow = proposal(cluster.partition(topic), cluster, inSync: [1, 2, 3])
    #expect(
      thrown { () throws(MemQError) in try cluster.state.alterPartition(grow) }?.code
        == .invalidArgument)
    let same = proposal(cluster.partition(topic), cluster, inSync: [1, 2])
    try cluster.run { (state) throws(MemQError) in try state.alterPartition(same) }
    let id = cluster.partition(topic).id
    #expect(
      thrown { () throws(MemQError) in
        try cluster.state.transferLeadership(of: id, to: NodeID(2))
      }?.code == .invalidArgument)
  }

  @Test func `lowering the minimum takes away the eligibility that rested on it`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    try cluster.fence(3)
    try cluster.fence(2)
    #expect(cluster.partition(topic).eligible == [NodeID(2)])
    try cluster.run { (state) throws(MemQError) in
      try state.alterTopic("t", set: ["min.insync.replicas": "1"], unset: [], partitionCount: 0)
    }
    try cluster.run { $0.reconcile() }
    #expect(cluster.partition(topic).eligible.isEmpty)
    try cluster.fence(1)
    try cluster.join(.replication, uuid: 2, volumes: [1_002])
    #expect(cluster.partition(topic).leader == nil, "the first node may have committed alone")
  }

  @Test func `the minimum is not raised again before it holds everywhere that it was lowered`()
    throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    try cluster.fence(3)
    try cluster.fence(2)
    #expect(cluster.partition(topic).eligible == [NodeID(2)])
    try cluster.setMinimum("1")
    // The first node may commit alone by now.
    let error = thrown { () throws(MemQError) in try cluster.setMinimum("2") }
    #expect(error?.code == .unavailable && error?.isRetriable == true)
    try cluster.run { $0.reconcile() }
    try cluster.setMinimum("2")
    #expect(cluster.partition(topic).eligible.isEmpty)
  }

  @Test func `who was eligible before the minimum was lowered is not carried into a smaller ISR`()
    throws
  {
    // The leader proposes, or the second is lost, before anything else follows from the new minimum.
    for isLost in [true, false] {
      var cluster = try PureCluster()
      try cluster.joinReplicas(3)
      let topic = try cluster.makeTopic("t", replicas: 3, settings: ["min.insync.replicas": "3"])
      try cluster.fence(3)
      #expect(cluster.partition(topic).eligible == [NodeID(3)])
      try cluster.setMinimum("2")
      if isLost {
        try cluster.fence(2)
      } else {
        let shrink = proposal(cluster.partition(topic), cluster, inSync: [1])
        try cluster.run { (state) throws(MemQError) in try state.alterPartition(shrink) }
      }
      #expect(cluster.partition(topic).inSync == [NodeID(1)])
      #expect(
        cluster.partition(topic).eligible == [NodeID(2)], "the first two committed without it")
    }
  }

  @Test func `who is eligible is decided anew when the minimum changes between plan and write`()
    throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3, settings: ["min.insync.replicas": "3"])
    let shrink = proposal(cluster.partition(topic), cluster, inSync: [1, 2])
    let proposed = try cluster.state.alterPartition(shrink)
    #expect(proposed.outcome.minInSyncReplicas == 3)
    try cluster.run { $0.fence(NodeID(3)) }
    let reconciled = cluster.state.reconcile()
    try cluster.setMinimum("2")
    for transaction in proposed.transactions + reconciled.transactions {
      let error = thrown { () throws(MemQError) in try cluster.commit(transaction) }
      #expect(error?.code == .revisionConflict)
    }
    try cluster.setMinimum("3")
    let again = try cluster.run { (state) throws(MemQError) in try state.alterPartition(shrink) }
    #expect(again.minInSyncReplicas == 3 && again.partition.eligible == [NodeID(3)])
  }

  @Test func `all nodes killed at once come back without an operator, in any order`() throws {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
      var cluster = try PureCluster()
      try cluster.joinReplicas(3)
      let topic = try cluster.makeTopic("t", replicas: 3)
      let before = cluster.partition(topic)
      // Nobody was fenced before: metadata was down as well.
      for id in order {
        try cluster.join(.replication, uuid: UInt64(id), volumes: [UInt64(1_000 + id)])
      }
      #expect(cluster.partition(topic).leader == nil, "all restarted")
      for id in order { try cluster.tell(topic, by: Int32(id), 0, end: 3) }
      let after = cluster.partition(topic)
      let leader = try #require(after.leader)
      #expect(after.inSync.contains(leader) && after.leaderEpoch > before.leaderEpoch)
      #expect(after.historyEpoch == before.historyEpoch)
      #expect(cluster.state.nodes[leader]!.value.epoch == NodeEpoch(2))
      let all = proposal(after, cluster, inSync: [1, 2, 3])
      let whole = try cluster.run { (state) throws(MemQError) in try state.alterPartition(all) }
      #expect(whole.partition.inSync.count == 3)
    }
  }

  @Test func `leadership moves to an in-sync replica and to no other`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 2)
    let before = cluster.partition(topic)
    let moved = try cluster.run { (state) throws(MemQError) in
      try state.transferLeadership(of: before.id, to: NodeID(2))
    }
    #expect(moved.leader == NodeID(2) && moved.leaderEpoch == before.leaderEpoch.next)
    let refused = thrown { () throws(MemQError) in
      try cluster.state.transferLeadership(of: before.id, to: NodeID(3))
    }
    #expect(refused?.code == .invalidArgument && refused?.subject == "t/0")
  }

  @Test func `a goodbye forgets a stateless node and keeps one with replicas`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", replicas: 2)
    let ingest = try cluster.join(.ingest, uuid: 9)
    try cluster.run { (state) throws(MemQError) in
      try state.deregister(ingest.id, ingest.epoch)
    }
    #expect(cluster.state.nodes[ingest.id] == nil)
    try cluster.run { (state) throws(MemQError) in
      try state.deregister(NodeID(1), NodeEpoch(1))
    }
    try cluster.run { $0.reconcile() }
    #expect(cluster.state.nodes[NodeID(1)]?.value.state == .gone)
    #expect(cluster.partition(topic).leader == NodeID(2))
  }

  @Test func `a leader whose log knows of later elections gets a leader epoch above them`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", replicas: 2)
    let before = cluster.partition(topic)
    func refuse(_ node: Int32, _ epoch: LeaderEpoch, holding log: Int64) throws -> Bool {
      try cluster.run { (state) throws(MemQError) in
        try state.refuseLeadership(
          of: before.id, epoch, holding: LeaderEpoch(log), node: NodeID(node), NodeEpoch(1))
      }
    }
    let leader = try #require(before.leader).rawValue
    // Not its to refuse; not in its way; of another election.
    #expect(try !refuse(3 - leader, before.leaderEpoch, holding: 7))
    #expect(try !refuse(leader, before.leaderEpoch, holding: before.leaderEpoch.rawValue - 1))
    #expect(try !refuse(leader, before.leaderEpoch.next, holding: 7))
    #expect(cluster.partition(topic) == before)
    #expect(try refuse(leader, before.leaderEpoch, holding: 7))
    let after = cluster.partition(topic)
    #expect(after.leaderEpoch == LeaderEpoch(8) && after.epoch == before.epoch.next)
    #expect(after.leader == before.leader && after.inSync == before.inSync)
    #expect(try !refuse(leader, before.leaderEpoch, holding: 7), "asked again it changes nothing")
    let fenced = thrown { () throws(MemQError) in
      try cluster.state.refuseLeadership(
        of: before.id, after.leaderEpoch, holding: LeaderEpoch(9), node: NodeID(leader),
        NodeEpoch(0))
    }
    #expect(fenced?.code == .nodeFenced)
  }

  @Test func `many partitions are reconciled in transactions that fit`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", partitions: 300, replicas: 2)
    try cluster.fence(1)
    #expect(cluster.state.image!.partitions(of: topic.id).allSatisfy { $0.leader == NodeID(2) })
  }
}

extension PureCluster {
  fileprivate mutating func setMinimum(_ count: String) throws(MemQError) {
    try self.run { (state) throws(MemQError) in
      try state.alterTopic("t", set: ["min.insync.replicas": count], unset: [], partitionCount: 0)
    }
  }
}
