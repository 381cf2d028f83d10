// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQMetadata
public import MemQModel
import MemQObjectStore
import MemQPacking
public import MemQRPC
public import MemQRuntime
public import MemQSystem
import Metrics
import Synchronization

/// Moves committed records into objects and file bodies into the object store, and collects what nobody needs any more.
/// Holds nothing but leases.
public final class UploaderNode: Sendable {
  public let configuration: Configuration
  let cluster: any UploaderCluster
  private let session: ClusterSession?
  let clock: any MemQClock
  let logger: Logger
  private let health = HealthService(server: .notServing)
  private let running = Mutex<Running?>(nil)
  private let draining = Atomic<Bool>(false)

  /// What exists once the node has started.
  struct Running: Sendable {
    let context: UploaderContext
    let leases: LeaseKeeper
    let bodies: BodyWrites
    let tasks: [Task<Void, Never>]
  }

  /// - Throws: `.configurationInvalid`.
  public convenience init(
    configuration: Configuration, cluster: ClusterSession, pool: ChannelPool,
    clock: any MemQClock, logger: Logger
  ) throws(MemQError) {
    try self.init(
      configuration: configuration, view: cluster, session: cluster, clock: clock, logger: logger)
  }

  init(
    configuration: Configuration, view: any UploaderCluster, session: ClusterSession?,
    clock: any MemQClock, logger: Logger
  ) throws(MemQError) {
    try configuration.validate()
    self.configuration = configuration
    self.cluster = view
    self.session = session
    self.clock = clock
    self.logger = logger
  }

  // MARK: Life

  /// Opens the object store and begins to take leases.
  ///
  /// - Throws: what the object store throws.
  public func start() async throws(MemQError) {
    let store = try await ObjectStores.make(
      self.configuration.objects, clock: self.clock, logger: self.logger)
    let context = UploaderContext(
      configuration: self.configuration, cluster: self.cluster, store: store, clock: self.clock,
      logger: self.logger)
    let leases = LeaseKeeper(context: context)
    let observer = Observer(context: context, leases: leases)
    let collector = Collector(context: context, leases: leases)
    let running = Running(
      context: context, leases: leases, bodies: BodyWrites(context: context),
      tasks: [
        Task { await leases.run() }, Task { await observer.run() }, Task { await collector.run() },
      ])
    self.running.withLock { $0 = running }
    self.health.set("", .serving)
    self.health.set("memq.v1.UploaderService", .serving)
    self.session?.setState(.ready)
    self.logger.info(
      "Uploader serves", metadata: ["node": "\(self.cluster.nodeID)", "objects": "\(store.name)"])
  }

  /// For /readyz: what must hold, and why it does not.
  public var readiness: [(check: String, problem: String?)] {
    [
      ("started", self.running.withLock { $0 } == nil ? "not started yet" : nil),
      ("serving", self.draining.load(ordering: .relaxed) ? "shutting down" : nil),
    ]
  }

  /// Refuses new bodies, lets objects and bodies under way end until the deadline, gives the leases back.
  public func drain(deadline: Duration) async {
    self.draining.store(true, ordering: .relaxed)
    self.health.shutdown()
    self.session?.setState(.draining)
    let running = self.running.withLock { running in
      defer { running = nil }
      return running
    }
    guard let running else { return }
    for task in running.tasks { task.cancel() }
    async let bodies: Void = running.bodies.drain(deadline: deadline)
    await running.leases.drain(deadline: deadline)
    await bodies
    for task in running.tasks { await task.value }
    await running.context.store.close()
    self.logger.info("Uploader stopped", metadata: ["node": "\(self.cluster.nodeID)"])
  }

  /// - Throws: `.unavailable` before the start, `.shuttingDown` after the end.
  func whileRunning() throws(MemQError) -> Running {
    guard !self.draining.load(ordering: .relaxed) else {
      throw MemQError(.shuttingDown, "this uploader is shutting down; go to another one")
    }
    guard let running = self.running.withLock({ $0 }) else {
      throw MemQError(.unavailable, "this uploader has not started yet")
    }
    return running
  }

  // MARK: Routes

  public func register(on router: inout RPCRouter) {
    self.registerBodies(on: &router)
    self.registerStatus(on: &router)
    self.registerFlush(on: &router)
  }

  /// gRPC health of a process that runs the uploader alone.
  public func registerHealth(on router: inout RPCRouter) { self.health.register(on: &router) }
}

/// Asks the leaders of all groups held what is committed, once per interval, and tells the groups' owners.
struct Observer: Sendable {
  let context: UploaderContext
  let leases: LeaseKeeper

  func run() async {
    let watch = LeaderWatch(cluster: self.context.cluster, timeout: .seconds(5))
    while !Task.isCancelled {
      let owners = await self.leases.owners
      var partitions: [TopicPartition] = []
      for owner in owners { partitions += await owner.positions.keys }
      let (reports, failure) = await watch.reports(of: partitions)
      if let failure {
        self.context.logger.debug("A leader did not answer", metadata: ["error": "\(failure)"])
      }
      var waiting: Int64 = 0
      for owner in owners {
        await owner.observed(reports)
        waiting += await owner.waitingBytes
      }
      self.context.metrics.waitingBytes.record(waiting)
      guard (try? await Task.sleep(for: self.context.configuration.observeInterval)) != nil else {
        return
      }
    }
  }
}
