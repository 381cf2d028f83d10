// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQMetadata
public import MemQModel
public import MemQRPC
public import MemQSystem
import Synchronization

/// One node's membership in the cluster: its registration, its heartbeats and the image it watches.
///
/// `start` registers and loads the image; from then on both are kept up in the background, for ever: a lost metadata
/// instance is replaced by the next address with jittered back-off, a fenced node registers again (its `nodeEpoch` rises).
public final class ClusterSession: Sendable {
  public struct Configuration: Sendable {
    public var service: ServiceKind
    /// The node's lasting name; services without state make one at each start.
    public var nodeUUID: NodeUUID
    /// What peers and clients connect to: `host:port` or `inprocess:NAME`.
    public var address: String
    /// Admin HTTP, `host:port`; empty: none.
    public var adminAddress: String
    /// Failure domain; empty: none.
    public var rack: String
    /// For people.
    public var host: String
    /// Disks of a replication node, not opened yet: `setVolumes` tells what became of them.
    public var volumes: [VolumeID]
    /// The cluster its data belongs to; nil: a fresh node.
    public var clusterID: ClusterID?
    /// Tried in turn.
    public var metadataAddresses: [String]
    /// What the node has seen of metadata before, and keeps; nil: a node without lasting state.
    public var memory: MetadataMemory?
    /// One registration.
    public var callTimeout: Duration = .seconds(5)
    /// One goodbye: a node that stops has little time, and the cluster notices its silence anyway.
    public var goodbyeTimeout: Duration = .seconds(1)
    /// First and longest wait between attempts to reach metadata.
    public var backoff: ClosedRange<Duration> = .milliseconds(50)...(.seconds(1))
    /// Heartbeats without an answer for so long: the instance is given up.
    public var silenceMax: Duration = .seconds(5)
    /// An instance whose image is so long behind the controller's is given up.
    public var lagMax: Duration = .seconds(2)

    public init(
      service: ServiceKind, nodeUUID: NodeUUID, address: String, adminAddress: String = "",
      rack: String = "", host: String = "", volumes: [VolumeID] = [], clusterID: ClusterID? = nil,
      metadataAddresses: [String]
    ) {
      precondition(!metadataAddresses.isEmpty, "a session needs an address of metadata")
      self.service = service
      self.nodeUUID = nodeUUID
      self.address = address
      self.adminAddress = adminAddress
      self.rack = rack
      self.host = host
      self.volumes = volumes
      self.clusterID = clusterID
      self.metadataAddresses = metadataAddresses
    }
  }

  /// What registration gave.
  struct Registration: Sendable {
    var nodeID: NodeID
    var nodeEpoch: NodeEpoch
    var clusterID: ClusterID
    var incarnation: Incarnation
    var heartbeatInterval: Duration
  }

  private struct State {
    var registration: Registration?
    /// False: register before anything else.
    var isRegistered = false
    var nodeState = NodeState.starting
    var metadataIndex = 0
    /// A controller that the image names, but that did not answer.
    var failedController: String?
    /// Since when the controller is ahead of the image.
    var behindSince: MonotonicInstant?
    var turn = 0
    var tasks: [Task<Void, Never>] = []
    /// Wakes the sender of heartbeats.
    var beats: AsyncStream<Void>.Continuation?
    var volumes: [VolumeImage]
    /// Rises with each change of `volumes`; `volumesTold` is the one that metadata knows.
    var volumesVersion = 0
    var volumesTold = 0
    /// Wakes whoever tells them.
    var volumeNews: AsyncStream<Void>.Continuation?
  }

  let configuration: Configuration
  let pool: ChannelPool
  let clock: any MemQClock
  let logger: Logger
  let cell = ImageCell()
  private let state: Mutex<State>

  public init(
    _ configuration: Configuration, pool: ChannelPool, clock: any MemQClock, logger: Logger
  ) {
    self.configuration = configuration
    self.state = Mutex(State(volumes: configuration.volumes.map { VolumeImage($0, .opening) }))
    self.pool = pool
    self.clock = clock
    self.logger = logger
  }

  // MARK: Life

