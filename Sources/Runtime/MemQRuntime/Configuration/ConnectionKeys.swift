// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQRPC

extension CommonKeys {
  /// The gRPC port's connections.
  public static let connections: [ConfigurationKey] = [
    ConfigurationKey(
      "connection.age.max", .duration,
      "A connection this old, ± 10 %, takes no new calls; clients make another and so find new servers and certificates. 0s, and by default: no limit."
    ),
    ConfigurationKey(
      "connection.age.grace", .duration, default: "5m",
      "What still runs so long after that on an old connection is cut off."),
    ConfigurationKey(
      "connection.idle.max", .duration, default: "30m",
      "A connection without a call for so long is closed; clients make another when they need one. 0s: never."
    ),
    ConfigurationKey(
      "socket.mode", .choice(["0600", "0660", "0666"]), default: "0600",
      "Mode of the socket's file when listen is unix:/path: who may connect."),
  ]
}

extension RPCServer.Configuration {
  /// What the keys of every gRPC port say.
  ///
  /// - Parameters:
  ///   - metrics: hears of connections; its interceptor belongs to the port's router.
  ///   - tls: of the port.
  public init(_ configuration: LoadedConfiguration, metrics: RPCMetrics, tls: RPCTLS?) {
    self.init()
    self.tls = tls
    self.observer = metrics
    self.limits.ageMax = Self.limit(configuration.optionalDuration("connection.age.max"))
    self.limits.ageGrace = configuration.duration("connection.age.grace")
    self.limits.idleMax = Self.limit(configuration.duration("connection.idle.max"))
    if let mode = UInt16(configuration.text("socket.mode"), radix: 8) { self.socketFileMode = mode }
  }

  /// Zero is no limit.
  private static func limit(_ duration: Duration?) -> Duration? {
    duration == .zero ? nil : duration
  }
}
