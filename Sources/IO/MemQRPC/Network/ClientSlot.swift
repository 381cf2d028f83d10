// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQModel
import NIOCore
import NIOPosix
import NIOSSL
import Synchronization

/// One connection of a network channel, and its successors. Loop-bound, but for `isConnected`.
final class ClientSlot: @unchecked Sendable {
  private enum State {
    case idle
    case connecting
    case ready(HTTP2Connection)
    /// The last attempt failed; the next may start when the wait is over.
    case waiting(RPCStatus)
    case closed
  }

  private let lease: LoopDriver.Lease
  let profile: ConnectionProfile
  private let target: String
  private let configuration: RPCNetworkChannel.Configuration
  private let connectedFlag = Atomic<Bool>(false)
  private let failingFlag = Atomic<Bool>(false)

  private var state = State.idle
  /// Calls not yet attached, in order of arrival.
  private var pending: [NetStream] = []
  private var failedAttempts = 0
  /// When the server's settings came, and how many connections in a row ended soon after that.
  private var settledAt: NIODeadline?
  private var shortLives = 0
  /// Doubled whenever a server says that we ask too often whether it lives.
  private(set) var keepaliveFactor = 1
  /// Connections that still end their calls: the ready one, and those that got a GOAWAY.
  private var connections: [ObjectIdentifier: HTTP2Connection] = [:]
  private var closeDeadline: NIODeadline?
  private var closed: [EventLoopPromise<Void>] = []

  init(
    target: String, lease: LoopDriver.Lease, profile: ConnectionProfile,
    configuration: RPCNetworkChannel.Configuration
  ) {
    self.target = target
    self.lease = lease
    self.profile = profile
    self.configuration = configuration
  }

  var driver: LoopDriver { self.lease.driver }

  var isConnected: Bool { self.connectedFlag.load(ordering: .relaxed) }

  /// The last attempt to connect failed.
  var isFailing: Bool { self.failingFlag.load(ordering: .relaxed) }

  // MARK: Calls

  /// Sends the call on its way, or lets it wait, or fails it.
  func begin(_ stream: NetStream) {
    guard !stream.isOver, let start = stream.start else { return }
    if case .ready(let connection) = self.state, !connection.acceptsCalls { self.state = .idle }
    switch self.state {
    case .ready(let connection):
      if !connection.attach(stream, start) {
        // Stream ids are used up: 2^30 calls. A new connection has new ones.
        self.state = .idle
        connection.drain(deadline: .distantFuture)
        self.begin(stream)
      }
    case .idle:
      self.wait(stream)
      self.connect()
    case .connecting: self.wait(stream)
    case .waiting(let status):
      if start.waitForReady { self.wait(stream) } else { stream.end(with: status) }
    case .closed: stream.end(with: Self.isClosed)
    }
  }

  private static let isClosed: RPCStatus = {
    var status = RPCStatus(.unavailable, "the channel is closed")
    status.isUnsent = true
    return status
  }()

  private func wait(_ stream: NetStream) {
    guard self.pending.count < self.configuration.waitingCallsMax else {
      return stream.end(
        with: RPCStatus(
          .resourceExhausted,
          "\(self.pending.count) calls wait for a connection to \(self.target) already"))
    }
    self.pending.append(stream)
  }

  /// A call is over; it may be one that waits.
  func ended(_ stream: NetStream) {
    guard stream.connection == nil, !self.pending.isEmpty else { return }
    self.pending.removeAll { $0 === stream }
    self.finishClosing()
  }

  // MARK: Connecting

  /// Connects, if nobody has begun to.
  func prepare() {
    if case .idle = self.state { self.connect() }
  }

  /// After a loss. Not at once: a server may close each connection as it comes.
  private func reconnect() {
    guard self.configuration.keepsConnected else { return }
    // A server that greets each connection and ends it soon gets fewer and fewer; calls still connect when they come.
    let stood = self.settledAt.map { NIODeadline.now() - $0 } ?? .zero
    let isShort = stood < self.configuration.backoffMax.timeAmount
    self.shortLives = isShort ? self.shortLives + 1 : 0
    let wait = self.backoff(after: max(self.failedAttempts, self.shortLives))
    self.driver.loop.scheduleTask(in: wait) { self.prepare() }
  }

