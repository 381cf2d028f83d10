// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics

/// What the process's volumes do together, for `/metrics`.
struct VolumeMetrics: Sendable {
  private let writtenBytes = Counter(label: "memq_storage_written_bytes")
  private let groups = Counter(label: "memq_storage_groups_total")
  private let syncSeconds = Metrics.Timer(label: "memq_storage_sync_seconds")
  private let readBytes = Counter(label: "memq_storage_read_bytes")

  func written(_ byteCount: Int) {
    self.writtenBytes.increment(by: Int64(byteCount))
    self.groups.increment()
  }

  func synced(_ took: Duration) { self.syncSeconds.recordNanoseconds(took.nanoseconds) }

  func read(_ byteCount: Int) { self.readBytes.increment(by: Int64(byteCount)) }
}
