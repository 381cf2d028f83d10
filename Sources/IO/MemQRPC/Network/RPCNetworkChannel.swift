// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQModel
public import NIOCore
import Synchronization

/// Calls to a server over the network.
///
/// Connects when first used, and again after a loss, with jittered back-off. While there is no connection: calls
/// wait for an attempt in progress; after a failed one they fail with `UNAVAILABLE` until the next, unless they
/// `waitForReady`. A call the server provably never processed is retried once on its own.
public final class RPCNetworkChannel: RPCChannel {
  public struct Configuration: Sendable {
    /// Calls are spread over so many connections, each on one loop of the group.
    public var connections = 1
    public var connectTimeout: Duration = .seconds(5)
    /// First wait after a failed attempt; each further one is 1.6 times as long, ± 20 %.
    public var backoffInitial: Duration = .milliseconds(100)
    public var backoffMax: Duration = .seconds(5)
    /// Calls that may wait for a connection; more fail at once.
    public var waitingCallsMax = 10_000
    /// From connecting to the server's first word of HTTP/2.
    public var prefaceTimeout: Duration = .seconds(20)
    /// A connection without a call for so long is closed; the next call makes another. Nil: never.
    public var connectionIdleMax: Duration? = .seconds(1800)
    public var connection = RPCConnectionSettings()
    /// `host:port` that requests name as `:authority`, and whose host a certificate is checked for; nil: the target.
    public var authority: String?
    /// Connects before it is used, and again after each loss.
    var keepsConnected = false
    /// Called on a loop whenever a connection stands.
    var onConnected: (@Sendable () -> Void)?
    /// Nil: no TLS.
    public var tls: RPCTLS?

    public init() {}
  }

  public let target: String
  let slots: [ClientSlot]
  private let nextSlot = Atomic<Int>(0)
  private let wasClosed = Atomic<Bool>(false)
  private let retryBudget = RetryBudget()

  /// - Parameter target: `host:port`, `[v6]:port` or `unix:/path`. A malformed one fails every call with `INVALID_ARGUMENT`.
  public init(
    target: String, group: any EventLoopGroup, configuration: Configuration = Configuration(),
    logger: Logger
  ) {
    precondition(configuration.connections >= 1, "a channel has at least one connection")
    self.target = target
    let profile = ConnectionProfile(
      role: .client(
        authority: configuration.tls?.serverName ?? configuration.authority
          ?? (target.hasPrefix("unix:") ? "localhost" : target)),
      settings: configuration.connection, maxMessageBytes: RPCLimits.messageBytesMax,
      maxConcurrentStreams: 0, prefaceTimeout: configuration.prefaceTimeout, logger: logger,
      idleMax: configuration.connectionIdleMax, tls: configuration.tls, target: target)
    self.slots = (0..<configuration.connections).map { _ in
      ClientSlot(
        target: target, lease: LoopDriver.lease(of: group.next()), profile: profile,
        configuration: configuration)
    }
  }

  /// What is wrong with a target; nil: it is well formed.
  public static func problem(withTarget target: String) -> String? {
    do throws(MemQError) {
      _ = try RPCAddress(target)
      return nil
    } catch {
      return "\(error.message): \(target)"
    }
  }

  /// Calls in flight go on; each connection closes behind its last one.
  deinit {
    guard !self.wasClosed.load(ordering: .relaxed) else { return }
    for slot in self.slots {
      slot.driver.loop.execute { slot.close(until: .distantFuture) }
    }
  }

  public var eventLoop: any EventLoop { self.slots[0].driver.loop }

  public func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let options = options.inheriting()
    let metadataBytes = options.metadata.isEmpty ? 0 : options.metadata.listBytes
    if metadataBytes > RPCLimits.requestMetadataBytesMax {
      let status = RPCStatus.overLimit(
        "request metadata", limit: RPCLimits.requestMetadataBytesMax, actual: metadataBytes)
      return FailedCall.start(status, on: self.slots[0].driver, make: make)
    }
    let slot = self.pickSlot()
    if let policy = options.retry, !options.isAttempt, RetryingCall.covers(request, policy) {
      return RetryingCall.start(
        method, options, policy, request!, on: self, driver: slot.driver, budget: self.retryBudget,
        make: make)
    }
    let stream = NetStream(
      driver: slot.driver, windowBytes: slot.profile.settings.windowBytes,
      maxMessageBytes: options.maxMessageBytes, compression: options.compression)
    let call = RPCClientCall(core: stream)
    stream.handler = .client(make(call))
    stream.deadline = options.timeout.map { .after($0) }
    stream.start = ClientStart(
      slot: slot, path: method.path, metadata: options.metadata,
      waitForReady: options.waitForReady, request: request,
      previousAttempts: options.previousAttempts)
    stream.onLoop {
      stream.driver.addDeadline(stream)
      if let request {
        _ = stream.enqueue(request)
        stream.halfClose()
      }
      slot.begin(stream)
    }
    return call
  }

  /// One of this thread's loop when there is, else in turn.
  private func pickSlot() -> ClientSlot {
    if self.slots.count == 1 { return self.slots[0] }
    if let near = self.slots.first(where: { $0.driver.loop.inEventLoop }) { return near }
    let turn = self.nextSlot.add(1, ordering: .relaxed).newValue
    return self.slots[Int(truncatingIfNeeded: UInt(bitPattern: turn) % UInt(self.slots.count))]
  }

  /// True when a connection stands. A hint: it may be gone the next moment.
  public var isConnected: Bool {
    self.slots.contains { $0.isConnected }
  }

  /// The last attempts to connect have failed, and none has succeeded since.
  var isFailing: Bool {
    self.slots.allSatisfy { $0.isFailing }
  }

  /// Connects now.
  func prepare() {
    for slot in self.slots {
      slot.driver.loop.execute { slot.prepare() }
    }
  }

  public func close(deadline: Duration) async {
    self.wasClosed.store(true, ordering: .relaxed)
    let until = NIODeadline.after(deadline)
    for slot in self.slots {
      let closed = slot.driver.loop.makePromise(of: Void.self)
      slot.driver.loop.execute { slot.close(until: until, closed) }
      try? await closed.futureResult.get()
    }
  }
}