  private func connect() {
    self.state = .connecting
    let address: RPCAddress
    do {
      address = try RPCAddress(self.target)
    } catch {
      return self.failed(RPCStatus(.invalidArgument, "\(error)"))
    }
    let bootstrap = ClientBootstrap(group: self.driver.loop)
      .connectTimeout(self.configuration.connectTimeout.timeAmount)
      .channelOption(
        .recvAllocator, value: SocketTuning.receive(isSecure: self.profile.tls != nil)
      )
      .channelOption(.writeBufferWaterMark, value: SocketTuning.writeMarks)
    let attempt: EventLoopFuture<any Channel>
    switch address {
    case .tcp(let host, let port):
      attempt = bootstrap.channelOption(.tcpOption(.tcp_nodelay), value: 1)
        .connect(host: host, port: port)
    case .unix(let path): attempt = bootstrap.connect(unixDomainSocketPath: path)
    }
    attempt.hop(to: self.driver.loop).whenComplete { result in
      switch result {
      case .success(let channel): self.reached(channel, address)
      case .failure(let error):
        self.failed(
          RPCStatus(.unavailable, "cannot connect to \(self.target): \(self.describe(error))"))
      }
    }
  }

  /// For people: what the system said, without NIO's wording around it.
  private func describe(_ error: any Error) -> String {
    switch error {
    case let error as IOError: return String(cString: strerror(error.errnoCode))
    case ChannelError.connectTimeout:
      return "no answer within \(self.configuration.connectTimeout)"
    case let error as NIOConnectionError:
      if let last = error.connectionErrors.last { return self.describe(last.error) }
      return "the host's name leads to no address"
    default: return "\(error)"
    }
  }

  /// The handlers join only now: several addresses may have been tried at once.
  private func reached(_ channel: any Channel, _ address: RPCAddress) {
    guard let tls = self.profile.tls else { return self.connected(channel) }
    guard case .connecting = self.state else { return channel.close(promise: nil) }
    // A member of several behind one name shows a certificate for the name.
    let named = self.configuration.authority.flatMap { try? RPCAddress($0) }
    let name = tls.serverName ?? (named ?? address).tlsHost
    let handshake = ClientHandshake(
      target: self.target, name: name ?? address.host, isHostName: name != nil, tls: tls,
      timeout: self.configuration.prefaceTimeout.timeAmount
    ) { problem in
      guard let problem else { return self.connected(channel) }
      channel.close(promise: nil)
      self.failed(RPCStatus(.unavailable, problem))
    }
    do {
      let pipeline = channel.pipeline.syncOperations
      try pipeline.addHandler(handshake)
      try pipeline.addHandler(
        NIOSSLClientHandler(context: tls.context, serverHostname: name), position: .first)
    } catch {
      handshake.cancel()
      channel.close(promise: nil)
      self.failed(
        RPCStatus(.unavailable, "cannot begin TLS with \(self.target): \(error)"))
    }
  }

  private func connected(_ channel: any Channel) {
    guard case .connecting = self.state else { return channel.close(promise: nil) }
    let connection = HTTP2Connection(profile: self.profile, lease: self.lease)
    connection.keepaliveFactor = self.keepaliveFactor
    do {
      try channel.pipeline.syncOperations.addHandler(connection)
    } catch {
      channel.close(promise: nil)
      return self.failed(RPCStatus(.unavailable, "cannot connect to \(self.target): \(error)"))
    }
    guard connection.acceptsCalls else {
      return self.failed(
        RPCStatus(.unavailable, "\(self.target) closed the connection at once"))
    }
    // Strong, and gone with the connection's end: weak references would make every retain of a call slow.
    connection.onClose = { self.lost($0) }
    connection.onSettings = {
      self.failedAttempts = 0
      self.settledAt = .now()
    }
    connection.onGoAway = { self.retire($0) }
    self.connections[ObjectIdentifier(connection)] = connection
    self.state = .ready(connection)
    self.connectedFlag.store(true, ordering: .relaxed)
    self.failingFlag.store(false, ordering: .relaxed)
    let waiting = self.pending
    self.pending = []
    for stream in waiting { self.begin(stream) }
    self.configuration.onConnected?()
  }

