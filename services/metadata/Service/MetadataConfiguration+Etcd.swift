// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQModel
import MemQRPC
public import MemQRuntime
import MemQStore
import MemQSystem
import NIOCore

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

extension MetadataNode.Configuration {
  /// Keys of an instance that shares etcd with others.
  public static let etcdKeys: [ConfigurationKey] = [
    ConfigurationKey(
      "etcd.endpoints", .addresses,
      "Client addresses of an etcd's members; with them metadata is kept there, in as many instances as you like, and not in data."
    ),
    ConfigurationKey(
      "etcd.prefix", .text, default: "/memq/default",
      "Before all keys in etcd; the same for all instances of a cluster, another one for each cluster."
    ),
    ConfigurationKey("etcd.user", .text, "User name for etcd, when it asks for one."),
    ConfigurationKey(
      "etcd.password", .path, "File with the user's password, in its first line."),
    ConfigurationKey(
      "etcd.tls.enabled", .flag, default: "false", "Talk TLS with etcd."),
    ConfigurationKey(
      "etcd.tls.trust", .path,
      "PEM file of the roots that etcd's certificates are checked against; by default the system's."
    ),
    ConfigurationKey(
      "etcd.tls.certificate", .path, "PEM file of the certificate shown to etcd."),
    ConfigurationKey("etcd.tls.key", .path, "PEM file of its private key."),
    ConfigurationKey(
      "etcd.tls.server.name", .text,
      "The name etcd's certificates must have; by default the host of the address."),
    ConfigurationKey(
      "etcd.timeout", .duration, default: "2s",
      "How long a member of etcd may take to answer before another one is asked."),
    ConfigurationKey(
      "etcd.history", .duration, default: "5m",
      "Changes that are older are forgotten by etcd (compaction), for all who use it; 0s: somebody else sees to that."
    ),
    ConfigurationKey(
      "controller.lease", .duration, default: "3s",
      "How long the instance that decides may go without renewing its lease in etcd; another one takes over then."
    ),
  ]

  /// Nil: there is no etcd.
  ///
  /// - Throws: `.configurationInvalid` naming the key.
  mutating func etcd(
    _ loaded: LoadedConfiguration, logger: Logger
  ) throws(MemQError) -> EtcdStore.Configuration? {
    guard loaded.has("etcd.endpoints") else {
      for key in ["user", "password", "tls.trust", "tls.certificate", "tls.key", "tls.server.name"]
      where loaded.has("etcd.\(key)") {
        throw MemQError(
          .configurationInvalid, "means nothing without etcd.endpoints", subject: "etcd.\(key)")
      }
      return nil
    }
    var etcd = EtcdStore.Configuration(
      endpoints: loaded.addresses("etcd.endpoints"), prefix: loaded.text("etcd.prefix"),
      name: self.address)
    etcd.user = loaded.optionalText("etcd.user")
    etcd.password = try loaded.optionalText("etcd.password").map { path throws(MemQError) in
      try Self.firstLine(of: path)
    }
    etcd.tls = try Self.tls(loaded, logger)
    etcd.attemptTimeout = loaded.duration("etcd.timeout")
    etcd.operationTimeout = max(.seconds(8), etcd.attemptTimeout * 4)
    etcd.openTimeout = loaded.duration("start.timeout")
    try etcd.validate()
    self.startTimeout = etcd.openTimeout
    self.controllerLease = loaded.duration("controller.lease")
    let history = loaded.duration("etcd.history")
    self.historyInterval = history == .zero ? nil : history
    try self.validate()
    return etcd
  }

  private static func firstLine(of path: String) throws(MemQError) -> String {
    guard let data = FileManager.default.contents(atPath: path) else {
      throw MemQError(
        .configurationInvalid, "the file can't be read: \(path)", subject: "etcd.password")
    }
    return String(decoding: data.prefix { $0 != 0x0A && $0 != 0x0D }, as: UTF8.self)
  }

  private static func tls(
    _ loaded: LoadedConfiguration, _ logger: Logger
  ) throws(MemQError) -> RPCTLS? {
    guard loaded.flag("etcd.tls.enabled") else { return nil }
    guard loaded.has("etcd.tls.certificate") == loaded.has("etcd.tls.key") else {
      throw MemQError(
        .configurationInvalid, "certificate and key go together", subject: "etcd.tls.certificate")
    }
    return try RPCTLS(
      client: RPCClientTLSFiles(
        trust: loaded.optionalText("etcd.tls.trust"),
        certificate: loaded.optionalText("etcd.tls.certificate"),
        key: loaded.optionalText("etcd.tls.key"),
        serverName: loaded.optionalText("etcd.tls.server.name"), versionMin: .tls12),
      logger: logger)
  }
}

extension MetadataNode.SharedStore {
  static func etcd(
    _ configuration: EtcdStore.Configuration, group: any EventLoopGroup, entropy: any Entropy,
    logger: Logger, connect: @escaping @Sendable (_ address: String) -> any RPCChannel
  ) -> MetadataNode.SharedStore {
    MetadataNode.SharedStore(
      open: { onCommit throws(MemQError) in
        try await EtcdStore.open(
          configuration, group: group, entropy: entropy, logger: logger, onCommit: onCommit)
      }, connect: connect)
  }
}
