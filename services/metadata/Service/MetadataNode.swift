// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
public import Logging
import MemQAPI
public import MemQMetadata
public import MemQModel
public import MemQRPC
public import MemQStore
public import MemQSystem
import Synchronization

/// One metadata instance: the store, the state in memory, and the controller that judges who lives.
///
/// With SQLite there is exactly one. `register` its calls on a router, then `start`; calls that come earlier, or after `drain`, are
/// refused with `.unavailable`.
public final class MetadataNode: Sendable {
  public struct Configuration: Sendable {
    /// Holds `meta.sqlite`; one instance only.
    public var dataFolder: String
    /// What others connect to.
    public var address: String
    public var adminAddress = ""
    public var rack = ""
    public var host = ""
    /// Silence after which a node is fenced. 1.5 s keeps a failover below 2 s; nodes in one process with metadata, which
    /// can't be lost apart from it, get much more.
    public var sessionTimeout: Duration = .milliseconds(1_500)
    /// How often nodes are told to send heartbeats.
    public var heartbeatInterval: Duration = .milliseconds(400)
    /// How long a node whose heartbeats broke off may take to accept a connection or refuse it.
    public var refusalTimeout: Duration = .milliseconds(250)
    /// What every node gets at least when this instance has just started: time to find it again.
    public var startGrace: Duration = .seconds(8)
    /// How long an upload lease runs from the request that got it.
    public var leaseTimeout: Duration = .seconds(10)
    /// How often silence is looked for.
    public var tickInterval: Duration = .milliseconds(100)
    /// How often remains are cleared away.
    public var housekeepingInterval: Duration = .seconds(10)
    /// A put that got no bytes for so long is given up.
    public var uploadIdleMax: Duration = .seconds(7 * 24 * 3600)
    /// Published and abandoned puts are remembered for so long: a client's retry is recognised.
    public var uploadMemory: Duration = .seconds(24 * 3600)
    /// Nodes without replicas that were fenced are forgotten after so long.
    public var nodeMemory: Duration = .seconds(60)
    public var limits = MetadataLimits()

    public init(dataFolder: String, address: String) {
      self.dataFolder = dataFolder
      self.address = address
    }

    /// - Throws: `.configurationInvalid` with the key as subject.
    public func validate() throws(MemQError) {
      func check(_ key: String, _ isRight: Bool, _ want: String) throws(MemQError) {
        guard isRight else { throw MemQError(.configurationInvalid, want, subject: key) }
      }
      try check("data", !self.dataFolder.isEmpty, "a folder is needed")
      try check("address", !self.address.isEmpty, "an address is needed")
      try check(
        "heartbeat.interval", self.heartbeatInterval >= .milliseconds(10),
        "at least 10 ms")
      try check(
        "session.timeout", self.sessionTimeout >= self.heartbeatInterval * 2,
        "at least two heartbeat intervals")
      try check(
        "tick.interval", self.tickInterval > .zero && self.tickInterval <= self.sessionTimeout,
        "more than nothing and at most the session timeout")
      try check("lease.timeout", self.leaseTimeout >= .seconds(1), "at least 1 s")
      try check(
        "upload.group.partitions",
        (1...Limits.partitionsPerUploadGroupMax).contains(self.limits.uploadGroupPartitionsMax),
        "1 to \(Limits.partitionsPerUploadGroupMax)")
    }
  }

  public typealias RefusesConnections =
    @Sendable (_ address: String, _ timeout: Duration) async -> Bool

  private enum Phase {
    case new
    case running(MetadataInstance)
    case ended
  }

  let configuration: Configuration
  let clock: any MemQClock
  let entropy: any Entropy
  let logger: Logger
  let metrics = MetadataMetrics()
  /// Whether nobody listens at an address any more.
  let refusesConnections: RefusesConnections
  private let givenStore: (any MetadataStore)?
  private let phase = Mutex(Phase.new)

  /// - Parameters:
  ///   - refusesConnections: asked of a node whose heartbeats broke off; one that refuses is fenced at once.
  ///   - store: instead of SQLite in the data folder; for tests.
  public init(
    configuration: Configuration, clock: any MemQClock = SystemClock(),
    entropy: any Entropy = SystemEntropy(), logger: Logger,
    refusesConnections: @escaping RefusesConnections = { _, _ in false },
    store: (any MetadataStore)? = nil
  ) {
    self.configuration = configuration
    self.clock = clock
    self.entropy = entropy
    self.logger = logger
    self.refusesConnections = refusesConnections
    self.givenStore = store
  }

  // MARK: Life

  /// Opens the store, loads the state, makes the cluster on the first start ever, and begins to judge.
  ///
  /// - Throws: `.configurationInvalid`, `.dataFolderInUse`, `.corruptMessage`, `.unavailable`.
  public func start() async throws(MemQError) {
    try self.configuration.validate()
    let store: any MetadataStore
    if let given = self.givenStore {
      store = given
    } else {
      let metrics = self.metrics
      store = try await SQLiteStore.open(
        SQLiteStore.Configuration(folder: self.configuration.dataFolder), clock: self.clock,
        logger: self.logger
      ) { transactions in
        metrics.syncs.increment()
        metrics.transactions.increment(by: transactions)
      }
    }
    let instance: MetadataInstance
    do {
      instance = try await MetadataInstance.start(self, store)
    } catch {
      await store.close()
      throw error
    }
    self.phase.withLock { $0 = .running(instance) }
    self.logger.info(
      "Metadata is up",
      metadata: [
        "cluster.id": "\(instance.clusterID)", "node.id": "\(instance.nodeID)",
        "revision": "\(store.revision)",
      ])
  }

  /// What keeps it from serving; nil problem = fine.
  public var readiness: [(check: String, problem: String?)] {
    switch self.phase.withLock({ $0 }) {
    case .new: [("metadata", "not started")]
    case .running(let instance): [("metadata", instance.problem)]
    case .ended: [("metadata", "shut down")]
    }
  }

  /// Ends watches and background work, finishes writes under way, closes the store.
  public func drain(deadline: Duration) async {
    let phase = self.phase.withLock { phase in
      defer { phase = .ended }
      return phase
    }
    guard case .running(let instance) = phase else { return }
    await instance.stop()
    self.logger.info("Metadata is down")
  }

  /// For tests: what the background does by the clock, now.
  func tick() async { await (try? self.instance())?.controller.tick() }

  /// - Throws: `.unavailable`, `.shuttingDown`.
  func instance() throws(MemQError) -> MetadataInstance {
    switch self.phase.withLock({ $0 }) {
    case .new: throw MemQError(.unavailable, "metadata is starting")
    case .running(let instance):
      if let problem = instance.problem {
        throw MemQError(.unavailable, "metadata can't follow its store: \(problem)")
      }
      return instance
    case .ended: throw MemQError(.shuttingDown, "this metadata instance shuts down")
    }
  }

  // MARK: Calls

  /// Adds the calls of memq.v1.MetadataService.
  public func register(on router: inout RPCRouter) {
    self.registerNodeCalls(on: &router)
    self.registerTopicCalls(on: &router)
    self.registerObjectCalls(on: &router)
    self.registerGroupCalls(on: &router)
    self.registerUploadCalls(on: &router)
    self.registerFileCalls(on: &router)
  }
}
