// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import NIOCore
import Synchronization

/// Calls into a router of this process: the same semantics as over the network, without a wire. Message bytes
/// are passed by reference.
public final class RPCInProcessChannel: RPCChannel {
  private struct State {
    var isClosed = false
    var drained: [EventLoopPromise<Void>] = []
    var calls: [ObjectIdentifier: LocalClientSide] = [:]
  }

  public let eventLoop: any EventLoop
  /// One of each loop; the first is `eventLoop`'s.
  private let leases: [LoopDriver.Lease]
  private let routes: [String: RPCRouter.Route]
  private let maxMessageBytes: Int
  private let environment: ServerEnvironment
  private let state = Mutex(State())
  private let retryBudget = RetryBudget()

  /// - Parameter maxMessageBytes: largest message the router's side receives or sends.
  public init(
    router: RPCRouter, group: any EventLoopGroup,
    maxMessageBytes: Int = RPCLimits.messageBytesMax,
    logger: Logger = Logger(label: "memq.rpc.in-process")
  ) {
    self.routes = router.prepared()
    let eventLoop = group.next()
    self.eventLoop = eventLoop
    let others = group.makeIterator().filter { $0 !== eventLoop }
    self.leases = ([eventLoop] + others).map { LoopDriver.lease(of: $0) }
    self.maxMessageBytes = maxMessageBytes
    self.environment = ServerEnvironment(logger: logger, observer: nil)
  }

  public func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let options = options.inheriting()
    let near = self.leases.first { $0.driver.loop.inEventLoop }
    let driver = (near ?? self.leases[0]).driver
    if let policy = options.retry, RetryingCall.covers(request, policy) {
      return RetryingCall.start(
        method, options, policy, request!, on: self, driver: driver, budget: self.retryBudget,
        make: make)
    }
    let client = LocalClientSide(
      driver: driver, channel: self, maxMessageBytes: options.maxMessageBytes)
    let call = RPCClientCall(core: client)
    client.handler = make(call)
    let refusal = self.admit(client)
    client.onLoop { self.begin(client, method, options, request, refusal) }
    return call
  }

  /// On the loop.
  private func begin(
    _ client: LocalClientSide, _ method: RPCMethod, _ options: RPCCallOptions,
    _ request: RPCMessage?, _ refusal: RPCStatus?
  ) {
    guard refusal == nil, let route = self.routes[method.path] else {
      return client.post(.ended(refusal ?? RPCRouter.unknownMethod(method.path)))
    }
    let server = LocalServerSide(driver: client.driver, maxMessageBytes: self.maxMessageBytes)
    client.deadline = options.timeout.map { .after($0) }
    var context = RPCContext(
      method: route.method, metadata: options.metadata, deadline: client.deadline,
      peer: "in-process", peerIdentity: nil, core: server,
      previousAttempts: options.previousAttempts)
    if let hooks = route.hooks {
      let startedAt = NIODeadline.now()
      let refusal = hooks.before(&context, self.environment)
      let hooked = HookedCall(hooks: hooks, context: context, startedAt: startedAt)
      if let refusal {
        server.end = .refused
        hooked.ended(refusal.code, server)
        return client.post(.ended(refusal))
      }
      server.hooked = hooked
    }
    client.peer = server
    server.peer = client
    client.driver.addDeadline(client)
    server.handler = route.make(
      RPCServerCall(core: server, context: context, environment: self.environment))
    if let request {
      _ = client.enqueue(request)
      client.halfClose()
    }
  }

  // MARK: Draining

  private func admit(_ client: LocalClientSide) -> RPCStatus? {
    self.state.withLock { state in
      state.calls[ObjectIdentifier(client)] = client
      return state.isClosed ? RPCStatus(.unavailable, "the channel is closed") : nil
    }
  }

  /// `LocalClientSide` calls it once its handler was told.
  func ended(_ id: ObjectIdentifier) {
    let drained: [EventLoopPromise<Void>] = self.state.withLock { state in
      state.calls[id] = nil
      guard state.isClosed && state.calls.isEmpty else { return [] }
      defer { state.drained = [] }
      return state.drained
    }
    for promise in drained { promise.succeed() }
  }

  public func close(deadline: Duration) async {
    let promise = self.eventLoop.makePromise(of: Void.self)
    let isIdle = self.state.withLock { state in
      state.isClosed = true
      if !state.calls.isEmpty { state.drained.append(promise) }
      return state.calls.isEmpty
    }
    if isIdle { promise.succeed() }
    let timer = self.eventLoop.scheduleTask(deadline: .after(deadline)) {
      for call in self.state.withLock({ Array($0.calls.values) }) {
        call.onLoop { call.abort(RPCStatus(.unavailable, "the channel was closed")) }
      }
    }
    try? await promise.futureResult.get()
    timer.cancel()
  }
}
