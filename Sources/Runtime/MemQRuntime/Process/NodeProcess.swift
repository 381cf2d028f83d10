// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQAPI
public import MemQMetadata
public import MemQModel
public import MemQRPC
public import MemQSystem
import NIOCore
import Synchronization

/// The body of an executable that runs one service of a cluster.
///
/// Order of a start: folder lock, port (reserved, not yet listening), admin pages, identity from the disk, registration,
/// the node's own recovery; then it listens. So nobody reaches a node that cannot answer, and every clash is found
/// before the cluster hears of the node. A stop goes the other way.
public final class NodeProcess: ProcessBody {
  /// What a node knows of itself before it registers.
  public struct Identity: Sendable {
    public var uuid: NodeUUID
    public var volumes: [VolumeID]
    /// The cluster its data belongs to; nil: none yet.
    public var clusterID: ClusterID?

    public init(uuid: NodeUUID, volumes: [VolumeID] = [], clusterID: ClusterID? = nil) {
      self.uuid = uuid
      self.volumes = volumes
      self.clusterID = clusterID
    }
  }

  /// What a node is made with.
  public struct Parts: Sendable {
    public let context: ProcessContext
    private let membership: ClusterSession?
    public let pool: ChannelPool
    public let identity: Identity
    /// The address others are told.
    public let address: String
    public let adminAddress: String

    /// The node's membership, started.
    ///
    /// - Precondition: not metadata's own process, which has none: it keeps its node's row itself.
    public var session: ClusterSession {
      guard let membership = self.membership else {
        preconditionFailure("metadata is a member of its cluster by itself")
      }
      return membership
    }

    init(
      context: ProcessContext, membership: ClusterSession?, pool: ChannelPool, identity: Identity,
      address: String, adminAddress: String
    ) {
      self.context = context
      self.membership = membership
      self.pool = pool
      self.identity = identity
      self.address = address
      self.adminAddress = adminAddress
    }
  }

  public typealias Identify = @Sendable (ProcessContext) throws(MemQError) -> Identity
  public typealias MakeNode = @Sendable (Parts) async throws(MemQError) -> any ServiceNode

  private struct Running {
    var folder: DataFolder?
    var reservation: PortReservation?
    var admin: AdminServer?
    var pool: ChannelPool?
    var session: ClusterSession?
    var node: (any ServiceNode)?
    var server: RPCServer?
    var isServing = false
  }

  private let service: ServiceKind
  private let context: ProcessContext
  private let hasFolder: Bool
  private let identify: Identify
  private let makeNode: MakeNode
  private let running = Mutex(Running())

  /// - Parameter hasFolder: whether the key `data` names a folder that is this process's own.
  public init(
    _ service: ServiceKind, _ context: ProcessContext, hasFolder: Bool = false,
    identify: @escaping Identify = { context in Identity(uuid: context.entropy.identifier()) },
    makeNode: @escaping MakeNode
  ) {
    self.service = service
    self.context = context
    self.hasFolder = hasFolder
    self.identify = identify
    self.makeNode = makeNode
  }

  // MARK: Start

  public func start() async throws(MemQError) {
    do throws(MemQError) {
      try await self.open()
    } catch {
      await self.stop(deadline: .seconds(1))
      throw error
    }
  }

  private func open() async throws(MemQError) {
    let configuration = self.context.configuration
    let reservation = try PortReservation.take(configuration.address("listen"))
    self.running.withLock { $0.reservation = reservation }
    let tls = try RPCTLS.server(configuration, logger: self.context.logger)
    let folder = try self.openFolder()
    self.running.withLock { $0.folder = folder }
    let admin = try await self.startAdmin(reservation.address)
    let identity = try self.identify(self.context)
    let peersTLS = try RPCTLS.peers(self.context.configuration, logger: self.context.logger)
    let pool = ChannelPool(
      group: self.context.loops, logger: self.context.logger, tls: peersTLS, metrics: RPCMetrics())
    self.running.withLock { $0.pool = pool }
    let address = try Self.advertised(configuration, reservation.address)
    let session = try await self.join(identity, pool, folder, address, admin)
    let node = try await self.makeNode(
      Parts(
        context: self.context, membership: session, pool: pool, identity: identity,
        address: address, adminAddress: admin.address.description))
    self.running.withLock { $0.node = node }
    try await self.serve(node, reservation, tls)
  }

