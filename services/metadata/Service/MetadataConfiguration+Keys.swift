// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRuntime

extension MetadataNode.Configuration {
  /// Keys of a metadata instance beyond those every node has.
  public static let keys: [ConfigurationKey] = [
    ConfigurationKey(
      "session.timeout", .duration, default: "1500ms",
      "A node that is silent for so long is fenced and its leaderships pass on."),
    ConfigurationKey(
      "heartbeat.interval", .duration, default: "400ms",
      "How often nodes are told to say that they live; at most half the session timeout."),
    ConfigurationKey(
      "lease.timeout", .duration, default: "10s",
      "How long an uploader keeps an upload group without renewing its lease."),
  ]

  /// - Throws: `.configurationInvalid` naming the key.
  public init(
    _ loaded: LoadedConfiguration, dataFolder: String, address: String
  ) throws(MemQError) {
    self.init(dataFolder: dataFolder, address: address)
    self.sessionTimeout = loaded.duration("session.timeout")
    self.heartbeatInterval = loaded.duration("heartbeat.interval")
    self.leaseTimeout = loaded.duration("lease.timeout")
    self.rack = loaded.optionalText("rack") ?? ""
    self.host = NodeProcess.hostName
    try self.validate()
  }
}
