// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The oldest version of TLS that is spoken.
public enum RPCTLSVersion: String, Sendable, CaseIterable {
  case tls12 = "1.2"
  case tls13 = "1.3"
}

/// What a server shows, and asks for. All files are PEM.
public struct RPCServerTLSFiles: Sendable, Equatable {
  /// Whether clients show a certificate.
  public enum Clients: String, Sendable, CaseIterable {
    /// None is asked for.
    case none
    /// One is asked for; if it comes, it must be good.
    case optional
    /// Without a good one there is no connection.
    case required
  }

  /// The server's certificate, first in the file, and those between it and its root.
  public var certificate: String
  /// Its private key, not encrypted.
  public var key: String
  public var clients: Clients
  /// Roots of client certificates. Needed unless `clients` is `none`.
  public var trust: String?
  public var versionMin: RPCTLSVersion

  public init(
    certificate: String, key: String, clients: Clients = .none, trust: String? = nil,
    versionMin: RPCTLSVersion = .tls13
  ) {
    self.certificate = certificate
    self.key = key
    self.clients = clients
    self.trust = trust
    self.versionMin = versionMin
  }
}

/// What a client trusts, and shows. All files are PEM.
public struct RPCClientTLSFiles: Sendable, Equatable {
  /// Roots of server certificates; nil: the system's.
  public var trust: String?
  /// The client's own certificate and its key, for servers that ask for one. Both or none.
  public var certificate: String?
  public var key: String?
  /// The name the server's certificate must have; nil: the host of the target.
  public var serverName: String?
  public var versionMin: RPCTLSVersion

  public init(
    trust: String? = nil, certificate: String? = nil, key: String? = nil, serverName: String? = nil,
    versionMin: RPCTLSVersion = .tls13
  ) {
    self.trust = trust
    self.certificate = certificate
    self.key = key
    self.serverName = serverName
    self.versionMin = versionMin
  }
}

/// Hears of the certificates in use, for metrics and logs. Called on any thread; must not block.
public protocol RPCTLSObserver: Sendable {
  /// A certificate came into use, at the start or by a reload. Nil: there is none of our own.
  func certificateInUse(expirySeconds: Int64?)
  /// The files changed, and what they hold now cannot be used: the old ones stay.
  func reloadFailed()
  /// A connection was not made: the handshake failed.
  func handshakeFailed()
}

extension RPCTLSObserver {
  public func handshakeFailed() {}
}
