// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRuntime
import MemQStore
import MemQSystem
import Synchronization

/// Everything a running metadata instance has.
final class MetadataInstance: Sendable {
  let configuration: MetadataNode.Configuration
  let clock: any MemQClock
  let entropy: any Entropy
  let logger: Logger
  let store: any MetadataStore
  let cell: StateCell
  let feed: ImageFeed
  let runner: CommandRunner
  let authority: Authority
  let isShared: Bool
  let producers: ProducerNumbers
  let uploads: UploadCache
  let metrics: MetadataMetrics
  private let tasks = Mutex<[Task<Void, Never>]>([])
  private let health: Health

  /// - Throws: `.unavailable` when another instance decides, or none.
  var controller: Controller {
    get throws(MemQError) { try self.authority.controller() }
  }

  var incarnation: Int64 { self.cell.read { $0.cluster?.value.incarnation.rawValue ?? 0 } }

  /// What keeps it from serving.
  var problem: String? { self.health.problem?.description }

  // MARK: Beginning

  /// - Parameter isShared: other instances use the store, too: which of them decides is found out in the background.
  static func start(
    _ node: MetadataNode, _ store: any MetadataStore, isShared: Bool
  ) async throws(MemQError) -> MetadataInstance {
    let cell = StateCell(limits: node.configuration.limits)
    let loaded = try await Self.load(store, into: cell)
    let instance = MetadataInstance(node, store, cell, loaded, isShared)
    do {
      try instance.follow(from: loaded)
      if isShared {
        instance.take(part: node.election(instance))
        try await instance.waitForCluster()
      } else {
        try await instance.decideAlone(node)
      }
      return instance
    } catch {
      await instance.endTasks()
      throw error
    }
  }

  private init(
    _ node: MetadataNode, _ store: any MetadataStore, _ cell: StateCell, _ loaded: Revision,
    _ isShared: Bool
  ) {
    self.configuration = node.configuration
    self.clock = node.clock
    self.entropy = node.entropy
    self.logger = node.logger
    self.store = store
    self.isShared = isShared
    self.cell = cell
    self.authority = Authority(clock: node.clock)
    self.feed = ImageFeed(cell: cell, at: loaded)
    self.runner = CommandRunner(
      cell: cell, store: store, authority: self.authority, clock: node.clock,
      metrics: node.metrics)
    self.metrics = node.metrics
    self.producers = ProducerNumbers(runner: self.runner)
    self.uploads = UploadCache()
    self.health = Health(onFailure: node.onFailure)
  }

  private func follow(from revision: Revision) throws(MemQError) {
    let follower = Follower(
      cell: self.cell, feed: self.feed, store: self.store, metrics: self.metrics,
      health: self.health, authority: self.authority, logger: self.logger)
    let watch = try self.store.watch(KeyRange(prefix: .memory), after: revision)
    self.keep(Task { await follower.run(watch) })
  }

  private func keep(_ task: Task<Void, Never>) { self.tasks.withLock { $0.append(task) } }

  var clusterID: ClusterID? { self.cell.read { $0.cluster?.value.id } }

  /// All entries held in memory, of one revision.
  static func load(
    _ store: any MetadataStore, into cell: StateCell
  ) async throws(MemQError) -> Revision {
    let reading = try await store.range(KeyRange(prefix: .memory), limit: .max)
    try cell.reload(reading.entries, at: reading.revision)
    return reading.revision
  }

  /// Makes the cluster when there is none, and this instance one of its nodes.
  ///
  /// - Parameter uuid: nil: there is one instance, and an earlier one's number is ours.
  func enter(_ node: MetadataNode, as uuid: NodeUUID? = nil) async throws(MemQError) -> NodeImage {
    let fresh = ClusterRecord(
      id: node.entropy.identifier(), incarnation: Incarnation(1),
      incarnationID: node.entropy.identifier(ClusterID.self).value, createdAt: node.clock.wall)
    try await self.runner.run("create-cluster") { $0.createCluster(fresh) }
    let known = self.cell.read { state in
      state.nodes.values.first { $0.value.service == .metadata }?.value.uuid
    }
    let registration = node.registration(uuid ?? known ?? node.entropy.identifier())
    if uuid != nil {
      try await self.runner.run("fence-predecessors") { $0.fencePredecessors(of: registration) }
    }
    let own = try await self.runner.run("register-node") { (state) throws(MemQError) in
      try state.register(registration)
    }
    try await self.runner.run("set-state") { (state) throws(MemQError) in
      try state.setState(of: own.id, own.epoch, to: .ready)
    }
    return own
  }

