// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Glibc
public import Logging
import MemQAPI
public import MemQMetadata
public import MemQModel
public import MemQObjectStore
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
    /// Before an unclean election: how long a node that is in sync or eligible is waited for after it was lost.
    public var electionRecoveryWait: Duration = .seconds(10)
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
    /// How long a start waits for somebody to have made the cluster.
    public var startTimeout: Duration = .seconds(120)
    /// Among several instances: how long the controller may go without renewing its lease. Shorter fails over faster; etcd keeps
    /// leases for about 2 s at least.
    public var controllerLease: Duration = .seconds(3)
    /// Among several instances: changes that are older are forgotten by the store; nil: somebody else sees to that.
    public var historyInterval: Duration? = .seconds(300)
    /// Where snapshots of the store go; nil: nowhere.
    public var objects: ObjectStoreConfiguration?
    /// How often a snapshot is written when something changed; nil: never.
    public var snapshotInterval: Duration? = .seconds(60)
    /// Snapshots that are kept.
    public var snapshotsKept = 10
    /// A store without a cluster is filled from the newest snapshot: of the cluster with this id, or "newest": of the only one there is.
    public var restore: String?
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
      try check(
        "controller.lease",
        self.controllerLease >= .seconds(2) && self.controllerLease <= .seconds(60),
        "2 s to 60 s")
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
      try check(
        "snapshot.interval", self.snapshotInterval.map { $0 >= .milliseconds(100) } ?? true,
        "at least 100 ms")
      try check(
        "restore", self.restore == nil || self.objects != nil,
        "the object store that the snapshots are in has to be named, too (objects)")
      try check(
        "election.recovery.wait", self.electionRecoveryWait <= .seconds(3_600), "at most an hour")
      try check("lease.timeout", self.leaseTimeout >= .seconds(1), "at least 1 s")
      try check(
        "upload.group.partitions",
        (1...Limits.partitionsPerUploadGroupMax).contains(self.limits.uploadGroupPartitionsMax),
        "1 to \(Limits.partitionsPerUploadGroupMax)")
    }
  }

  /// A store that several instances share, and the way to the others.
  public struct SharedStore: Sendable {
    let open:
      @Sendable (_ onCommit: @escaping @Sendable () -> Void) async throws(MemQError) ->
        any MetadataStore
    let connect: @Sendable (_ address: String) -> any RPCChannel

    /// - Parameter connect: gives a channel to another instance.
    public init(
      open:
        @escaping @Sendable (@escaping @Sendable () -> Void) async throws(MemQError) ->
        any MetadataStore,
      connect: @escaping @Sendable (_ address: String) -> any RPCChannel
    ) {
      self.open = open
      self.connect = connect
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
  /// Told when the instance is of no use any more: its store failed, or holds what can't be. Only a new start can help.
  let onFailure: @Sendable (MemQError) -> Void
  private let givenStore: (any MetadataStore)?
  private let sharedStore: SharedStore?
  /// This process's name among the instances of a shared store.
  private let uuid: NodeUUID
  private let phase = Mutex(Phase.new)

  /// - Parameters:
  ///   - refusesConnections: asked of a node whose heartbeats broke off; one that refuses is fenced at once.
  ///   - store: instead of SQLite in the data folder; for tests.
  ///   - shared: instead of SQLite: what this instance shares with others.
  public init(
    configuration: Configuration, clock: any MemQClock = SystemClock(),
    entropy: any Entropy = SystemEntropy(), logger: Logger,
    refusesConnections: @escaping RefusesConnections = { _, _ in false },
    onFailure: @escaping @Sendable (MemQError) -> Void = { _ in },
    store: (any MetadataStore)? = nil, shared: SharedStore? = nil
  ) {
    self.configuration = configuration
    self.clock = clock
    self.entropy = entropy
    self.logger = logger
    self.refusesConnections = refusesConnections
    self.onFailure = onFailure
    self.givenStore = store
    self.sharedStore = shared
    self.uuid = entropy.identifier()
  }

  // MARK: Life

  /// Opens the store, loads the state, makes the cluster on the first start ever, and begins to judge.
  ///
  /// - Throws: `.configurationInvalid`, `.dataFolderInUse`, `.corruptMessage`, `.unavailable`.
  public func start() async throws(MemQError) {
    try self.configuration.validate()
    let metrics = self.metrics
    let store: any MetadataStore
    if let given = self.givenStore {
      store = given
    } else if let shared = self.sharedStore {
      store = try await shared.open { metrics.transactions.increment() }
    } else {
      guard !self.configuration.dataFolder.isEmpty else {
        throw MemQError(.configurationInvalid, "a folder is needed", subject: "data")
      }
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
      try await self.restore(store)
      instance = try await MetadataInstance.start(self, store, isShared: self.sharedStore != nil)
    } catch {
      await store.close()
      throw error
    }
    self.phase.withLock { $0 = .running(instance) }
    self.logger.info(
      "Metadata is up",
      metadata: [
        "cluster.id": "\(instance.clusterID.map { "\($0)" } ?? "")",
        "revision": "\(store.revision)",
      ])
  }

  private func restore(_ store: any MetadataStore) async throws(MemQError) {
    guard let wanted = self.configuration.restore, let objects = self.configuration.objects else {
      return
    }
    let bucket = try await ObjectStores.make(objects, clock: self.clock, logger: self.logger)
    defer { Task { await bucket.close() } }
    _ = try await SnapshotRestore(
      snapshots: SnapshotStore(objects: bucket), store: store, entropy: self.entropy,
      logger: self.logger
    ).run(wanted)
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
  func tick() async {
    guard let controller = try? self.instance().controller else { return }
    await controller.tick()
    await controller.groups.tick()
  }

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

  /// How this instance introduces itself.
  func registration(_ uuid: NodeUUID) -> NodeRegistration {
    NodeRegistration(
      uuid: uuid, service: .metadata, address: self.configuration.address,
      adminAddress: self.configuration.adminAddress, rack: self.configuration.rack,
      host: self.configuration.host, pid: Int64(getpid()))
  }

  func controller(_ own: NodeID, _ instance: MetadataInstance) -> Controller {
    Controller(
      self.configuration, runner: instance.runner, nodeID: own, clock: self.clock,
      metrics: self.metrics, logger: self.logger, refusesConnections: self.refusesConnections)
  }

  func election(_ instance: MetadataInstance) -> Election {
    Election(instance, self, own: self.uuid)
  }

  // MARK: Calls

  /// Adds the calls of memq.v1.MetadataService. An instance that does not decide passes on what only the controller can do.
  public func register(on router: inout RPCRouter) {
    guard self.sharedStore != nil else { return self.registerAll(on: &router) }
    var own = RPCRouter()
    self.registerAll(on: &own)
    router.merge(own, mark: RPCMetadata([(Self.passedOnHeader, "1")])) { try self.place(of: $0) }
  }

  private static let passedOnHeader = "memq-passed-on"

  /// Nil: here.
  private func place(of call: RPCContext) throws -> (any RPCChannel)? {
    let isReading = call.method.safety == .noSideEffects
    // What the controller has heard only it knows.
    guard !isReading || call.method == MetadataMethods.describeCluster.rpc else { return nil }
    do throws(MemQError) {
      let instance = try self.instance()
      guard instance.authority.isStandby else { return nil }
      let known = instance.cell.read { $0.controller?.value }
      guard let known, known.uuid != self.uuid, call.metadata[first: Self.passedOnHeader] == nil
      else {
        if isReading { return nil }
        throw MemQError(
          .unavailable,
          known == nil
            ? "no metadata instance decides at present"
            : "another metadata instance is the controller", subject: known?.address ?? "")
      }
      return self.connect(known.address)
    } catch {
      throw RPCStatus(error)
    }
  }

  func connect(_ address: String) -> any RPCChannel {
    guard let shared = self.sharedStore else {
      preconditionFailure("the only instance has no others to call")
    }
    return shared.connect(address)
  }

  private func registerAll(on router: inout RPCRouter) {
    self.registerNodeCalls(on: &router)
    self.registerTopicCalls(on: &router)
    self.registerObjectCalls(on: &router)
    self.registerGroupCalls(on: &router)
    self.registerUploadCalls(on: &router)
    self.registerFileCalls(on: &router)
  }
}
