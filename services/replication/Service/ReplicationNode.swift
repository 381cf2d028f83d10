// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQAPI
import MemQLog
import MemQMetadata
public import MemQModel
public import MemQRPC
import MemQReplication
public import MemQRuntime
import MemQStorage
public import MemQSystem
import NIOCore
import NIOPosix
import Synchronization

/// The storage node: this node's volumes, and the partitions that the cluster placed on them.
public final class ReplicationNode: Sendable {
  private struct State {
    var volumes: [Volume] = []
    /// Those that could not be opened.
    var closed: [ClosedVolume] = []
    /// How far each volume's opening is, by path; for people.
    var opening: [String: String] = [:]
    var shards: [PartitionShard] = []
    var isStarted = false
    var isDraining = false
    /// What each partition's shard was told last.
    var desired: [TopicPartition: DesiredPartition] = [:]
    var volumeProblems: [VolumeID: String] = [:]
    /// Found on the volumes, and not yet looked for in an image.
    var unplaced: Set<TopicPartition> = []
    /// An image has been compared with what the volumes hold.
    var isCompared = false
  }

  let configuration: Configuration
  let cluster: ClusterSession
  let clock: any MemQClock
  let logger: Logger
  let metrics = ReplicationMetrics()
  let streams: ReplicaStreams
  private let state = Mutex(State())

  public init(
    configuration: Configuration, cluster: ClusterSession, pool: ChannelPool,
    clock: any MemQClock, logger: Logger
  ) {
    self.configuration = configuration
    self.cluster = cluster
    self.clock = clock
    self.logger = logger
    self.streams = ReplicaStreams(
      cluster: cluster, clock: clock, logger: logger, metrics: self.metrics,
      silenceMax: configuration.rules.silenceMax, loops: MultiThreadedEventLoopGroup.singleton)
  }

  /// Adds the RPC handlers. They answer `UNAVAILABLE` until `start` returned.
  public func register(on router: inout RPCRouter) {
    router.callback(ReplicationMethods.append.rpc) { AppendStream($0, node: self) }
    router.callback(ReplicationMethods.replicate.rpc) { ReplicateStream($0, self.streams) }
    router.handleHotServerStream(ReplicationMethods.read) { request, _, writer in
      try await self.read(request, to: writer)
    }
    router.handle(ReplicationMethods.listOffsets) { request, _ in
      try await self.listOffsets(request)
    }
    router.handle(ReplicationMethods.deleteRecords) { request, _ in
      try await self.deleteRecords(request)
    }
    router.handle(ReplicationMethods.describeReplicas) { request, _ in
      try await self.describe(request)
    }
  }

  // MARK: - Life

  /// Opens the volumes, recovers, and takes up the partitions of the cluster's image.
  ///
  /// A volume that is damaged as a whole, or whose disk fails, leaves the others serving: its partitions answer why.
  ///
  /// - Throws: `.dataFolderInUse`, `.wrongCluster`; `.logCorrupt`, `.volumeFailed`, `.volumeFull` where no volume opens.
  public func start() async throws(MemQError) {
    try self.configuration.validate()
    let (volumes, closed) = try await self.openVolumes()
    let shards = self.makeShards(volumes)
    let recovered = volumes.flatMap { volume in
      volume.recoveredPartitions().map { (volume: volume.id, partition: $0) }
    }
    for (at, shard) in shards.enumerated() {
      let own = recovered.filter {
        Self.shardIndex($0.partition.partition, of: shards.count) == at
      }
      let errors = Dictionary(closed.map { ($0.id, $0.error) }) { first, _ in first }
      shard.mailbox.post(.run { $0.start(volumes, closed: errors, recovered: own) })
    }
    for volume in volumes { self.listen(to: volume) }
    self.streams.start(shards)
    self.state.withLock {
      $0.volumes = volumes
      $0.closed = closed
      for volume in closed { $0.volumeProblems[volume.id] = "\(volume.error)" }
      $0.shards = shards
      $0.isStarted = true
    }
    self.metrics.setFailedVolumes(closed.count)
    self.countDamaged()
    self.tellVolumes()
    self.logger.info(
      "Volumes are open",
      metadata: ["volumes": "\(volumes.count)", "partitions": "\(recovered.count)"])
    self.state.withLock { $0.unplaced = Set(recovered.map(\.partition.partition)) }
    self.cluster.onImage { [weak self] image in self?.apply(image) }
    self.cluster.setState(.ready)
    self.watchStalls()
  }

