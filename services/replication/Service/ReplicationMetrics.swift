// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics

/// What this service counts. Names and help stand in MemQTelemetry's catalogue.
struct ReplicationMetrics: Sendable {
  private let appendedBatches = Counter(label: "memq_replication_append_batches_total")
  private let appendedBytes = Counter(label: "memq_replication_append_bytes_total")
  private let appendTime = Timer(label: "memq_replication_append_duration_seconds")
  private let duplicates = Counter(label: "memq_replication_append_duplicates_total")
  private let readBytes = Counter(label: "memq_replication_read_bytes_total")
  private let partitions = Gauge(label: "memq_replication_partitions")
  private let parked = Gauge(label: "memq_replication_append_parked")
  private let failedVolumes = Gauge(label: "memq_replication_volumes_failed")

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
  func read(bytes: Int) { self.readBytes.increment(by: Int64(bytes)) }
  func setPartitions(_ count: Int) { self.partitions.record(count) }
  func setParked(_ count: Int) { self.parked.record(count) }
  func setFailedVolumes(_ count: Int) { self.failedVolumes.record(count) }
}
