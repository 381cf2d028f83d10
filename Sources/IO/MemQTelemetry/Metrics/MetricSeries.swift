// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Synchronization

/// One line (or, for a histogram, one group of lines) of the exposition: a family's member with given label values.
protocol MetricSeries: AnyObject, Sendable {
  func render(_ name: String, _ labels: String, into text: inout PrometheusText)
}

/// A sum that only rises. Fractions are kept: some counters count seconds.
final class CounterSeries: MetricSeries, CounterHandler, FloatingPointCounterHandler {
  private let whole = Atomic<Int64>(0)
  private let fraction = Mutex(0.0)

  func increment(by amount: Int64) {
    // A counter never goes back, whatever a caller says.
    guard amount > 0 else { return }
    self.whole.wrappingAdd(amount, ordering: .relaxed)
  }

  func increment(by amount: Double) {
    guard amount > 0, amount.isFinite else { return }
    self.fraction.withLock { $0 += amount }
  }

  func reset() {
    self.whole.store(0, ordering: .relaxed)
    self.fraction.withLock { $0 = 0 }
  }

  func render(_ name: String, _ labels: String, into text: inout PrometheusText) {
    let whole = self.whole.load(ordering: .relaxed)
    let fraction = self.fraction.withLock { $0 }
    text.sample(
      name, labels, fraction == 0 ? String(whole) : PrometheusText.number(Double(whole) + fraction))
  }
}

/// A value that goes up and down: meters, and recorders that do not aggregate.
final class GaugeSeries: MetricSeries, MeterHandler, RecorderHandler {
  private let value = Mutex(0.0)

  func set(_ value: Int64) { self.set(Double(value)) }
  func set(_ value: Double) { self.value.withLock { $0 = value } }
  func increment(by amount: Double) { self.value.withLock { $0 += amount } }
  func decrement(by amount: Double) { self.value.withLock { $0 -= amount } }
  func record(_ value: Int64) { self.set(Double(value)) }
  func record(_ value: Double) { self.set(value) }

  func render(_ name: String, _ labels: String, into text: inout PrometheusText) {
    text.sample(name, labels, PrometheusText.number(self.value.withLock { $0 }))
  }
}

/// Observations in fixed buckets: timers (seconds) and aggregating recorders.
final class HistogramSeries: MetricSeries, TimerHandler, RecorderHandler {
  private struct State {
    /// Observations above the previous bound and at most this one; the last is above all bounds.
    var counts: [Int64]
    var sum = 0.0
  }

  private let bounds: [Double]
  private let state: Mutex<State>

  init(bounds: [Double]) {
    self.bounds = bounds
    self.state = Mutex(State(counts: [Int64](repeating: 0, count: bounds.count + 1)))
  }

  func recordNanoseconds(_ duration: Int64) { self.record(Double(duration) / 1e9) }
  func record(_ value: Int64) { self.record(Double(value)) }

  func record(_ value: Double) {
    guard value.isFinite else { return }
    let bucket = self.bounds.firstIndex { value <= $0 } ?? self.bounds.count
    self.state.withLock { state in
      state.counts[bucket] += 1
      state.sum += value
    }
  }

  func render(_ name: String, _ labels: String, into text: inout PrometheusText) {
    let (counts, sum) = self.state.withLock { ($0.counts, $0.sum) }
    var total: Int64 = 0
    for (index, count) in counts.enumerated() {
      total += count
      let bound = index < self.bounds.count ? PrometheusText.number(self.bounds[index]) : "+Inf"
      let le = "le=\"\(bound)\""
      text.sample("\(name)_bucket", labels.isEmpty ? le : "\(labels),\(le)", String(total))
    }
    text.sample("\(name)_sum", labels, PrometheusText.number(sum))
    text.sample("\(name)_count", labels, String(total))
  }
}

/// Takes what no series may: a label set beyond a family's limit, or a name used with two kinds.
final class DiscardingSeries: CounterHandler, FloatingPointCounterHandler, MeterHandler,
  RecorderHandler, TimerHandler
{
  func increment(by _: Int64) {}
  func increment(by _: Double) {}
  func decrement(by _: Double) {}
  func reset() {}
  func set(_: Int64) {}
  func set(_: Double) {}
  func record(_: Int64) {}
  func record(_: Double) {}
  func recordNanoseconds(_: Int64) {}
}
