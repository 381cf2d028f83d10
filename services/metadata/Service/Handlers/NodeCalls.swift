// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQStore
import MemQSystem
import SwiftProtobuf

// Registration, heartbeats, the image.
extension MetadataNode {
  func registerNodeCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.registerNode) { request, _ in
      try await self.registerNode(request)
    }
    router.handleBidirectional(MetadataMethods.heartbeat) { requests, _, answers in
      var last: (id: NodeID, epoch: NodeEpoch)?
      do throws(MemQError) {
        while let request = try await requests.next() {
          let instance = try self.instance()
          let (id, epoch) = (NodeID(request.nodeID), NodeEpoch(request.nodeEpoch))
          try await instance.controller.heartbeat(id, epoch, try NodeState(request.state))
          last = (id, epoch)
          try await answers.send(.with { $0.revision = instance.feed.latest.rawValue })
        }
      } catch {
        if let last { await (try? self.instance().controller)?.brokeOff(last.id, last.epoch) }
        throw error
      }
      if let last { await (try? self.instance().controller)?.brokeOff(last.id, last.epoch) }
    }
    router.handle(MetadataMethods.reportVolumes) { request, _ in
      try await self.reportVolumes(request)
    }
    router.handle(MetadataMethods.reportDamage) { request, _ in
      try await self.reportDamage(request)
    }
    router.handle(MetadataMethods.refuseLeadership) { request, _ in
      try await self.refuseLeadership(request)
    }
    router.handle(MetadataMethods.reportLogEnds) { request, _ in
      try await self.reportLogEnds(request)
    }
    router.handle(MetadataMethods.deregisterNode) { request, _ in
      try await self.instance().controller.deregister(
        NodeID(request.nodeID), NodeEpoch(request.nodeEpoch))
      return Memq_V1_DeregisterNodeResponse()
    }
    router.handleServerStream(MetadataMethods.watchImage) { request, _, writer in
      try await self.watchImage(request, writer)
    }
    router.handle(MetadataMethods.describeCluster) { _, _ in try await self.describeCluster() }
  }

  private func registerNode(
    _ request: Memq_V1_RegisterNodeRequest
  ) async throws(MemQError) -> Memq_V1_RegisterNodeResponse {
    let instance = try self.instance()
    var volumes: [VolumeImage] = []
    for volume in request.volumes { volumes.append(try VolumeImage(volume)) }
    let registration = NodeRegistration(
      uuid: try NodeUUID(wire: request.nodeUuid, "node_uuid"),
      service: try ServiceKind(request.service), address: request.address,
      adminAddress: request.adminAddress, rack: request.rack, host: request.host, pid: request.pid,
      volumes: volumes,
      clusterID: request.clusterID.isEmpty
        ? nil : try ClusterID(wire: request.clusterID, "cluster_id"))
    let controller = try instance.controller
    if request.hasSeen {
      try await self.check(
        try SeenMetadata(request.seen), of: registration.clusterID, instance)
    }
    let node = try await controller.register(registration)
    guard let cluster = instance.cell.read({ $0.cluster?.value }) else {
      throw MemQError(.unavailable, "metadata is not loaded yet")
    }
    return .with {
      $0.nodeID = node.id.rawValue
      $0.nodeEpoch = node.epoch.rawValue
      $0.clusterID = cluster.id.wire
      $0.incarnation = cluster.incarnation.rawValue
      $0.incarnationID = cluster.incarnationID.wire
      $0.heartbeatIntervalMs = Int32(self.configuration.heartbeatInterval.milliseconds)
    }
  }

  /// Before anything is written: each registration makes an older copy's revision higher.
  ///
  /// - Throws: `.staleImage` when a node has seen more than there is here.
  private func check(
    _ seen: SeenMetadata, of cluster: ClusterID?, _ instance: MetadataInstance
  ) async throws(MemQError) {
    if seen.incarnation.rawValue == instance.incarnation {
      // It may have seen it on an instance that was faster.
      await instance.cell.applied(seen.revision, atMost: .seconds(1))
    }
    guard let image = instance.cell.read({ $0.image }),
      cluster == nil || cluster == image.clusterID
    else { return }
    try seen.check(SeenMetadata(image))
  }

  private func reportVolumes(
    _ request: Memq_V1_ReportVolumesRequest
  ) async throws(MemQError) -> Memq_V1_ReportVolumesResponse {
    var volumes: [VolumeImage] = []
    for volume in request.volumes { volumes.append(try VolumeImage(volume)) }
    try await self.instance().controller.reportVolumes(
      NodeID(request.nodeID), NodeEpoch(request.nodeEpoch), volumes)
    return Memq_V1_ReportVolumesResponse()
  }

  /// Of one request.
  private static let reportsMax = 1_000

  private func reportDamage(
    _ request: Memq_V1_ReportDamageRequest
  ) async throws(MemQError) -> Memq_V1_ReportDamageResponse {
    try checkCount(of: request.replicas, "replicas", in: "replicas", atMost: Self.reportsMax)
    var reports: [ReplicaReport] = []
    for wire in request.replicas {
      reports.append(
        ReplicaReport(
          try TopicPartition(wire.topicPartition),
          on: try VolumeID(wire: wire.volumeID, "volume_id"),
          damagedFrom: wire.damaged ? Offset(wire.fromOffset) : nil))
    }
    let errors = try await self.instance().controller.reportReplicas(
      NodeID(request.nodeID), NodeEpoch(request.nodeEpoch), reports)
    return .with { $0.errors = errors.map { $0.map(Memq_V1_ErrorDetail.init) ?? .init() } }
  }

  private func reportLogEnds(
    _ request: Memq_V1_ReportLogEndsRequest
  ) async throws(MemQError) -> Memq_V1_ReportLogEndsResponse {
    try checkCount(of: request.replicas, "replicas", in: "replicas", atMost: Self.reportsMax)
    var statements: [LogEndStatement] = []
    for wire in request.replicas {
      statements.append(
        LogEndStatement(
          try TopicPartition(wire.topicPartition),
          on: try VolumeID(wire: wire.volumeID, "volume_id"), LeaderEpoch(wire.leaderEpoch),
          LogEnd(LeaderEpoch(wire.lastEpoch), Offset(wire.endOffset))))
    }
    try await self.instance().controller.reportLogEnds(
      NodeID(request.nodeID), NodeEpoch(request.nodeEpoch), statements)
    return Memq_V1_ReportLogEndsResponse()
  }

  private func refuseLeadership(
    _ request: Memq_V1_RefuseLeadershipRequest
  ) async throws(MemQError) -> Memq_V1_RefuseLeadershipResponse {
    try checkCount(of: request.refused, "partitions", in: "refused", atMost: Self.reportsMax)
    let instance = try self.instance()
    let (node, epoch) = (NodeID(request.nodeID), NodeEpoch(request.nodeEpoch))
    var response = Memq_V1_RefuseLeadershipResponse()
    for wire in request.refused {
      let id = try TopicPartition(wire.topicPartition)
      do throws(MemQError) {
        let isNews = try await instance.runner.run("refuse-leadership") {
          (state) throws(MemQError) in
          try state.refuseLeadership(
            of: id, LeaderEpoch(wire.leaderEpoch), holding: LeaderEpoch(wire.logEpoch), node: node,
            epoch)
        }
        response.errors.append(.init())
        guard isNews else { continue }
        self.logger.error(
          "A leader's log knows of elections that metadata does not: was an older state of it restored?",
          metadata: [
            "partition": "\(id)", "node.id": "\(node)", "leader.epoch": "\(wire.leaderEpoch)",
            "log.epoch": "\(wire.logEpoch)",
          ])
      } catch {
        switch error.code {
        case .partitionNotFound, .topicNotFound, .topicDeleted: response.errors.append(.init(error))
        default: throw error
        }
      }
    }
    return response
  }

  private func watchImage(
    _ request: Memq_V1_WatchImageRequest, _ writer: TypedWriter<Memq_V1_ImageUpdate>
  ) async throws(MemQError) {
    let instance = try self.instance()
    instance.metrics.watchers.increment()
    defer { instance.metrics.watchers.decrement() }
    var position: Revision?
    if instance.isShared, request.incarnation == instance.incarnation {
      // The watcher comes from an instance that is a little ahead.
      await instance.cell.applied(Revision(request.fromRevision), atMost: .seconds(1))
    }
    let isKnown = instance.cell.read { state in
      // A revision from ahead of ours: the store was restored. The watcher sees it by the whole image.
      request.incarnation == state.cluster?.value.incarnation.rawValue
        && request.fromRevision > 0 && request.fromRevision <= state.revision.rawValue
    }
    if isKnown { position = Revision(request.fromRevision) }
    while true {
      switch try await instance.feed.next(after: position) {
      case .change(let update):
        try await writer.send(update)
        position = Revision(update.revision)
      case .whole(let image, let revision):
        instance.metrics.fullImages.increment()
        for page in ImagePages(image) { try await writer.send(page) }
        position = revision
      }
    }
  }

  // MARK: The cluster at a glance

  private func describeCluster() async throws(MemQError) -> Memq_V1_DescribeClusterResponse {
    let instance = try self.instance()
    guard let image = instance.cell.read({ $0.image }) else {
      throw MemQError(.unavailable, "metadata is not loaded yet")
    }
    let controller = try? instance.controller
    let heard = Set(await controller?.hasHeard(image.nodes.keys) ?? [])
    var problems = image.problems { heard.contains($0) }
    if controller == nil { problems.insert("no metadata instance decides at present", at: 0) }
    return .with {
      $0.clusterID = image.clusterID.wire
      $0.incarnation = image.incarnation.rawValue
      $0.revision = image.revision.rawValue
      $0.nodes = image.nodes.values.filter { $0.state != .gone }.map(\.wire)
      $0.topics = image.topics.values.sorted { $0.name < $1.name }.map(\.wire)
      $0.partitions = image.partitions.values.map(\.wire)
      $0.uploadGroups = image.uploadGroups.values.map(\.wire)
      $0.ready = problems.isEmpty
      $0.problems = problems
    }
  }
}

extension ClusterImage {
  /// Sentences of which one names more partitions than this are shortened.
  private static let problemsMax = 20

  /// What is missing for every call to succeed.
  ///
  /// - Parameter heard: whether a node was heard since metadata began: what is stored of it may be from before.
  func problems(heard: (NodeID) -> Bool) -> [String] {
    var problems: [String] = []
    for service in ServiceKind.allCases {
      let isThere = self.nodes.values.contains {
        $0.service == service && $0.state == .ready && heard($0.id)
      }
      if !isThere { problems.append("no \(service.name) node is ready") }
    }
    var count = 0
    for partition in self.partitions.values {
      let leader = partition.leader.flatMap { self.nodes[$0] }
      if let leader, leader.state.isLive, heard(leader.id) { continue }
      count += 1
      guard count <= Self.problemsMax else { continue }
      let name = self.topics[partition.id.topic]?.name ?? "\(partition.id.topic)"
      problems.append("partition \(name)/\(partition.id.partition) has no live leader")
    }
    if count > Self.problemsMax {
      problems.append("\(count - Self.problemsMax) more partitions have no live leader")
    }
    return problems
  }
}
