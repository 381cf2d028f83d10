// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Which service a node runs. Raw values are those of memq.v1.ServiceKind.
public enum ServiceKind: UInt8, Sendable, CaseIterable {
  case metadata = 1
  case replication, ingest, uploader, scanner, rebalancer

  /// The word people use: "metadata".
  public var name: String { String(describing: self) }
}

/// Where a node stands. Raw values are those of memq.v1.NodeState.
public enum NodeState: UInt8, Sendable {
  case starting = 1
  case ready, draining, fenced, gone

  public var name: String { String(describing: self) }
  /// Whether it may be given work.
  public var isLive: Bool {
    switch self {
    case .starting, .ready, .draining: true
    case .fenced, .gone: false
    }
  }
}

/// One registered service instance.
public struct NodeImage: Hashable, Sendable {
  public let id: NodeID
  public let uuid: NodeUUID
  public let service: ServiceKind
  public var address: String
  public var adminAddress: String
  public var rack: String
  public var host: String
  public var pid: Int64
  public var epoch: NodeEpoch
  public var state: NodeState
  public var volumes: [VolumeImage]
  /// The life before this one ended without a goodbye: what its disks confirmed may be gone from them. Not shown to watchers.
  public var restartedUncleanly: Bool

  public init(
    id: NodeID, uuid: NodeUUID, service: ServiceKind, address: String, adminAddress: String = "",
    rack: String = "", host: String = "", pid: Int64 = 0, epoch: NodeEpoch, state: NodeState,
    volumes: [VolumeImage] = [], restartedUncleanly: Bool = false
  ) {
    self.id = id
    self.uuid = uuid
    self.service = service
    self.address = address
    self.adminAddress = adminAddress
    self.rack = rack
    self.host = host
    self.pid = pid
    self.epoch = epoch
    self.state = state
    self.volumes = volumes
    self.restartedUncleanly = restartedUncleanly
  }
}

/// One topic. `given` are the settings somebody chose; `settings` is what they amount to.
public struct TopicImage: Hashable, Sendable {
  public let id: TopicID
  public let name: String
  public var partitionCount: Int
  public let replicationFactor: Int
  public var given: SortedMap<String, String>
  public var settings: TopicSettings
  public let createdAt: Timestamp

  public init(
    id: TopicID, name: String, partitionCount: Int, replicationFactor: Int,
    given: SortedMap<String, String>, createdAt: Timestamp
  ) throws(MemQError) {
    self.id = id
    self.name = name
    self.partitionCount = partitionCount
    self.replicationFactor = replicationFactor
    self.given = given
    self.settings = try TopicSettings(
      given.map { ($0.0, $0.1) }, replicationFactor: replicationFactor)
    self.createdAt = createdAt
  }
}

/// A change of a partition's replicas that is under way (KIP-455): the replicas are those of both lists until the added ones have
/// caught up.
public struct PartitionReassignment: Hashable, Sendable {
  /// What it is to end with, preferred leader first.
  public var target: [ReplicaID]
  /// What there was before, and what a cancel goes back to.
  public var original: [ReplicaID]

  public init(target: [ReplicaID], original: [ReplicaID]) {
    self.target = target
    self.original = original
  }

  /// Nodes that take on a replica.
  public var adding: [NodeID] {
    self.target.map(\.node).filter { node in !self.original.contains { $0.node == node } }
  }

  /// Nodes that give theirs up.
  public var removing: [NodeID] {
    self.original.map(\.node).filter { node in !self.target.contains { $0.node == node } }
  }
}

/// One partition's place in the cluster.
public struct PartitionImage: Hashable, Sendable {
  public let id: TopicPartition
  /// Nil while nobody may lead.
  public var leader: NodeID?
  public var leaderEpoch: LeaderEpoch
  public var epoch: PartitionEpoch
  /// Preferred leader first.
  public var replicas: [ReplicaID]
  public var inSync: [NodeID]
  public var eligible: [NodeID]
  public var historyEpoch: HistoryEpoch
  public let uploadGroup: Int32
  /// Below it the object tier is the log.
  public var uploadedOffset: Offset
  /// Leader epoch of the last record below the uploaded offset; `.none`: not known.
  public var uploadedEpoch: LeaderEpoch
  /// Records below are gone on every tier.
  public var logStart: Offset
  /// Nil while the replicas stay as they are.
  public var reassignment: PartitionReassignment?
  /// Never elected while another can be; in the ISR only as its last members.
  public var damaged: [DamagedReplica]

