// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics
import Synchronization

/// What this service counts. Names and help stand in MemQTelemetry's catalogue.
struct ReplicationMetrics: Sendable {
  private let appendedBatches = Counter(label: "memq_replication_append_batches_total")
  private let appendedBytes = Counter(label: "memq_replication_append_bytes_total")
  private let appendTime = Timer(label: "memq_replication_append_duration_seconds")
  private let duplicates = Counter(label: "memq_replication_append_duplicates_total")
  private let slowedAppends = Counter(label: "memq_replication_append_slowed_total")
  private let readBytes = Counter(label: "memq_replication_read_bytes_total")
  private let partitions = Gauge(label: "memq_replication_partitions")
  private let parked = Gauge(label: "memq_replication_append_parked")
  private let failedVolumes = Gauge(label: "memq_replication_volumes_failed")
  private let stalledVolumes = Gauge(label: "memq_replication_volumes_stalled")
  private let damagedPartitions = Gauge(label: "memq_replication_partitions_damaged")
  private let pushedFromMemory = Counter(
    label: "memq_replication_push_bytes_total", dimensions: [("from", "memory")])
  private let pushedFromDisk = Counter(
    label: "memq_replication_push_bytes_total", dimensions: [("from", "disk")])
  private let replicatedBytes = Counter(label: "memq_replication_follow_bytes_total")
  private let leaderStreams = Gauge(
    label: "memq_replication_streams", dimensions: [("role", "leader")])
  private let followerStreams = Gauge(
    label: "memq_replication_streams", dimensions: [("role", "follower")])
  private let underReplicated = Gauge(label: "memq_replication_under_replicated_partitions")
  private let lag = Gauge(label: "memq_replication_replica_lag_records")
  private let replicas = ReplicaNumbers()

  /// Of the partitions that one shard leads.
  struct Replicas {
    /// With fewer replicas in sync than assigned.
    var underReplicated = 0
    /// Records that the replica furthest behind lacks.
    var lagMax: Int64 = 0
  }

  /// By shard.
  private final class ReplicaNumbers: Sendable {
    let shards = Mutex<[Int: Replicas]>([:])
  }

  func appended(bytes: Int) {
    self.appendedBatches.increment()
    self.appendedBytes.increment(by: Int64(bytes))
  }
  func acknowledged(after time: Duration) { self.appendTime.recordNanoseconds(time.nanoseconds) }
  func duplicate() { self.duplicates.increment() }
  func refused(_ code: ErrorCode) {
    Counter(
      label: "memq_replication_append_refused_total", dimensions: [("reason", code.name)]
    ).increment()
  }
  func slowed() { self.slowedAppends.increment() }
  func read(bytes: Int) { self.readBytes.increment(by: Int64(bytes)) }
  func setPartitions(_ count: Int) { self.partitions.record(count) }
  func setParked(_ count: Int) { self.parked.record(count) }
  func pushed(bytes: Int, from kind: ReplicaFeed.Kind) {
    switch kind {
    case .tail: self.pushedFromMemory.increment(by: Int64(bytes))
    case .catchUp: self.pushedFromDisk.increment(by: Int64(bytes))
    }
  }
  func replicated(bytes: Int) { self.replicatedBytes.increment(by: Int64(bytes)) }
  func setStreams(links: Int, feeds: Int) {
    self.leaderStreams.record(2 * feeds)
    self.followerStreams.record(2 * links)
  }
  func set(_ numbers: Replicas, shard: Int) {
    let all = self.replicas.shards.withLock { shards in
      shards[shard] = numbers
      return shards.values.reduce(into: Replicas()) { sum, each in
        sum.underReplicated += each.underReplicated
        sum.lagMax = Swift.max(sum.lagMax, each.lagMax)
      }
    }
    self.underReplicated.record(all.underReplicated)
    self.lag.record(all.lagMax)
  }
  func setDamagedPartitions(_ count: Int) { self.damagedPartitions.record(count) }
  func setStalledVolumes(_ count: Int) { self.stalledVolumes.record(count) }
  func setFailedVolumes(_ count: Int) { self.failedVolumes.record(count) }
}