  /// Registers and loads the image, trying for at most `timeout`.
  ///
  /// - Throws: `.wrongCluster`, `.limitReached` and `.staleImage` (metadata is older than what the node has seen of it) at once;
  ///   `.unavailable` when no metadata instance answered in time.
  public func start(timeout: Duration) async throws(MemQError) {
    let deadline = self.clock.monotonic + timeout
    try await self.registerFirst(until: deadline)
    let deliver = Task { await self.cell.deliver() }
    let membership = Task { await self.keepUp() }
    self.state.withLock { $0.tasks = [deliver, membership] }
    let id = self.nodeID
    do {
      _ = try await self.cell.wait(timeout: max(deadline - self.clock.monotonic, .zero)) {
        $0.nodes[id] != nil
      }
    } catch {
      await self.endTasks()
      throw MemQError(
        .unavailable, "registered as node \(id), but the cluster image did not come in time",
        subject: self.metadataAddress, limit: timeout.milliseconds)
    }
  }

  /// Says goodbye and ends the background work. Leaderships and leases of this node pass on before it returns, when
  /// metadata can be reached.
  public func stop() async {
    await self.endTasks()
    await self.deregister()
    await self.remember { memory throws(MemQError) in
      try await memory.write(at: self.clock.monotonic)
    }
  }

  /// Nothing the node does waits for it in vain: without what it has seen it is only easier to mislead.
  func remember(
    _ body: (MetadataMemory) async throws(MemQError) -> Void
  ) async {
    guard let memory = self.configuration.memory else { return }
    do throws(MemQError) {
      try await body(memory)
    } catch {
      self.forgot(error)
    }
  }

  func forgot(_ error: MemQError) {
    self.logger.warning(
      "What was seen of metadata could not be kept", metadata: ["error": "\(error)"])
  }

  /// How far metadata was seen, in this process or before.
  var seen: SeenMetadata? {
    self.cell.image.map { SeenMetadata($0) } ?? self.configuration.memory?.seen
  }

  private func endTasks() async {
    let tasks = self.state.withLock { state in
      defer { state.tasks = [] }
      return state.tasks
    }
    for task in tasks { task.cancel() }
    for task in tasks { await task.value }
  }

  // MARK: Who we are

  /// - Precondition: `start` has returned.
  public var nodeID: NodeID { self.registration.nodeID }
  /// Rises when the node had to register again.
  public var nodeEpoch: NodeEpoch { self.registration.nodeEpoch }
  public var clusterID: ClusterID { self.registration.clusterID }
  public var incarnation: Incarnation { self.registration.incarnation }

  var registration: Registration {
    guard let registration = self.state.withLock({ $0.registration }) else {
      preconditionFailure("the cluster session has not started")
    }
    return registration
  }

  var isRegistered: Bool { self.state.withLock { $0.isRegistered } }

  /// - Parameter version: of the volumes it named.
  func registered(_ registration: Registration, volumes version: Int) {
    self.state.withLock {
      $0.registration = registration
      $0.isRegistered = true
      $0.volumesTold = version
    }
  }

  func lostRegistration() { self.state.withLock { $0.isRegistered = false } }

  /// The cluster it belongs to as far as it knows.
  var knownClusterID: ClusterID? {
    self.state.withLock { $0.registration?.clusterID } ?? self.configuration.clusterID
  }

  /// Tells the cluster where this node stands; sent at once.
  public func setState(_ state: NodeState) {
    self.state.withLock { $0.nodeState = state }
    self.beat()
  }

  /// Has a heartbeat sent now, when there is a stream.
  func beat() { self.state.withLock { $0.beats }?.yield() }

  /// What the sender of a new heartbeat stream waits on.
  func newBeats() -> AsyncStream<Void> {
    let (stream, continuation) = AsyncStream.makeStream(
      of: Void.self, bufferingPolicy: .bufferingNewest(1))
    self.state.withLock { $0.beats = continuation }
    return stream
  }

  // MARK: Volumes

  /// Tells the cluster where this node's disks stand, at once and with each registration. Those not named stay as they were.
  public func setVolumes(_ volumes: [VolumeImage]) {
    let news = self.state.withLock { state in
      for volume in volumes {
        guard let at = state.volumes.firstIndex(where: { $0.id == volume.id }) else { continue }
        state.volumes[at] = volume
      }
      state.volumesVersion += 1
      return state.volumeNews
    }
    news?.yield()
  }

  var volumes: (volumes: [VolumeImage], version: Int) {
    self.state.withLock { ($0.volumes, $0.volumesVersion) }
  }

  /// Nil: metadata knows all.
  var untoldVolumes: (volumes: [VolumeImage], version: Int)? {
    self.state.withLock { state in
      state.volumesTold == state.volumesVersion ? nil : (state.volumes, state.volumesVersion)
    }
  }

  func toldVolumes(_ version: Int) {
    self.state.withLock { $0.volumesTold = Swift.max($0.volumesTold, version) }
  }

