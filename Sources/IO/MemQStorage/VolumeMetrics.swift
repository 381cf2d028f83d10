// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQModel
import Metrics

/// What the process's volumes do together, for `/metrics`.
struct VolumeMetrics: Sendable {
  private let writtenBytes = Counter(label: "memq_storage_written_bytes")
  private let groups = Counter(label: "memq_storage_groups_total")
  private let syncSeconds = Metrics.Timer(label: "memq_storage_sync_seconds")
  private let readBytes = Counter(label: "memq_storage_read_bytes")
  private let carriedBytes = Counter(label: "memq_storage_carried_bytes")
  private let segmentsHot: Gauge
  private let segmentsCold: Gauge
  private let segmentsFree: Gauge
  private let partitionsAtCap: Gauge

  /// - Parameter volume: whose segments the gauges count.
  init(volume: VolumeID) {
    func gauge(_ label: String, _ more: [(String, String)] = []) -> Gauge {
      Gauge(label: label, dimensions: [("volume", "\(volume)")] + more)
    }
    self.segmentsHot = gauge("memq_storage_segments", [("kind", "hot")])
    self.segmentsCold = gauge("memq_storage_segments", [("kind", "cold")])
    self.segmentsFree = gauge("memq_storage_segments", [("kind", "free")])
    self.partitionsAtCap = gauge("memq_storage_partitions_at_cap")
  }

  private let catchUpBytes = Counter(label: "memq_storage_catch_up_read_bytes")
  private let readAheadBytes = Counter(label: "memq_storage_read_ahead_hit_bytes")
  private let catchUpWaitSeconds = Metrics.Timer(label: "memq_storage_catch_up_wait_seconds")
  private let readErrors = Counter(label: "memq_storage_read_errors")

  func written(_ byteCount: Int) {
    self.writtenBytes.increment(by: Int64(byteCount))
    self.groups.increment()
  }

  func synced(_ took: Duration) { self.syncSeconds.recordNanoseconds(took.nanoseconds) }

  func read(_ byteCount: Int) { self.readBytes.increment(by: Int64(byteCount)) }

  func carried(_ byteCount: Int64) { self.carriedBytes.increment(by: byteCount) }

  func stands(_ stats: LogStats) {
    self.segmentsHot.record(stats.segmentsUsed - stats.segmentsCold)
    self.segmentsCold.record(stats.segmentsCold)
    self.segmentsFree.record(stats.segmentsFree)
    self.partitionsAtCap.record(stats.partitionsAtCap)
  }
  func caughtUp(_ byteCount: Int) { self.catchUpBytes.increment(by: Int64(byteCount)) }

  func readAheadHit(_ byteCount: Int) { self.readAheadBytes.increment(by: Int64(byteCount)) }

  func catchUpWaited(_ time: Duration) {
    self.catchUpWaitSeconds.recordNanoseconds(time.nanoseconds)
  }

  func readFailed() { self.readErrors.increment() }
}