  // MARK: Deciding

  private func decideAlone(_ node: MetadataNode) async throws(MemQError) {
    self.authority.enterAlone()
    let own = try await self.enter(node)
    let controller = node.controller(own.id, self)
    try await controller.begin()
    self.authority.decide(controller)
    self.metrics.isController.record(1)
    self.keep(Task { await self.judge(controller) })
    self.keep(Task { await self.judge(controller.groups) })
    self.keep(Task { await self.clean(controller) })
    self.keep(Task { await self.writeSnapshots() })
  }

  private func take(part election: Election) { self.keep(Task { await election.run() }) }

  /// Until somebody has made the cluster.
  private func waitForCluster() async throws(MemQError) {
    let deadline = ContinuousClock.now + self.configuration.startTimeout
    while self.clusterID == nil {
      if let problem = self.health.problem { throw problem }
      guard .now < deadline, !Task.isCancelled else {
        throw MemQError(.unavailable, "no metadata instance has made the cluster in time")
      }
      try? await Task.sleep(for: .milliseconds(20))
    }
  }

  // MARK: Background

  /// Looks for silence of nodes, until cancelled.
  func judge(_ controller: Controller) async {
    await self.judge(
      afterPause: { await controller.giveEverybodyTime() }, tick: { await controller.tick() })
  }

  /// Looks after groups, until cancelled. That may take as many writes as there are groups: nodes are not kept waiting for them.
  func judge(_ groups: GroupCoordinator) async {
    await self.judge(afterPause: { await groups.begin() }, tick: { await groups.tick() })
  }

  /// - Parameter afterPause: nobody could be heard until now.
  private func judge(afterPause: () async -> Void, tick: () async -> Void) async {
    var wasSuspended = false
    while !Task.isCancelled, !self.authority.isRetired {
      try? await Task.sleep(for: self.configuration.tickInterval)
      guard !Task.isCancelled else { return }
      if self.authority.isSuspended {
        wasSuspended = true
        continue
      }
      if wasSuspended { await afterPause() }
      wasSuspended = false
      await tick()
    }
  }

  /// Clears away, until cancelled.
  func clean(_ controller: Controller) async {
    let housekeeper = Housekeeper(self)
    while !Task.isCancelled {
      if !self.authority.isSuspended { await housekeeper.run() }
      await controller.remains.wait(atMost: self.configuration.housekeepingInterval)
    }
  }

  /// Writes snapshots into the object store, until cancelled. One that can't be opened holds up nothing else.
  func writeSnapshots() async {
    guard let objects = self.configuration.objects,
      let interval = self.configuration.snapshotInterval
    else { return }
    while !Task.isCancelled {
      do {
        let bucket = try await ObjectStores.make(objects, clock: self.clock, logger: self.logger)
        await SnapshotWriter(
          instance: self, snapshots: SnapshotStore(objects: bucket), interval: interval
        ).run()
        await bucket.close()
      } catch {
        self.logger.warning(
          "The object store for metadata snapshots can't be opened",
          metadata: ["error": "\(error)"])
        try? await Task.sleep(for: interval)
      }
    }
  }

  func stop() async {
    self.feed.close()
    if let controller = try? self.controller { await controller.groups.close() }
    await self.endTasks()
    await self.store.close()
  }

  private func endTasks() async {
    let tasks = self.tasks.withLock { tasks in
      defer { tasks = [] }
      return tasks
    }
    for task in tasks { task.cancel() }
    // Nothing is applied any more: who waits for that goes on.
    self.cell.close()
    for task in tasks { await task.value }
  }
}
