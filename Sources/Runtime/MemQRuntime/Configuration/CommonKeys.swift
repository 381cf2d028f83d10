// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQMetadata
import MemQTelemetry

/// Keys that several programs share, so that they mean the same everywhere.
public enum CommonKeys {
  /// gRPC ports by service; admin pages are 1,000 above.
  public static func port(of service: ServiceKind) -> Int {
    switch service {
    case .ingest: 7460
    case .metadata: 7461
    case .replication: 7462
    case .uploader: 7463
    case .scanner: 7464
    case .rebalancer: 7465
    }
  }

  public static func listen(default address: String) -> ConfigurationKey {
    ConfigurationKey(
      "listen", .address, default: address,
      "Where the gRPC port listens. Port 0 takes any free one. Unless tls.clients is required, whoever reaches it may use it: keep it on networks you trust."
    )
  }

  public static let adminListen = ConfigurationKey(
    "admin.listen", .address,
    "Where /metrics, /healthz and /readyz are; by default on the host of listen, 1,000 ports up.")

  public static let advertise = ConfigurationKey(
    "advertise", .address,
    "The address others connect to; by default the one of listen, with this machine's name when that is every interface."
  )

  public static let metadata = ConfigurationKey(
    "metadata", .addresses, isRequired: true,
    "Addresses of the metadata service, tried in turn.")

  public static let rack = ConfigurationKey(
    "rack", .text,
    "Failure domain of this process; replicas of a partition are spread over racks.")

  /// Never from the environment: MEMQ_DATA belongs to others.
  public static func data(_ help: String, isRequired: Bool = true) -> ConfigurationKey {
    ConfigurationKey("data", .path, hasEnvironment: false, isRequired: isRequired, help)
  }

  /// How a process runs, whatever it does.
  public static let process: [ConfigurationKey] = [
    ConfigurationKey(
      "log.level", .choice(["trace", "debug", "info", "notice", "warning", "error"]),
      default: "info", reload: .live, "Lines below this level are not written."),
    ConfigurationKey(
      "log.format", .choice(LogFormat.allCases.map(\.rawValue)), default: "text", reload: .live,
      "One line per event on standard error: for people, or one JSON object."),
    ConfigurationKey(
      "threads", .integer(1...256),
      "Threads that serve connections; by default one per processor."),
    ConfigurationKey(
      "reflection", .flag, default: "true",
      "Answer gRPC reflection on the gRPC port: which services are there, and their messages."),
    ConfigurationKey(
      "start.timeout", .duration, default: "120s",
      "How long a start may wait for the metadata service."),
    ConfigurationKey(
      "drain.timeout", .duration, default: "8s",
      "How long a stop may wait for work in flight; the process ends 10 s after the signal at the latest."
    ),
  ]

  /// What a node of a cluster has in common with the others.
  public static func node(_ service: ServiceKind) -> [ConfigurationKey] {
    let listen = self.listen(default: "127.0.0.1:\(self.port(of: service))")
    let joins = service == .metadata ? [] : [self.metadata]
    return [listen, self.adminListen, self.advertise] + joins + [self.rack] + self.connections
      + self.tls + self.peersTLS
  }
}
