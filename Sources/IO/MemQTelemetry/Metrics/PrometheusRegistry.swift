// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import CoreMetrics
import Synchronization

/// The metrics of a process, as a swift-metrics factory that `/metrics` reads.
///
/// Two rules keep a scrape bounded: a family holds at most `seriesPerFamilyMax` label sets (the next ones share one series
/// whose label values are "other"), and there are at most `familiesMax` families.
public final class PrometheusRegistry: MetricsFactory {
  /// Label sets per family. A topic's label is the widest we use, and a thousand lines are still readable by a scraper in one go.
  public static let seriesPerFamilyMax = 1_000
  /// Families: ten times what the catalogue holds.
  public static let familiesMax = 2_000
  /// Longest label value kept, in characters: topic names (249) fit.
  static let labelValueMax = 256

  private struct Family {
    let definition: MetricDefinition
    let bounds: [Double]
    /// By rendered labels.
    var series: [String: any MetricSeries] = [:]
    /// Whether some label sets share the series "other".
    var hasOverflow = false
  }

  private struct State {
    var families: [String: Family] = [:]
    /// Label sets that were folded, and names that were refused.
    var dropped: Int64 = 0
    var collectors: [@Sendable () -> [CollectedMetric]] = []
  }

  private let catalogue: [String: MetricDefinition]
  private let state = Mutex(State())

  /// - Parameter catalogue: gives HELP and kind; a metric that is not in it is exposed, too, with its name as HELP.
  public init(catalogue: [MetricDefinition] = MetricCatalogue.all) {
    self.catalogue = Dictionary(catalogue.map { ($0.name, $0) }) { first, _ in first }
  }

  /// Adds values that are read at each scrape: the process's own, for example.
  public func collect(_ body: @escaping @Sendable () -> [CollectedMetric]) {
    self.state.withLock { $0.collectors.append(body) }
  }

  // MARK: Series

  private func series<Series: MetricSeries>(
    _ name: String, _ kind: MetricDefinition.Kind, _ dimensions: [(String, String)],
    _ make: ([Double]) -> Series
  ) -> Series? {
    self.state.withLock { state in
      guard var family = self.family(name, kind, &state) else {
        state.dropped += 1
        return nil
      }
      defer { state.families[name] = family }
      var labels = PrometheusText.labels(
        dimensions.map { ($0, String($1.prefix(Self.labelValueMax))) })
      if family.series[labels] == nil, family.series.count >= Self.seriesPerFamilyMax {
        labels = PrometheusText.labels(dimensions.map { ($0.0, "other") })
        family.hasOverflow = true
        state.dropped += 1
      }
      if let existing = family.series[labels] { return existing as? Series }
      let series = make(family.bounds)
      family.series[labels] = series
      return series
    }
  }

  /// Nil when the name stands for another kind already, or there are too many families.
  private func family(
    _ name: String, _ kind: MetricDefinition.Kind, _ state: inout State
  ) -> Family? {
    if let family = state.families[name] { return family.definition.kind == kind ? family : nil }
    guard state.families.count < Self.familiesMax else { return nil }
    var definition = self.catalogue[name] ?? MetricDefinition(name, kind, name)
    if definition.kind != kind { definition = MetricDefinition(name, kind, definition.help) }
    return Family(definition: definition, bounds: HistogramBuckets.bounds(of: name))
  }

  private func destroy(_ handler: AnyObject) {
    self.state.withLock { state in
      for (name, family) in state.families {
        guard let at = family.series.first(where: { $0.value === handler }) else { continue }
        // The shared one has other users.
        let isShared = family.hasOverflow && at.key.contains("=\"other\"")
        if !isShared { state.families[name]?.series[at.key] = nil }
        return
      }
    }
  }

  // MARK: MetricsFactory

  private static func counterName(_ label: String) -> String {
    let name = PrometheusText.metricName(label)
    return name.hasSuffix("_total") ? name : name + "_total"
  }

  public func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler {
    self.series(Self.counterName(label), .counter, dimensions) { _ in CounterSeries() }
      ?? DiscardingSeries()
  }

  public func makeFloatingPointCounter(
    label: String, dimensions: [(String, String)]
  ) -> any FloatingPointCounterHandler {
    self.series(Self.counterName(label), .counter, dimensions) { _ in CounterSeries() }
      ?? DiscardingSeries()
  }

  public func makeMeter(label: String, dimensions: [(String, String)]) -> any MeterHandler {
    self.series(PrometheusText.metricName(label), .gauge, dimensions) { _ in GaugeSeries() }
      ?? DiscardingSeries()
  }

  public func makeRecorder(
    label: String, dimensions: [(String, String)], aggregate: Bool
  ) -> any RecorderHandler {
    let name = PrometheusText.metricName(label)
    if aggregate {
      return self.series(name, .histogram, dimensions) { HistogramSeries(bounds: $0) }
        ?? DiscardingSeries()
    }
    return self.series(name, .gauge, dimensions) { _ in GaugeSeries() } ?? DiscardingSeries()
  }

  public func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
    self.series(PrometheusText.metricName(label), .histogram, dimensions) {
      HistogramSeries(bounds: $0)
    } ?? DiscardingSeries()
  }

  public func destroyCounter(_ handler: any CounterHandler) { self.destroy(handler) }
  public func destroyFloatingPointCounter(_ handler: any FloatingPointCounterHandler) {
    self.destroy(handler)
  }
  public func destroyMeter(_ handler: any MeterHandler) { self.destroy(handler) }
  public func destroyRecorder(_ handler: any RecorderHandler) { self.destroy(handler) }
  public func destroyTimer(_ handler: any TimerHandler) { self.destroy(handler) }

  // MARK: Exposition

  /// Everything as Prometheus text, version 0.0.4; families and series in the order of their names.
  public func exposition() -> String {
    let (families, dropped, collectors) = self.state.withLock {
      ($0.families, $0.dropped, $0.collectors)
    }
    var parts = families.map { name, family in
      var text = PrometheusText()
      text.header(name, family.definition.kind, help: family.definition.help)
      for (labels, series) in family.series.sorted(by: { $0.key < $1.key }) {
        series.render(name, labels, into: &text)
      }
      return (name, text.text)
    }
    let folded = CollectedMetric("memq_telemetry_series_folded_total", Double(dropped))
    let collected = Dictionary(grouping: collectors.flatMap { $0() } + [folded], by: \.name)
    for (name, metrics) in collected where families[name] == nil {
      parts.append((name, self.text(of: name, metrics)))
    }
    return parts.sorted { $0.0 < $1.0 }.map(\.1).joined()
  }

  private func text(of name: String, _ metrics: [CollectedMetric]) -> String {
    let definition = self.catalogue[name]
    var text = PrometheusText()
    text.header(
      name, definition?.kind ?? (name.hasSuffix("_total") ? .counter : .gauge),
      help: definition?.help ?? name)
    let samples = metrics.map { (PrometheusText.labels($0.labels), $0.value) }
    for (labels, value) in samples.sorted(by: { $0.0 < $1.0 }) {
      text.sample(name, labels, PrometheusText.number(value))
    }
    return text.text
  }
}

/// One value read at scrape time.
public struct CollectedMetric: Sendable {
  public let name: String
  public let labels: [(String, String)]
  public let value: Double

  public init(_ name: String, labels: [(String, String)] = [], _ value: Double) {
    self.name = name
    self.labels = labels
    self.value = value
  }
}
