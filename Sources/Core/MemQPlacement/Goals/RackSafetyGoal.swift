// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Replicas of a partition stand in as many racks as there are, so that one failing takes as few of them as possible.
struct RackSafetyGoal: PlacementGoal {
  let name = "rack safety"

  func apply(to state: inout PlacementSnapshot, _ plan: inout PlacementPlan) {
    var counts = state.replicaCounts
    for index in state.partitions.indices {
      while let (from, rack) = Self.crowded(state.partitions[index], state) {
        let partition = state.partitions[index]
        let used = partition.replicas.map(state.rack)
        let target = state.emptiest(counts).first { !used.contains($0.rack) }
        guard let target else { break }
        plan.moves.append(
          PlacementMove(
            kind: .replica, partition: partition.id, topic: partition.topic, from: from,
            to: target.id, goal: self.name,
            reason: "rack \(rack) holds two replicas of \(partition.name), rack \(target.rack) none"
          ))
        state.partitions[index].move(replica: from, to: target.id)
        counts[from, default: 0] -= 1
        counts[target.id, default: 0] += 1
      }
    }
  }

  /// A replica that shares its rack with an earlier one of the partition; not the leader if another can go.
  private static func crowded(
    _ partition: PlacementPartition, _ state: PlacementSnapshot
  ) -> (NodeID, String)? {
    var found: (NodeID, String)?
    for (index, replica) in partition.replicas.enumerated().reversed() {
      let rack = state.rack(replica)
      let others = partition.replicas.enumerated().filter { $0.offset != index }
      guard others.contains(where: { state.rack($0.element) == rack }) else { continue }
      found = found ?? (replica, rack)
      if replica != partition.leader { return (replica, rack) }
    }
    return found
  }
}

extension PlacementPartition {
  /// The replica's place in the order of preference goes over to its successor, which is not in sync at first.
  mutating func move(replica from: NodeID, to: NodeID) {
    guard let at = self.replicas.firstIndex(of: from) else { return }
    self.replicas[at] = to
    self.inSync.removeAll { $0 == from }
    self.inSync.append(to)
    if self.leader == from { self.leader = self.inSync.first }
  }
}
