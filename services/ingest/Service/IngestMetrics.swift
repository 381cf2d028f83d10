// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Metrics

/// What this ingest counts. Labels are bounded: error codes, and words of ours.
struct IngestMetrics: Sendable {
  private let records = Counter(label: "memq_ingest_produce_records_total")
  private let bytes = Counter(label: "memq_ingest_produce_bytes_total")
  private let produceDuration = Timer(label: "memq_ingest_produce_duration_seconds")
  private let fetchedBytes = Counter(
    label: "memq_ingest_fetch_bytes_total", dimensions: [("tier", "ssd")])
  private let coldBytes = Counter(
    label: "memq_ingest_fetch_bytes_total", dimensions: [("tier", "object")])
  private let putDuration = Timer(label: "memq_ingest_file_put_duration_seconds")
  private let putBytes = Counter(label: "memq_ingest_file_put_bytes_total")
  private let getBytes = Counter(label: "memq_ingest_file_get_bytes_total")
  private let produceInFlight = Gauge(label: "memq_ingest_produce_in_flight_bytes")
  private let puts = Gauge(label: "memq_ingest_file_puts")

  func produced(_ batch: PreparedBatch, bytes: Int) {
    self.records.increment(by: Int64(batch.recordCount))
    self.bytes.increment(by: Int64(bytes))
  }

  func settled(_ result: AppendResult, _ request: ProduceStream.Request, took: Duration) {
    self.produceDuration.recordNanoseconds(took.nanoseconds)
    if case .failure(let error) = result { self.refused(error.code) }
  }

  func refused(_ code: ErrorCode) { self.count("memq_ingest_produce_refused_total", code) }
  func retried(_ code: ErrorCode) { self.count("memq_ingest_produce_retries_total", code) }
  func putFailed(_ code: ErrorCode) { self.count("memq_ingest_file_put_failed_total", code) }

  private func count(_ label: String, _ code: ErrorCode) {
    Counter(label: label, dimensions: [("code", code.name)]).increment()
  }

  func inFlight(_ bytes: Int) { self.produceInFlight.record(bytes) }
  func fetched(_ bytes: Int, fromObjects: Bool) {
    (fromObjects ? self.coldBytes : self.fetchedBytes).increment(by: Int64(bytes))
  }
  func putStarted(_ active: Int) { self.puts.record(active) }
  func putEnded(_ active: Int, took: Duration) {
    self.puts.record(active)
    self.putDuration.recordNanoseconds(took.nanoseconds)
  }
  func put(bytes: Int) { self.putBytes.increment(by: Int64(bytes)) }
  func got(bytes: Int) { self.getBytes.increment(by: Int64(bytes)) }
  func quarantined(_ result: String) {
    Counter(label: "memq_ingest_quarantined_batches_total", dimensions: [("result", result)])
      .increment()
  }
  func finished(_ stage: String) {
    Counter(label: "memq_ingest_file_finisher_total", dimensions: [("result", stage)]).increment()
  }
}
