// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

/// Volumes that fail and replicas that are damaged.
@Suite struct VolumeFailureTests {
  /// Three nodes with two volumes each: node n has 10n and 10n + 1.
  private func cluster() throws -> PureCluster {
    var cluster = try PureCluster()
    for node in 1...3 as ClosedRange<UInt64> {
      try cluster.join(.replication, uuid: node, volumes: [10 * node, 10 * node + 1])
    }
    return cluster
  }

  @Test func `a failed volume costs the replicas on it, and no others of its node`() throws {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic("t", partitions: 12, replicas: 3)
    let node = NodeID(2)
    let volume = VolumeID(test: 20)
    let before = cluster.state.image!.partitions.values
    try cluster.fail(volume, of: node)
    for old in before {
      let new = cluster.partition(topic, old.id.partition.rawValue)
      guard old.replicas.contains(ReplicaID(node, volume)) else {
        #expect(new == old)
        continue
      }
      #expect(new.inSync == old.inSync.filter { $0 != node } && new.eligible == [])
      #expect(new.leader != node && new.inSync.contains(new.leader!))
      #expect(new.leaderEpoch == (old.leader == node ? old.leaderEpoch.next : old.leaderEpoch))
      // Its place is kept: the disk may be whole after a restart.
      #expect(new.replicas == old.replicas)
    }
    #expect(before.contains { $0.replicas.contains(ReplicaID(node, volume)) && $0.leader == node })

    // Said again, or late and better, it changes nothing.
    let revision = cluster.revision
    try cluster.fail(volume, of: node)
    try cluster.report([VolumeImage(volume)], of: node)
    #expect(cluster.revision == revision)

    let more = try cluster.makeTopic("more", partitions: 6, replicas: 3)
    for index in 0..<6 as Range<Int32> {
      #expect(!cluster.partition(more, index).replicas.contains { $0.volume == volume })
    }
  }

  @Test func `the last in-sync replica stays so when its volume fails, and leads after a restart`()
    throws
  {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic("t", replicas: 1)
    let replica = cluster.partition(topic).replicas[0]
    try cluster.fail(replica.volume, of: replica.node)
    #expect(cluster.partition(topic).leader == nil)
    #expect(cluster.partition(topic).inSync == [replica.node])
    #expect(cluster.partition(topic).replicas == [replica])
    let uuid = UInt64(replica.node.rawValue)
    try cluster.join(.replication, uuid: uuid, volumes: [10 * uuid, 10 * uuid + 1])
    #expect(cluster.partition(topic).leader == replica.node)
  }

  @Test func `an empty disk in its place is a new replica, once the old one is not needed`() throws
  {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic("t", partitions: 4, replicas: 3)
    let old = cluster.partition(topic).replicas.first { $0.node == NodeID(1) }!
    try cluster.fail(old.volume, of: old.node)
    try cluster.join(
      .replication, uuid: 1,
      volumes: [10, 11].map { VolumeID(test: $0) == old.volume ? 99 : $0 })
    let new = cluster.partition(topic)
    #expect(new.replicas.first { $0.node == old.node }!.volume != old.volume)
    #expect(!new.inSync.contains(old.node))
  }

  @Test func `what a lost volume was to keep goes to the one that has room for it`() throws {
    var cluster = try PureCluster()
    let gib: Int64 = 1 << 30
    for node in 1...2 as ClosedRange<UInt64> {
      try cluster.join(
        .replication, uuid: node, volumes: [10 * node, 10 * node + 1], capacityBytes: 6 * gib)
    }
    // Both volumes of each node are full with it.
    let topic = try cluster.makeTopic(
      "t", partitions: 12, replicas: 2,
      settings: ["object.tier": "false", "retention.bytes": "\(gib)"])
    let lost = VolumeID(test: 20)
    let before = (0..<12).map { cluster.partition(topic, $0).replicas }
    try cluster.fail(lost, of: NodeID(2))
    try cluster.join(.replication, uuid: 2, volumes: [21, 99], capacityBytes: 6 * gib)
    for (index, old) in before.enumerated() {
      let expected = old.map { $0.volume == lost ? ReplicaID($0.node, VolumeID(test: 99)) : $0 }
      #expect(cluster.partition(topic, Int32(index)).replicas == expected)
    }
  }

