// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQIngestService
import MemQMetadata
import MemQMetadataService
import MemQModel
import MemQRPC
import MemQRebalancerService
import MemQReplicationService
import MemQRuntime
import MemQScannerService
import MemQSystem
import MemQUploaderService
import NIOCore

/// One service of the process, made and registered, not yet started.
struct EmbeddedService: Sendable {
  let kind: ServiceKind
  let node: any ServiceNode
  let router: RPCRouter
  let channel: RPCInProcessChannel
  /// Nil for metadata, which keeps its row itself.
  let session: ClusterSession?

  func stop(deadline: Duration) async {
    await self.node.drain(deadline: deadline)
    await self.session?.stop()
    await self.channel.close(deadline: .milliseconds(200))
  }
}

/// Makes the six services over one channel pool.
struct EmbeddedBuilder: Sendable {
  /// Each needs only what stands before it to start.
  static let order: [ServiceKind] = [
    .metadata, .replication, .uploader, .scanner, .rebalancer, .ingest,
  ]

  let context: ProcessContext
  let folder: DataFolder
  let pool: ChannelPool
  /// Where clients reach ingest.
  let publicAddress: String
  let adminAddress: String

  /// Registers the node with the cluster and its channel with the pool.
  func make(_ kind: ServiceKind) async throws(MemQError) -> EmbeddedService {
    let logger = Logger(label: "memq.\(kind.name)")
    guard kind != .metadata else {
      return self.finish(kind, try self.metadata(logger), nil)
    }
    let prepared = kind == .replication ? try ReplicationNode.prepare(self.replication()) : nil
    var membership = ClusterSession.Configuration(
      service: kind, nodeUUID: prepared?.nodeUUID ?? self.context.entropy.identifier(),
      address: kind == .ingest ? self.publicAddress : Self.address(kind),
      adminAddress: self.adminAddress,
      rack: self.context.configuration.optionalText("rack") ?? "", host: NodeProcess.hostName,
      volumes: prepared?.volumeIDs ?? [],
      clusterID: prepared?.clusterID ?? self.folder.clusterID,
      metadataAddresses: [Self.address(.metadata)])
    // The node whose data an older copy of metadata would mislead.
    if kind == .replication { membership.memory = try MetadataMemory(in: self.folder) }
    let session = ClusterSession(
      membership, pool: self.pool, clock: self.context.clock, logger: logger)
    try await session.start(timeout: self.context.configuration.duration("start.timeout"))
    do throws(MemQError) {
      try self.folder.bind(to: session.clusterID)
      return self.finish(kind, try self.node(kind, session, logger), session)
    } catch {
      await session.stop()
      throw error
    }
  }

  private func finish(
    _ kind: ServiceKind, _ node: any ServiceNode, _ session: ClusterSession?
  ) -> EmbeddedService {
    var router = RPCRouter()
    node.register(on: &router)
    let channel = RPCInProcessChannel(router: router, group: self.context.loops)
    self.pool.register(Self.address(kind), channel)
    if kind == .ingest { self.pool.register(self.publicAddress, channel) }
    return EmbeddedService(
      kind: kind, node: node, router: router, channel: channel, session: session)
  }

  static func address(_ kind: ServiceKind) -> String { "inprocess:\(kind.name)" }

  // MARK: The services

  private func metadata(_ logger: Logger) throws(MemQError) -> MetadataNode {
    var configuration = try MetadataNode.Configuration(
      self.context.configuration, dataFolder: self.folder.path("metadata"),
      address: Self.address(.metadata),
      objects: self.context.configuration.optionalText("objects") ?? self.folder.path("objects"))
    configuration.adminAddress = self.adminAddress
    let failure = self.context.failure
    return MetadataNode(
      configuration: configuration, clock: self.context.clock, entropy: self.context.entropy,
      logger: logger, onFailure: { failure.fail($0) })
  }

  private func replication() throws(MemQError) -> ReplicationNode.Configuration {
    try ReplicationNode.Configuration(
      self.context.configuration, dataPath: self.folder.path,
      volumes: [self.folder.path("volume-0")])
  }

  private func node(
    _ kind: ServiceKind, _ session: ClusterSession, _ logger: Logger
  ) throws(MemQError) -> any ServiceNode {
    let loaded = self.context.configuration
    let (pool, clock) = (self.pool, self.context.clock)
    let objects = loaded.optionalText("objects") ?? self.folder.path("objects")
    switch kind {
    case .metadata: preconditionFailure("metadata has no session")
    case .replication:
      return ReplicationNode(
        configuration: try self.replication(), cluster: session, pool: pool, clock: clock,
        logger: logger)
    case .uploader:
      return try UploaderNode(
        configuration: try UploaderNode.Configuration(loaded, objects: objects), cluster: session,
        pool: pool, clock: clock, logger: logger)
    case .scanner:
      let rules = loaded.optionalText("rules") ?? self.existing("rules")
      return try ScannerNode(
        configuration: try ScannerNode.Configuration(
          loaded, objects: objects,
          scratch: loaded.optionalText("scratch") ?? self.folder.path("scratch"), rules: rules),
        cluster: session, pool: pool, clock: clock, logger: logger)
    case .rebalancer:
      return try RebalancerNode(
        configuration: try RebalancerNode.Configuration(loaded), cluster: session, pool: pool,
        clock: clock, logger: logger)
    case .ingest:
      return try IngestNode(
        configuration: try IngestNode.Configuration(loaded, objects: objects), cluster: session,
        pool: pool, clock: clock, logger: logger)
    }
  }

  /// The folder's own sub-folder, if somebody made it.
  private func existing(_ name: String) -> String? {
    let path = self.folder.path(name)
    return DataFolder.isFolder(path) ? path : nil
  }
}
