// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQRPC
import Metrics

extension CommonKeys {
  /// TLS of the gRPC port. Without `tls.certificate` there is none.
  public static let tls: [ConfigurationKey] = [
    ConfigurationKey(
      "tls.certificate", .path,
      "PEM file of this server's certificate and those between it and its root; with it the gRPC port speaks TLS and nothing else."
    ),
    ConfigurationKey("tls.key", .path, "PEM file of the certificate's private key, not encrypted."),
    ConfigurationKey(
      "tls.clients", .choice(RPCServerTLSFiles.Clients.allCases.map(\.rawValue)), default: "none",
      "Whether clients, other services among them, must show a certificate; optional: one that is shown must be good."
    ),
    ConfigurationKey(
      "tls.trust", .path, "PEM file of the roots that client certificates are checked against."),
    ConfigurationKey(
      "tls.version.min", .choice(RPCTLSVersion.allCases.map(\.rawValue)), default: "1.3",
      "Oldest version of TLS that is spoken."),
    ConfigurationKey(
      "tls.reload", .duration, default: "10s",
      "How often the files of certificates, keys and roots are looked at, 1s or more; 0s: never. New connections use what changed."
    ),
  ]

  /// TLS of calls to other services.
  public static let peersTLS: [ConfigurationKey] = [
    ConfigurationKey(
      "peers.tls.enabled", .flag, default: "false",
      "Call the other services by TLS; all of them must speak it."),
    ConfigurationKey(
      "peers.tls.trust", .path,
      "PEM file of the roots that other services' certificates are checked against; by default the system's."
    ),
    ConfigurationKey(
      "peers.tls.certificate", .path,
      "PEM file of the certificate shown to other services; by default tls.certificate."),
    ConfigurationKey(
      "peers.tls.key", .path, "PEM file of its private key; by default tls.key."),
    ConfigurationKey(
      "peers.tls.server.name", .text,
      "The name every other service's certificate must have; by default the host of its address."),
  ]
}

extension RPCTLS {
  /// TLS of the gRPC port; nil: there is none.
  ///
  /// - Throws: `.configurationInvalid` naming the key, or the file.
  public static func server(
    _ configuration: LoadedConfiguration, logger: Logger
  ) throws(MemQError) -> RPCTLS? {
    guard let certificate = configuration.optionalText("tls.certificate") else {
      for key in ["tls.key", "tls.trust"] where configuration.has(key) {
        throw Self.lonely(key, without: "tls.certificate")
      }
      guard configuration.text("tls.clients") == "none" else {
        throw Self.lonely("tls.clients", without: "tls.certificate")
      }
      return nil
    }
    guard let key = configuration.optionalText("tls.key") else {
      throw Self.lonely("tls.certificate", without: "tls.key")
    }
    let clients = RPCServerTLSFiles.Clients(rawValue: configuration.text("tls.clients")) ?? .none
    let trust = configuration.optionalText("tls.trust")
    guard clients == .none || trust != nil else {
      throw Self.lonely("tls.clients", without: "tls.trust")
    }
    return try RPCTLS(
      server: RPCServerTLSFiles(
        certificate: certificate, key: key, clients: clients, trust: trust,
        versionMin: Self.versionMin(configuration)),
      reloadInterval: Self.reload(configuration),
      observer: TLSMetrics(side: "server"), logger: logger)
  }

  /// TLS of calls to other services; nil: they go without.
  ///
  /// - Throws: `.configurationInvalid` naming the key, or the file.
  public static func peers(
    _ configuration: LoadedConfiguration, logger: Logger
  ) throws(MemQError) -> RPCTLS? {
    guard configuration.flag("peers.tls.enabled") else {
      for key in ["trust", "certificate", "key", "server.name"]
      where configuration.has("peers.tls.\(key)") {
        throw Self.lonely("peers.tls.\(key)", without: "peers.tls.enabled: true")
      }
      return nil
    }
    for (key, other) in [("certificate", "key"), ("key", "certificate")]
    where configuration.has("peers.tls.\(key)") && !configuration.has("peers.tls.\(other)") {
      throw Self.lonely("peers.tls.\(key)", without: "peers.tls.\(other)")
    }
    return try RPCTLS(
      client: RPCClientTLSFiles(
        trust: configuration.optionalText("peers.tls.trust"),
        certificate: configuration.optionalText("peers.tls.certificate")
          ?? configuration.optionalText("tls.certificate"),
        key: configuration.optionalText("peers.tls.key") ?? configuration.optionalText("tls.key"),
        serverName: configuration.optionalText("peers.tls.server.name"),
        versionMin: Self.versionMin(configuration)),
      reloadInterval: Self.reload(configuration),
      observer: TLSMetrics(side: "client"), logger: logger)
  }

  /// Nil: never.
  private static func reload(_ configuration: LoadedConfiguration) throws(MemQError) -> Duration? {
    let interval = configuration.duration("tls.reload")
    guard interval == .zero || interval >= .seconds(1) else {
      throw MemQError(
        .configurationInvalid, "must be 1s or more, or 0s for never", subject: "tls.reload")
    }
    return interval == .zero ? nil : interval
  }

  private static func versionMin(_ configuration: LoadedConfiguration) -> RPCTLSVersion {
    RPCTLSVersion(rawValue: configuration.text("tls.version.min")) ?? .tls13
  }

  private static func lonely(_ key: String, without other: String) -> MemQError {
    MemQError(.configurationInvalid, "means nothing without \(other)", subject: key)
  }
}

/// Counts what certificates do.
private final class TLSMetrics: RPCTLSObserver {
  private let expiry: Gauge
  private let reloadFailures: Counter
  private let handshakeFailures: Counter

  init(side: String) {
    let dimensions = [("side", side)]
    self.expiry = Gauge(label: "memq_rpc_tls_expiry_seconds", dimensions: dimensions)
    self.reloadFailures = Counter(
      label: "memq_rpc_tls_reload_failures_total", dimensions: dimensions)
    self.handshakeFailures = Counter(
      label: "memq_rpc_tls_handshake_failures_total", dimensions: dimensions)
  }

  func certificateInUse(expirySeconds: Int64?) {
    if let expirySeconds { self.expiry.record(expirySeconds) }
  }

  func reloadFailed() { self.reloadFailures.increment() }
  func handshakeFailed() { self.handshakeFailures.increment() }
}
