// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import Logging
public import MemQModel
public import NIOCore
import NIOPosix
import NIOSSL
import Synchronization

/// Serves a router's methods over the network.
public final class RPCServer: Sendable {
  public struct Configuration: Sendable {
    /// Largest message, received or sent.
    public var maxMessageBytes = RPCLimits.messageBytesMax
    /// Calls of one connection at once; more are refused by HTTP/2 and retried by clients.
    public var maxConcurrentStreams = 1000
    /// Connections at once; more are closed as they come.
    public var connectionsMax = 10_000
    /// From accepting a connection to its HTTP/2 preface.
    public var prefaceTimeout: Duration = .seconds(10)
    public var connection = RPCConnectionSettings()
    /// How long connections are borne, and what on them.
    public var limits = RPCConnectionLimits()
    /// Received bytes that handlers have not consumed, over all connections. Above it every connection that has any stops reading
    /// data until some of its own are; the others, control among them, go on. 1 GiB: 128 stalled calls with full windows.
    public var unconsumedBytesMax = 1 << 30
    /// For metrics.
    public var observer: (any RPCServerObserver)?
    /// Nil: no TLS.
    public var tls: RPCTLS?
    /// Mode of the file of a unix socket.
    public var socketFileMode: UInt16 = 0o600
    /// TCP: one socket that listens per loop of the group, on the same port (SO_REUSEPORT), so that the kernel spreads connections and no
    /// loop accepts for the others. For servers of very many short connections: the kernel spreads by hash, which for a few long ones
    /// is less even than taking turns.
    public var listensPerLoop = false

    /// Flow-control window of a stream; see ``RPCConnectionSettings/windowBytes``.
    public var windowBytes: Int {
      get { self.connection.windowBytes }
      set { self.connection.windowBytes = newValue }
    }

    /// See ``RPCConnectionSettings/headerListBytesMax``.
    public var headerListBytesMax: Int {
      get { self.connection.headerListBytesMax }
      set { self.connection.headerListBytesMax = newValue }
    }

    public init() {
      // Clients that are silently gone leave their connections behind.
      self.connection.keepaliveIdleInterval = .seconds(7200)
    }
  }

  /// What listens; never empty.
  private let channels: [any Channel]
  private let socketFile: UnixSocketFile?
  private let connections: ConnectionSet

  private init(
    channels: [any Channel], socketFile: UnixSocketFile? = nil, connections: ConnectionSet
  ) {
    self.channels = channels
    self.socketFile = socketFile
    self.connections = connections
  }

  /// Listens on `address`: `host:port` (port 0 = any free one), `[v6]:port`, or `unix:/path`. Connections are spread over
  /// the loops of `group`. The file of a socket that a dead process left is replaced; it goes with `shutdown`.
  ///
  /// - Throws: `.invalidArgument` for a malformed address, `.addressInUse`, `.unavailable` when the system refuses otherwise.
  public static func start(
    router: RPCRouter, on address: String, group: any EventLoopGroup,
    configuration: Configuration = Configuration(), logger: Logger
  ) async throws(MemQError) -> RPCServer {
    let target = try RPCAddress(address)
    let environment = ServerEnvironment(logger: logger, observer: configuration.observer)
    let profile = ConnectionProfile(
      role: .server(RouteTable(router), environment), settings: configuration.connection,
      maxMessageBytes: configuration.maxMessageBytes,
      maxConcurrentStreams: configuration.maxConcurrentStreams,
      prefaceTimeout: configuration.prefaceTimeout, logger: logger,
      budget: ReceiveBudget(bytesMax: configuration.unconsumedBytesMax),
      limits: configuration.limits, idleMax: configuration.limits.idleMax, tls: configuration.tls)
    let connections = ConnectionSet(
      max: configuration.connectionsMax, observer: configuration.observer, logger: logger)
    let admit: Admit = { channel in try connections.admit(channel, profile) }
    switch target {
    case .tcp(let host, let port) where configuration.listensPerLoop:
      return try await Self.listenPerLoop(
        host, port, group, isSecure: profile.tls != nil, connections, admit)
    case .tcp(let host, let port):
      let bootstrap = Self.bootstrap(group, isSecure: profile.tls != nil, isTCP: true, admit)
      do {
        let channel = try await bootstrap.bind(host: host, port: port).get()
        return RPCServer(channels: [channel], connections: connections)
      } catch {
        throw Self.bindError(error, address)
      }
    case .unix(let path):
      let (file, socket) = try UnixSocketFile.listen(on: path, mode: configuration.socketFileMode)
      let bootstrap = Self.bootstrap(group, isSecure: profile.tls != nil, isTCP: false, admit)
      do {
        let channel = try await bootstrap.withBoundSocket(socket).get()
        return RPCServer(channels: [channel], socketFile: file, connections: connections)
      } catch {
        file.remove()
        throw Self.bindError(error, address)
      }
    }
  }

