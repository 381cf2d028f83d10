// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Nodes lead about equally many partitions; a node that leaves leads none. Only in-sync replicas may lead.
///
/// Each step takes a leadership from a node to one with at least two fewer, along the shortest chain of nodes that share
/// partitions (1 → 3 → 2 when 1 and 2 share none). No such chain left means no assignment is better. A partition that
/// several chains passed through moves once: the plan is the difference of beginning and end.
struct LeaderSpreadGoal: PlacementGoal {
  let name = "leader spread"

  func apply(to state: inout PlacementSnapshot, _ plan: inout PlacementPlan) {
    var graph = LeaderGraph(state)
    graph.level()
    let before = state.leaderCounts
    let fair = Self.fair(state)
    for (index, leader) in graph.leaders.enumerated() {
      let partition = state.partitions[index]
      guard let old = partition.leader else {
        plan.unmet.append("\(partition.name) has no leader, and no in-sync replica can be one")
        continue
      }
      if let problem = Self.stuck(partition, leader, state) { plan.unmet.append(problem) }
      guard let leader, leader != old else { continue }
      plan.moves.append(
        PlacementMove(
          kind: .leadership, partition: partition.id, topic: partition.topic, from: old, to: leader,
          goal: self.name, reason: Self.reason(old, leader, before, fair, state)))
      state.partitions[index].leader = leader
    }
  }

  private static func fair(_ state: PlacementSnapshot) -> String {
    let nodes = state.nodes.filter(\.takesWork).count
    let led = state.partitions.filter { $0.leader != nil }.count
    guard nodes > 0 else { return "none" }
    let low = led / nodes
    return led % nodes == 0 ? "\(low)" : "\(low) to \(low + 1)"
  }

  private static func stuck(
    _ partition: PlacementPartition, _ leader: NodeID?, _ state: PlacementSnapshot
  ) -> String? {
    guard let old = partition.leader, leader == old, let node = state.node(old), !node.takesWork
    else { return nil }
    return "\(partition.name) stays on node \(old), which leaves: no other in-sync replica can lead"
  }

  private static func reason(
    _ from: NodeID, _ to: NodeID, _ counts: SortedMap<NodeID, Int>, _ fair: String,
    _ state: PlacementSnapshot
  ) -> String {
    if !(state.node(from)?.takesWork ?? false) { return "node \(from) is leaving or not alive" }
    return
      "node \(from) leads \(counts[from] ?? 0) partitions, node \(to) \(counts[to] ?? 0); a fair share is \(fair)"
  }
}

/// Nodes, and between them the partitions whose leadership could pass from one to the other.
private struct LeaderGraph {
  private let nodes: [PlacementNode]
  /// Positions in `nodes` of each partition's candidates, its preferred leader first.
  private let candidates: [[Int]]
  /// Position in `nodes` of each partition's leader.
  private var leader: [Int?]
  private var counts: [Int]

  init(_ state: PlacementSnapshot) {
    let nodes = state.nodes
    func position(_ id: NodeID) -> Int? { nodes.firstIndex { $0.id == id } }
    self.nodes = nodes
    self.candidates = state.partitions.map { partition in
      partition.replicas.filter(partition.inSync.contains).compactMap(position)
        .filter { nodes[$0].takesWork }
    }
    self.leader = state.partitions.map { $0.leader.flatMap(position) }
    self.counts = [Int](repeating: 0, count: nodes.count)
    for leader in self.leader { if let leader { self.counts[leader] += 1 } }
  }

  var leaders: [NodeID?] { self.leader.map { $0.map { self.nodes[$0].id } } }

  mutating func level() {
    while let chain = self.chain() { self.pass(along: chain) }
  }

  /// Leaderships that node `from` could give to node `to`: the first by preference, then by partition.
  private func movable(_ from: Int, _ to: Int) -> Int? {
    var found: Int?
    for (index, leader) in self.leader.enumerated() where leader == from {
      guard self.candidates[index].contains(to) else { continue }
      if self.candidates[index].first == to { return index }
      found = found ?? index
    }
    return found
  }

  /// The shortest chain from a node that leads too many (the fullest first, leaving ones before all) to one that may take one.
  private func chain() -> [Int]? {
    let reach = self.reach()
    let order = self.nodes.indices.filter { self.counts[$0] > 0 }.sorted { a, b in
      if self.nodes[a].takesWork != self.nodes[b].takesWork { return !self.nodes[a].takesWork }
      return self.counts[a] != self.counts[b] ? self.counts[a] > self.counts[b] : a < b
    }
    for from in order {
      if let chain = self.chain(from, reach) { return chain }
    }
    return nil
  }

  /// Which node could give a leadership to which.
  private func reach() -> [[Bool]] {
    var reach = [[Bool]](
      repeating: [Bool](repeating: false, count: self.nodes.count), count: self.nodes.count)
    for (index, leader) in self.leader.enumerated() {
      guard let leader else { continue }
      for candidate in self.candidates[index] where candidate != leader {
        reach[leader][candidate] = true
      }
    }
    return reach
  }

  /// Breadth first; among the nodes at the shortest distance the one that leads fewest.
  private func chain(_ from: Int, _ reach: [[Bool]]) -> [Int]? {
    let limit = self.nodes[from].takesWork ? self.counts[from] - 2 : Int.max
    var previous = [Int?](repeating: nil, count: self.nodes.count)
    var frontier = [from]
    while !frontier.isEmpty {
      var next: [Int] = []
      for node in frontier {
        for other in self.nodes.indices
        where reach[node][other] && other != from && previous[other] == nil {
          previous[other] = node
          next.append(other)
        }
      }
      let fit = next.filter { self.counts[$0] <= limit }
      if let end = fit.min(by: { (self.counts[$0], $0) < (self.counts[$1], $1) }) {
        var chain = [end]
        while let before = previous[chain[0]] { chain.insert(before, at: 0) }
        return chain
      }
      frontier = next
    }
    return nil
  }

  private mutating func pass(along chain: [Int]) {
    for (from, to) in zip(chain, chain.dropFirst()) {
      guard let partition = self.movable(from, to) else {
        preconditionFailure("the chain follows leaderships that can move")
      }
      self.leader[partition] = to
    }
    self.counts[chain[0]] -= 1
    self.counts[chain[chain.count - 1]] += 1
  }
}
