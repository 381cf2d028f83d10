// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQStore
import MemQSystem
import SwiftProtobuf

// Topics, partitions, producers.
extension MetadataNode {
  func registerTopicCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.createTopic) { request, _ in
      .with { [topic = try await self.createTopic(request)] in $0.topic = topic.wire }
    }
    router.handle(MetadataMethods.listTopics) { request, _ in
      let limit = try pageSize(request.limit, default: 1_000, max: 10_000)
      let topics = try self.instance().cell.read { state in
        state.topics.values.map(\.value).filter {
          $0.name.utf8.starts(with: request.prefix.utf8)
            && (request.after.isEmpty || $0.name > request.after)
        }
      }
      let page = boundedPage(topics.sorted { $0.name < $1.name }, limit: limit, \.wire)
      return .with {
        $0.topics = page.entries
        $0.more = page.hasMore
      }
    }
    router.handle(MetadataMethods.describeTopic) { request, _ in
      try self.describeTopic(request.name)
    }
    router.handle(MetadataMethods.alterTopic) { request, _ in
      .with { [topic = try await self.alterTopic(request)] in $0.topic = topic.wire }
    }
    router.handle(MetadataMethods.deleteTopic) { request, _ in
      .with { [id = try await self.deleteTopic(request.name)] in $0.topicID = id.wire }
    }
    router.handle(MetadataMethods.findDeletedTopics) { request, _ in
      .with { [deleted = try await self.deletedTopics(among: request)] in
        $0.deleted = deleted.map(\.wire)
      }
    }
    router.handle(MetadataMethods.alterPartition) { request, _ in
      .with { [altered = try await self.alterPartition(request)] in
        $0.partition = altered.partition.wire
        $0.minInsyncReplicas = Int32(altered.minInSyncReplicas)
      }
    }
    router.handle(MetadataMethods.raiseLogStarts) { request, _ in
      try await self.raiseLogStarts(request)
    }
    router.handle(MetadataMethods.transferLeadership) { request, _ in
      .with { [partition = try await self.transferLeadership(request)] in
        $0.partition = partition.wire
      }
    }
    self.registerReassignmentCalls(on: &router)
    router.handle(MetadataMethods.initProducer) { request, _ in
      try await self.initProducer(request)
    }
  }

  // MARK: Topics

  private func createTopic(
    _ request: Memq_V1_CreateTopicRequest
  ) async throws(MemQError) -> TopicImage {
    let creation = TopicCreation(
      id: self.entropy.identifier(), name: request.name,
      partitionCount: Int(request.partitionCount),
      replicationFactor: Int(request.replicationFactor), settings: sorted(request.settings),
      createdAt: self.clock.wall)
    let topic = try await self.instance().runner.run("create-topic") { (state) throws(MemQError) in
      try state.createTopic(creation)
    }
    self.logger.notice(
      "Topic created",
      metadata: [
        "topic": "\(topic.name)", "topic.id": "\(topic.id)",
        "partitions": "\(topic.partitionCount)", "replicas": "\(topic.replicationFactor)",
      ])
    self.warnOfOneCopy(topic)
    return topic
  }

  private func warnOfOneCopy(_ topic: TopicImage) {
    guard topic.replicationFactor >= 2, topic.settings.minInSyncReplicas == 1 else { return }
    self.logger.warning(
      "The topic acknowledges records that only one node holds",
      metadata: ["topic": "\(topic.name)", "min.insync.replicas": "1"])
  }

  private func describeTopic(
    _ name: String
  ) throws(MemQError) -> Memq_V1_DescribeTopicResponse {
    let (topic, partitions) = try self.instance().cell.read { (state) throws(MemQError) in
      let topic = try state.topic(named: name).value
      return (topic, state.image?.partitions(of: topic.id) ?? [])
    }
    return .with {
      $0.topic = topic.wire
      $0.partitions = partitions.map(\.wire)
      for setting in topic.settings.effective {
        $0.effectiveSettings[setting.name] = setting.value
      }
    }
  }

  /// Of one request.
  private static let topicIDsMax = 1_000

  private func deletedTopics(
    among request: Memq_V1_FindDeletedTopicsRequest
  ) async throws(MemQError) -> [TopicID] {
    let wires = request.topicIds
    try checkCount(of: wires, "topics", in: "topic_ids", atMost: Self.topicIDsMax)
    var ids: [TopicID] = []
    for wire in wires { ids.append(try TopicID(wire: wire, "topic_ids")) }
    let instance = try self.instance()
    // Graves first: what becomes a tombstone meanwhile is found as one.
    let graves = instance.cell.read { $0.graves.keys }
    let tombstones = try await instance.store.get(ids.map { .tombstone($0) })
    return zip(ids, tombstones).filter { $1 != nil || graves.contains($0) }.map(\.0)
  }

  private func alterTopic(
    _ request: Memq_V1_AlterTopicRequest
  ) async throws(MemQError) -> TopicImage {
    let settings = sorted(request.settings)
    let instance = try self.instance()
    let topic = try await instance.runner.run("alter-topic") { (state) throws(MemQError) in
      try state.alterTopic(
        request.name, set: settings, unset: request.unset,
        partitionCount: Int(request.partitionCount))
    }
    // Who may lead depends on the settings.
    try await instance.controller.settle()
    self.logger.notice(
      "Topic altered",
      metadata: ["topic": "\(topic.name)", "partitions": "\(topic.partitionCount)"])
    self.warnOfOneCopy(topic)
    return topic
  }

  private func deleteTopic(_ name: String) async throws(MemQError) -> TopicID {
    let instance = try self.instance()
    let now = self.clock.wall
    let id = try await instance.runner.run("delete-topic") { (state) throws(MemQError) in
      try state.deleteTopic(name, at: now)
    }
    try instance.controller.remains.raise()
    self.logger.notice("Topic deleted", metadata: ["topic": "\(name)", "topic.id": "\(id)"])
    return id
  }

  // MARK: Partitions

  /// Log starts one request may raise.
  private static let logStartsMax = 1_000

  private func raiseLogStarts(
    _ request: Memq_V1_RaiseLogStartsRequest
  ) async throws(MemQError) -> Memq_V1_RaiseLogStartsResponse {
    try checkCount(of: request.logStarts, "log starts", in: "log_starts", atMost: Self.logStartsMax)
    let (node, epoch) = (NodeID(request.nodeID), NodeEpoch(request.nodeEpoch))
    let runner = try self.instance().runner
    var response = Memq_V1_RaiseLogStartsResponse()
    for entry in request.logStarts {
      do throws(MemQError) {
        let id = try TopicPartition(entry.topicPartition)
        _ = try await runner.run("raise-log-start") { (state) throws(MemQError) in
          try state.raiseLogStart(
            of: id, to: Offset(entry.offset), node: node, nodeEpoch: epoch,
            leaderEpoch: LeaderEpoch(entry.leaderEpoch))
        }
        response.errors.append(Memq_V1_ErrorDetail())
      } catch {
        response.errors.append(Memq_V1_ErrorDetail(error))
      }
    }
    return response
  }

  private func alterPartition(
    _ request: Memq_V1_AlterPartitionRequest
  ) async throws(MemQError) -> AlteredPartition {
    guard request.isr.count == request.isrNodeEpochs.count else {
      throw MemQError(
        .invalidArgument, "each member of the ISR comes with its node epoch",
        subject: "isr_node_epochs", limit: Int64(request.isr.count),
        actual: Int64(request.isrNodeEpochs.count))
    }
    let proposal = InSyncProposal(
      partition: try TopicPartition(request.topicPartition), node: NodeID(request.nodeID),
      nodeEpoch: NodeEpoch(request.nodeEpoch), leaderEpoch: LeaderEpoch(request.leaderEpoch),
      partitionEpoch: PartitionEpoch(request.partitionEpoch),
      members: zip(request.isr, request.isrNodeEpochs).map { .init(NodeID($0), NodeEpoch($1)) })
    let instance = try self.instance()
    let altered = try await instance.runner.run("alter-partition") { (state) throws(MemQError) in
      try state.alterPartition(proposal)
    }
    let partition = altered.partition
    // A leader that drains waits for somebody to take over, a change of replicas for those that are added.
    let isAwaited = instance.cell.read {
      $0.nodes[proposal.node]?.value.state == .draining
        || $0.partitions[proposal.partition]?.value.reassignment != nil
    }
    if isAwaited {
      do throws(MemQError) {
        try await instance.controller.settle()
      } catch {
        // The change itself stands, and must not be answered as refused; who leads is looked at again soon.
        self.logger.warning("Could not move leaderships", metadata: ["error": "\(error)"])
      }
    }
    self.logger.notice(
      "ISR changed",
      metadata: [
        "partition": "\(partition.id)", "isr": "\(partition.inSync)",
        "partition.epoch": "\(partition.epoch)",
      ])
    return altered
  }

  private func transferLeadership(
    _ request: Memq_V1_TransferLeadershipRequest
  ) async throws(MemQError) -> PartitionImage {
    let id = try TopicPartition(request.topicPartition)
    let node = NodeID(request.toNode)
    let partition = try await self.instance().runner.run("transfer-leadership") {
      (state) throws(MemQError) in try state.transferLeadership(of: id, to: node)
    }
    self.logger.notice(
      "Leadership moved",
      metadata: [
        "partition": "\(partition.id)", "leader": "\(node)",
        "leader.epoch": "\(partition.leaderEpoch)",
      ])
    return partition
  }

  // MARK: Producers

  private func initProducer(
    _ request: Memq_V1_InitProducerRequest
  ) async throws(MemQError) -> Memq_V1_InitProducerResponse {
    let instance = try self.instance()
    if request.producerID != 0 {
      let id = ProducerID(request.producerID)
      let key = StoreKey.producerEpoch(id)
      let epoch = try await instance.runner.run(
        "next-producer-epoch",
        reading: { (_: Int) throws(MemQError) in
          try await instance.store.get([key])[0].map { entry throws(MemQError) in
            try Versioned<ProducerEpochRecord>(entry)
          }
        }
      ) { state, known throws(MemQError) in
        try state.nextProducerEpoch(id, known: known)
      }.outcome
      if let epoch {
        return .with {
          $0.producerID = id.rawValue
          $0.producerEpoch = Int32(epoch.rawValue)
        }
      }
    }
    let id = try await instance.producers.next(.producers)
    return .with { $0.producerID = id.rawValue }
  }
}

/// A message's map by name; its own order is by chance.
func sorted(_ map: [String: String]) -> SortedMap<String, String> {
  var ordered: SortedMap<String, String> = [:]
  for (name, value) in map { ordered[name] = value }
  return ordered
}
