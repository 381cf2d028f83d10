// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQTestSupport
import Testing

@testable import MemQPlacement

private let topic = TopicID(UniqueID(high: 1, low: 1))

private func partition(
  _ index: Int32, leader: Int32?, on replicas: [Int32], inSync: [Int32]? = nil, wanted: Int? = nil
) -> PlacementPartition {
  PlacementPartition(
    TopicPartition(topic, PartitionIndex(index)), topic: "t", leader: leader.map(NodeID.init),
    replicas: replicas.map(NodeID.init), inSync: inSync.map { $0.map(NodeID.init) },
    replicasWanted: wanted)
}

private func nodes(_ racks: String...) -> [PlacementNode] {
  racks.enumerated().map { PlacementNode(NodeID(Int32($0.offset + 1)), rack: $0.element) }
}

/// `leadership t/0 1->2`.
private func lines(_ plan: PlacementPlan) -> [String] {
  plan.moves.map {
    "\($0.kind) \($0.topic)/\($0.partition.partition) \($0.from.map(\.description) ?? "-")->\($0.to)"
  }
}

private func plan(_ snapshot: PlacementSnapshot, executing: Bool = true) -> PlacementPlan {
  PlacementPlanner.plan(snapshot, PlacementRules(executesReplicaMoves: executing))
}

@Suite struct RackSafetyTests {
  @Test func `a second replica in a rack goes to the emptiest rack without one`() {
    let plan = plan(
      PlacementSnapshot(
        nodes: nodes("a", "a", "b"), partitions: [partition(0, leader: 1, on: [1, 2])]))
    #expect(lines(plan) == ["replica t/0 2->3"])
    #expect(plan.moves[0].goal == "rack safety")
    #expect(plan.moves[0].reason == "rack a holds two replicas of t/0, rack b none")
    #expect(plan.unmet.isEmpty)
  }

  @Test func `with fewer racks than replicas nothing moves`() {
    let plan = plan(
      PlacementSnapshot(
        nodes: nodes("a", "a", "b"), partitions: [partition(0, leader: 1, on: [1, 2, 3])]))
    #expect(plan.moves.isEmpty)
  }

  @Test func `a leader stays when a follower can go`() {
    let plan = plan(
      PlacementSnapshot(
        nodes: nodes("a", "a", "b"), partitions: [partition(0, leader: 2, on: [1, 2])]))
    #expect(lines(plan) == ["replica t/0 1->3"])
  }
}

@Suite struct ReplicaCountTests {
  @Test func `a replica on a dead node is replaced, and one that is missing is added`() {
    let nodes = [1, 2, 3, 4].map { PlacementNode(NodeID($0), isLive: $0 != 2) }
    let plan = plan(
      PlacementSnapshot(
        nodes: nodes,
        partitions: [
          partition(0, leader: 1, on: [1, 2]), partition(1, leader: 3, on: [3], wanted: 2),
        ]))
    #expect(lines(plan) == ["replica t/0 2->4", "replica t/1 -->1"])
    #expect(plan.moves.allSatisfy { $0.goal == "replica count" })
  }

  @Test func `what no node can take is said`() {
    let plan = plan(
      PlacementSnapshot(
        nodes: nodes("a"), partitions: [partition(0, leader: 1, on: [1], wanted: 3)]))
    #expect(plan.moves.isEmpty)
    #expect(plan.unmet == ["t/0 has 1 of 3 replicas, and no node can take another"])
  }

  @Test func `a new node gets its share of replicas and racks stay safe`() {
    let full = (0..<6).map { partition(Int32($0), leader: 1, on: [1, 2]) }
    let snapshot = PlacementSnapshot(nodes: nodes("a", "b", "b"), partitions: full)
    let plan = plan(snapshot)
    let replicas = plan.moves.filter { $0.kind == .replica }
    // From node 2 only: node 3 shares its rack.
    #expect(replicas.count == 3)
    #expect(replicas.allSatisfy { $0.from == NodeID(2) && $0.to == NodeID(3) })
    #expect(plan.balance.map(\.replicasAfter) == [6, 3, 3])
  }
}

