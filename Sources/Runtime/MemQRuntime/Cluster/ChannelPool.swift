// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQRPC
public import NIOCore
import Synchronization

/// Kinds of traffic to one address. Each has its own connections, so that a stalled file body never holds up an append.
public enum Lane: Int, Sendable, CaseIterable {
  /// Small calls: metadata, status.
  case control
  /// Record batches on their way in: append, produce.
  case append
  /// Record batches on their way out: read, fetch. Apart from appends, as readers that are slow together may fill a connection.
  case read
  /// File bodies.
  case bodies
  /// Record batches between storage nodes, and how far each has them.
  case replicas
}

/// Address → channel, cached.
///
/// Addresses are `host:port`, `unix:/path`, or `inprocess:NAME` for channels that `register` gave. All calls may
/// come from any thread.
public final class ChannelPool: Sendable {
  private struct Key: Hashable {
    let address: String
    let lane: Lane
  }

  private struct State {
    var registered: [String: any RPCChannel] = [:]
    var network: [Key: any RPCChannel] = [:]
    /// Keys of `network`, oldest first.
    var order: [Key] = []
    var isClosed = false
  }

  /// Network channels kept. Beyond, the oldest one leaves the cache; calls of those who hold it go on.
  private static let channelsMax = 1_024
  /// Control messages are small: 256 KiB in flight per call.
  private static let controlWindowBytes = 256 << 10

  private let group: any EventLoopGroup
  private let logger: Logger
  private let tls: RPCTLS?
  private let metrics: RPCMetrics?
  private let state = Mutex(State())

  /// - Parameters:
  ///   - tls: for all network channels; nil: they go without.
  ///   - metrics: counts the calls of network channels.
  public init(
    group: any EventLoopGroup, logger: Logger, tls: RPCTLS? = nil, metrics: RPCMetrics? = nil
  ) {
    self.metrics = metrics
    self.group = group
    self.tls = tls
    self.logger = logger
  }

  /// Makes `channel` what this address leads to, on every lane, for channels handed out before, too.
  public func register(_ address: String, _ channel: any RPCChannel) {
    self.state.withLock { $0.registered[address] = channel }
  }

  /// The channel to an address. Never fails: calls over it do, with `UNAVAILABLE`, when nobody is there.
  public func channel(_ address: String, lane: Lane = .control) -> any RPCChannel {
    if address.hasPrefix("inprocess:") {
      return LateChannel(address: address, pool: self, group: self.group, logger: self.logger)
    }
    return self.state.withLock { state in
      if let registered = state.registered[address] { return registered }
      let key = Key(address: address, lane: lane)
      if let known = state.network[key] { return known }
      let network = RPCNetworkChannel(
        target: address, group: self.group, configuration: self.configuration(lane),
        logger: self.logger)
      let made: any RPCChannel =
        self.metrics.map { RPCInterceptedChannel(network, [$0.clientInterceptor]) } ?? network
      state.network[key] = made
      state.order.append(key)
      if state.order.count > Self.channelsMax { state.network[state.order.removeFirst()] = nil }
      return made
    }
  }

  private func configuration(_ lane: Lane) -> RPCNetworkChannel.Configuration {
    var configuration = RPCNetworkChannel.Configuration()
    configuration.tls = self.tls
    switch lane {
    case .control:
      configuration.connection.windowBytes = Self.controlWindowBytes
      // Metadata gives a node some seconds to come back.
      configuration.backoffMax = .seconds(1)
    case .replicas:
      // A leader that restarted is followed again within a second.
      configuration.backoffMax = .seconds(1)
    case .append, .read, .bodies: break
    }
    return configuration
  }

  /// Whether the machine at an address says that nobody listens there any more. Only its own plain no counts: no answer within
  /// `timeout`, an unknown name or an address of this process is none.
  public func refusesConnections(_ address: String, timeout: Duration) async -> Bool {
    guard !address.hasPrefix("inprocess:"), self.registered(address) == nil else { return false }
    return await RPCNetworkChannel.isRefused(address, group: self.group, timeout: timeout)
  }

  /// Ends all calls over a lane to an address that has gone silent; later ones connect anew.
  func drop(_ address: String, lane: Lane) {
    let channel = self.state.withLock { state in
      let key = Key(address: address, lane: lane)
      state.order.removeAll { $0 == key }
      return state.network.removeValue(forKey: key)
    }
    guard let channel else { return }
    Task { await channel.close(deadline: .zero) }
  }

  /// Nil while nobody has registered it.
  func registered(_ address: String) -> (any RPCChannel)? {
    self.state.withLock { $0.isClosed ? nil : $0.registered[address] }
  }

  /// Lets calls in flight end for at most `deadline`, then ends them. Registered channels belong to whoever
  /// registered them and are only forgotten.
  public func closeAll(deadline: Duration) async {
    let channels = self.state.withLock { state in
      state.isClosed = true
      state.registered = [:]
      defer {
        state.network = [:]
        state.order = []
      }
      return state.order.compactMap { state.network[$0] }
    }
    await withTaskGroup { tasks in
      for channel in channels { tasks.addTask { await channel.close(deadline: deadline) } }
    }
  }
}

/// An in-process address, looked up call by call: services of one process may start in any order.
private struct LateChannel: RPCChannel {
  let address: String
  let pool: ChannelPool
  let group: any EventLoopGroup
  let logger: Logger

  var eventLoop: any EventLoop {
    self.pool.registered(self.address)?.eventLoop ?? self.group.any()
  }

  func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let channel = self.pool.registered(self.address) ?? self.nobody(method)
    return channel.start(method, options, request: request, make: make)
  }

  /// A channel whose calls of this method end with `UNAVAILABLE`.
  private func nobody(_ method: RPCMethod) -> any RPCChannel {
    var router = RPCRouter()
    let status = RPCStatus(.unavailable, "nobody serves \(self.address) in this process")
    router.callback(method) { call in
      call.finish(status)
      return Refusal()
    }
    return RPCInProcessChannel(router: router, group: self.group, logger: self.logger)
  }

  func close(deadline: Duration) async {}
}

private final class Refusal: RPCServerHandler {
  func received(_ message: RPCMessage) {}
  func halfClosed() {}
  func writable() {}
  func ended(_ status: RPCStatus) {}
}
