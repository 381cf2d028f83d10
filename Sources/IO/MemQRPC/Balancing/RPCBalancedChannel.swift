// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import NIOCore
import Synchronization

/// Calls to whichever of several servers: a channel over channels.
///
/// Targets are names or addresses. A name that leads to several addresses is one member for each; names are looked up again from time to time, and
/// when members fail. Members stay connected (pick first: the one in use), those that cannot be reached are passed over and tried again with jittered back-off.
/// A call that found no connection moves on to the next member by itself, as nothing of it was sent; what else fails is for
/// ``RPCCallOptions/retry``, whose attempts each pick a member anew.
public final class RPCBalancedChannel: RPCChannel {
  public struct Configuration: Sendable {
    public var balancing = RPCBalancing.roundRobin
    /// Of each member.
    public var channel = RPCNetworkChannel.Configuration()
    /// Members kept; further addresses are not used.
    public var membersMax = 256
    /// Between looking up names.
    public var resolveInterval: Duration = .seconds(30)
    /// While members fail names are looked up again, but not sooner than this after the last time.
    public var resolveIntervalMin: Duration = .seconds(5)
    /// What a member that is no more listed has for the calls it still runs.
    public var drainTimeout: Duration = .seconds(30)

    public init() {}
  }

  /// What makes a name addresses, and an address a channel; tests bring their own.
  struct Hooks: Sendable {
    var resolve: @Sendable (_ target: String) async -> [String]
    var connect:
      @Sendable (_ address: String, _ target: String, _ onConnected: @escaping @Sendable () -> Void)
        -> any RPCChannel
  }

  private struct Member {
    let address: String
    let seed: UInt64
    let channel: any RPCChannel
    /// Of a member over the network; another is taken for connected.
    let network: RPCNetworkChannel?

    var health: MemberChoice.Health {
      guard let network = self.network else { return .connected }
      if network.isConnected { return .connected }
      return network.isFailing ? .failing : .unknown
    }
  }

  private struct State {
    var targets: [String]
    var members: [Member] = []
    var choice: MemberChoice
    /// The addresses of names, as last heard.
    var resolved: [String: [String]] = [:]
    var resolvedAt = NIODeadline.uptimeNanoseconds(0)
    var isResolving = false
    var isClosed = false
    /// Members that are no more listed and end their calls.
    var leaving: [Int: any RPCChannel] = [:]
    var lastLeaving = 0
  }

  public let eventLoop: any EventLoop
  private let lease: LoopDriver.Lease
  private let configuration: Configuration
  private let hooks: Hooks
  private let state: Mutex<State>
  private let retryBudget = RetryBudget()
  private let timer: Mutex<RepeatedTask?>
  private let waiters: ReadyWaiters

  /// - Parameter targets: `host:port`, `[v6]:port` or `unix:/path`; may be empty at first.
  public convenience init(
    targets: [String], group: any EventLoopGroup, configuration: Configuration = Configuration(),
    logger: Logger
  ) {
    let hooks = Hooks(resolve: { await NameResolution.addresses(of: $0) }) {
      address, target, onConnected in
      var settings = configuration.channel
      settings.keepsConnected = configuration.balancing != .pickFirst
      // Addresses of a name speak for the name.
      if address != target { settings.authority = settings.authority ?? target }
      settings.onConnected = onConnected
      return RPCNetworkChannel(
        target: address, group: group, configuration: settings, logger: logger)
    }
    self.init(targets: targets, group: group, configuration: configuration, hooks: hooks)
  }

  init(
    targets: [String], group: any EventLoopGroup, configuration: Configuration, hooks: Hooks
  ) {
    precondition(configuration.membersMax >= 1, "a balanced channel has room for a member")
    let loop = group.next()
    self.eventLoop = loop
    self.lease = LoopDriver.lease(of: loop)
    self.configuration = configuration
    self.hooks = hooks
    self.state = Mutex(
      State(
        targets: targets,
        choice: MemberChoice(configuration.balancing, start: .random(in: 0...UInt64.max))))
    self.timer = Mutex(nil)
    self.waiters = ReadyWaiters(
      loop: loop, max: configuration.channel.waitingCallsMax)
    self.rebuild()
    self.resolve()
    let interval = configuration.resolveInterval.timeAmount
    let task = loop.scheduleRepeatedTask(initialDelay: interval, delay: interval) {
      [weak self] task in
      guard let self else { return task.cancel() }
      self.resolve()
    }
    self.timer.withLock { $0 = task }
  }

