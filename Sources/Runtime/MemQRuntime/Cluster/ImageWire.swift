// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQAPI
public import MemQMetadata
public import MemQModel
import SwiftProtobuf

#if canImport(FoundationEssentials)
public import FoundationEssentials
#else
public import Foundation
#endif

// Conversions between the cluster image and its messages. From the wire they are checked: `.corruptMessage` names the field.

extension TaggedID {
  /// A 16-byte field.
  public init(wire bytes: Data, _ field: String) throws(MemQError) {
    guard let id = Self(bytes: bytes) else { throw wrongID(field, bytes.count) }
    self = id
  }
  /// As a 16-byte field.
  public var wire: Data { Data(self.bytes) }
}

extension UniqueID {
  public init(wire bytes: Data, _ field: String) throws(MemQError) {
    guard let id = Self(bytes: bytes) else { throw wrongID(field, bytes.count) }
    self = id
  }
  public var wire: Data { Data(self.bytes) }
}

private func wrongID(_ field: String, _ count: Int) -> MemQError {
  MemQError(
    .invalidArgument, "an identifier has 16 bytes", subject: field, limit: 16,
    actual: Int64(count))
}

extension ServiceKind {
  public init(_ wire: Memq_V1_ServiceKind) throws(MemQError) {
    guard let kind = UInt8(exactly: wire.rawValue).flatMap(Self.init(rawValue:)) else {
      throw MemQError(
        .invalidArgument, "no such service", subject: "service", actual: Int64(wire.rawValue))
    }
    self = kind
  }
  public var wire: Memq_V1_ServiceKind {
    switch self {
    case .metadata: .metadata
    case .replication: .replication
    case .ingest: .ingest
    case .uploader: .uploader
    case .scanner: .scanner
    case .rebalancer: .rebalancer
    }
  }
}

extension NodeState {
  public init(_ wire: Memq_V1_NodeState) throws(MemQError) {
    guard let state = UInt8(exactly: wire.rawValue).flatMap(Self.init(rawValue:)) else {
      throw MemQError(
        .invalidArgument, "no such node state", subject: "state", actual: Int64(wire.rawValue))
    }
    self = state
  }
  public var wire: Memq_V1_NodeState {
    switch self {
    case .starting: .starting
    case .ready: .ready
    case .draining: .draining
    case .fenced: .fenced
    case .gone: .gone
    }
  }
}

extension TopicPartition {
  public init(_ wire: Memq_V1_TopicPartition) throws(MemQError) {
    guard wire.partition >= 0 else {
      throw MemQError(
        .invalidArgument, "a partition's index is not negative", subject: "partition",
        actual: Int64(wire.partition))
    }
    self.init(try TopicID(wire: wire.topicID, "topic_id"), PartitionIndex(wire.partition))
  }
  public var wire: Memq_V1_TopicPartition {
    .with {
      $0.topicID = self.topic.wire
      $0.partition = self.partition.rawValue
    }
  }
}

extension VolumeImage {
  public init(_ wire: Memq_V1_NodeVolume) throws(MemQError) {
    guard let state = UInt8(exactly: wire.state.rawValue).flatMap(VolumeState.init(rawValue:)),
      wire.capacityBytes >= 0
    else {
      throw MemQError(
        .invalidArgument, "no such volume state, or a negative capacity", subject: "volumes",
        actual: Int64(wire.state.rawValue))
    }
    self.init(
      try VolumeID(wire: wire.volumeID, "volumes.volume_id"), state,
      capacityBytes: wire.capacityBytes, problem: wire.problem)
  }
  public var wire: Memq_V1_NodeVolume {
    .with {
      $0.volumeID = self.id.wire
      $0.state =
        switch self.state {
        case .opening: .opening
        case .fit: .fit
        case .failed: .failed
        }
      $0.capacityBytes = self.capacityBytes
      $0.problem = self.problem
    }
  }
}

