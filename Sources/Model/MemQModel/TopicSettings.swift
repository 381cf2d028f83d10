// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What a topic's owner may choose. Names are Kafka's where the meaning is equal.
public struct TopicSettings: Hashable, Sendable {
  /// Whether a scanner judges what the topic takes.
  public enum ScanPolicy: String, Sendable, CaseIterable {
    /// Nobody looks.
    case off
    /// Nothing is visible before it is judged clean.
    case gate
  }

  /// What happens to something the scanner could not judge.
  public enum NotScannedPolicy: String, Sendable, CaseIterable {
    /// Wait until a scanner can.
    case hold
    /// Publish it, marked as not scanned.
    case passMarked = "pass-marked"
    /// Treat it as infected.
    case quarantine
  }

  /// What happens to a file above `scanBytesMax`.
  public enum OversizePolicy: String, Sendable, CaseIterable {
    case refuse
    case hold
    case passMarked = "pass-marked"
  }

  /// Encoding of batches that ingest builds from plain records.
  public enum Compression: String, Sendable, CaseIterable {
    case none, gzip, snappy, lz4, zstd
    /// As the producer sent it.
    case producer
  }

  /// `retention.ms`: records go after this long; nil: never. Default 7 days.
  public var retention: Duration? = .seconds(7 * 24 * 3600)
  /// `retention.bytes`: per partition over all tiers; nil: unlimited (default).
  public var retentionBytes: Int64?
  /// `local.retention.ms`: uploaded records leave the SSD after this long; nil: as long as there is room (default).
  public var localRetention: Duration?
  /// `local.retention.bytes`: uploaded records above this leave the SSD, per partition; 0: all of them; nil: as long as there is room (default).
  public var localRetentionBytes: Int64?
  /// `min.insync.replicas`: fewer refuse acks=all. Default 2 at replication factor 3 and up, else 1.
  public var minInSyncReplicas: Int = 1
  /// `max.message.bytes`: one encoded record batch. Default 1 MiB, ceiling 8 MiB.
  public var messageBytesMax: Int = Limits.recordBatchBytesDefault
  /// `compression.type`. Default `producer`.
  public var compression: Compression = .producer
  /// `unclean.leader.election.enable`: elect a replica that may lack committed records. Default false.
  public var uncleanLeaderElection = false
  /// `scan.policy`. Default off.
  public var scanPolicy: ScanPolicy = .off
  /// `scan.max.bytes`: files above are not scanned. Default and ceiling 2 GiB − 1.
  public var scanBytesMax: Int64 = Int64(Int32.max)
  /// `scan.oversize`. Default refuse.
  public var scanOversize: OversizePolicy = .refuse
  /// `scan.not.scanned`. Default hold.
  public var scanNotScanned: NotScannedPolicy = .hold
  /// `object.tier`: whether records are uploaded. Default true.
  public var hasObjectTier = true

  public init() {}

  /// Every setting by name with its effective value, sorted by name.
  public var effective: [(name: String, value: String)] {
    func number(_ value: Int64?) -> String { value.map(String.init) ?? "-1" }
    return [
      ("compression.type", self.compression.rawValue),
      ("local.retention.bytes", number(self.localRetentionBytes)),
      ("local.retention.ms", number(self.localRetention?.milliseconds)),
      ("max.message.bytes", String(self.messageBytesMax)),
      ("min.insync.replicas", String(self.minInSyncReplicas)),
      ("object.tier", String(self.hasObjectTier)),
      ("retention.bytes", number(self.retentionBytes)),
      ("retention.ms", number(self.retention?.milliseconds)),
      ("scan.max.bytes", String(self.scanBytesMax)),
      ("scan.not.scanned", self.scanNotScanned.rawValue),
      ("scan.oversize", self.scanOversize.rawValue),
      ("scan.policy", self.scanPolicy.rawValue),
      ("unclean.leader.election.enable", String(self.uncleanLeaderElection)),
    ]
  }

