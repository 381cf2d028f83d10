// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQAPI
import MemQMetadata
public import MemQModel
import MemQObjectStore
import MemQPacking
import MemQRPC
public import MemQRuntime
public import MemQSystem
import NIOCore
import NIOPosix
import SwiftProtobuf
import Synchronization

/// The public door: produce, fetch, groups and files. Keeps nothing durable of its own.
public final class IngestNode: Sendable {
  public let configuration: Configuration
  private let cluster: any IngestCluster
  private let session: ClusterSession?
  private let logger: Logger
  let service: ServiceState
  let health = HealthService(server: .notServing)
  let metrics = IngestMetrics()
  private let loops: any EventLoopGroup
  private let lanes: AppendLanes
  let load: ProduceLoad
  let active: ActiveUploads
  private let scans: Permits
  private let quarantine: RecordQuarantine
  private let marks = PartitionMarks()
  let heldHeartbeats = HeldHeartbeats()
  private let running = Mutex<Running?>(nil)

  /// What exists once the node has started.
  struct Running: Sendable {
    let store: any ObjectStore
    let reader: LogReader
    let appender: Appender
    let finisher: Task<Void, Never>
    let gauges: Task<Void, Never>
  }

  /// - Throws: `.configurationInvalid`.
  public convenience init(
    configuration: Configuration, cluster: ClusterSession, pool: ChannelPool,
    clock: any MemQClock, logger: Logger
  ) throws(MemQError) {
    try self.init(
      configuration: configuration, view: cluster, session: cluster, clock: clock,
      loops: MultiThreadedEventLoopGroup.singleton, logger: logger)
  }

  init(
    configuration: Configuration, view: any IngestCluster, session: ClusterSession?,
    clock: any MemQClock, loops: any EventLoopGroup, logger: Logger
  ) throws(MemQError) {
    try configuration.validate()
    self.configuration = configuration
    self.cluster = view
    self.session = session
    self.logger = logger
    self.service = ServiceState(clock: clock)
    self.loops = loops
    self.lanes = AppendLanes(cluster: view, clock: clock)
    self.load = ProduceLoad(bytesMax: configuration.produceBytesMax)
    self.active = ActiveUploads(limit: configuration.putsMax)
    self.scans = Permits(configuration.scansMax, waitersMax: 100_000, what: "scans")
    self.quarantine = RecordQuarantine(cluster: view, metrics: self.metrics)
  }

  // MARK: Life

  /// Opens the object store and begins to serve.
  ///
  /// - Throws: what the object store throws.
  public func start() async throws(MemQError) {
    let store = try await ObjectStores.make(
      self.configuration.objects, clock: self.service.clock, logger: self.logger)
    let cluster = self.cluster
    let objects = ObjectReader(
      store: store, logger: self.logger,
      uploaded: { cluster.image.partitions[$0]?.uploadedOffset }
    ) { group, after throws(MemQError) in
      try await ObjectList.page(group, after: after, cluster.metadata)
    }
    let reader = LogReader(
      cluster: cluster, objects: objects, marks: self.marks, clock: self.service.clock)
    let appender = Appender(
      cluster: cluster, lanes: self.lanes, clock: self.service.clock, loops: self.loops)
    let finisher = Finisher(context: self.putContext(appender), logger: self.logger)
    let running = Running(
      store: store, reader: reader, appender: appender, finisher: Task { await finisher.run() },
      gauges: Task { await self.recordGauges() })
    self.running.withLock { $0 = running }
    self.health.set("", .serving)
    self.health.set("memq.v1.IngestService", .serving)
    self.health.set("memq.v1.FileService", .serving)
    self.session?.setState(.ready)
    self.logger.info(
      "Ingest serves", metadata: ["node": "\(cluster.nodeID)", "objects": "\(store.name)"])
  }

  private func recordGauges() async {
    while (try? await Task.sleep(for: .seconds(1))) != nil {
      self.metrics.inFlight(self.load.bytesInFlight)
    }
  }

  public var readiness: [(check: String, problem: String?)] {
    let draining: String? = self.service.isDraining ? "shutting down" : nil
    let image = self.running.withLock({ $0 }) == nil ? nil : self.cluster.image
    guard let image else { return [("started", "not started yet"), ("serving", draining)] }
    let leaderless = image.partitions.values.count { $0.leader == nil }
    return [
      ("started", nil),
      ("serving", draining),
      ("leaders", leaderless == 0 ? nil : "\(leaderless) partitions have no leader"),
    ]
  }

  /// Refuses new work, lets what is in flight end for at most `deadline`, and closes.
  public func drain(deadline: Duration) async {
    self.service.beginDraining()
    self.health.shutdown()
    self.session?.setState(.draining)
    self.heldHeartbeats.cancelAll()
    let end = self.service.clock.monotonic + deadline
    while !(self.load.isIdle && self.active.count == 0), self.service.clock.monotonic < end {
      guard (try? await Task.sleep(for: .milliseconds(10))) != nil else { break }
    }
    let running = self.running.withLock { running in
      defer { running = nil }
      return running
    }
    running?.finisher.cancel()
    running?.gauges.cancel()
    await running?.finisher.value
    self.lanes.closeAll()
    await running?.store.close()
    self.logger.info("Ingest stopped", metadata: ["node": "\(self.cluster.nodeID)"])
  }

  // MARK: Parts of the handlers

  /// - Throws: `.unavailable` before the start and after the end.
  func whileRunning() throws(MemQError) -> Running {
    if let refusal = self.service.refusal { throw refusal }
    guard let running = self.running.withLock({ $0 }) else {
      throw MemQError(.unavailable, "this ingest has not started yet")
    }
    return running
  }

  var clusterView: any IngestCluster { self.cluster }
  var topics: TopicFinder { TopicFinder(cluster: self.cluster) }

  private var scanCalls: ScanCalls {
    ScanCalls(
      cluster: self.cluster, permits: self.scans,
      bytesTimeout: self.configuration.scanBytesTimeout,
      bodyTimeout: self.configuration.scanBodyTimeout)
  }

  var produceContext: ProduceContext {
    ProduceContext(
      cluster: self.cluster, topics: self.topics, lanes: self.lanes,
      gate: RecordGate(scans: self.scanCalls, quarantine: self.quarantine), load: self.load,
      service: self.service,
      configuration: self.configuration, metrics: self.metrics)
  }

  func putContext(_ appender: Appender) -> PutContext {
    let uploads = UploadCalls(cluster: self.cluster)
    let driver = UploadDriver(
      uploads: uploads, scans: self.scanCalls, appender: appender, cluster: self.cluster,
      clock: self.service.clock, logger: self.logger)
    return PutContext(
      cluster: self.cluster, topics: self.topics, uploads: uploads, driver: driver,
      active: self.active, service: self.service, configuration: self.configuration,
      metrics: self.metrics)
  }

  func fileReads(_ running: Running) -> FileReads {
    FileReads(
      topics: self.topics, uploads: UploadCalls(cluster: self.cluster), reader: running.reader,
      store: running.store, appender: running.appender, cluster: self.cluster,
      clock: self.service.clock, metrics: self.metrics)
  }
}
