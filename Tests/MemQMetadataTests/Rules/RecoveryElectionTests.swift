// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@testable import MemQMetadata

/// Elections in which every candidate restarted without a goodbye: disks lie.
@Suite struct RecoveryElectionTests {
  /// Three nodes in sync, killed at once.
  private func killed(
    _ settings: SortedMap<String, String> = ["min.insync.replicas": "2"]
  ) throws -> (PureCluster, TopicImage) {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3, settings: settings)
    for id in 1...3 { try cluster.run { $0.fence(NodeID(Int32(id))) } }
    try cluster.settle()
    let partition = cluster.partition(topic)
    #expect(partition.leader == nil && partition.inSync.count == 3)
    return (cluster, topic)
  }

  @Test func `of replicas that all restarted uncleanly the one whose log goes furthest leads`()
    throws
  {
    // The later epoch goes further, then the higher end, then the preferred one.
    let logs: [(ends: [(epoch: Int64, end: Int64)], leader: Int32)] = [
      ([(1, 5), (1, 7), (1, 9)], 3), ([(1, 5), (2, 4), (1, 9)], 2), ([(1, 5), (1, 5), (1, 5)], 1),
      ([(-1, 0), (1, 0), (0, 3)], 2),
    ]
    for minimum in ["1", "2"] {
      for (ends, leader) in logs {
        var (cluster, topic) = try self.killed(["min.insync.replicas": minimum])
        let before = cluster.partition(topic)
        for id in 1...3 as ClosedRange<Int32> {
          try cluster.join(.replication, uuid: UInt64(id), volumes: [UInt64(1_000 + id)])
          #expect(cluster.partition(topic) == before, "nobody leads, and nobody leaves the ISR")
          let (epoch, end) = ends[Int(id) - 1]
          try cluster.tell(topic, by: id, epoch, end: end)
        }
        let after = cluster.partition(topic)
        #expect(after.leader == NodeID(leader) && after.inSync == [NodeID(leader)])
        let others = [NodeID(1), NodeID(2), NodeID(3)].filter { $0 != NodeID(leader) }
        #expect(after.eligible == (minimum == "1" ? [] : others))
        #expect(after.leaderEpoch == before.leaderEpoch.next)
        #expect(after.historyEpoch == before.historyEpoch, "nothing committed was given up")
      }
    }
  }

  @Test func `who stays away is waited for no longer than election.recovery.wait`() throws {
    var (cluster, topic) = try self.killed()
    cluster.now = cluster.now + .seconds(4)
    for id in [2, 3] as [Int32] {
      try cluster.join(.replication, uuid: UInt64(id), volumes: [UInt64(1_000 + id)])
    }
    try cluster.tell(topic, by: 2, 1, end: 4)
    cluster.now = MonotonicInstant.zero + .milliseconds(9_999)
    #expect(cluster.recovery.tick(cluster.now, cluster.state).isEmpty)
    #expect(try cluster.settle().recovered.isEmpty && cluster.partition(topic).leader == nil)
    cluster.now = MonotonicInstant.zero + .seconds(10)
    #expect(cluster.recovery.tick(cluster.now, cluster.state) == [cluster.partition(topic).id])
    let election = try cluster.settle().recovered
    #expect(election.map(\.answers) == [1] && election.map(\.candidates) == [3])
    #expect(cluster.partition(topic).leader == NodeID(2))
    cluster.now = cluster.now + .seconds(2)
    #expect(cluster.recovery.tick(cluster.now, cluster.state).isEmpty)
    #expect(cluster.recovery.count == 0, "what is led again is forgotten")
  }

  @Test func `where nobody answered in time nobody leads, until one does`() throws {
    var (cluster, topic) = try self.killed()
    try cluster.join(.replication, uuid: 3, volumes: [1_003])
    cluster.now = cluster.now + .seconds(11)
    #expect(cluster.recovery.tick(cluster.now, cluster.state) == [cluster.partition(topic).id])
    try cluster.settle()
    #expect(cluster.partition(topic).leader == nil)
    #expect(cluster.recovery.tick(cluster.now, cluster.state).isEmpty, "it was said")
    #expect(try cluster.tell(topic, by: 3, 1, end: 2))
    #expect(cluster.partition(topic).leader == NodeID(3))
  }

  @Test func `an answer of another life, another election or another volume counts for nothing`()
    throws
  {
    var (cluster, topic) = try self.killed()
    for id in 1...3 {
      try cluster.join(.replication, uuid: UInt64(id), volumes: [UInt64(1_000 + id)])
    }
    let epoch = cluster.partition(topic).leaderEpoch
    #expect(try !cluster.tell(topic, by: 1, 1, end: 9, leaderEpoch: LeaderEpoch(0)))
    #expect(try !cluster.tell(topic, by: 1, 1, end: 9, leaderEpoch: epoch.next))
    #expect(try !cluster.tell(topic, by: 1, 1, end: 9, volume: VolumeID(test: 1_002)))
    let older = thrown { () throws(MemQError) in
      try cluster.tell(topic, by: 1, 1, end: 9, life: NodeEpoch(1))
    }
    #expect(older?.code == .nodeFenced)
    #expect(try cluster.tell(topic, by: 1, 1, end: 9))
    #expect(try !cluster.tell(topic, by: 1, 1, end: 9), "said again it is no news")
    // It restarts, and what it said was of the life before.
    try cluster.join(.replication, uuid: 1, volumes: [1_001])
    try cluster.tell(topic, by: 2, 1, end: 5)
    try cluster.tell(topic, by: 3, 1, end: 4)
    #expect(cluster.partition(topic).leader == nil)
    try cluster.tell(topic, by: 1, 1, end: 3)
    #expect(cluster.partition(topic).leader == NodeID(2))
    #expect(try !cluster.tell(topic, by: 3, 1, end: 99), "it is led")
    #expect(cluster.partition(topic).leader == NodeID(2))
  }

  @Test func `a candidate that said goodbye leads at once`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    try cluster.fence(3)
    try cluster.run { (state) throws(MemQError) in try state.deregister(NodeID(2), NodeEpoch(1)) }
    try cluster.settle()
    try cluster.fence(1)
    #expect(
      cluster.partition(topic).inSync == [NodeID(1)]
        && cluster.partition(topic).eligible == [NodeID(2)])
    try cluster.join(.replication, uuid: 1, volumes: [1_001])
    #expect(cluster.partition(topic).leader == nil, "it restarted uncleanly: another may hold more")
    let bypass = thrown { () throws(MemQError) in
      try cluster.state.transferLeadership(of: cluster.partition(topic).id, to: NodeID(1))
    }
    #expect(bypass?.code == .invalidArgument)
    try cluster.join(.replication, uuid: 2, volumes: [1_002])
    let after = cluster.partition(topic)
    #expect(after.leader == NodeID(2) && after.inSync == [NodeID(2)])
    #expect(after.eligible == [NodeID(1)])
  }

  @Test func `who restarted and caught up leads at once when its leader is lost`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic("t", replicas: 3)
    for id in [2, 3] {
      try cluster.join(.replication, uuid: UInt64(id), volumes: [UInt64(1_000 + id)])
    }
    let grow = proposal(cluster.partition(topic), cluster, inSync: [1, 2, 3])
    try cluster.run { (state) throws(MemQError) in try state.alterPartition(grow) }
    try cluster.fence(1)
    #expect(cluster.partition(topic).leader == NodeID(2))
    try cluster.fence(2)
    #expect(cluster.partition(topic).leader == NodeID(3))
  }

  @Test func `uncleanly, too, the replica whose log goes furthest is elected`() throws {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let topic = try cluster.makeTopic(
      "t", replicas: 3,
      settings: ["min.insync.replicas": "1", "unclean.leader.election.enable": "true"])
    let shrink = proposal(cluster.partition(topic), cluster, inSync: [1])
    try cluster.run { (state) throws(MemQError) in try state.alterPartition(shrink) }
    try cluster.fence(1)
    #expect(cluster.partition(topic).leader == nil)
    try cluster.tell(topic, by: 2, 1, end: 4)
    #expect(cluster.partition(topic).leader == nil, "the other may hold more")
    try cluster.tell(topic, by: 3, 1, end: 6)
    let after = cluster.partition(topic)
    #expect(after.leader == NodeID(3) && after.historyEpoch == HistoryEpoch(1))
  }

  @Test func `while nobody could be heard nobody is waited for in vain`() throws {
    var (cluster, topic) = try self.killed()
    try cluster.join(.replication, uuid: 3, volumes: [1_003])
    try cluster.tell(topic, by: 3, 1, end: 2)
    // The controller stood still for a minute.
    cluster.now = cluster.now + .seconds(60)
    #expect(cluster.recovery.tick(cluster.now, cluster.state).isEmpty)
    try cluster.settle()
    #expect(cluster.partition(topic).leader == nil)
    // The store was away.
    cluster.now = cluster.now + .seconds(9)
    cluster.recovery.beginAnew(cluster.state, at: cluster.now)
    cluster.now = cluster.now + .seconds(9)
    #expect(cluster.recovery.tick(cluster.now, cluster.state).isEmpty)
    cluster.now = cluster.now + .seconds(1)
    #expect(cluster.recovery.tick(cluster.now, cluster.state).count == 1)
    try cluster.settle()
    #expect(cluster.partition(topic).leader == NodeID(3))
  }
}
