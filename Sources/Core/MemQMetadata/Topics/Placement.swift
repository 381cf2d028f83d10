// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Where the replicas of new partitions go: leaders round robin over the nodes, followers on the next ones, first those of racks
/// that have none yet; on each node the volume with the fewest replicas for its capacity, never a failed one, nor one without room for
/// what the partition may keep there.
///
/// With each round of leaders the followers' distance grows by one, so that a lost node's load spreads over all others.
struct ReplicaPlacement {
  private let nodes: [NodeImage]
  private var load: SortedMap<VolumeID, Int>
  private var claims: VolumeClaims

  /// - Parameter nodes: those that may take replicas, each with a volume for them. - Parameter load: replicas per volume so far.
  init(nodes: [NodeImage], load: SortedMap<VolumeID, Int>, claims: VolumeClaims) {
    self.nodes = Self.alternatingRacks(nodes)
    self.load = load
    self.claims = claims
  }

  /// The replicas of one partition, preferred leader first.
  ///
  /// - Parameter turn: rises by one per partition, over all topics. - Parameter claim: bytes it keeps on each volume.
  /// - Precondition: 1 ≤ count ≤ number of nodes.
  /// - Throws: `.limitReached` when fewer nodes have a volume with room for it; its limit is what as many volumes have room for.
  mutating func place(
    count: Int, turn: Int, claim: Int64, _ subject: String
  ) throws(MemQError) -> [ReplicaID] {
    precondition(count >= 1 && count <= self.nodes.count)
    let total = self.nodes.count
    let first = turn % total
    let shift = total > 1 ? (turn / total) % (total - 1) : 0
    var order = [first]
    for step in 0..<(total - 1) { order.append((first + 1 + (shift + step) % (total - 1)) % total) }
    if claim > 0 {
      order.removeAll { self.room(self.nodes[$0]) < claim }
      guard order.count >= count else {
        let rooms = self.nodes.map { self.room($0) }.sorted(by: >)
        throw MemQError(
          .limitReached,
          "too few volumes have room for what a partition may keep on the SSD (retention.bytes without an object tier): lower it, or add capacity",
          subject: subject, limit: rooms[count - 1], actual: claim)
      }
    }

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
    return chosen.map { self.replica(on: self.nodes[$0], claim) }
  }

  /// The most that one of its volumes has.
  private func room(_ node: NodeImage) -> Int64 {
    node.placeableVolumes.map { self.claims.room($0.id) }.max() ?? 0
  }

  private mutating func replica(on node: NodeImage, _ claim: Int64) -> ReplicaID {
    let volumes = node.placeableVolumes.map(\.id).filter { self.claims.room($0) >= claim }
    var best = volumes[0]
    for volume in volumes.dropFirst() where self.isEmptier(volume, than: best) { best = volume }
    self.load[best, default: 0] += 1
    self.claims.add(claim, to: best)
    return ReplicaID(node.id, best)
  }

  /// By replicas for their capacity.
  private func isEmptier(_ a: VolumeID, than b: VolumeID) -> Bool {
    (self.load[a] ?? 0) * self.claims.weight(b) < (self.load[b] ?? 0) * self.claims.weight(a)
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