  func newVolumeNews() -> AsyncStream<Void> {
    let (stream, continuation) = AsyncStream.makeStream(
      of: Void.self, bufferingPolicy: .bufferingNewest(1))
    self.state.withLock { $0.volumeNews = continuation }
    continuation.yield()
    return stream
  }

  public var nodeState: NodeState { self.state.withLock { $0.nodeState } }

  // MARK: The image

  /// The latest image; cheap to copy.
  ///
  /// - Precondition: `start` has returned.
  public var image: ClusterImage {
    guard let image = self.cell.image else {
      preconditionFailure("the cluster session has not started")
    }
    return image
  }

  /// Calls `body` once with the current image, then, in order, with newer ones, from one task. A slow body misses
  /// images in between, never the latest. It must not block.
  public func onImage(_ body: @escaping @Sendable (ClusterImage) -> Void) {
    self.cell.observe(body)
  }

  /// The first image that satisfies `until`.
  ///
  /// - Throws: `.deadlineExceeded`, `.cancelled`.
  public func waitForImage(
    timeout: Duration, _ until: @Sendable (ClusterImage) -> Bool
  ) async throws(MemQError) -> ClusterImage {
    try await self.cell.wait(timeout: timeout, until)
  }

  // MARK: Channels

  /// The metadata instance that decides, as far as the image names one; otherwise the one in use, which passes calls on.
  public var metadata: any RPCChannel { self.pool.channel(self.controllerAddress, lane: .control) }

  var controllerAddress: String {
    let known = self.cell.image?.controllerAddress ?? ""
    let failed = self.state.withLock { $0.failedController }
    return known.isEmpty || known == failed ? self.metadataAddress : known
  }

  var metadataAddress: String {
    let index = self.state.withLock { $0.metadataIndex }
    return self.configuration.metadataAddresses[index]
  }

  /// An instance did not answer, or is behind the others.
  func failed(_ address: String) {
    let addresses = self.configuration.metadataAddresses
    let known = self.cell.image?.controllerAddress
    self.state.withLock { state in
      if address == known { state.failedController = address }
      // Unless another one is in use already.
      if addresses[state.metadataIndex] == address {
        state.metadataIndex = (state.metadataIndex + 1) % addresses.count
      }
    }
  }

  func answered(_ address: String) {
    self.state.withLock { if $0.failedController == address { $0.failedController = nil } }
  }

  /// The controller says how far its image is. An instance that lets this node's fall behind is given up.
  func heard(of revision: Int64) {
    let isBehind = revision > self.cell.image?.revision.rawValue ?? 0
    let now = self.clock.monotonic
    let isOver = self.state.withLock { state in
      guard isBehind else {
        state.behindSince = nil
        return false
      }
      guard let since = state.behindSince, now - since > self.configuration.lagMax else {
        state.behindSince = state.behindSince ?? now
        return false
      }
      state.behindSince = nil
      return true
    }
    guard isOver, self.configuration.metadataAddresses.count > 1 else { return }
    let address = self.metadataAddress
    self.logger.warning(
      "This metadata instance tells nothing new, another one is used",
      metadata: ["metadata": "\(address)"])
    self.failed(address)
  }

  /// A channel to a node.
  ///
  /// - Throws: `.nodeUnknown` when the image has no such node, or it left.
  public func channel(to node: NodeID, lane: Lane) throws(MemQError) -> any RPCChannel {
    guard let known = self.cell.image?.nodes[node], known.state != .gone else {
      throw MemQError(.nodeUnknown, "no such node in the cluster", subject: "node \(node)")
    }
    return self.pool.channel(known.address, lane: lane)
  }

  /// A channel to a live node of a service, in turn; ready ones first.
  ///
  /// - Throws: `.unavailable` when there is none.
  public func channel(
    _ service: ServiceKind, lane: Lane = .control
  ) throws(MemQError) -> any RPCChannel {
    if service == .metadata { return self.pool.channel(self.controllerAddress, lane: lane) }
    let live = self.cell.image?.liveNodes(service) ?? []
    let ready = live.filter { $0.state == .ready }
    let nodes = ready.isEmpty ? live : ready
    guard !nodes.isEmpty else {
      throw MemQError(.unavailable, "no \(service.name) node is alive", subject: service.name)
    }
    let turn = self.state.withLock { state in
      state.turn &+= 1
      return state.turn
    }
    let node = nodes[Int(UInt(bitPattern: turn) % UInt(nodes.count))]
    return self.pool.channel(node.address, lane: lane)
  }
}