  /// An attempt failed, or the connection ended before the server's settings came.
  private func failed(_ status: RPCStatus) {
    guard case .connecting = self.state else { return }
    self.connectedFlag.store(false, ordering: .relaxed)
    self.failingFlag.store(true, ordering: .relaxed)
    self.failedAttempts += 1
    var status = status
    status.isUnsent = true
    self.state = .waiting(status)
    let wait = self.backoff(after: self.failedAttempts)
    self.profile.logger.debug(
      "Connect failed",
      metadata: [
        "target": "\(self.target)", "error": "\(status.message)",
        "retry.ms": "\(wait.nanoseconds / 1_000_000)",
      ])
    for stream in self.pending where !(stream.start?.waitForReady ?? false) {
      stream.end(with: status)
    }
    self.pending.removeAll { $0.isOver }
    self.driver.loop.scheduleTask(in: wait) { self.waited() }
    // No turn here: a target that is no address fails inside the `start` of a call, where no handler may be called.
  }

  private func waited() {
    guard case .waiting = self.state else { return }
    if self.pending.isEmpty && !self.configuration.keepsConnected {
      self.state = .idle
      self.failingFlag.store(false, ordering: .relaxed)
    } else {
      self.connect()
    }
  }

  private func backoff(after attempts: Int) -> TimeAmount {
    let initial = Double(self.configuration.backoffInitial.nanosecondsClamped)
    let longest = Double(self.configuration.backoffMax.nanosecondsClamped)
    var wait = initial
    for _ in 1..<max(2, attempts) where wait < longest { wait *= 1.6 }
    if attempts <= 1 { wait = initial }
    return .nanoseconds(Int64(min(wait, longest) * Double.random(in: 0.8...1.2)))
  }

  // MARK: Losing connections

  /// The server wants no more calls there.
  private func retire(_ connection: HTTP2Connection) {
    guard case .ready(let current) = self.state, current === connection else { return }
    self.connectedFlag.store(false, ordering: .relaxed)
    guard let farewell = connection.farewell else {
      self.state = .idle
      self.reconnect()
      return
    }
    if connection.wasToldTooManyPings { self.keepaliveFactor = min(self.keepaliveFactor * 2, 64) }
    // It has something against us, not only a leave of its own: no use in coming back at once.
    self.state = .connecting
    self.failed(RPCStatus(.unavailable, farewell))
  }

  private func lost(_ connection: HTTP2Connection) {
    self.connections[ObjectIdentifier(connection)] = nil
    if case .ready(let current) = self.state, current === connection {
      self.connectedFlag.store(false, ordering: .relaxed)
      if connection.settingsReceived {
        self.state = .idle
        self.reconnect()
      } else {
        self.state = .connecting
        self.failed(
          RPCStatus(
            .unavailable,
            connection.farewell
              ?? "\(self.target) closed the connection without a word of HTTP/2"))
      }
    }
    self.finishClosing()
  }

  // MARK: Closing

  /// Lets calls end until `deadline`, then cuts them off.
  func close(until deadline: NIODeadline, _ promise: EventLoopPromise<Void>? = nil) {
    if let promise { self.closed.append(promise) }
    let isFirst = self.closeDeadline == nil
    let isSooner = deadline < self.closeDeadline ?? .distantFuture
    self.closeDeadline = min(deadline, self.closeDeadline ?? .distantFuture)
    self.state = .closed
    self.connectedFlag.store(false, ordering: .relaxed)
    for stream in self.pending {
      stream.end(with: Self.isClosed)
    }
    self.pending = []
    if isFirst || isSooner {
      for connection in self.connections.values { connection.drain(deadline: deadline) }
    }
    self.driver.turn()
    self.finishClosing()
  }

  private func finishClosing() {
    guard case .closed = self.state, self.connections.isEmpty else { return }
    let closed = self.closed
    self.closed = []
    for promise in closed { promise.succeed() }
  }
}