  public init(
    id: TopicPartition, leader: NodeID?, leaderEpoch: LeaderEpoch, epoch: PartitionEpoch,
    replicas: [ReplicaID], inSync: [NodeID], eligible: [NodeID] = [],
    historyEpoch: HistoryEpoch = .zero, uploadGroup: Int32, uploadedOffset: Offset = .zero,
    uploadedEpoch: LeaderEpoch = .none, logStart: Offset = .zero,
    reassignment: PartitionReassignment? = nil,
    damaged: [DamagedReplica] = []
  ) {
    self.id = id
    self.leader = leader
    self.leaderEpoch = leaderEpoch
    self.epoch = epoch
    self.replicas = replicas
    self.inSync = inSync
    self.eligible = eligible
    self.historyEpoch = historyEpoch
    self.uploadGroup = uploadGroup
    self.uploadedOffset = uploadedOffset
    self.uploadedEpoch = uploadedEpoch
    self.logStart = logStart
    self.reassignment = reassignment
    self.damaged = damaged
  }
}

/// One upload group: at most 512 partitions that one uploader packs together.
public struct UploadGroupImage: Hashable, Sendable {
  public let id: Int32
  public var holder: NodeID?
  public var leaseEpoch: LeaseEpoch
  /// Sequence number of the last committed object.
  public var objectSequence: Int64
  /// Objects announced and not collected.
  public var objectCount: Int64
  /// Bytes of those.
  public var objectBytes: Int64
  public var billedRequests: Int64

  public init(
    id: Int32, holder: NodeID? = nil, leaseEpoch: LeaseEpoch = .zero, objectSequence: Int64 = 0,
    objectCount: Int64 = 0, objectBytes: Int64 = 0, billedRequests: Int64 = 0
  ) {
    self.id = id
    self.holder = holder
    self.leaseEpoch = leaseEpoch
    self.objectSequence = objectSequence
    self.objectCount = objectCount
    self.objectBytes = objectBytes
    self.billedRequests = billedRequests
  }
}

/// Everything a service needs to know of the cluster, at one revision. Iterates in key order.
public struct ClusterImage: Hashable, Sendable {
  public var clusterID: ClusterID
  public var incarnation: Incarnation
  public var incarnationID: UniqueID
  public var revision: Revision
  /// Where the metadata instance is that decides; empty: there is one instance only, or none decides at present.
  public var controllerAddress = ""
  public var nodes: SortedMap<NodeID, NodeImage> = [:]
  public var topics: SortedMap<TopicID, TopicImage> = [:]
  public var partitions: PartitionMap<PartitionImage> = [:]
  public var uploadGroups: SortedMap<Int32, UploadGroupImage> = [:]
  private var idsByName: SortedMap<String, TopicID> = [:]

  public init(
    clusterID: ClusterID, incarnation: Incarnation, incarnationID: UniqueID, revision: Revision
  ) {
    self.clusterID = clusterID
    self.incarnation = incarnation
    self.incarnationID = incarnationID
    self.revision = revision
  }

  public func topic(named name: String) -> TopicImage? {
    self.idsByName[name].flatMap { self.topics[$0] }
  }

  /// A topic's partitions by index.
  public func partitions(of topic: TopicID) -> [PartitionImage] {
    self.partitions.values(of: topic)
  }

  /// Live nodes of one service, by id.
  public func liveNodes(_ service: ServiceKind) -> [NodeImage] {
    self.nodes.values.filter { $0.service == service && $0.state.isLive }
  }

  public mutating func put(_ topic: TopicImage) {
    self.topics[topic.id] = topic
    self.idsByName[topic.name] = topic.id
  }

  /// Takes a topic out with its partitions.
  public mutating func remove(_ topic: TopicID) {
    guard let old = self.topics.removeValue(forKey: topic) else { return }
    if self.idsByName[old.name] == topic { self.idsByName[old.name] = nil }
    self.partitions.removeAll(of: topic)
  }
}
