// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import SwiftProtobuf
public import MemQModel

/// Topics, groups and the state of the cluster.
///
/// Calls that change something are made once; those that only read are repeated for a few seconds while the error is retriable.
public struct Admin: Sendable {
  /// How long reading calls are repeated.
  static let readRetry: Duration = .seconds(5)

  let servers: Servers
  let timeout: Duration

  // MARK: Topics

  /// - Parameters:
  ///   - partitions: nil: the cluster's default.
  ///   - replicationFactor: nil: the cluster's default.
  ///   - settings: by name, as docs/operations/topic-settings.md lists them.
  /// - Throws: `.topicExists`, `.topicNameInvalid`, `.partitionCountInvalid`, `.replicationFactorInvalid`,
  ///   `.topicSettingUnknown`, `.topicSettingInvalid`, `.topicCombinationRefused`, `.feature`.
  @discardableResult
  public func createTopic(
    _ name: String, partitions: Int? = nil, replicationFactor: Int? = nil,
    settings: [String: String] = [:]
  ) async throws(MemQError) -> TopicInfo {
    var request = Memq_V1_CreateTopicRequest()
    request.name = name
    request.partitionCount = try Self.count(partitions, "partitions", .partitionCountInvalid)
    request.replicationFactor = try Self.count(
      replicationFactor, "replication factor", .replicationFactorInvalid)
    request.settings = settings
    return TopicInfo(
      try await self.servers.call(MetadataMethods.createTopic, request, timeout: self.timeout).topic
    )
  }

  /// 0 means "default" on the wire; who writes 0 does not mean that.
  private static func count(
    _ value: Int?, _ what: String, _ code: ErrorCode
  ) throws(MemQError) -> Int32 {
    guard let value else { return 0 }
    guard value >= 1, let count = Int32(exactly: value) else {
      throw MemQError(
        code, "the \(what) is out of range", limit: value < 1 ? 1 : Int64(Int32.max),
        actual: Int64(value))
    }
    return count
  }

  /// By name.
  public func topics(prefix: String = "") async throws(MemQError) -> [TopicInfo] {
    var request = Memq_V1_ListTopicsRequest()
    request.prefix = prefix
    var topics: [TopicInfo] = []
    while true {
      let page = try await self.read(MetadataMethods.listTopics, request)
      topics += page.topics.map(TopicInfo.init)
      guard page.more, let last = page.topics.last else { return topics }
      request.after = last.name
    }
  }

  /// - Throws: `.topicNotFound`.
  public func describeTopic(_ name: String) async throws(MemQError) -> TopicDescription {
    var request = Memq_V1_DescribeTopicRequest()
    request.name = name
    return TopicDescription(try await self.read(MetadataMethods.describeTopic, request))
  }

  /// - Parameters:
  ///   - unset: settings that return to their defaults.
  ///   - partitions: more than now; nil: as it is.
  /// - Throws: as `createTopic`, and `.topicNotFound`.
  @discardableResult
  public func alterTopic(
    _ name: String, settings: [String: String] = [:], unset: [String] = [], partitions: Int? = nil
  ) async throws(MemQError) -> TopicInfo {
    var request = Memq_V1_AlterTopicRequest()
    request.name = name
    request.settings = settings
    request.unset = unset
    request.partitionCount = try Self.count(partitions, "partitions", .partitionCountInvalid)
    return TopicInfo(
      try await self.servers.call(MetadataMethods.alterTopic, request, timeout: self.timeout).topic)
  }

  /// Deletes a topic with its records, files and group offsets.
  ///
  /// - Throws: `.topicNotFound`.
  public func deleteTopic(_ name: String) async throws(MemQError) {
    var request = Memq_V1_DeleteTopicRequest()
    request.name = name
    _ = try await self.servers.call(MetadataMethods.deleteTopic, request, timeout: self.timeout)
  }