  private typealias Admit = @Sendable (any Channel) throws -> Void

  private static func bootstrap(
    _ group: any EventLoopGroup, children: (any EventLoopGroup)? = nil, isSecure: Bool, isTCP: Bool,
    _ admit: @escaping Admit
  ) -> ServerBootstrap {
    let bootstrap = ServerBootstrap(group: group, childGroup: children ?? group)
      .serverChannelOption(.backlog, value: ListeningSockets.backlog)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture { try admit(channel) }
      }
      .tuned(isSecure: isSecure)
    return isTCP
      ? bootstrap.childChannelOption(.tcpOption(.tcp_nodelay), value: 1) : bootstrap
  }

  /// The first socket finds the port, and whether it is free; the others join it.
  private static func listenPerLoop(
    _ host: String, _ port: Int, _ group: any EventLoopGroup, isSecure: Bool,
    _ connections: ConnectionSet, _ admit: @escaping Admit
  ) async throws(MemQError) -> RPCServer {
    let (socket, wanted) = try ListeningSockets.shareable(host: host, port: port)
    var channels: [any Channel] = []
    do {
      for loop in group.makeIterator() {
        let bootstrap = Self.bootstrap(
          loop, children: loop, isSecure: isSecure, isTCP: true, admit)
        if let first = channels.first, let address = first.localAddress {
          channels.append(
            try await bootstrap.serverChannelOption(
              .socketOption(.init(rawValue: SO_REUSEPORT)), value: 1
            )
            .bind(to: address).get())
        } else {
          channels.append(try await bootstrap.withBoundSocket(socket).get())
        }
      }
      return RPCServer(channels: channels, connections: connections)
    } catch {
      for channel in channels { try? await channel.close().get() }
      throw Self.bindError(error, wanted.rpcDescription)
    }
  }

  private static func bindError(_ error: any Error, _ address: String) -> MemQError {
    guard let error = error as? IOError else {
      return MemQError(.unavailable, "cannot listen: \(error)", subject: address)
    }
    return ListeningSockets.refused(address, error.errnoCode)
  }

  /// `127.0.0.1:7460`, `[::1]:7460` or `unix:/path`.
  public var localAddress: String { self.channels[0].localAddress?.rpcDescription ?? "" }

  /// 0 for a unix socket.
  public var localPort: Int { self.channels[0].localAddress?.port ?? 0 }

  public var connectionCount: Int { self.connections.count }

  /// Stops listening, lets calls in flight end, and closes their connections; what still runs at `deadline` is cut off.
  public func shutdown(deadline: Duration) async {
    // First the file: while our socket lives, no other file can have its number.
    self.socketFile?.remove()
    for channel in self.channels { try? await channel.close().get() }
    await self.connections.drain(until: .after(deadline), on: self.channels[0].eventLoop)
  }
}

