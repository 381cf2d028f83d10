// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import FoundationEssentials

// Messages of the wire as values. An identifier that is not 16 bytes is a peer's fault and becomes zero: it is shown, never used.

extension TaggedID {
  init(wire bytes: Data) { self = Self(bytes: bytes) ?? Self(.zero) }
}

extension TopicPartition {
  init(_ wire: Memq_V1_TopicPartition) {
    self.init(TopicID(wire: wire.topicID), PartitionIndex(wire.partition))
  }

  var wire: Memq_V1_TopicPartition {
    var wire = Memq_V1_TopicPartition()
    wire.topicID = Data(self.topic.bytes)
    wire.partition = self.partition.rawValue
    return wire
  }
}

extension TopicInfo {
  init(_ wire: Memq_V1_Topic) {
    self.init(
      id: TopicID(wire: wire.topicID), name: wire.name, partitionCount: Int(wire.partitionCount),
      replicationFactor: Int(wire.replicationFactor), settings: wire.settings,
      createdAt: Timestamp(milliseconds: wire.createdAtMs))
  }
}

extension TopicDescription {
  init(_ wire: Memq_V1_DescribeTopicResponse) {
    let given = wire.topic.settings
    self.init(
      topic: TopicInfo(wire.topic),
      partitions: wire.partitions.map(PartitionInfo.init).sorted { $0.partition < $1.partition },
      settings: wire.effectiveSettings.sorted { $0.key < $1.key }.map {
        Setting(name: $0.key, value: $0.value, isGiven: given[$0.key] != nil)
      })
  }
}

extension VolumeID {
  var wire: Data { Data(self.bytes) }
}

extension PartitionInfo {
  init(_ wire: Memq_V1_Partition) {
    self.init(
      topicPartition: TopicPartition(wire.topicPartition),
      leader: wire.leader == 0 ? nil : NodeID(wire.leader),
      leaderEpoch: LeaderEpoch(wire.leaderEpoch),
      partitionEpoch: PartitionEpoch(wire.partitionEpoch),
      replicas: wire.replicas.map { NodeID($0.nodeID) },
      volumes: wire.replicas.map { VolumeID(wire: $0.volumeID) },
      isr: wire.isr.map(NodeID.init), elr: wire.elr.map(NodeID.init),
      targetReplicas: wire.reassignment.target.map { NodeID($0.nodeID) },
      damaged: wire.damaged.map {
        Damaged(node: NodeID($0.nodeID), from: Offset($0.fromOffset))
      },
      uploadGroup: Int(wire.uploadGroup), uploadedOffset: Offset(wire.uploadedOffset))
  }
}

extension NodeInfo {
  init(_ wire: Memq_V1_Node) {
    self.init(
      id: NodeID(wire.nodeID), service: Self.word(wire.service), state: Self.word(wire.state),
      address: wire.address, adminAddress: wire.adminAddress, rack: wire.rack, host: wire.host,
      pid: wire.pid, epoch: NodeEpoch(wire.nodeEpoch),
      volumes: wire.volumes.map {
        Volume(
          id: VolumeID(wire: $0.volumeID), state: Self.word($0.state),
          capacityBytes: $0.capacityBytes, problem: $0.problem)
      })
  }

  private static func word(_ state: Memq_V1_VolumeState) -> String {
    switch state {
    case .opening: "opening"
    case .fit: "fit"
    case .failed: "failed"
    case .unspecified, .UNRECOGNIZED: "unknown"
    }
  }

  /// Numbers that this build does not know come from a newer server.
  private static func word(_ service: Memq_V1_ServiceKind) -> String {
    switch service {
    case .metadata: "metadata"
    case .replication: "replication"
    case .ingest: "ingest"
    case .uploader: "uploader"
    case .scanner: "scanner"
    case .rebalancer: "rebalancer"
    case .unspecified, .UNRECOGNIZED: "unknown"
    }
  }

  private static func word(_ state: Memq_V1_NodeState) -> String {
    switch state {
    case .starting: "starting"
    case .ready: "ready"
    case .draining: "draining"
    case .fenced: "fenced"
    case .gone: "gone"
    case .unspecified, .UNRECOGNIZED: "unknown"
    }
  }
}

extension ClusterDescription {
  init(_ wire: Memq_V1_DescribeClusterResponse) {
    self.init(
      id: ClusterID(wire: wire.clusterID), incarnation: Incarnation(wire.incarnation),
      revision: Revision(wire.revision), nodes: wire.nodes.map(NodeInfo.init),
      topics: wire.topics.map(TopicInfo.init), partitions: wire.partitions.map(PartitionInfo.init),
      isReady: wire.ready, problems: wire.problems)
  }
}

extension Verdict {
  init(_ wire: Memq_V1_Verdict) {
    let kind: Kind =
      switch wire.kind {
      case .clean: .clean
      case .infected: .infected
      case .off, .unspecified: .off
      case .notScanned, .UNRECOGNIZED: .notScanned
      }
    self.init(
      kind: kind, signature: wire.signature, reason: wire.reason, engine: wire.engine,
      databaseVersion: wire.databaseVersion)
  }
}

