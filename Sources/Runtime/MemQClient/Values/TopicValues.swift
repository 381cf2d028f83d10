// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One topic.
public struct TopicInfo: Hashable, Sendable {
  public var id: TopicID
  public var name: String
  public var partitionCount: Int
  public var replicationFactor: Int
  /// Settings that were given; the others have their defaults.
  public var settings: [String: String]
  public var createdAt: Timestamp
}

/// One topic in full.
public struct TopicDescription: Hashable, Sendable {
  public var topic: TopicInfo
  /// By index.
  public var partitions: [PartitionInfo]
  /// Every setting with its effective value, sorted by name.
  public var settings: [Setting]

  public struct Setting: Hashable, Sendable {
    public var name: String
    public var value: String
    /// False: the default.
    public var isGiven: Bool
  }

  /// The effective `max.message.bytes`.
  public var messageBytesMax: Int {
    self.settings.first { $0.name == "max.message.bytes" }.flatMap { Int($0.value) }
      ?? Limits.recordBatchBytesDefault
  }
}

/// One partition's place in the cluster.
public struct PartitionInfo: Hashable, Sendable {
  public var topicPartition: TopicPartition
  /// Nil while there is no leader.
  public var leader: NodeID?
  public var leaderEpoch: LeaderEpoch
  public var partitionEpoch: PartitionEpoch
  /// Assigned nodes, preferred leader first.
  public var replicas: [NodeID]
  /// Where each of them stands, in their order.
  public var volumes: [VolumeID]
  /// In-sync replicas.
  public var isr: [NodeID]
  /// Eligible leader replicas (KIP-966).
  public var elr: [NodeID]
  /// What the replicas are being changed to; empty at rest.
  public var targetReplicas: [NodeID]
  /// Replicas that lost records to damage.
  public var damaged: [Damaged]
  public var uploadGroup: Int
  /// Below it the object tier is the log.
  public var uploadedOffset: Offset

  /// A replica that lost records to damage.
  public struct Damaged: Hashable, Sendable {
    public var node: NodeID
    /// Records below are whole.
    public var from: Offset
  }

  public var partition: PartitionIndex { self.topicPartition.partition }
}

/// One running instance of a service.
public struct NodeInfo: Hashable, Sendable {
  public var id: NodeID
  /// `metadata`, `replication`, `ingest`, `uploader`, `scanner` or `rebalancer`.
  public var service: String
  /// `starting`, `ready`, `draining`, `fenced` or `gone`.
  public var state: String
  public var address: String
  public var adminAddress: String
  public var rack: String
  public var host: String
  public var pid: Int64
  public var epoch: NodeEpoch
  public var volumes: [Volume]

  /// One disk of a replication node.
  public struct Volume: Hashable, Sendable {
    public var id: VolumeID
    /// `opening`, `fit` or `failed`.
    public var state: String
    /// Bytes that records may take on it; 0: not told.
    public var capacityBytes: Int64
    /// Why it failed; else empty.
    public var problem: String
  }
}

/// The cluster at a glance.
public struct ClusterDescription: Hashable, Sendable {
  public var id: ClusterID
  public var incarnation: Incarnation
  public var revision: Revision
  public var nodes: [NodeInfo]
  public var topics: [TopicInfo]
  public var partitions: [PartitionInfo]
  /// Each of the six services has a ready node, each partition a leader.
  public var isReady: Bool
  /// What is missing, a sentence each.
  public var problems: [String]
}