  @Test func `of a node all of whose volumes failed nothing is asked`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", replicas: 2)
    let leader = cluster.partition(topic).leader!
    try cluster.fail(VolumeID(test: 1_000 + UInt64(leader.rawValue)), of: leader)
    #expect(cluster.partition(topic).leader != leader)
    let refused = thrown { () throws(MemQError) in
      try cluster.makeTopic("u", replicas: 2)
    }
    #expect(refused?.code == .replicationFactorInvalid && refused?.limit == 1)
    let strange = thrown { () throws(MemQError) in
      try cluster.report([VolumeImage(VolumeID(test: 5), .failed)], of: leader)
    }
    #expect(strange?.code == .invalidArgument)
  }

  @Test func `a report of an earlier life is refused`() throws {
    var cluster = try self.cluster()
    let early = cluster.state.nodes[NodeID(1)]!.value.epoch
    try cluster.join(.replication, uuid: 1, volumes: [10, 11])
    let state = cluster.state
    let volumes = thrown { () throws(MemQError) in
      try state.reportVolumes(
        of: NodeID(1), early, [VolumeImage(VolumeID(test: 10), .failed)])
    }
    #expect(volumes?.code == .nodeFenced)
  }

  // MARK: Damage

  @Test func `a damaged leader hands over, and is out until it is whole`() throws {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic("t", replicas: 3)
    let old = cluster.partition(topic)
    let leader = old.leader!
    try cluster.damage(topic, on: leader, from: 7)
    let new = cluster.partition(topic)
    #expect(new.leader != leader && new.leaderEpoch == old.leaderEpoch.next)
    #expect(new.inSync == old.inSync.filter { $0 != leader } && new.eligible == [])
    #expect(new.damaged == [DamagedReplica(leader, from: Offset(7))])

    let revision = cluster.revision
    try cluster.damage(topic, on: leader, from: 9)
    #expect(cluster.revision == revision)
    #expect(thrown { () throws(MemQError) in try cluster.grow(topic, by: leader) } != nil)
    let transfer = thrown { () throws(MemQError) in
      try cluster.run { (state) throws(MemQError) in
        try state.transferLeadership(of: new.id, to: leader)
      }
    }
    #expect(transfer?.code == .invalidArgument)

    try cluster.damage(topic, on: leader, from: nil)
    #expect(cluster.partition(topic).damaged == [])
    try cluster.grow(topic, by: leader)
    #expect(cluster.partition(topic).inSync.contains(leader))
  }

  @Test func `a damaged replica that no other can replace keeps the lead, until one can`() throws {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic(
      "t", replicas: 3, settings: ["min.insync.replicas": "1"])
    for node in [2, 3] as [Int32] { try cluster.fence(node) }
    #expect(cluster.partition(topic).inSync == [NodeID(1)])
    try cluster.damage(topic, on: NodeID(1), from: 4)
    // Who lives but left the ISR may lack what was committed.
    try cluster.join(.replication, uuid: 2, volumes: [20, 21])
    #expect(cluster.partition(topic).leader == NodeID(1))
    #expect(cluster.partition(topic).inSync == [NodeID(1)])
    // The leader found it to hold all after all.
    try cluster.grow(topic, by: NodeID(2))
    try cluster.run { $0.reconcile() }
    #expect(cluster.partition(topic).leader == NodeID(2))
    #expect(cluster.partition(topic).inSync == [NodeID(2)])
  }

  @Test func `a damaged replica is not elected by what it held when it left the ISR`() throws {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic(
      "t", replicas: 3, settings: ["min.insync.replicas": "2"])
    let order = cluster.partition(topic).replicas.map(\.node)
    try cluster.fence(order[2].rawValue)
    try cluster.fence(order[1].rawValue)
    #expect(cluster.partition(topic).eligible == [order[1]])
    let uuid = UInt64(order[1].rawValue)
    try cluster.join(.replication, uuid: uuid, volumes: [10 * uuid, 10 * uuid + 1])
    try cluster.damage(topic, on: order[1], from: 0)
    #expect(cluster.partition(topic).eligible == [])
    try cluster.fence(order[0].rawValue)
    #expect(cluster.partition(topic).leader == nil && cluster.partition(topic).inSync == [order[0]])
  }

  @Test func `where the topic allows it a whole replica leads instead of a damaged one, uncleanly`()
    throws
  {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic(
      "t", replicas: 2,
      settings: ["min.insync.replicas": "1", "unclean.leader.election.enable": "true"])
    let (first, second) = (
      cluster.partition(topic).replicas[0].node, cluster.partition(topic).replicas[1].node
    )
    try cluster.fence(second.rawValue)
    let uuid = UInt64(second.rawValue)
    try cluster.join(.replication, uuid: uuid, volumes: [10 * uuid, 10 * uuid + 1])
    try cluster.damage(topic, on: first, from: 0)
    let partition = cluster.partition(topic)
    #expect(partition.leader == second && partition.historyEpoch == HistoryEpoch(1))
  }

  @Test func `who says so of a replica must have it`() throws {
    var cluster = try self.cluster()
    let topic = try cluster.makeTopic("t", replicas: 1)
    let other = [1, 2].map { NodeID($0) }.first { $0 != cluster.partition(topic).leader }!
    let id = cluster.partition(topic).id
    let refused = thrown { () throws(MemQError) in
      try cluster.run { (state) throws(MemQError) in
        try state.reportReplica(
          ReplicaReport(
            id, on: VolumeID(test: 10), damagedFrom: .zero), of: other,
          NodeEpoch(1))
      }
    }
    #expect(refused?.code == .invalidArgument)
  }
}

