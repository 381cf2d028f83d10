// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where the replicas of new partitions go: leaders round robin over the nodes, followers on the next ones, first those of racks
/// that have none yet; on each node the volume with the fewest replicas.
///
/// With each round of leaders the followers' distance grows by one, so that a lost node's load spreads over all others.
public struct ReplicaPlacement {
  private let nodes: [NodeImage]
  private var load: SortedMap<VolumeID, Int>

  /// - Parameter nodes: those that may take replicas. - Parameter load: replicas per volume so far.
  public init(nodes: [NodeImage], load: SortedMap<VolumeID, Int>) {
    self.nodes = Self.alternatingRacks(nodes)
    self.load = load
  }

  /// The replicas of one partition, preferred leader first.
  ///
  /// - Parameter turn: rises by one per partition, over all topics.
  /// - Precondition: 1 ≤ count ≤ number of nodes.
  public mutating func place(count: Int, turn: Int) -> [ReplicaID] {
    precondition(count >= 1 && count <= self.nodes.count)
    let total = self.nodes.count
    let first = turn % total
    let shift = total > 1 ? (turn / total) % (total - 1) : 0
    var order = [first]
    for step in 0..<(total - 1) { order.append((first + 1 + (shift + step) % (total - 1)) % total) }

    var chosen: [Int] = []
    var racks: [String] = []
    for index in order where chosen.count < count {
      let rack = self.nodes[index].rack
      if racks.contains(rack) && !rack.isEmpty { continue }
      chosen.append(index)
      racks.append(rack)
    }
    for index in order where chosen.count < count && !chosen.contains(index) {
      chosen.append(index)
    }
    return chosen.map { self.replica(on: self.nodes[$0]) }
  }

  private mutating func replica(on node: NodeImage) -> ReplicaID {
    var best = node.volumes[0]
    for volume in node.volumes where (self.load[volume] ?? 0) < (self.load[best] ?? 0) {
      best = volume
    }
    self.load[best, default: 0] += 1
    return ReplicaID(node.id, best)
  }

  /// One node of each rack in turn.
  private static func alternatingRacks(_ nodes: [NodeImage]) -> [NodeImage] {
    var racks: SortedMap<String, [NodeImage]> = [:]
    for node in nodes { racks[node.rack, default: []].append(node) }
    var ordered: [NodeImage] = []
    var round = 0
    while ordered.count < nodes.count {
      for rack in racks.values where round < rack.count { ordered.append(rack[round]) }
      round += 1
    }
    return ordered
  }
}
