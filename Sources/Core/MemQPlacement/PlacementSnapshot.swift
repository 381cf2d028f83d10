// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQMetadata
public import MemQModel

/// A storage node as the planner sees it.
public struct PlacementNode: Hashable, Sendable {
  public let id: NodeID
  /// Failure domain; a node without one is a domain of its own.
  public let rack: String
  /// Alive: what it holds counts.
  public let isLive: Bool
  /// May be given leaderships and replicas: alive and not leaving.
  public let takesWork: Bool

  public init(_ id: NodeID, rack: String = "", isLive: Bool = true, takesWork: Bool = true) {
    self.id = id
    self.rack = rack.isEmpty ? "node \(id)" : rack
    self.isLive = isLive
    self.takesWork = isLive && takesWork
  }
}

/// A partition as the planner sees it.
public struct PlacementPartition: Hashable, Sendable {
  public let id: TopicPartition
  /// The topic's name, for reasons people read.
  public let topic: String
  public var leader: NodeID?
  /// The preferred leader first.
  public var replicas: [NodeID]
  /// Only these may be made leaders.
  public var inSync: [NodeID]
  /// The topic's replication factor.
  public let replicasWanted: Int

  public init(
    _ id: TopicPartition, topic: String, leader: NodeID?, replicas: [NodeID],
    inSync: [NodeID]? = nil, replicasWanted: Int? = nil
  ) {
    self.id = id
    self.topic = topic
    self.leader = leader
    self.replicas = replicas
    self.inSync = inSync ?? replicas
    self.replicasWanted = replicasWanted ?? replicas.count
  }

  /// `topic/index`.
  var name: String { "\(self.topic)/\(self.id.partition.rawValue)" }
}

/// What a plan is made from; in the order of ids, so that equal clusters give equal plans.
public struct PlacementSnapshot: Hashable, Sendable {
  public let nodes: [PlacementNode]
  public var partitions: [PlacementPartition]

  /// - Precondition: no id twice.
  public init(nodes: [PlacementNode], partitions: [PlacementPartition]) {
    self.nodes = nodes.sorted { $0.id < $1.id }
    self.partitions = partitions.sorted { $0.id < $1.id }
    precondition(zip(self.nodes, self.nodes.dropFirst()).allSatisfy { $0.id < $1.id })
    precondition(zip(self.partitions, self.partitions.dropFirst()).allSatisfy { $0.id < $1.id })
  }

  public init(_ image: ClusterImage) {
    let nodes = image.nodes.values.filter { $0.service == .replication && $0.state != .gone }
    self.init(
      nodes: nodes.map {
        PlacementNode($0.id, rack: $0.rack, isLive: $0.state.isLive, takesWork: $0.state == .ready)
      },
      partitions: image.partitions.values.compactMap { partition in
        guard let topic = image.topics[partition.id.topic] else { return nil }
        return PlacementPartition(
          partition.id, topic: topic.name, leader: partition.leader,
          replicas: partition.replicas.map(\.node), inSync: partition.inSync,
          replicasWanted: topic.replicationFactor)
      })
  }

  func node(_ id: NodeID) -> PlacementNode? {
    var low = 0
    var high = self.nodes.count
    while low < high {
      let middle = (low + high) / 2
      if self.nodes[middle].id < id { low = middle + 1 } else { high = middle }
    }
    return low < self.nodes.count && self.nodes[low].id == id ? self.nodes[low] : nil
  }

  func isLive(_ id: NodeID) -> Bool { self.node(id)?.isLive ?? false }
  func rack(_ id: NodeID) -> String { self.node(id)?.rack ?? "node \(id)" }

  /// Nodes that may be given replicas, those with the fewest first; then by id.
  func emptiest(_ counts: SortedMap<NodeID, Int>) -> [PlacementNode] {
    self.nodes.filter(\.takesWork).sorted {
      let (a, b) = (counts[$0.id] ?? 0, counts[$1.id] ?? 0)
      return a != b ? a < b : $0.id < $1.id
    }
  }

  /// Replicas by node.
  var replicaCounts: SortedMap<NodeID, Int> {
    var counts = self.zeroes
    for partition in self.partitions {
      for replica in partition.replicas { counts[replica, default: 0] += 1 }
    }
    return counts
  }

  /// Leaderships by node.
  var leaderCounts: SortedMap<NodeID, Int> {
    var counts = self.zeroes
    for partition in self.partitions {
      if let leader = partition.leader { counts[leader, default: 0] += 1 }
    }
    return counts
  }

  private var zeroes: SortedMap<NodeID, Int> {
    var counts: SortedMap<NodeID, Int> = [:]
    for node in self.nodes { counts[node.id] = 0 }
    return counts
  }
}
