// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQReplication
public import MemQStorage

extension ReplicationNode {
  /// This process's settings.
  public struct Configuration: Sendable {
    /// One disk.
    public struct VolumeSettings: Hashable, Sendable {
      /// A folder of its own.
      public var path: String
      /// Bytes its segments may take; nil: what the file system has.
      public var capacityBytes: Int64?

      public init(path: String, capacityBytes: Int64? = nil) {
        self.path = path
        self.capacityBytes = capacityBytes
      }
    }

    /// Holds the node's identity.
    public var dataPath: String
    public var volumes: [VolumeSettings]
    /// A volume's segment files, bytes each.
    public var segmentBytes: Int64 = 256 << 20
    /// How the volumes' bytes get to their disks.
    public var writes = Volume.WritePath.cached
    /// What a volume's cleaner copies per second.
    public var cleanBytesPerSecond = 32 << 20
    /// Event loops that own the partitions; each partition stays with one. 1–64.
    public var shards = 2
    /// How often records past their retention are looked for.
    public var retentionCheckInterval: Duration = .seconds(60)
    public var rules = ReplicationConfiguration()

    public init(dataPath: String, volumes: [VolumeSettings]? = nil) {
      self.dataPath = dataPath
      self.volumes = volumes ?? [VolumeSettings(path: "\(dataPath)/volume")]
    }

    /// - Throws: `.configurationInvalid`, naming the setting.
    public func validate() throws(MemQError) {
      func refuse(
        _ name: String, _ why: String, limit: Int64? = nil, actual: Int64? = nil
      )
        -> MemQError
      {
        MemQError(.configurationInvalid, why, subject: name, limit: limit, actual: actual)
      }
      guard !self.dataPath.isEmpty else { throw refuse("data", "a data folder is needed") }
      guard (1...64).contains(self.volumes.count) else {
        throw refuse("volumes", "1 to 64 volumes", limit: 64, actual: Int64(self.volumes.count))
      }
      let paths = Set(self.volumes.map(\.path))
      guard paths.count == self.volumes.count, !paths.contains("") else {
        throw refuse("volumes", "each volume needs a folder of its own")
      }
      guard (1...64).contains(self.shards) else {
        throw refuse("shards", "1 to 64", limit: 64, actual: Int64(self.shards))
      }
      guard self.segmentBytes >= 16 << 20, self.segmentBytes <= 1 << 30,
        self.segmentBytes % 4_096 == 0
      else {
        throw refuse(
          "segment.bytes", "a segment has 16 MiB to 1 GiB in blocks of 4 KiB",
          limit: 1 << 30, actual: self.segmentBytes)
      }
      guard (64 << 10...1 << 40).contains(self.cleanBytesPerSecond) else {
        throw refuse(
          "clean.rate", "64 KiB to 1 TiB per second", limit: 64 << 10,
          actual: Int64(self.cleanBytesPerSecond))
      }
    }
  }

  /// What is known before the node joins the cluster.
  public struct Prepared: Sendable {
    public let nodeUUID: NodeUUID
    /// In the order of the configuration.
    public let volumeIDs: [VolumeID]
    /// Nil while none of the volumes belongs to a cluster yet.
    public let clusterID: ClusterID?
  }
}
