// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQAPI
import MemQIngestService
import MemQMetadata
import MemQMetadataService
public import MemQModel
import MemQRPC
import MemQRebalancerService
import MemQReplicationService
public import MemQRuntime
import MemQScannerService
import MemQSystem
import MemQTelemetry
import MemQUploaderService
public import NIOCore
public import NIOPosix
import Synchronization

/// All six services in one process, replication factor 1: `memq serve`, and what tests start.
///
/// The very service values of the six executables. Between them calls take the in-process path, under addresses
/// "inprocess:metadata" and so on; each is a node of its own in the cluster image. One port is public: ingest's.
///
/// In the data folder: `metadata/` (SQLite), `volume-0/` (the SSD log), `objects/`, `scratch/`, `rules/` (YARA rules, optional),
/// `replication-node`, `cluster.json`, `lock`.
public final class MemQServer: ProcessBody {
  private struct Running {
    var folder: DataFolder?
    var reservation: PortReservation?
    var admin: AdminServer?
    var pool: ChannelPool?
    /// In the order they were started.
    var services: [EmbeddedService] = []
    var server: RPCServer?
    var health: HealthService?
    var address: ListenAddress?
    var isServing = false
  }

  let context: ProcessContext
  private let running = Mutex(Running())

  public init(_ context: ProcessContext) { self.context = context }

  /// A server with the flags of `memq serve`, for tests and for programs that bring MemQ along.
  ///
  /// - Parameter arguments: `["--data", FOLDER, "--listen", "127.0.0.1:0"]`.
  /// - Throws: ``ConfigurationError``.
  public convenience init(
    arguments: [String], loops: any EventLoopGroup = MultiThreadedEventLoopGroup.singleton,
    logger: Logger
  ) throws(ConfigurationError) {
    let loaded = try ConfigurationLoader(Self.table, arguments: arguments, environment: [:]).load()
    self.init(ProcessContext(configuration: loaded, loops: loops, logger: logger))
  }

  // MARK: Where it is

  /// Where clients connect; nil while it does not serve. The port is the real one also when 0 was asked for.
  public var address: String? { self.running.withLock { $0.server?.localAddress } }
  /// Where the admin pages are.
  public var adminAddress: String? { self.running.withLock { $0.admin?.address.description } }

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
    self.running.withLock {
      $0.reservation = reservation
      $0.address = reservation.address
    }
    let tls = try RPCTLS.server(configuration, logger: self.context.logger)
    let folder = try DataFolder.open(configuration.text("data"))
    self.running.withLock { $0.folder = folder }
    let admin = try await self.startAdmin(reservation.address)
    let pool = ChannelPool(
      group: self.context.loops, logger: self.context.logger, metrics: RPCMetrics())
    self.running.withLock { $0.pool = pool }
    let builder = EmbeddedBuilder(
      context: self.context, folder: folder, pool: pool,
      publicAddress: try NodeProcess.advertised(configuration, reservation.address),
      adminAddress: admin.address.description)
    for kind in EmbeddedBuilder.order { try await self.start(kind, builder) }
    try await self.waitUntilReady()
    try await self.serve(reservation, builder, tls)
  }

  /// Until the cluster itself sees all services ready: the first client must not meet one that is still starting.
  private func waitUntilReady() async throws(MemQError) {
    let sessions = self.running.withLock { $0.services.compactMap(\.session) }
    let nodes = sessions.map(\.nodeID)
    _ = try await sessions.last?.waitForImage(
      timeout: self.context.configuration.duration("start.timeout")
    ) { image in nodes.allSatisfy { image.nodes[$0]?.state == .ready } }
  }

  private func startAdmin(_ listen: ListenAddress) async throws(MemQError) -> AdminServer {
    let admin = try await AdminServer.start(
      self.context.configuration, beside: listen, logger: self.context.logger
    ) { [weak self] in self?.readiness ?? [] }
    self.running.withLock { $0.admin = admin }
    return admin
  }

  private func start(
    _ kind: ServiceKind, _ builder: EmbeddedBuilder
  ) async throws(MemQError) {
    let service = try await builder.make(kind)
    self.running.withLock { $0.services.append(service) }
    try await service.node.start()
  }

  private func serve(
    _ reservation: PortReservation, _ builder: EmbeddedBuilder, _ tls: RPCTLS?
  ) async throws(MemQError) {
    let services = self.running.withLock { $0.services }
    guard var router = services.first(where: { $0.kind == .ingest })?.router else {
      preconditionFailure("ingest is one of the six")
    }
    let health = router.addingHealth()
    if self.context.configuration.flag("reflection") { router.addReflection() }
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
      $0.health = health
      $0.reservation = nil
      $0.isServing = true
    }
    self.context.logger.info(
      "Serving",
      metadata: [
        "listen": "\(server.localAddress)", "admin": "\(builder.adminAddress)",
        "data": "\(builder.folder.path)", "version": "\(BuildInfo.version)",
      ])
  }

  // MARK: While it runs

  /// Checks of all services, each named with its service.
  public var readiness: [AdminServer.Check] {
    let (services, isServing) = self.running.withLock { ($0.services, $0.isServing) }
    let checks = services.flatMap { service in
      service.node.readiness.map { ("\(service.kind.name).\($0.check)", $0.problem) }
    }
    return [("listening", isServing ? nil : "starting or stopping")] + checks
  }

  // MARK: Stop

  /// Reverse order of the start: the door first, metadata last.
  public func stop(deadline: Duration) async {
    let running = self.running.withLock { running in
      running.isServing = false
      return running
    }
    let end = self.context.clock.monotonic + deadline
    running.health?.shutdown()
    for service in running.services.reversed() {
      let left = max(end - self.context.clock.monotonic, .milliseconds(200))
      await service.stop(deadline: left * 0.5)
      if service.kind == .ingest { await running.server?.shutdown(deadline: left * 0.2) }
    }
    await running.pool?.closeAll(deadline: .milliseconds(200))
    await running.admin?.stop()
    self.running.withLock { $0 = Running() }
  }
}
