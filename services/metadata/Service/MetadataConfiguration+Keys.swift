// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQObjectStore
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
      "election.recovery.wait", .duration, default: "10s",
      "How long a partition waits for replicas that hold all that was committed: where all of them restarted uncleanly, to say where their logs end, so that the one whose log goes furthest leads; where a topic allows unclean elections, to come back."
    ),
    ConfigurationKey(
      "lease.timeout", .duration, default: "10s",
      "How long an uploader keeps an upload group without renewing its lease."),
    ConfigurationKey(
      "snapshot.interval", .duration, default: "60s",
      "How often a snapshot of metadata goes into the object store when something changed; 0s: never."
    ),
    ConfigurationKey(
      "snapshot.keep", .integer(1...1_000), default: "10", "Snapshots of metadata that are kept."),
    ConfigurationKey(
      "restore", .text,
      "Fills a metadata store that has no cluster from the newest snapshot in the object store: of the cluster with this id, or newest, of the only one there is. Nothing happens to a store that has a cluster."
    ),
  ]

  /// The object store of a metadata process; with its keys beside it.
  public static let objects = ConfigurationKey(
    "objects", .path,
    "The object store that snapshots of metadata go to: a folder, or s3://BUCKET/PREFIX, the same as the uploaders'. Without it there are none."
  )

  /// - Parameter objects: the value of `objects`; nil: no snapshots.
  /// - Throws: `.configurationInvalid` naming the key.
  public init(
    _ loaded: LoadedConfiguration, dataFolder: String, address: String, objects: String?
  ) throws(MemQError) {
    self.init(dataFolder: dataFolder, address: address)
    self.sessionTimeout = loaded.duration("session.timeout")
    self.heartbeatInterval = loaded.duration("heartbeat.interval")
    self.electionRecoveryWait = loaded.duration("election.recovery.wait")
    self.leaseTimeout = loaded.duration("lease.timeout")
    let interval = loaded.duration("snapshot.interval")
    self.snapshotInterval = interval > .zero ? interval : nil
    self.snapshotsKept = loaded.integer("snapshot.keep")
    self.restore = loaded.optionalText("restore")
    if let objects { self.objects = try ObjectStoreConfiguration(loaded, objects: objects) }
    self.rack = loaded.optionalText("rack") ?? ""
    self.host = NodeProcess.hostName
    try self.validate()
  }
}
