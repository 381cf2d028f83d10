// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Metrics

/// What this rebalancer counts.
struct RebalancerMetrics: Sendable {
  private let done = Self.counter("done")
  private let failed = Self.counter("failed")
  private let skipped = Self.counter("skipped")

  private static func counter(_ result: String) -> Counter {
    Counter(label: "memq_rebalancer_moves_total", dimensions: [("result", result)])
  }

  func moved(_ outcome: MoveOutcome) {
    switch outcome {
    case .done: self.done.increment()
    case .failed: self.failed.increment()
    case .skipped: self.skipped.increment()
    }
  }
}
