// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import NIOCore
import Synchronization

/// Settings of HTTP/2 connections, of both roles.
public struct RPCConnectionSettings: Sendable {
  /// Flow-control window of a stream: a handler that stalls leaves at most this (or one larger message) in memory.
  /// 8 MiB carries 1 MiB messages at full speed; 256 KiB is right for control calls.
  public var windowBytes = 8 << 20
  /// Largest DATA frame we take, and make. A frame is the unit of fairness between the calls of a connection; at 256 KiB
  /// its cost is gone already.
  public var frameBytes = 256 << 10
  /// Received bytes that handlers have not consumed, over all calls of a connection. Above it the whole
  /// connection stops reading data until some are.
  public var unconsumedBytesMax = 64 << 20
  /// Received bytes of messages whose rest has not come, over all calls of a connection: 256 with 1 MiB each. Above it the call that
  /// received last ends with `RESOURCE_EXHAUSTED`.
  public var partialBytesMax = 256 << 20
  /// Headers of one request or response, counted as HTTP/2 does.
  public var headerListBytesMax = 16 << 10
  /// While calls are open and nothing was read for this long, a PING is sent.
  public var keepaliveInterval: Duration = .seconds(30)
  /// A connection that stays silent for this long after the PING is closed.
  public var keepaliveTimeout: Duration = .seconds(10)
  /// The same as ``keepaliveInterval`` while no call is open; nil: nobody asks then. Servers bear one in 300 s from a client without calls.
  public var keepaliveIdleInterval: Duration?

  public init() {}
}

/// Received bytes that handlers have not consumed, over all connections of a server.
///
/// Connections tell of changes in steps, so that small messages cost no shared counter; the sum is short by up to one step each.
final class ReceiveBudget: Sendable {
  static let stepBytes = 64 << 10

  private let bytesMax: Int
  private let bytes = Atomic(0)

  init(bytesMax: Int) {
    self.bytesMax = bytesMax
  }

  var isSpent: Bool { self.bytes.load(ordering: .relaxed) > self.bytesMax }

  func changed(by delta: Int) {
    self.bytes.wrappingAdd(delta, ordering: .relaxed)
  }
}

/// What all connections of one server or channel share.
final class ConnectionProfile: Sendable {
  enum Role: Sendable {
    case server(RouteTable, ServerEnvironment)
    case client(authority: String)
  }

  let role: Role
  /// Those of the role; apart, because taking them out of it costs a call two reference counts for each header.
  let routes: RouteTable?
  let settings: RPCConnectionSettings
  let maxMessageBytes: Int
  /// Streams a peer may have open at once.
  let maxConcurrentStreams: Int
  /// From accepting a connection to its HTTP/2 preface and settings.
  let prefaceTimeout: Duration
  let logger: Logger
  /// Server: shared with all its connections.
  let budget: ReceiveBudget?
  /// Server.
  let limits: RPCConnectionLimits
  /// A connection without a call for so long is closed.
  let idleMax: Duration?
  /// Nil: no TLS.
  let tls: RPCTLS?
  /// Client: where it connects to, for people.
  let target: String

  init(
    role: Role, settings: RPCConnectionSettings, maxMessageBytes: Int, maxConcurrentStreams: Int,
    prefaceTimeout: Duration, logger: Logger, budget: ReceiveBudget? = nil,
    limits: RPCConnectionLimits = RPCConnectionLimits(), idleMax: Duration? = nil,
    tls: RPCTLS? = nil,
    target: String = ""
  ) {
    precondition(
      settings.windowBytes >= 1 << 16 && settings.windowBytes <= 1 << 30,
      "windowBytes must be between 64 KiB and 1 GiB")
    precondition(
      settings.frameBytes >= 1 << 14 && settings.frameBytes < 1 << 24,
      "frameBytes must be between 16 KiB and 16 MiB - 1")
    self.role = role
    self.routes = if case .server(let routes, _) = role { routes } else { nil }
    self.settings = settings
    self.maxMessageBytes = maxMessageBytes
    self.maxConcurrentStreams = maxConcurrentStreams
    self.prefaceTimeout = prefaceTimeout
    self.logger = logger
    self.budget = budget
    self.limits = limits
    self.idleMax = idleMax
    self.tls = tls
    self.target = target
  }
}