  func prepared() async throws(MemQError) -> Prepared {
    let configuration = self.configuration
    do {
      return try await NIOThreadPool.singleton.runIfActive {
        try Self.prepare(configuration)
      }
    } catch {
      throw error as? MemQError ?? MemQError(.internalError, "\(error)")
    }
  }

  /// What leaders tell metadata.
  var proposals: ClusterProposals {
    ClusterProposals(
      cluster: self.cluster, timeout: self.configuration.rules.proposalTimeout)
  }

  private func makeShards(_ volumes: [Volume]) -> [PartitionShard] {
    var configuration = self.configuration
    for volume in volumes {
      configuration.rules.producers = configuration.rules.producers.fitting(
        snapshotBytes: volume.batchBytesMax)
    }
    let proposals = self.proposals
    return (0..<configuration.shards).map { index in
      PartitionShard(
        index, on: MultiThreadedEventLoopGroup.singleton.next(), configuration, clock: self.clock,
        logger: self.logger, metrics: self.metrics, metadata: proposals, streams: self.streams,
        damageChanged: { [weak self] in self?.countDamaged() })
    }
  }

  private func listen(to volume: Volume) {
    let id = volume.id
    volume.onDamage = { [weak self] found in
      self?.countDamaged()
      self?.shard(of: found.partition)?.mailbox.post(.damaged(id, found))
    }
    volume.onFailure = { [weak self] error in self?.failed(id, error) }
    volume.onLocalStartMoved = { [weak self] partition, offset in
      self?.shard(of: partition)?.mailbox.post(.localStartMoved(partition, offset))
    }
    volume.onSnapshotWanted = { [weak self] partition in
      self?.shard(of: partition)?.mailbox.post(.snapshotWanted(partition))
    }
  }

  private func failed(_ id: VolumeID, _ error: MemQError) {
    let (shards, count, isLast) = self.state.withLock { state in
      state.volumeProblems[id] = "\(error)"
      let count = state.volumeProblems.count
      let all = state.volumes.count + state.closed.count
      return (state.shards, count, state.isStarted && count == all)
    }
    self.metrics.setFailedVolumes(count)
    self.logger.error(
      "A volume failed and is out of use until the node restarts",
      metadata: ["volume": "\(id)", "error": "\(error)"])
    for shard in shards { shard.mailbox.post(.volumeFailed(id, error)) }
    // Others are to lead, and nobody is to count on the copies there.
    self.tellVolumes()
    if isLast { self.streams.close() }
  }

  /// Hands its leaderships over, takes no more work, lets what runs end for at most `deadline`, and closes the volumes cleanly.
  public func drain(deadline: Duration) async {
    let end = self.clock.monotonic + deadline
    self.cluster.setState(.draining)
    await self.handOver(within: deadline / 2)
    let (shards, volumes) = self.state.withLock { state in
      state.isDraining = true
      return (state.shards, state.volumes)
    }
    while !(await self.isIdle(shards)), self.clock.monotonic < end {
      do { try await Task.sleep(for: .milliseconds(10)) } catch { break }
    }
    for shard in shards { await Self.ask(shard) { $0.stop() } }
    self.streams.close()
    let left = Swift.max(Self.closeTimeMin, end - self.clock.monotonic)
    await withTaskGroup(of: Void.self) { group in
      for volume in volumes {
        group.addTask {
          guard !(await volume.close(within: left)) else { return }
          self.logger.error(
            "A volume did not close in time and is left as after a crash",
            metadata: ["volume": "\(volume.id)"])
        }
      }
    }
  }

  /// Waits until this node leads nothing that another one could: the cluster moves it as soon as it hears that the node drains.
  private func handOver(within limit: Duration) async {
    guard self.state.withLock({ $0.isStarted }) else { return }
    let id = self.cluster.nodeID
    do throws(MemQError) {
      _ = try await self.cluster.waitForImage(timeout: limit) { image in
        !image.partitions.values.contains { partition in
          partition.leader == id
            && partition.inSync.contains { $0 != id && image.nodes[$0]?.state == .ready }
        }
      }
    } catch {
      self.logger.warning(
        "Stops with leaderships that were not handed over", metadata: ["error": "\(error)"])
    }
  }

  /// A clean end is worth a moment even when the appends took all the time.
  private static let closeTimeMin: Duration = .seconds(1)

  private func isIdle(_ shards: [PartitionShard]) async -> Bool {
    var isIdle = true
    for shard in shards where !(await Self.ask(shard) { $0.drain() }) { isIdle = false }
    return isIdle
  }