/// The open connections of a server.
final class ConnectionSet: Sendable {
  private struct State {
    var open: [ObjectIdentifier: HTTP2Connection] = [:]
    var isDraining: NIODeadline?
    var drained: [EventLoopPromise<Void>] = []
    var refused = 0
  }

  private let max: Int
  private let observer: (any RPCServerObserver)?
  private let logger: Logger
  private let state = Mutex(State())

  init(max: Int, observer: (any RPCServerObserver)?, logger: Logger) {
    self.max = max
    self.observer = observer
    self.logger = logger
  }

  var count: Int { self.state.withLock { $0.open.count } }

  /// Adds a connection's handler to its channel. Throws, and so closes the channel, when there are too many.
  func admit(_ channel: any Channel, _ profile: ConnectionProfile) throws {
    let connection = HTTP2Connection(
      profile: profile, lease: LoopDriver.lease(of: channel.eventLoop))
    let (count, refused) = self.state.withLock { state -> (Int?, Int) in
      guard state.isDraining == nil, state.open.count < self.max else {
        state.refused += 1
        return (nil, state.refused)
      }
      state.open[ObjectIdentifier(connection)] = connection
      return (state.open.count, 0)
    }
    guard let count else {
      // Once per thousand: a flood of connections must not become a flood of lines.
      if refused % 1000 == 1 {
        self.logger.warning(
          "Refused a connection",
          metadata: ["connections.max": "\(self.max)", "refused": "\(refused)"])
      }
      throw ChannelError.inappropriateOperationForState
    }
    self.observer?.connectionsChanged(to: count)
    connection.onClose = { [weak self] in self?.removed($0) }
    do {
      let pipeline = channel.pipeline.syncOperations
      if let tls = profile.tls {
        try pipeline.addHandler(PlaintextGuard(logger: profile.logger))
        try pipeline.addHandler(NIOSSLServerHandler(context: tls.context))
      }
      try pipeline.addHandler(connection)
    } catch {
      self.removed(connection)
      throw error
    }
  }

  private func removed(_ connection: HTTP2Connection) {
    let (count, drained) = self.state.withLock { state -> (Int, [EventLoopPromise<Void>]) in
      state.open[ObjectIdentifier(connection)] = nil
      guard state.isDraining != nil, state.open.isEmpty else { return (state.open.count, []) }
      defer { state.drained = [] }
      return (0, state.drained)
    }
    self.observer?.connectionsChanged(to: count)
    for promise in drained { promise.succeed() }
  }

  func drain(until deadline: NIODeadline, on loop: any EventLoop) async {
    let promise = loop.makePromise(of: Void.self)
    let open = self.state.withLock { state in
      state.isDraining = deadline
      if !state.open.isEmpty { state.drained.append(promise) }
      return Array(state.open.values)
    }
    if open.isEmpty { promise.succeed() }
    for connection in open {
      connection.driver.loop.execute { connection.drain(deadline: deadline) }
    }
    try? await promise.futureResult.get()
  }
}

extension ServerBootstrap {
  /// Watermarks and receive buffers that bulk transfer wants; an idle connection keeps 2 KiB.
  fileprivate func tuned(isSecure: Bool) -> ServerBootstrap {
    self.childChannelOption(.recvAllocator, value: SocketTuning.receive(isSecure: isSecure))
      .childChannelOption(.writeBufferWaterMark, value: SocketTuning.writeMarks)
      .childChannelOption(.allowRemoteHalfClosure, value: false)
  }
}

enum SocketTuning {
  /// A TLS handler keeps a buffer twice as large as the largest read: with 64 KiB its cost per read is gone beside that of decrypting.
  static func receive(isSecure: Bool) -> any RecvByteBufferAllocator {
    AdaptiveRecvByteBufferAllocator(
      minimum: 2048, initial: 2048, maximum: isSecure ? 64 << 10 : 256 << 10)
  }

  static var writeMarks: ChannelOptions.Types.WriteBufferWaterMark {
    .init(low: 1 << 20, high: 4 << 20)
  }
}
