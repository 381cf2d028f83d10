// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQMetadata
import MemQModel
import MemQRuntime
import MemQStore
import MemQSystem
import Synchronization

/// Everything a running metadata instance has.
final class MetadataInstance: Sendable {
  /// Entries of one page while loading.
  private static let pageEntries = 1_000

  let configuration: MetadataNode.Configuration
  let clock: any MemQClock
  let entropy: any Entropy
  let logger: Logger
  let store: any MetadataStore
  let cell: StateCell
  let feed: ImageFeed
  let runner: CommandRunner
  let controller: Controller
  let producers: ProducerNumbers
  let uploads: UploadCache
  let metrics: MetadataMetrics
  let clusterID: ClusterID
  let nodeID: NodeID
  private let tasks: Mutex<[Task<Void, Never>]>
  private let health: Health

  /// What keeps it from serving.
  var problem: String? { self.health.problem?.description }

  // MARK: Beginning

  static func start(
    _ node: MetadataNode, _ store: any MetadataStore
  ) async throws(MemQError) -> MetadataInstance {
    let cell = StateCell(limits: node.configuration.limits)
    let metrics = node.metrics
    let runner = CommandRunner(cell: cell, store: store, clock: node.clock, metrics: metrics)
    let loaded = try await Self.load(store, into: cell)
    let feed = ImageFeed(cell: cell, at: loaded)
    let health = Health()
    let follower = Follower(
      cell: cell, feed: feed, store: store, metrics: metrics, health: health,
      logger: node.logger)
    let watch = try store.watch(KeyRange(prefix: .memory), after: loaded)
    let following = Task { await follower.run(watch) }
    do {
      let (cluster, own) = try await Self.enter(node, runner)
      let instance = MetadataInstance(
        node, store, cell, feed, runner, metrics, cluster, own, following, health)
      try await instance.controller.begin()
      instance.startBackground()
      return instance
    } catch {
      following.cancel()
      cell.close()
      throw error
    }
  }

  private init(
    _ node: MetadataNode, _ store: any MetadataStore, _ cell: StateCell, _ feed: ImageFeed,
    _ runner: CommandRunner, _ metrics: MetadataMetrics, _ cluster: ClusterID, _ own: NodeID,
    _ following: Task<Void, Never>, _ health: Health
  ) {
    self.configuration = node.configuration
    self.clock = node.clock
    self.entropy = node.entropy
    self.logger = node.logger
    self.store = store
    self.cell = cell
    self.feed = feed
    self.runner = runner
    self.metrics = metrics
    self.clusterID = cluster
    self.nodeID = own
    self.controller = Controller(
      node.configuration, runner: runner, nodeID: own, clock: node.clock, metrics: metrics,
      logger: node.logger, refusesConnections: node.refusesConnections)
    self.producers = ProducerNumbers(runner: runner)
    self.uploads = UploadCache()
    self.tasks = Mutex([following])
    self.health = health
  }

  /// All entries held in memory. What is written while it reads comes again by the watch from the first page's revision.
  static func load(
    _ store: any MetadataStore, into cell: StateCell
  ) async throws(MemQError) -> Revision {
    var entries: [StoredEntry] = []
    var rest = KeyRange(prefix: .memory)
    var revision: Revision?
    while true {
      let page = try await store.range(rest, limit: Self.pageEntries)
      revision = revision ?? page.revision
      entries += page.entries
      guard page.hasMore, let last = page.entries.last else { break }
      rest = rest.after(last.key)
    }
    try cell.reload(entries, at: revision!)
    return revision!
  }

  /// Makes the cluster when there is none, and this instance one of its nodes.
  private static func enter(
    _ node: MetadataNode, _ runner: CommandRunner
  ) async throws(MemQError) -> (ClusterID, NodeID) {
    let fresh = ClusterRecord(
      id: node.entropy.identifier(), incarnation: Incarnation(1),
      incarnationID: node.entropy.identifier(ClusterID.self).value, createdAt: node.clock.wall)
    let cluster = try await runner.run("create-cluster") { $0.createCluster(fresh) }
    let configuration = node.configuration
    // There is one instance: an earlier one's number is ours.
    let known = runner.cell.read { state in
      state.nodes.values.first { $0.value.service == .metadata }?.value.uuid
    }
    let registration = NodeRegistration(
      uuid: known ?? node.entropy.identifier(), service: .metadata, address: configuration.address,
      adminAddress: configuration.adminAddress, rack: configuration.rack,
      host: configuration.host, pid: Int64(getpid()))
    let own = try await runner.run("register-node") { (state) throws(MemQError) in
      try state.register(registration)
    }
    try await runner.run("set-state") { (state) throws(MemQError) in
      try state.setState(of: own.id, own.epoch, to: .ready)
    }
    return (cluster.id, own.id)
  }

  // MARK: Background

  private func startBackground() {
    let configuration = self.configuration
    let ticking = Task { [controller] in
      while !Task.isCancelled {
        try? await Task.sleep(for: configuration.tickInterval)
        guard !Task.isCancelled else { return }
        await controller.tick()
      }
    }
    let housekeeper = Housekeeper(self)
    let cleaning = Task { [controller] in
      while !Task.isCancelled {
        await housekeeper.run()
        await controller.remains.wait(atMost: configuration.housekeepingInterval)
      }
    }
    self.tasks.withLock { $0 += [ticking, cleaning] }
  }

  func stop() async {
    let tasks = self.tasks.withLock { tasks in
      defer { tasks = [] }
      return tasks
    }
    self.feed.close()
    for task in tasks { task.cancel() }
    // Nothing is applied any more: who waits for that goes on.
    self.cell.close()
    for task in tasks { await task.value }
    await self.store.close()
  }
}
