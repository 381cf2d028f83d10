// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Every partition has its replicas on nodes that live, and nodes hold about equally many.
struct ReplicaCountGoal: PlacementGoal {
  let name = "replica count"

  func apply(to state: inout PlacementSnapshot, _ plan: inout PlacementPlan) {
    var counts = state.replicaCounts
    for index in state.partitions.indices { self.complete(index, &state, &counts, &plan) }
    self.level(&state, &counts, &plan)
  }

  // MARK: Enough of them

  private func complete(
    _ index: Int, _ state: inout PlacementSnapshot, _ counts: inout SortedMap<NodeID, Int>,
    _ plan: inout PlacementPlan
  ) {
    let partition = state.partitions[index]
    for lost in partition.replicas where !state.isLive(lost) {
      guard let target = Self.target(for: state.partitions[index], replacing: lost, state, counts)
      else {
        plan.unmet.append(
          "\(partition.name) keeps a replica on node \(lost), which is not alive: no other node can take it"
        )
        continue
      }
      plan.moves.append(
        self.move(partition, lost, target, "node \(lost), which holds a replica, is not alive"))
      state.partitions[index].move(replica: lost, to: target)
      counts[lost, default: 0] -= 1
      counts[target, default: 0] += 1
    }
    while state.partitions[index].replicas.count < partition.replicasWanted {
      let have = state.partitions[index].replicas.count
      guard let target = Self.target(for: state.partitions[index], replacing: nil, state, counts)
      else {
        plan.unmet.append(
          "\(partition.name) has \(have) of \(partition.replicasWanted) replicas, and no node can take another"
        )
        return
      }
      plan.moves.append(
        self.move(
          partition, nil, target,
          "\(partition.name) has \(have) of \(partition.replicasWanted) replicas"))
      state.partitions[index].replicas.append(target)
      state.partitions[index].inSync.append(target)
      counts[target, default: 0] += 1
    }
  }

  /// The emptiest node without a replica, in a rack without one if there is such.
  private static func target(
    for partition: PlacementPartition, replacing lost: NodeID?, _ state: PlacementSnapshot,
    _ counts: SortedMap<NodeID, Int>
  ) -> NodeID? {
    let free = state.emptiest(counts).filter { !partition.replicas.contains($0.id) }
    let used = partition.replicas.filter { $0 != lost }.map(state.rack)
    return (free.first { !used.contains($0.rack) } ?? free.first)?.id
  }

  // MARK: Levelled

  /// From the fullest node to the emptiest while they differ by two or more and racks stay as safe as they are.
  private func level(
    _ state: inout PlacementSnapshot, _ counts: inout SortedMap<NodeID, Int>,
    _ plan: inout PlacementPlan
  ) {
    // Each move lowers the sum of squares, so this ends; the bound only says so to the reader.
    for _ in 0..<(state.partitions.count * max(1, state.nodes.count)) {
      guard let (index, from, to) = Self.levelling(state, counts) else { return }
      let partition = state.partitions[index]
      plan.moves.append(
        self.move(
          partition, from, to,
          "node \(from) holds \(counts[from] ?? 0) replicas, node \(to) \(counts[to] ?? 0)"))
      state.partitions[index].move(replica: from, to: to)
      counts[from, default: 0] -= 1
      counts[to, default: 0] += 1
    }
  }

  private static func levelling(
    _ state: PlacementSnapshot, _ counts: SortedMap<NodeID, Int>
  ) -> (index: Int, from: NodeID, to: NodeID)? {
    let nodes = state.emptiest(counts)
    for from in nodes.reversed() {
      for to in nodes where (counts[from.id] ?? 0) - (counts[to.id] ?? 0) >= 2 {
        let found = state.partitions.firstIndex { partition in
          partition.replicas.contains(from.id) && !partition.replicas.contains(to.id)
            && partition.leader != from.id
            && !partition.replicas.contains { $0 != from.id && state.rack($0) == to.rack }
        }
        if let found { return (found, from.id, to.id) }
      }
    }
    return nil
  }

  private func move(
    _ partition: PlacementPartition, _ from: NodeID?, _ to: NodeID, _ reason: String
  ) -> PlacementMove {
    PlacementMove(
      kind: .replica, partition: partition.id, topic: partition.topic, from: from, to: to,
      goal: self.name, reason: reason)
  }
}