extension NodeImage {
  public init(_ wire: Memq_V1_Node) throws(MemQError) {
    var volumes: [VolumeImage] = []
    for volume in wire.volumes { volumes.append(try VolumeImage(volume)) }
    self.init(
      id: NodeID(wire.nodeID), uuid: try NodeUUID(wire: wire.nodeUuid, "node_uuid"),
      service: try ServiceKind(wire.service), address: wire.address,
      adminAddress: wire.adminAddress, rack: wire.rack, host: wire.host, pid: wire.pid,
      epoch: NodeEpoch(wire.nodeEpoch), state: try NodeState(wire.state), volumes: volumes)
  }
  public var wire: Memq_V1_Node {
    .with {
      $0.nodeID = self.id.rawValue
      $0.nodeUuid = self.uuid.wire
      $0.service = self.service.wire
      $0.address = self.address
      $0.adminAddress = self.adminAddress
      $0.rack = self.rack
      $0.host = self.host
      $0.pid = self.pid
      $0.nodeEpoch = self.epoch.rawValue
      $0.state = self.state.wire
      $0.volumes = self.volumes.map(\.wire)
    }
  }
}

extension TopicImage {
  public init(_ wire: Memq_V1_Topic) throws(MemQError) {
    var given: SortedMap<String, String> = [:]
    for (name, value) in wire.settings { given[name] = value }
    try self.init(
      id: try TopicID(wire: wire.topicID, "topic_id"), name: wire.name,
      partitionCount: Int(wire.partitionCount), replicationFactor: Int(wire.replicationFactor),
      given: given, createdAt: Timestamp(milliseconds: wire.createdAtMs))
  }
  public var wire: Memq_V1_Topic {
    .with {
      $0.topicID = self.id.wire
      $0.name = self.name
      $0.partitionCount = Int32(self.partitionCount)
      $0.replicationFactor = Int32(self.replicationFactor)
      for (name, value) in self.given { $0.settings[name] = value }
      $0.createdAtMs = self.createdAt.milliseconds
    }
  }
}

extension PartitionImage {
  public init(_ wire: Memq_V1_Partition) throws(MemQError) {
    var reassignment: PartitionReassignment?
    if wire.hasReassignment {
      reassignment = PartitionReassignment(
        target: try .init(wire: wire.reassignment.target, "reassignment.target.volume_id"),
        original: try .init(wire: wire.reassignment.original, "reassignment.original.volume_id"))
    }
    self.init(
      id: try TopicPartition(wire.topicPartition),
      leader: wire.leader == 0 ? nil : NodeID(wire.leader),
      leaderEpoch: LeaderEpoch(wire.leaderEpoch), epoch: PartitionEpoch(wire.partitionEpoch),
      replicas: try .init(wire: wire.replicas, "replicas.volume_id"),
      inSync: wire.isr.map { NodeID($0) },
      eligible: wire.elr.map { NodeID($0) },
      historyEpoch: HistoryEpoch(wire.historyEpoch), uploadGroup: wire.uploadGroup,
      uploadedOffset: Offset(wire.uploadedOffset),
      uploadedEpoch: wire.hasUploadedLeaderEpoch ? LeaderEpoch(wire.uploadedLeaderEpoch) : .none,
      logStart: Offset(wire.logStartOffset),
      reassignment: reassignment,
      damaged: wire.damaged.map { DamagedReplica(NodeID($0.nodeID), from: Offset($0.fromOffset)) })
  }
  public var wire: Memq_V1_Partition {
    .with {
      $0.topicPartition = self.id.wire
      $0.leader = self.leader?.rawValue ?? 0
      $0.leaderEpoch = self.leaderEpoch.rawValue
      $0.partitionEpoch = self.epoch.rawValue
      $0.replicas = self.replicas.wire
      $0.isr = self.inSync.map(\.rawValue)
      $0.elr = self.eligible.map(\.rawValue)
      $0.historyEpoch = self.historyEpoch.rawValue
      $0.uploadGroup = self.uploadGroup
      $0.uploadedOffset = self.uploadedOffset.rawValue
      if self.uploadedEpoch != .none { $0.uploadedLeaderEpoch = self.uploadedEpoch.rawValue }
      $0.logStartOffset = self.logStart.rawValue
      if let running = self.reassignment {
        $0.reassignment.target = running.target.wire
        $0.reassignment.original = running.original.wire
      }
      $0.damaged = self.damaged.map { replica in
        .with {
          $0.nodeID = replica.node.rawValue
          $0.fromOffset = replica.from.rawValue
        }
      }
    }
  }
}