  /// Reads settings given by name, over the defaults for this replication factor.
  ///
  /// - Throws: `.topicSettingUnknown`, `.topicSettingInvalid`, `.topicCombinationRefused`, `.feature`.
  public init(_ given: [(name: String, value: String)], replicationFactor: Int) throws(MemQError) {
    self.init()
    self.minInSyncReplicas = replicationFactor >= 3 ? 2 : 1
    for (name, value) in given { try self.set(name, value) }
    guard self.minInSyncReplicas <= replicationFactor else {
      throw MemQError(
        .topicCombinationRefused, "min.insync.replicas is above the replication factor",
        subject: "min.insync.replicas", limit: Int64(replicationFactor),
        actual: Int64(self.minInSyncReplicas))
    }
    guard self.hasObjectTier || self.localRetention == nil && self.localRetentionBytes == nil else {
      throw MemQError(
        .topicCombinationRefused,
        "local.retention.* needs the object tier: without it the SSD is the only copy",
        subject: "object.tier")
    }
    guard self.hasObjectTier || self.retention != nil || self.retentionBytes != nil else {
      throw MemQError(
        .topicCombinationRefused,
        "without the object tier records that never expire fill the SSD for good: set retention.bytes or retention.ms",
        subject: "object.tier")
    }
  }

  private mutating func set(_ name: String, _ value: String) throws(MemQError) {
    switch name {
    case "retention.ms": self.retention = try limit(name, value).map { .milliseconds($0) }
    case "retention.bytes": self.retentionBytes = try limit(name, value)
    case "local.retention.ms":
      self.localRetention = try limit(name, value).map { .milliseconds($0) }
    case "local.retention.bytes": self.localRetentionBytes = try limit(name, value)
    case "min.insync.replicas": self.minInSyncReplicas = Int(try number(name, value, 1...7))
    case "max.message.bytes":
      self.messageBytesMax = Int(try number(name, value, 1024...Int64(Limits.recordBatchBytesMax)))
    case "compression.type": self.compression = try choice(name, value)
    case "unclean.leader.election.enable": self.uncleanLeaderElection = try flag(name, value)
    case "scan.policy":
      guard value != "audit" else {
        throw MemQError(.feature, "audit scanning is not offered by this version", subject: name)
      }
      self.scanPolicy = try choice(name, value)
    case "scan.max.bytes": self.scanBytesMax = try number(name, value, 1...Int64(Int32.max))
    case "scan.oversize": self.scanOversize = try choice(name, value)
    case "scan.not.scanned": self.scanNotScanned = try choice(name, value)
    case "object.tier": self.hasObjectTier = try flag(name, value)
    case "cleanup.policy":
      guard value == "delete" else {
        throw MemQError(
          .feature, "compaction is not offered by this version; the only policy is delete",
          subject: name)
      }
    case "storage.class":
      guard value == "replicated" else {
        throw MemQError(
          .feature, "the object class is not offered by this version; the only class is replicated",
          subject: name)
      }
    default:
      throw MemQError(
        .topicSettingUnknown,
        "no such topic setting; there are: "
          + (TopicSettings().effective.map(\.name) + ["cleanup.policy", "storage.class"])
          .sorted().joined(separator: ", "), subject: name)
    }
  }
}

private func invalid(_ name: String, _ value: String, _ want: String) -> MemQError {
  MemQError(.topicSettingInvalid, "\"\(value)\" is not \(want)", subject: name)
}

/// −1 means unlimited.
private func limit(_ name: String, _ value: String) throws(MemQError) -> Int64? {
  let number = try number(name, value, -1...Int64.max)
  return number == -1 ? nil : number
}

private func number(
  _ name: String, _ value: String, _ range: ClosedRange<Int64>
) throws(MemQError) -> Int64 {
  guard let number = Int64(value), range.contains(number) else {
    throw invalid(
      name, value, "a whole number from \(range.lowerBound) to \(range.upperBound)")
  }
  return number
}

private func flag(_ name: String, _ value: String) throws(MemQError) -> Bool {
  guard let flag = Bool(value) else { throw invalid(name, value, "true or false") }
  return flag
}

private func choice<T: RawRepresentable<String> & CaseIterable>(
  _ name: String, _ value: String
) throws(MemQError) -> T {
  guard let choice = T(rawValue: value) else {
    throw invalid(
      name, value, "one of " + T.allCases.map(\.rawValue).joined(separator: ", "))
  }
  return choice
}
