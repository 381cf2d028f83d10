// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Testing

@Suite struct TopicTests {
  @Test func `a topic is made with its partitions and seen at once`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("events", partitions: 6, replicas: 2)
    let image = cluster.state.image!
    #expect(image.topic(named: "events")?.id == topic.id)
    let partitions = image.partitions(of: topic.id)
    #expect(partitions.map { $0.leader?.rawValue } == [1, 2, 3, 1, 2, 3])
    #expect(partitions.allSatisfy { $0.inSync.count == 2 && $0.uploadGroup == 1 })
    #expect(cluster.deltas.last?.partitions.count == 6)
    // Every follower stands on another node than its leader, and with each round on another one.
    #expect(partitions.map { $0.replicas[1].node.rawValue } == [2, 3, 1, 3, 1, 2])
  }

  @Test func `replicas avoid a rack that has one as long as they can`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(4, racks: ["a", "a", "b", "b"])
    let topic = try cluster.makeTopic("t", partitions: 8, replicas: 2)
    for partition in cluster.state.image!.partitions(of: topic.id) {
      let racks = partition.replicas.map { cluster.state.nodes[$0.node]!.value.rack }
      #expect(Set(racks).count == 2)
    }
    let wide = try cluster.makeTopic("wide", partitions: 1, replicas: 4)
    #expect(Set(cluster.partition(wide).replicas.map(\.node)).count == 4)
  }

  @Test func `a node's replicas go to its emptiest volume`() throws {
    var cluster = try PureCluster()
    try cluster.join(.replication, uuid: 1, volumes: [11, 12, 13])
    let topic = try cluster.makeTopic("t", partitions: 9)
    let volumes = cluster.state.image!.partitions(of: topic.id).map { $0.replicas[0].volume }
    for volume in [11, 12, 13] {
      #expect(volumes.count { $0 == VolumeID(test: UInt64(volume)) } == 3)
    }
  }

  @Test(
    arguments: [
      ("", 1, 1, ErrorCode.topicNameInvalid, nil, nil),
      ("a b", 1, 1, .topicNameInvalid, nil, nil),
      ("..", 1, 1, .topicNameInvalid, nil, nil),
      (String(repeating: "x", count: 250), 1, 1, .topicNameInvalid, 249, 250),
      ("taken", 1, 1, .topicExists, nil, nil),
      ("t", 100_001, 1, .partitionCountInvalid, 10_000, 100_001),
      ("t", -1, 1, .partitionCountInvalid, 10_000, -1),
      ("t", 1, 3, .replicationFactorInvalid, 2, 3),
    ] as [(String, Int, Int, ErrorCode, Int64?, Int64?)])
  func `a topic that can't be is refused with limit and actual`(
    name: String, partitions: Int, replicas: Int, code: ErrorCode, limit: Int64?, actual: Int64?
  ) throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    try cluster.makeTopic("taken")
    let before = cluster.revision
    let error = thrown { () throws(MemQError) in
      try cluster.makeTopic(name, partitions: partitions, replicas: replicas)
    }
    #expect(error?.code == code)
    if limit != nil { #expect(error?.limit == limit && error?.actual == actual) }
    #expect(cluster.revision == before)
  }

  @Test func `fenced and draining nodes take no new replicas`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    try cluster.fence(2)
    let node = cluster.state.nodes[NodeID(3)]!.value
    try cluster.run { (state) throws(MemQError) in
      try state.setState(of: node.id, node.epoch, to: .draining)
    }
    let error = thrown { () throws(MemQError) in try cluster.makeTopic("t", replicas: 2) }
    #expect(error?.code == .replicationFactorInvalid && error?.limit == 1)
    let byDefault = thrown { () throws(MemQError) in try cluster.makeTopic("t", replicas: 0) }
    #expect(byDefault?.code == .replicationFactorInvalid)
    #expect(byDefault?.limit == 1 && byDefault?.actual == 3, "no copy less because two are away")
    let topic = try cluster.makeTopic("t", partitions: 3, replicas: 1)
    #expect(cluster.state.image!.partitions(of: topic.id).allSatisfy { $0.leader == NodeID(1) })
  }

  @Test func `a large topic takes several transactions and shows when the last is in`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    cluster.deltas = []
    let topic = try cluster.makeTopic("large", partitions: 1_000)
    #expect(cluster.deltas.count == 11, "100 partitions each, then the topic")
    #expect(cluster.deltas.dropLast().allSatisfy { $0.partitions.isEmpty && $0.topics.isEmpty })
    #expect(cluster.deltas.last!.partitions.count == 1_000)
    #expect(cluster.state.image!.partitions(of: topic.id).count == 1_000)
    for group in cluster.state.uploadGroups.values {
      #expect(group.value.positions.count <= Limits.partitionsPerUploadGroupMax)
    }
  }

  /// Each plan is right by what its command saw; together the partition would stand on a node that nobody knows.
  @Test func `a node can't be forgotten in the moment in which it gets a replica`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let creation = TopicCreation(
      id: TopicID(test: 1), name: "t", partitionCount: 250, replicationFactor: 3, settings: [:],
      createdAt: .none)
    let created = try cluster.state.createTopic(creation).transactions
    let left = try cluster.state.deregister(NodeID(2), NodeEpoch(1)).transactions
    var other = cluster
    for transaction in created { try cluster.commit(transaction) }
    #expect(
      thrown { () throws(MemQError) in try cluster.commit(left[0]) }?.code == .revisionConflict)
    for transaction in left { try other.commit(transaction) }
    #expect(
      thrown { () throws(MemQError) in try other.commit(created[0]) }?.code == .revisionConflict)
    // Asked anew, it stays known, as gone.
    try cluster.run { (state) throws(MemQError) in try state.deregister(NodeID(2), NodeEpoch(1)) }
    #expect(cluster.state.nodes[NodeID(2)]?.value.state == .gone)
    // What was claimed is told to nobody as a change.
    #expect(cluster.deltas.filter { !$0.topics.isEmpty }.allSatisfy { $0.nodes.isEmpty })
  }

  @Test func `a creation that broke off is seen by nobody and cleared away`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let id = TopicID(test: 1)
    let plan = try cluster.state.createTopic(
      TopicCreation(
        id: id, name: "half", partitionCount: 250, replicationFactor: 1, settings: [:],
        createdAt: .none))
    #expect(plan.transactions.count == 3)
    for transaction in plan.transactions.dropLast() { try cluster.commit(transaction) }
    #expect(cluster.state.image!.partitions.isEmpty && cluster.state.partitions.count == 200)
    #expect(try cluster.run { $0.buryOrphans(at: .none) } == 1)
    while try cluster.run({ $0.clearPartitions(of: id) }) {}
    try cluster.run { $0.closeGrave(id) }
    #expect(cluster.state.partitions.isEmpty && cluster.state.graves.isEmpty)
    // A node that was away asks for it.
    let tombstone: Versioned<GraveRecord>? = try cluster.find(.tombstone(id))
    #expect(tombstone?.value.id == id)
    #expect(cluster.state.uploadGroups.values.allSatisfy { $0.value.positions.isEmpty })
    try cluster.makeTopic("half", partitions: 250)
  }

  @Test func `a deleted topic is gone at once and its name is free`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(1)
    let old = try cluster.makeTopic("t", partitions: 3)
    let id = try cluster.run { (state) throws(MemQError) in
      try state.deleteTopic("t", at: .none)
    }
    #expect(id == old.id && cluster.deltas.last?.deletedTopics == [old.id])
    #expect(cluster.state.image!.partitions.isEmpty)
    let gone = thrown { () throws(MemQError) in
      try cluster.state.partition(TopicPartition(old.id, PartitionIndex(0)))
    }
    #expect(gone?.code == .topicDeleted)
    let again = try cluster.makeTopic("t", partitions: 2)
    #expect(again.id != old.id)
    while try cluster.run({ $0.clearPartitions(of: old.id) }) {}
    #expect(cluster.state.image!.partitions(of: again.id).count == 2)
    #expect(
      thrown { () throws(MemQError) in try cluster.state.deleteTopic("none", at: .none) }?.code
        == .topicNotFound)
  }

  @Test func `partitions are added, settings set and unset`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(2)
    let topic = try cluster.makeTopic("t", partitions: 2, settings: ["retention.ms": "1000"])
    let altered = try cluster.run { (state) throws(MemQError) in
      try state.alterTopic(
        "t", set: ["scan.policy": "gate"], unset: ["retention.ms"], partitionCount: 5)
    }
    #expect(altered.settings.scanPolicy == .gate)
    #expect(altered.settings.retention == .seconds(7 * 24 * 3600))
    #expect(cluster.state.image!.partitions(of: topic.id).count == 5)
    func refused(
      _ set: SortedMap<String, String>, _ unset: [String] = [], _ count: Int = 0
    ) -> ErrorCode? {
      thrown { () throws(MemQError) in
        try cluster.state.alterTopic("t", set: set, unset: unset, partitionCount: count)
      }?.code
    }
    #expect(refused([:], [], 4) == .partitionCountInvalid)
    #expect(refused(["no.such": "1"]) == .topicSettingUnknown)
    #expect(refused([:], ["no.such"]) == .topicSettingUnknown)
    #expect(refused(["retention.ms": "abc"]) == .topicSettingInvalid)
    #expect(refused(["min.insync.replicas": "2"]) == .topicCombinationRefused)
    let nothing = try cluster.state.alterTopic("t", set: [:], unset: [], partitionCount: 5)
    #expect(nothing.transactions.isEmpty)
  }

  @Test func `limits of the cluster are refused by name`() throws {
    var limits = MetadataLimits()
    limits.partitionsMax = 5
    limits.topicsMax = 2
    var cluster = try PureCluster(limits: limits)
    try cluster.joinReplicas(1)
    try cluster.makeTopic("a", partitions: 3)
    let many = thrown { () throws(MemQError) in try cluster.makeTopic("b", partitions: 3) }
    #expect(many?.code == .limitReached && many?.limit == 5 && many?.actual == 6)
    try cluster.makeTopic("b")
    #expect(
      thrown { () throws(MemQError) in try cluster.makeTopic("c") }?.code == .limitReached)
  }

  @Test(arguments: [(1, 1, 1), (2, 2, 1), (3, 3, 2), (5, 3, 2)])
  func `a topic that names no replication factor gets three replicas where there are the nodes`(
    nodes: Int, factor: Int, minInSync: Int
  ) throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(nodes)
    try cluster.join(.ingest, uuid: 99)
    let topic = try cluster.makeTopic("d", replicas: 0)
    #expect(topic.replicationFactor == factor && topic.settings.minInSyncReplicas == minInSync)
    let error = thrown { () throws(MemQError) in
      try cluster.makeTopic("t", replicas: nodes + 1)
    }
    #expect(error?.code == .replicationFactorInvalid)
    #expect(error?.limit == Int64(nodes) && error?.actual == Int64(nodes + 1))
  }

  @Test func `leaders are spread evenly and each partition has a replica in each of three racks`()
    throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(6, racks: ["a", "b", "c", "a", "b", "c"])
    let topic = try cluster.makeTopic("t", partitions: 12, replicas: 3)
    var led: SortedMap<NodeID, Int> = [:]
    for partition in cluster.state.image!.partitions(of: topic.id) {
      led[partition.leader!, default: 0] += 1
      let racks = partition.replicas.map { cluster.state.nodes[$0.node]!.value.rack }
      #expect(Set(racks).count == 3)
    }
    #expect(led.values.allSatisfy { $0 == 2 } && led.count == 6)
  }

  @Test func `a deleted topic over many upload groups leaves no position behind`() throws {
    var limits = MetadataLimits()
    limits.uploadGroupPartitionsMax = 1
    var cluster = try PureCluster(limits: limits)
    try cluster.joinReplicas(1)
    let topic = try cluster.makeTopic("t", partitions: 50)
    try cluster.run { (state) throws(MemQError) in
      try state.deleteTopic("t", at: Timestamp(milliseconds: 9))
    }
    while try cluster.run({ $0.clearPartitions(of: topic.id) }) {}
    #expect(cluster.keys(.partitions).isEmpty)
    for group in cluster.state.uploadGroups.values { #expect(group.value.positions.isEmpty) }
  }
}