extension FileInfo {
  init(_ wire: Memq_V1_FileInfo) {
    self.init(
      topic: wire.topic, name: wire.name, version: wire.version, size: wire.size,
      sha256: Array(wire.sha256), contentType: wire.contentType, verdict: Verdict(wire.verdict),
      partition: PartitionIndex(wire.partition), offset: Offset(wire.offset),
      publishedAt: Timestamp(milliseconds: wire.publishedAtMs), attributes: wire.attributes)
  }
}

extension QuarantineEntry {
  init(_ wire: Memq_V1_QuarantineEntry) {
    self.init(
      id: wire.id, topic: wire.topic, name: wire.name, size: wire.size, sha256: Array(wire.sha256),
      verdict: Verdict(wire.verdict), quarantinedAt: Timestamp(milliseconds: wire.quarantinedAtMs))
  }
}

extension ScanStatus {
  init(_ wire: Memq_V1_ScanStatusResponse) {
    self.init(
      engines: wire.engines.map {
        Engine(
          name: $0.name, databaseVersion: $0.databaseVersion, rules: $0.rules, isReady: $0.ready,
          problem: $0.problem)
      }, queued: wire.queued, running: wire.running, clean: wire.clean, infected: wire.infected,
      notScanned: wire.notScanned, scannedBytes: wire.scannedBytes,
      scratchUsedBytes: wire.scratchUsedBytes, scratchMaxBytes: wire.scratchMaxBytes)
  }
}

extension GroupInfo {
  init(_ wire: Memq_V1_GroupDescription) {
    self.init(
      name: wire.group, epoch: wire.groupEpoch,
      state: wire.state == .stable ? .stable : wire.state == .reconciling ? .reconciling : .empty,
      members: wire.members.map(Member.init),
      commits: wire.offsets.map {
        Commit(
          topicPartition: TopicPartition($0.topicPartition),
          offset: $0.offset < 0 ? nil : Offset($0.offset),
          committedAt: Timestamp(milliseconds: $0.committedAtMs),
          highWatermark: $0.hasHighWatermark ? Offset($0.highWatermark) : nil,
          leaderEpoch: $0.hasLeaderEpoch ? LeaderEpoch($0.leaderEpoch) : nil)
      }.sorted { $0.topicPartition < $1.topicPartition })
  }
}

extension GroupInfo.Member {
  init(_ wire: Memq_V1_GroupMember) {
    self.init(
      id: wire.memberID, instanceID: wire.instanceID.isEmpty ? nil : wire.instanceID,
      clientID: wire.clientID, host: wire.host, epoch: wire.memberEpoch, topics: wire.topics,
      assigned: wire.assigned.map { TopicPartition($0) },
      revoking: wire.revoking.map { TopicPartition($0) },
      waiting: wire.waiting.map { TopicPartition($0) },
      sessionTimeout: .milliseconds(Int64(wire.sessionTimeoutMs)))
  }
}

extension UploadStatus {
  init(_ wire: Memq_V1_UploadStatusResponse) {
    self.init(
      partitions: wire.partitions.map {
        Partition(
          topic: $0.topic, partition: PartitionIndex($0.partition),
          logStart: Offset($0.logStartOffset),
          localStart: Offset($0.localStartOffset), uploaded: Offset($0.uploadedOffset),
          highWatermark: Offset($0.highWatermark), localBytes: $0.localBytes)
      },
      groups: wire.groups.map {
        Group(
          id: Int($0.groupID), holder: $0.holder == 0 ? nil : NodeID($0.holder),
          leaseEpoch: LeaseEpoch($0.leaseEpoch), objects: $0.objectCount,
          objectBytes: $0.objectBytes, billedRequests: $0.billedRequests)
      }, objects: wire.objects, objectBytes: wire.objectBytes, billedRequests: wire.billedRequests,
      bodies: wire.bodies, bodyBytes: wire.bodyBytes)
  }
}

extension PlanMove {
  init(_ wire: Memq_V1_Move) {
    let kind =
      switch wire.kind {
      case .leadership: "leadership"
      case .replica: "replica"
      case .unspecified, .UNRECOGNIZED: "unknown"
      }
    self.init(
      kind: kind, topic: wire.topic, partition: PartitionIndex(wire.topicPartition.partition),
      from: wire.fromNode == 0 ? nil : NodeID(wire.fromNode), to: NodeID(wire.toNode),
      goal: wire.goal, reason: wire.reason, state: wire.state)
  }
}

extension RebalancePlan {
  init(_ wire: Memq_V1_PlanResponse) {
    self.init(
      moves: wire.moves.map(PlanMove.init),
      balance: wire.balance.map {
        Balance(
          node: NodeID($0.nodeID), leaders: Int($0.leaders), replicas: Int($0.replicas),
          leadersAfter: Int($0.leadersAfter), replicasAfter: Int($0.replicasAfter))
      }, unmet: wire.unmet)
  }
}

extension RebalanceStatus {
  init(_ wire: Memq_V1_PlanStatusResponse) {
    self.init(planID: wire.planID, state: wire.state, moves: wire.moves.map(PlanMove.init))
  }
}