  /// Nil for metadata.
  private func join(
    _ identity: Identity, _ pool: ChannelPool, _ folder: DataFolder?, _ address: String,
    _ admin: AdminServer
  ) async throws(MemQError) -> ClusterSession? {
    guard self.service != .metadata else { return nil }
    let configuration = self.context.configuration
    var membership = ClusterSession.Configuration(
      service: self.service, nodeUUID: identity.uuid, address: address,
      adminAddress: admin.address.description, rack: configuration.optionalText("rack") ?? "",
      host: Self.hostName, volumes: identity.volumes,
      clusterID: identity.clusterID ?? folder?.clusterID,
      metadataAddresses: configuration.addresses("metadata"))
    if let folder { membership.memory = try MetadataMemory(in: folder) }
    let session = ClusterSession(
      membership, pool: pool, clock: self.context.clock, logger: self.context.logger)
    self.running.withLock { $0.session = session }
    try await session.start(timeout: configuration.duration("start.timeout"))
    try folder?.bind(to: session.clusterID)
    return session
  }

  private func openFolder() throws(MemQError) -> DataFolder? {
    guard self.hasFolder else { return nil }
    return try DataFolder.open(self.context.configuration.text("data"))
  }

  private func startAdmin(_ listen: ListenAddress) async throws(MemQError) -> AdminServer {
    let admin = try await AdminServer.start(
      self.context.configuration, beside: listen, logger: self.context.logger
    ) { [weak self] in self?.readiness ?? [] }
    self.running.withLock { $0.admin = admin }
    return admin
  }

  private func serve(
    _ node: any ServiceNode, _ reservation: PortReservation, _ tls: RPCTLS?
  ) async throws(MemQError) {
    var router = RPCRouter()
    node.register(on: &router)
    let health = router.addingHealth()
    if self.context.configuration.flag("reflection") { router.addReflection() }
    try await node.start()
    let metrics = RPCMetrics()
    router.intercept(metrics.serverInterceptor)
    let server = try await RPCServer.start(
      router: router, on: reservation.address.description, group: self.context.loops,
      configuration: RPCServer.Configuration(
        self.context.configuration, metrics: metrics, tls: tls),
      logger: self.context.logger)
    health?.set("", .serving)
    self.running.withLock {
      $0.server = server
      $0.reservation = nil
      $0.isServing = true
    }
    self.context.logger.info(
      "Serving",
      metadata: ["service": "\(self.service.name)", "listen": "\(server.localAddress)"])
  }

  // MARK: While it runs

  var readiness: [AdminServer.Check] {
    let (node, isServing) = self.running.withLock { ($0.node, $0.isServing) }
    let listening: AdminServer.Check = ("listening", isServing ? nil : "starting or stopping")
    return [listening] + (node?.readiness ?? [])
  }

  // MARK: Stop

  public func stop(deadline: Duration) async {
    let running = self.running.withLock { running in
      running.isServing = false
      return running
    }
    running.session?.setState(.draining)
    await running.node?.drain(deadline: deadline * 0.6)
    // The goodbye before the port: a storage node has stopped following by now, and until the cluster knows that it is gone
    // everything acknowledged by all in-sync replicas waits for it. Calls that others hold open may keep the port for long.
    await running.session?.stop()
    if let server = running.server {
      await server.shutdown(deadline: deadline * 0.2)
      self.context.logger.info("The port is closed")
    }
    await running.pool?.closeAll(deadline: deadline * 0.1)
    await running.admin?.stop()
    self.running.withLock { $0 = Running() }
  }

  // MARK: Names

  public static var hostName: String {
    var name = [CChar](repeating: 0, count: 256)
    guard gethostname(&name, 255) == 0 else { return "" }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// What others are told: the given address, or where we listen, under a name that means this machine to them.
  public static func advertised(
    _ configuration: LoadedConfiguration, _ listen: ListenAddress
  ) throws(MemQError) -> String {
    if let given = configuration.optionalAddress("advertise") {
      guard case (.tcp(let host, 0), .tcp(_, let port)) = (given, listen) else {
        return given.description
      }
      return ListenAddress.tcp(host: host, port: port).description
    }
    guard listen.isUnspecified, case .tcp(_, let port) = listen else { return listen.description }
    return ListenAddress.tcp(host: self.hostName, port: port).description
  }
}

extension RPCRouter {
  /// Adds `grpc.health.v1.Health`, not yet serving, unless the node brought its own.
  public mutating func addingHealth() -> HealthService? {
    guard !self.methods.contains(HealthService.check) else { return nil }
    let health = HealthService(server: .notServing)
    health.register(on: &self)
    return health
  }
}
