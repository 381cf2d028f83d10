// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics

/// What an uploader counts (docs/operations/metrics.md).
struct UploaderMetrics: Sendable {
  enum Step: String { case read, put, commit, lease, collect }
  enum Collected: String { case object, orphan, body }

  let objects = Counter(label: "memq_uploader_objects_total")
  let objectBytes = Counter(label: "memq_uploader_object_bytes_total")
  let records = Counter(label: "memq_uploader_records_total")
  let refusedRanges = Counter(label: "memq_uploader_refused_ranges_total")
  let uploadDuration = Metrics.Timer(label: "memq_uploader_upload_duration_seconds")
  let leases = Gauge(label: "memq_uploader_leases")
  let waitingBytes = Gauge(label: "memq_uploader_waiting_bytes")
  let bodies = Counter(label: "memq_uploader_bodies_total")
  let bodyBytes = Counter(label: "memq_uploader_body_bytes_total")

  func failed(_ step: Step) {
    Counter(label: "memq_uploader_failures_total", dimensions: [("step", step.rawValue)])
      .increment()
  }

  func collected(_ kind: Collected) {
    Counter(label: "memq_uploader_collected_total", dimensions: [("kind", kind.rawValue)])
      .increment()
  }
}