  deinit {
    self.timer.withLock { $0?.cancel() }
  }

  // MARK: Members

  /// Replaces the list of targets. Calls in flight on those that are gone go on for at most ``Configuration/drainTimeout``.
  public func update(targets: [String]) {
    self.state.withLock { $0.targets = targets }
    self.rebuild()
    self.resolve()
  }

  /// The addresses in use, in order.
  public var addresses: [String] { self.state.withLock { $0.members.map(\.address) } }

  /// Calls that wait for a member.
  var waitingCount: Int { self.waiters.count }

  /// Members with a connection.
  public var connectedCount: Int {
    self.state.withLock { state in state.members.count { $0.health == .connected } }
  }

  /// Makes the members what targets and names say: known ones stay as they are.
  private func rebuild() {
    let gone: [Int: any RPCChannel] = self.state.withLock { state in
      guard !state.isClosed else { return [:] }
      var known: [String: Member] = [:]
      for member in state.members { known[member.address] = member }
      var members: [Member] = []
      var listed: Set<String> = []
      for target in state.targets {
        for address in Self.addresses(of: target, state.resolved) {
          guard members.count < self.configuration.membersMax, listed.insert(address).inserted
          else { continue }
          members.append(known.removeValue(forKey: address) ?? self.member(address, target))
        }
      }
      let current =
        state.choice.current < state.members.count
        ? state.members[state.choice.current].address : nil
      state.members = members
      state.choice.moved(to: members.firstIndex { $0.address == current })
      var gone: [Int: any RPCChannel] = [:]
      for member in known.values {
        state.lastLeaving += 1
        gone[state.lastLeaving] = member.channel
      }
      state.leaving.merge(gone) { _, new in new }
      return gone
    }
    for (number, channel) in gone { self.drain(channel, number) }
    self.waiters.wakeAll()
  }

  /// A name with one address, or none yet, is left to its channel, which looks it up whenever it connects.
  private static func addresses(of target: String, _ resolved: [String: [String]]) -> [String] {
    guard let addresses = resolved[target], addresses.count > 1 else { return [target] }
    return addresses
  }

  private func member(_ address: String, _ target: String) -> Member {
    let channel = self.hooks.connect(address, target) { [waiters] in waiters.wakeAll() }
    let network = channel as? RPCNetworkChannel
    if self.configuration.balancing != .pickFirst { network?.prepare() }
    return Member(
      address: address, seed: MemberChoice.mix(MemberChoice.hash(address)), channel: channel,
      network: network)
  }

  /// Of a list that changes all the time, only so many members are left their time.
  private func drain(_ channel: any RPCChannel, _ number: Int) {
    let isTooMany = self.state.withLock { $0.leaving.count > self.configuration.membersMax }
    let deadline = isTooMany ? .zero : self.configuration.drainTimeout
    Task { [weak self] in
      await channel.close(deadline: deadline)
      self?.state.withLock { _ = $0.leaving.removeValue(forKey: number) }
    }
  }

  // MARK: Names

  /// One look-up at a time.
  private func resolve() {
    let begun: [String]? = self.state.withLock { state in
      guard !state.isResolving, !state.isClosed, !state.targets.isEmpty else { return nil }
      state.isResolving = true
      state.resolvedAt = .now()
      return state.targets
    }
    guard let targets = begun else { return }
    Task { [weak self, resolve = self.hooks.resolve] in
      var found: [String: [String]] = [:]
      for target in targets { found[target] = await resolve(target) }
      self?.resolved(found)
    }
  }

  private func resolved(_ found: [String: [String]]) {
    let isStale = self.state.withLock { state in
      state.isResolving = false
      for (target, addresses) in found where !addresses.isEmpty {
        state.resolved[target] = addresses
      }
      let targets = Set(state.targets)
      state.resolved = state.resolved.filter { targets.contains($0.key) }
      return !targets.isSubset(of: found.keys)
    }
    self.rebuild()
    // The list has changed meanwhile.
    if isStale { self.resolve() }
  }

  // MARK: Calls