extension [ReplicaID] {
  fileprivate init(wire: [Memq_V1_Replica], _ field: String) throws(MemQError) {
    self = []
    for replica in wire {
      self.append(ReplicaID(NodeID(replica.nodeID), try VolumeID(wire: replica.volumeID, field)))
    }
  }
  fileprivate var wire: [Memq_V1_Replica] {
    self.map { replica in
      .with {
        $0.nodeID = replica.node.rawValue
        $0.volumeID = replica.volume.wire
      }
    }
  }
}

extension UploadGroupImage {
  public init(_ wire: Memq_V1_UploadGroup) {
    self.init(
      id: wire.groupID, holder: wire.holder == 0 ? nil : NodeID(wire.holder),
      leaseEpoch: LeaseEpoch(wire.leaseEpoch), objectSequence: wire.objectSequence,
      objectCount: wire.objectCount, objectBytes: wire.objectBytes,
      billedRequests: wire.billedRequests)
  }
  public var wire: Memq_V1_UploadGroup {
    .with {
      $0.groupID = self.id
      $0.holder = self.holder?.rawValue ?? 0
      $0.leaseEpoch = self.leaseEpoch.rawValue
      $0.objectSequence = self.objectSequence
      $0.objectCount = self.objectCount
      $0.objectBytes = self.objectBytes
      $0.billedRequests = self.billedRequests
    }
  }
}

extension ClusterImage {
  /// What all messages of a whole image begin with.
  var head: Memq_V1_ImageUpdate {
    .with {
      $0.revision = self.revision.rawValue
      $0.full = true
      $0.clusterID = self.clusterID.wire
      $0.incarnation = self.incarnation.rawValue
      $0.incarnationID = self.incarnationID.wire
      $0.controllerAddress = self.controllerAddress
    }
  }

  /// The begin of a whole image; `adding` gives it the rest.
  ///
  /// - Throws: `.invalidArgument` for a field that cannot be.
  init(head wire: Memq_V1_ImageUpdate) throws(MemQError) {
    self.init(
      clusterID: try ClusterID(wire: wire.clusterID, "cluster_id"),
      incarnation: Incarnation(wire.incarnation),
      incarnationID: try UniqueID(wire: wire.incarnationID, "incarnation_id"),
      revision: Revision(wire.revision))
  }

  /// Applies a change to the image it continues. On an error the image is unchanged.
  ///
  /// - Throws: `.staleImage` when it comes from another incarnation or an older revision.
  public mutating func apply(_ wire: Memq_V1_ImageUpdate) throws(MemQError) {
    guard wire.incarnation == self.incarnation.rawValue,
      wire.revision >= self.revision.rawValue
    else {
      throw MemQError(
        .staleImage, "metadata answers with an older image than this node has seen",
        limit: self.revision.rawValue, actual: wire.revision)
    }
    var next = self
    try next.take(wire)
    next.revision = Revision(wire.revision)
    self = next
  }

  mutating func take(_ wire: Memq_V1_ImageUpdate) throws(MemQError) {
    self.controllerAddress = wire.controllerAddress
    for bytes in wire.deletedTopicIds { self.remove(try TopicID(wire: bytes, "deleted_topic_ids")) }
    for id in wire.deletedNodeIds { self.nodes[NodeID(id)] = nil }
    for node in wire.nodes { self.nodes[NodeID(node.nodeID)] = try NodeImage(node) }
    for topic in wire.topics { self.put(try TopicImage(topic)) }
    for group in wire.uploadGroups { self.uploadGroups[group.groupID] = UploadGroupImage(group) }
    for partition in wire.partitions {
      let image = try PartitionImage(partition)
      self.partitions[image.id] = image
    }
  }
}

extension SeenMetadata {
  public var wire: Memq_V1_SeenMetadata {
    .with {
      $0.incarnation = self.incarnation.rawValue
      $0.incarnationID = self.incarnationID.wire
      $0.revision = self.revision.rawValue
    }
  }

  /// - Throws: `.invalidArgument`.
  public init(_ wire: Memq_V1_SeenMetadata) throws(MemQError) {
    self.init(
      incarnation: Incarnation(wire.incarnation),
      incarnationID: try UniqueID(wire: wire.incarnationID, "incarnation_id"),
      revision: Revision(wire.revision))
  }
}