  /// Deletes records below an offset, for good, on every replica and in the object tier; durable when it returns.
  ///
  /// - Parameter offsets: by partition the first offset to keep; nil: all that is committed goes.
  /// - Returns: by partition where its log begins now.
  /// - Throws: `.topicNotFound`, `.partitionNotFound`; the first partition's error otherwise, such as `.offsetOutOfRange`. What was
  ///   deleted of other partitions stays deleted; a second call is harmless.
  public func deleteRecords(
    _ topic: String, before offsets: [PartitionIndex: Offset?]
  ) async throws(MemQError) -> [PartitionIndex: Offset] {
    var request = Memq_V1_DeleteTopicRecordsRequest()
    request.topic = topic
    request.positions = offsets.map { partition, offset in
      .with {
        $0.partition = partition.rawValue
        $0.offset = offset?.rawValue ?? -1
      }
    }
    let response = try await self.servers.call(
      IngestMethods.deleteRecords, request, timeout: self.timeout, retryFor: Self.readRetry)
    var starts: [PartitionIndex: Offset] = [:]
    for answer in response.offsets {
      if answer.hasError { throw MemQError(answer.error) }
      starts[PartitionIndex(answer.topicPartition.partition)] = Offset(answer.logStartOffset)
    }
    return starts
  }

  // MARK: Cluster

  public func describeCluster() async throws(MemQError) -> ClusterDescription {
    ClusterDescription(
      try await self.servers.call(
        MetadataMethods.describeCluster, Memq_V1_DescribeClusterRequest(), timeout: self.timeout))
  }

  // MARK: Uploads

  /// - Parameter topic: nil: all.
  public func uploadStatus(_ topic: String? = nil) async throws(MemQError) -> UploadStatus {
    var request = Memq_V1_UploadStatusRequest()
    request.topic = topic ?? ""
    return UploadStatus(try await self.read(UploaderMethods.status, request))
  }

  /// Uploads what is committed now; done when the objects are announced.
  ///
  /// - Parameter topic: nil: all.
  public func flushUploads(
    _ topic: String? = nil, timeout: Duration = .seconds(300)
  ) async throws(MemQError) -> FlushResult {
    var request = Memq_V1_FlushRequest()
    request.topic = topic ?? ""
    let response = try await self.servers.call(
      UploaderMethods.flush, request, timeout: timeout, retryFor: Self.readRetry)
    return FlushResult(objects: response.objects, records: response.records, bytes: response.bytes)
  }

  // MARK: Scanning

  public func scanStatus() async throws(MemQError) -> ScanStatus {
    ScanStatus(try await self.read(ScannerMethods.status, Memq_V1_ScanStatusRequest()))
  }

  /// Oldest first.
  ///
  /// - Parameter topic: nil: all.
  public func quarantine(_ topic: String? = nil) async throws(MemQError) -> [QuarantineEntry] {
    var request = Memq_V1_QuarantineListRequest()
    request.topic = topic ?? ""
    var entries: [QuarantineEntry] = []
    while true {
      let page = try await self.read(ScannerMethods.listQuarantine, request)
      entries += page.entries.map(QuarantineEntry.init)
      guard page.more, let last = page.entries.last else { return entries }
      request.afterID = last.id
      request.afterQuarantinedAtMs = last.quarantinedAtMs
    }
  }

  /// Lets a quarantined file through: it is published.
  ///
  /// - Parameters:
  ///   - actor: who decides, for the audit record.
  ///   - reason: why, for the audit record.
  /// - Throws: `.quarantineEntryNotFound`.
  @discardableResult
  public func releaseQuarantined(
    _ id: String, actor: String, reason: String
  ) async throws(MemQError) -> QuarantineEntry {
    try await self.resolve(ScannerMethods.releaseQuarantine, id, actor, reason)
  }

  /// Deletes a quarantined file. Parameters and errors as `releaseQuarantined`.
  @discardableResult
  public func deleteQuarantined(
    _ id: String, actor: String, reason: String
  ) async throws(MemQError) -> QuarantineEntry {
    try await self.resolve(ScannerMethods.deleteQuarantine, id, actor, reason)
  }