  public func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let options = options.inheriting()
    if !options.isAttempt, let request, request.byteCount <= RPCLimits.retriedRequestBytesMax {
      // Its attempts come back here and pick: picking now would skip every other member.
      let moves = self.state.withLock { $0.members.count }
      return RetryingCall.start(
        method, options, options.retry ?? .never, request, on: self, driver: self.lease.driver,
        budget: self.retryBudget, moves: moves, waiters: self.waiters, make: make)
    }
    let (picked, failing) = self.pick(options.affinity)
    if failing { self.resolveSoon() }
    if let picked {
      return picked.channel.start(method, options, request: request, make: make)
    }
    var status = RPCStatus(.unavailable, "the channel is closed")
    if !self.state.withLock({ $0.isClosed }) {
      status.message = "there is no server to call"
      status.isUnsent = true
    }
    return FailedCall.start(status, on: self.lease.driver, make: make)
  }

  private func pick(_ affinity: UInt64?) -> (Member?, failing: Bool) {
    self.state.withLock { state in
      let members = state.members
      var failing = false
      let place =
        state.isClosed
        ? nil
        : state.choice.pick(members.count, affinity: affinity, seed: { members[$0].seed }) {
          let health = members[$0].health
          if health == .failing { failing = true }
          return health
        }
      return (place.map { members[$0] }, failing)
    }
  }

  private func resolveSoon() {
    let isDue = self.state.withLock { state in
      !state.isResolving
        && .now() - state.resolvedAt >= self.configuration.resolveIntervalMin.timeAmount
    }
    if isDue { self.resolve() }
  }

  public func close(deadline: Duration) async {
    self.timer.withLock { $0?.cancel() }
    let channels = self.state.withLock { state in
      state.isClosed = true
      defer { state.members = [] }
      return state.members.map(\.channel) + state.leaving.values
    }
    // Those that wait hear that the channel is closed.
    self.waiters.wakeAll()
    await withTaskGroup(of: Void.self) { group in
      for channel in channels { group.addTask { await channel.close(deadline: deadline) } }
    }
  }
}

/// Calls of a balanced channel that wait until a server can be reached. All begin again when a member has connected or the list of members
/// has changed; meanwhile one of them asks from time to time, for members that connect only when they are used.
final class ReadyWaiters: Sendable {
  private struct State {
    var calls: [RetryingCall] = []
    /// Calls that have waited and are not over, those among them that are just asking.
    var accepted = 0
    var isProbing = false
  }

  private static let probe: ClosedRange<Int64> = 80_000_000...120_000_000

  private let loop: any EventLoop
  private let max: Int
  private let state = Mutex(State())

  init(loop: any EventLoop, max: Int) {
    self.loop = loop
    self.max = max
  }

  var count: Int { self.state.withLock { $0.calls.count } }

  /// False: too many wait already.
  ///
  /// - Parameter isNew: it has not waited before. Each of those says ``left()`` at its end.
  func add(_ call: RetryingCall, isNew: Bool) -> Bool {
    let (isIn, probes): (Bool, Bool) = self.state.withLock { state in
      if isNew {
        guard state.accepted < self.max else { return (false, false) }
        state.accepted += 1
      }
      state.calls.append(call)
      defer { state.isProbing = true }
      return (true, !state.isProbing)
    }
    if probes { self.scheduleProbe() }
    return isIn
  }

  /// A call that waited is over.
  func left() {
    self.state.withLock { $0.accepted -= 1 }
  }

  /// It does not wait any more.
  func remove(_ call: RetryingCall) {
    self.state.withLock { $0.calls.removeAll { $0 === call } }
  }

  func wakeAll() {
    let calls = self.state.withLock { state in
      defer { state.calls = [] }
      return state.calls
    }
    for call in calls { call.wake() }
  }

  private func scheduleProbe() {
    self.loop.scheduleTask(in: .nanoseconds(.random(in: Self.probe))) { self.probeOne() }
  }

  private func probeOne() {
    let first: RetryingCall? = self.state.withLock { state in
      guard !state.calls.isEmpty else {
        state.isProbing = false
        return nil
      }
      return state.calls.removeFirst()
    }
    guard let first else { return }
    first.wake()
    self.scheduleProbe()
  }
}

/// A call that cannot begin: its handler hears so in a later turn.
final class FailedCall: CallCore, @unchecked Sendable {
  private var handler: (any RPCClientHandler)?

  static func start(
    _ status: RPCStatus, on driver: LoopDriver, make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let core = FailedCall(driver: driver)
    let call = RPCClientCall(core: core)
    core.handler = make(call)
    driver.loop.execute { core.handler.take()?.ended(status, trailers: status.trailers) }
    return call
  }

  override func enqueue(_ message: RPCMessage) -> Bool { false }
  override func halfClose() {}
  override func abort(_ status: RPCStatus) {}
  override func consume(_ bytes: Int) {}
  override func callWritableSoon() {}
  override var queuedBytes: Int { 0 }
}