@Suite struct LeaderSpreadTests {
  @Test func `leaderships are spread with as few moves as possible`() {
    let partitions = (0..<6).map { partition(Int32($0), leader: 1, on: [1, 2, 3]) }
    let plan = plan(PlacementSnapshot(nodes: nodes("a", "b", "c"), partitions: partitions))
    #expect(plan.moves.count == 4)
    #expect(plan.balance.map(\.leaders) == [6, 0, 0])
    #expect(plan.balance.map(\.leadersAfter) == [2, 2, 2])
    #expect(
      plan.moves[0].reason == "node 1 leads 6 partitions, node 2 0; a fair share is 2")
  }

  @Test func `a balanced cluster is left alone`() {
    let partitions = [
      partition(0, leader: 2, on: [1, 2]), partition(1, leader: 1, on: [2, 1]),
      partition(2, leader: 1, on: [1, 2]),
    ]
    #expect(
      plan(PlacementSnapshot(nodes: nodes("", ""), partitions: partitions)).moves.isEmpty)
  }

  @Test func `the preferred leader comes first`() {
    let partitions = [
      partition(0, leader: 1, on: [1, 2]), partition(1, leader: 1, on: [2, 1]),
    ]
    #expect(
      lines(plan(PlacementSnapshot(nodes: nodes("", ""), partitions: partitions)))
        == ["leadership t/1 1->2"])
  }

  @Test func `only in-sync replicas are made leaders`() {
    let partitions = (0..<2).map { partition(Int32($0), leader: 1, on: [1, 2], inSync: [1]) }
    #expect(
      plan(PlacementSnapshot(nodes: nodes("", ""), partitions: partitions)).moves.isEmpty)
  }

  @Test func `a chain is followed where two nodes share no partition`() {
    // 1 and 2 share nothing: 1 gives one to 3, and 3 gives one to 2.
    let partitions = [
      partition(0, leader: 1, on: [1, 3]), partition(1, leader: 1, on: [1, 3]),
      partition(2, leader: 3, on: [3, 2]),
    ]
    let plan = plan(
      PlacementSnapshot(nodes: nodes("", "", ""), partitions: partitions), executing: false)
    #expect(plan.balance.map(\.leadersAfter) == [1, 1, 1])
    #expect(
      lines(plan).filter { $0.hasPrefix("leadership") } == [
        "leadership t/0 1->3", "leadership t/2 3->2",
      ])
  }

  @Test func `a node that leaves gives its leaderships away, and what it cannot give is said`() {
    let nodes = [1, 2].map { PlacementNode(NodeID($0), takesWork: $0 != 1) }
    let plan = plan(
      PlacementSnapshot(
        nodes: nodes,
        partitions: [
          partition(0, leader: 1, on: [1, 2]), partition(1, leader: 1, on: [1, 2], inSync: [1]),
          partition(2, leader: nil, on: [1]),
        ]))
    #expect(lines(plan) == ["leadership t/0 1->2"])
    #expect(
      plan.unmet == [
        "t/1 stays on node 1, which leaves: no other in-sync replica can lead",
        "t/2 has no leader, and no in-sync replica can be one",
      ])
  }
}

@Suite struct PlannerTests {
  private static func snapshot(seed: UInt64) -> PlacementSnapshot {
    var random = SeededGenerator(seed: seed)
    let ids = (1...Int32.random(in: 1...7, using: &random)).map { NodeID($0) }
    let nodes = ids.map { id in
      PlacementNode(
        id, rack: ["", "a", "b", "c"].randomElement(using: &random)!,
        isLive: Int.random(in: 0..<8, using: &random) > 0,
        takesWork: Int.random(in: 0..<8, using: &random) > 0)
    }
    let partitions = (0..<Int32.random(in: 0...40, using: &random)).map { index in
      let wanted = Int.random(in: 1...3, using: &random)
      let replicas = Array(ids.shuffled(using: &random).prefix(wanted))
      let inSync = replicas.filter { _ in Int.random(in: 0..<4, using: &random) > 0 }
      return PlacementPartition(
        TopicPartition(topic, PartitionIndex(index)), topic: "t", leader: inSync.first,
        replicas: replicas, inSync: inSync, replicasWanted: wanted)
    }
    return PlacementSnapshot(nodes: nodes, partitions: partitions)
  }

  @Test(arguments: 0..<200) func `plans are the same each time, legal, and leave nothing to do`(
    seed: Int
  ) {
    let snapshot = Self.snapshot(seed: UInt64(seed))
    let made = plan(snapshot, executing: false)
    #expect(made == plan(snapshot, executing: false))
    var after = snapshot
    for move in made.moves where move.kind == .leadership {
      let index = after.partitions.firstIndex { $0.id == move.partition }!
      #expect(after.partitions[index].leader == move.from)
      #expect(after.partitions[index].inSync.contains(move.to))
      after.partitions[index].leader = move.to
    }
    #expect(plan(after, executing: false).moves.allSatisfy { $0.kind == .replica })
    // No partition moves twice.
    let led = made.moves.filter { $0.kind == .leadership }.map(\.partition)
    #expect(Set(led).count == led.count)
  }

  @Test func `when replica moves are not executed leaders are spread over the replicas there are`()
  {
    let partitions = (0..<4).map { partition(Int32($0), leader: 1, on: [1, 2]) }
    let plan = plan(
      PlacementSnapshot(nodes: nodes("a", "a", "b"), partitions: partitions), executing: false)
    #expect(plan.moves.contains { $0.kind == .replica })
    #expect(plan.moves.filter { $0.kind == .leadership }.allSatisfy { $0.to == NodeID(2) })
    #expect(plan.balance.map(\.leadersAfter) == [2, 2, 0])
    #expect(plan.balance.map(\.replicasAfter) == [4, 4, 0])
  }
}