  private func resolve(
    _ method: Method<Memq_V1_QuarantineActionRequest, Memq_V1_QuarantineActionResponse>,
    _ id: String, _ actor: String, _ reason: String
  ) async throws(MemQError) -> QuarantineEntry {
    var request = Memq_V1_QuarantineActionRequest()
    request.id = id
    request.actor = actor
    request.reason = reason
    return QuarantineEntry(
      try await self.servers.call(method, request, timeout: self.timeout).entry)
  }

  // MARK: Replicas

  /// Has a partition's replicas stand on these nodes, preferred leader first; each with its volume, or nil for the node's choice. Returns once
  /// the change is under way; it is complete when the partition's `targetReplicas` are empty. Asked again it changes nothing.
  ///
  /// - Throws: `.topicNotFound`, `.partitionNotFound`, `.reassignmentInProgress`, `.replicationFactorInvalid`, `.invalidArgument`,
  ///   `.notEnoughReplicas`.
  public func reassign(
    _ topic: String, _ partition: PartitionIndex, to replicas: [(node: NodeID, volume: VolumeID?)]
  ) async throws(MemQError) -> PartitionInfo {
    var request = Memq_V1_ReassignPartitionRequest()
    request.topic = topic
    request.partition = partition.rawValue
    request.target = replicas.map { replica in
      .with {
        $0.nodeID = replica.node.rawValue
        if let volume = replica.volume { $0.volumeID = volume.wire }
      }
    }
    return PartitionInfo(try await self.read(MetadataMethods.reassignPartition, request).partition)
  }

  /// Goes back to the replicas from before a change that is under way.
  ///
  /// - Throws: `.topicNotFound`, `.partitionNotFound`, `.reassignmentNotFound`, `.notEnoughReplicas`.
  public func cancelReassignment(
    _ topic: String, _ partition: PartitionIndex
  ) async throws(MemQError) -> PartitionInfo {
    var request = Memq_V1_CancelReassignmentRequest()
    request.topic = topic
    request.partition = partition.rawValue
    return PartitionInfo(
      try await self.servers.call(
        MetadataMethods.cancelReassignment, request, timeout: self.timeout
      ).partition)
  }

  // MARK: Rebalancing

  public func plan() async throws(MemQError) -> RebalancePlan {
    RebalancePlan(try await self.read(RebalancerMethods.plan, Memq_V1_PlanRequest()))
  }

  /// - Returns: the plan's number and its moves.
  /// - Throws: `.planRunning`.
  public func startPlan() async throws(MemQError) -> RebalanceStatus {
    let response = try await self.servers.call(
      RebalancerMethods.start, Memq_V1_StartPlanRequest(), timeout: self.timeout)
    return RebalanceStatus(
      planID: response.planID, state: "running", moves: response.moves.map(PlanMove.init))
  }

  public func planStatus() async throws(MemQError) -> RebalanceStatus {
    RebalanceStatus(try await self.read(RebalancerMethods.status, Memq_V1_PlanStatusRequest()))
  }

  /// Stops after the move in hand.
  ///
  /// - Parameter id: nil: the running one.
  /// - Throws: `.planNotFound`.
  public func cancelPlan(_ id: Int64? = nil) async throws(MemQError) -> RebalanceStatus {
    var request = Memq_V1_CancelPlanRequest()
    request.planID = id ?? 0
    return RebalanceStatus(
      try await self.servers.call(RebalancerMethods.cancel, request, timeout: self.timeout))
  }

  func read<Q, R>(_ method: Method<Q, R>, _ request: Q) async throws(MemQError) -> R {
    try await self.servers.call(
      method, request, timeout: self.timeout, retryFor: Self.readRetry)
  }
}

extension MemQClient {
  public var admin: Admin {
    Admin(servers: self.servers, timeout: self.configuration.requestTimeout)
  }
}