  /// For `/readyz`; a nil problem is fine.
  public var readiness: [(check: String, problem: String?)] {
    let stalled = Self.text(stalled: self.allVolumes.map(\.volume))
    return self.state.withLock { state in
      let problems = state.volumeProblems.values.sorted() + (stalled.map { [$0] } ?? [])
      let failed = problems.joined(separator: "; ")
      return [
        (
          "volumes",
          !state.isStarted ? Self.text(opening: state.opening) : failed.isEmpty ? nil : failed
        ),
        ("node", state.isDraining ? "shutting down" : nil),
      ]
    }
  }

  // MARK: - The cluster's image

  private func apply(_ image: ClusterImage) {
    let (node, epoch) = (self.cluster.nodeID, self.cluster.nodeEpoch)
    // An image from before this life of the node: leaderships in it are those of the earlier one.
    guard image.nodes[node]?.epoch == epoch else { return }
    let volumes = self.state.withLock { $0.volumes.map(\.id) + $0.closed.map(\.id) }
    var desired: [TopicPartition: DesiredPartition] = [:]
    for partition in image.partitions.values {
      guard let topic = image.topics[partition.id.topic],
        let wanted = DesiredPartition(
          partition, topic, in: image, node: node, epoch: epoch, volumes: volumes)
      else { continue }
      desired[partition.id] = wanted
    }
    let before = self.state.withLock { state in
      defer { state.desired = desired }
      return state.desired
    }
    self.metrics.setPartitions(desired.count)
    let isFirst = self.state.withLock { state in
      defer { state.isCompared = true }
      return !state.isCompared
    }
    if isFirst { self.compare(desired) }
    for wanted in desired.values where before[wanted.id] != wanted {
      self.shard(of: wanted.id)?.mailbox.post(.assign(wanted))
    }
    // Only what an image has, or had, elsewhere is dropped: a partition that none names stays on its disk.
    for id in before.keys where desired[id] == nil {
      self.shard(of: id)?.mailbox.post(.unassign(id))
    }
    let unplaced = self.state.withLock { state in
      defer { state.unplaced = [] }
      return state.unplaced
    }
    var strays: [TopicPartition] = []
    for id in unplaced where desired[id] == nil {
      if image.partitions[id] != nil {
        self.shard(of: id)?.mailbox.post(.run { $0.dropStray(id) })
      } else {
        strays.append(id)
      }
    }
    if !strays.isEmpty { self.settle(strays) }
  }

  // MARK: - Shards

  static func shardIndex(_ partition: TopicPartition, of count: Int) -> Int {
    let mixed =
      (partition.topic.value.low ^ partition.topic.value.high)
      &+ UInt64(bitPattern: Int64(partition.partition.rawValue)) &* 0x9E37_79B9_7F4A_7C15
    return Int((mixed ^ mixed >> 32) % UInt64(count))
  }

  var isDraining: Bool { self.state.withLock { $0.isDraining } }

  func shard(of partition: TopicPartition) -> PartitionShard? {
    self.state.withLock { state in
      state.shards.isEmpty
        ? nil : state.shards[Self.shardIndex(partition, of: state.shards.count)]
    }
  }

  /// - Throws: `.unavailable` before `start`.
  func requireShard(of partition: TopicPartition) throws(MemQError) -> PartitionShard {
    guard let shard = self.shard(of: partition) else {
      throw MemQError(.unavailable, "the node is still opening its volumes")
    }
    return shard
  }

  /// Batch bytes pushed to each follower volume and not confirmed, for tests.
  package var replicaBytesInFlight: [ReplicaID: Int] { self.streams.inFlightBytes }

  var allShards: [PartitionShard] { self.state.withLock { $0.shards } }
  var allVolumes: [(volume: Volume, problem: String?)] {
    self.state.withLock { state in state.volumes.map { ($0, state.volumeProblems[$0.id]) } }
  }
  var closedVolumes: [ClosedVolume] { self.state.withLock { $0.closed } }

  func noteOpening(_ path: String, _ text: String?) {
    self.state.withLock { $0.opening[path] = text }
  }

  /// Hands a checked batch to the owner of its partition.
  func submit(_ append: InboundAppend) throws(MemQError) {
    try self.requireShard(of: append.partition).mailbox.post(.append(append))
  }

  /// Runs `question` on the shard's loop.
  static func ask<T: Sendable>(
    _ shard: PartitionShard, _ question: @escaping @Sendable (PartitionShard) -> T
  ) async -> T {
    await withCheckedContinuation { continuation in
      shard.mailbox.post(.run { continuation.resume(returning: question($0)) })
    }
  }
}