extension PureCluster {
  mutating func report(_ volumes: [VolumeImage], of node: NodeID) throws(MemQError) {
    let epoch = self.state.nodes[node]!.value.epoch
    try self.run { (state) throws(MemQError) in
      try state.reportVolumes(of: node, epoch, volumes)
    }
    try self.run { $0.reconcile() }
  }

  fileprivate mutating func fail(_ volume: VolumeID, of node: NodeID) throws(MemQError) {
    try self.report([VolumeImage(volume, .failed, problem: "EIO")], of: node)
  }

  /// Nil: whole again.
  fileprivate mutating func damage(
    _ topic: TopicImage, on node: NodeID, from offset: Int64?
  ) throws(MemQError) {
    let partition = self.partition(topic)
    let volume = partition.replicas.first { $0.node == node }!.volume
    let epoch = self.state.nodes[node]!.value.epoch
    try self.run { (state) throws(MemQError) in
      try state.reportReplica(
        ReplicaReport(partition.id, on: volume, damagedFrom: offset.map { Offset($0) }), of: node,
        epoch)
    }
    try self.run { $0.reconcile() }
  }

  /// The leader takes a node into the ISR.
  fileprivate mutating func grow(_ topic: TopicImage, by node: NodeID) throws(MemQError) {
    let partition = self.partition(topic)
    let nodes = self.state.nodes
    let proposal = InSyncProposal(
      partition: partition.id, node: partition.leader!,
      nodeEpoch: nodes[partition.leader!]!.value.epoch, leaderEpoch: partition.leaderEpoch,
      partitionEpoch: partition.epoch,
      members: (partition.inSync + [node]).map {
        InSyncProposal.Member($0, nodes[$0]!.value.epoch)
      })
    try self.run { (state) throws(MemQError) in try state.alterPartition(proposal) }
  }
}
