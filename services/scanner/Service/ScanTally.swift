// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQScreening
import Metrics
import Synchronization

/// Counts verdicts since the start, for `scan status` and for /metrics.
final class ScanTally: Sendable {
  struct Counts: Sendable {
    var clean: Int64 = 0
    var infected: Int64 = 0
    var notScanned: Int64 = 0
    var bytes: Int64 = 0
  }

  private let state = Mutex(Counts())
  private let bytes = Counter(label: "memq_scanner_scanned_bytes_total")
  private let duration = Metrics.Timer(label: "memq_scanner_scan_duration_seconds")

  var counts: Counts { self.state.withLock { $0 } }

  func add(_ verdict: ScreeningVerdict, byteCount: Int64) {
    let word: String
    var reason = ""
    switch verdict.outcome {
    case .clean: word = "clean"
    case .infected: word = "infected"
    case .notScanned(let why):
      word = "not_scanned"
      reason = why.rawValue
    }
    self.state.withLock { counts in
      switch verdict.outcome {
      case .clean: counts.clean += 1
      case .infected: counts.infected += 1
      case .notScanned: counts.notScanned += 1
      }
      counts.bytes += byteCount
    }
    Counter(
      label: "memq_scanner_verdicts_total", dimensions: [("verdict", word), ("reason", reason)]
    ).increment()
    self.bytes.increment(by: byteCount)
    self.duration.recordNanoseconds(verdict.duration.nanoseconds)
  }
}
