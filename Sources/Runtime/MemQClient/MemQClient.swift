// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQRPC
public import NIOCore
public import NIOPosix

/// A client of a MemQ cluster: the way to its producers, consumers, files and administration.
///
/// It holds connections to one server at a time and moves on to the next address when that one goes away. One client serves any number
/// of producers and consumers; share it. Every failure is a ``MemQError``.
public final class MemQClient: Sendable {
  public struct Configuration: Sendable {
    /// The client's name for itself, shown to people in group descriptions.
    public var clientID = "memq-swift"
    /// How long the first call waits for a server that is not there yet, or not ready. 0: one attempt.
    public var connectTimeout: Duration = .seconds(5)
    /// Deadline of one control call.
    public var requestTimeout: Duration = .seconds(30)
    /// Nil: no TLS.
    public var tls: RPCTLS?

    public init() {}
  }

  /// Kinds of traffic, each with connections of its own so that none waits behind another's bytes.
  public enum Lane: Int, Sendable, CaseIterable {
    case control, produce, fetch, bodies
  }

  public let configuration: Configuration
  let servers: Servers
  let logger: Logger

  /// - Parameter servers: addresses of ingests, `host:port` or `unix:/path`; the first that answers is used.
  /// - Precondition: there is at least one address.
  public convenience init(
    servers: [String], configuration: Configuration = Configuration(),
    group: any EventLoopGroup = MultiThreadedEventLoopGroup.singleton,
    logger: Logger = Logger(label: "memq.client")
  ) {
    var network = RPCNetworkChannel.Configuration()
    // A server that restarts is back within a second: look often. One connection attempt costs it next to nothing.
    network.backoffMax = .milliseconds(500)
    network.tls = configuration.tls
    let settings = network
    self.init(servers: servers, configuration: configuration, logger: logger) { server, _ in
      RPCNetworkChannel(target: server, group: group, configuration: settings, logger: logger)
    }
  }

  /// Why a client cannot connect to an address, whoever is there; nil: it is well formed.
  public static func problem(withAddress address: String) -> String? {
    RPCNetworkChannel.problem(withTarget: address)
  }

  /// A client over channels of the caller's making, as in-process ones.
  ///
  /// - Parameter connect: called once per address and lane; the client closes what it returns.
  public init(
    servers: [String], configuration: Configuration = Configuration(),
    logger: Logger = Logger(label: "memq.client"),
    connect: @escaping @Sendable (_ server: String, _ lane: Lane) -> any RPCChannel
  ) {
    precondition(!servers.isEmpty, "a client needs a server's address")
    self.configuration = configuration
    self.logger = logger
    self.servers = Servers(
      servers, connectTimeout: configuration.connectTimeout, logger: logger, connect: connect)
  }

  /// The address calls go to at the moment.
  public var server: String { self.servers.address }

  /// Waits until the server answers and says that it serves, at most ``Configuration/connectTimeout``.
  ///
  /// - Throws: `.unavailable` when nobody answers. A server that answers but is not ready throws nothing: the calls tell.
  public func connect() async throws(MemQError) {
    try await self.servers.reach()
  }

  /// Closes all connections. Close producers and consumers first: what they still hold is lost to them.
  public func close() async {
    await self.servers.close()
  }
}
