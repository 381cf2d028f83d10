// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQReplication
public import MemQRuntime
import MemQStorage

extension ReplicationNode.Configuration {
  /// Keys of a storage node beyond those every node has.
  public static let keys: [ConfigurationKey] = [
    ConfigurationKey(
      "volumes", .text,
      "Folders of the SSD volumes, one per disk, separated by commas; by default one in the data folder."
    ),
    ConfigurationKey(
      "segment.bytes", .size, default: "256MiB",
      "Size of a volume's segment files, 16MiB to 1GiB; they are made once and recycled."),
    ConfigurationKey(
      "volume.capacity.bytes", .size,
      "Bytes the segments of a volume may take; by default what its file system has."),
    ConfigurationKey(
      "volume.writes", .choice(Volume.WritePath.allCases.map(\.rawValue)), default: "cached",
      "How a volume's bytes get to its disk: through the kernel's page cache, or past it (O_DIRECT). `memq bench disk` tells which is faster."
    ),
    ConfigurationKey(
      "clean.rate", .size, default: "32MiB",
      "Bytes per second a volume copies out of old segments to make room; four times that where room runs out."
    ),
    ConfigurationKey(
      "shards", .integer(1...64), default: "2",
      "Threads that own the partitions; each partition stays with one."),
    ConfigurationKey(
      "replica.lag.max", .duration, default: "10s",
      "A follower that has not been at the leader's end for this long leaves the in-sync replicas."),
    ConfigurationKey(
      "retention.check.interval", .duration, default: "60s",
      "How often records past retention.ms and retention.bytes are looked for."),
    ConfigurationKey(
      "producer.expiry", .duration, default: "7d",
      "An idempotent producer not heard of for this long is forgotten."),
  ]

  /// - Parameter volumes: folders, one per disk, where the configuration names none.
  /// - Throws: `.configurationInvalid` naming the key.
  public init(
    _ loaded: LoadedConfiguration, dataPath: String, volumes: [String]
  ) throws(MemQError) {
    let named = loaded.optionalText("volumes")?.split(separator: ",").map { name in
      String(name.drop { $0 == " " }.reversed().drop { $0 == " " }.reversed())
    }
    let volumes = named ?? volumes
    let capacity = loaded.optionalBytes("volume.capacity.bytes")
    self.init(
      dataPath: dataPath, volumes: volumes.map { VolumeSettings(path: $0, capacityBytes: capacity) }
    )
    self.segmentBytes = loaded.bytes("segment.bytes")
    self.writes = Volume.WritePath(rawValue: loaded.text("volume.writes"))!
    self.cleanBytesPerSecond = Int(loaded.bytes("clean.rate"))
    self.shards = loaded.integer("shards")
    self.rules.replicaLagMax = loaded.duration("replica.lag.max")
    self.retentionCheckInterval = loaded.duration("retention.check.interval")
    self.rules.producers.expiry = loaded.duration("producer.expiry")
    try self.validate()
  }
}
