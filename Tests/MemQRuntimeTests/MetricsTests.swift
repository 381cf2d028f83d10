// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Testing

@testable import MemQTelemetry

/// Reads Prometheus's text format strictly; whatever it cannot read is an issue.
struct Exposition {
  struct Sample: Hashable {
    let name: String
    let labels: [String: String]
    let value: Double
  }

  private(set) var types: [String: String] = [:]
  private(set) var helps: [String: String] = [:]
  private(set) var samples: [Sample] = []

  init(_ text: String) {
    #expect(text.isEmpty || text.hasSuffix("\n"))
    var family = ""
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ", maxSplits: 3).map(String.init)
      if line.hasPrefix("# HELP ") {
        #expect(self.helps.updateValue(words.count > 3 ? words[3] : "", forKey: words[2]) == nil)
        family = words[2]
      } else if line.hasPrefix("# TYPE ") {
        #expect(words[2] == family, "TYPE follows HELP")
        #expect(["counter", "gauge", "histogram"].contains(words[3]))
        #expect(self.types.updateValue(words[3], forKey: words[2]) == nil)
      } else if let sample = Self.sample(String(line)) {
        let isMember =
          sample.name == family
          || ["_bucket", "_sum", "_count"].contains { sample.name == family + $0 }
        #expect(isMember, "\(sample.name) stands under \(family)")
        self.samples.append(sample)
      } else {
        Issue.record("not a line of the format: \(line)")
      }
    }
    #expect(Set(self.samples.map { "\($0.name) \($0.labels)" }).count == self.samples.count)
  }

  private static func sample(_ line: String) -> Sample? {
    guard let match = line.wholeMatch(of: /([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)/) else {
      return nil
    }
    var labels: [String: String] = [:]
    var rest = match.2 ?? ""
    while !rest.isEmpty {
      guard let pair = rest.prefixMatch(of: /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\n"])*)",?/)
      else {
        return nil
      }
      labels[String(pair.1)] = String(pair.2)
      rest = rest[pair.range.upperBound...]
    }
    let value = match.3 == "+Inf" ? .infinity : Double(match.3)
    return value.map { Sample(name: String(match.1), labels: labels, value: $0) }
  }

  func value(_ name: String, _ labels: [String: String] = [:]) -> Double? {
    self.samples.first { $0.name == name && $0.labels == labels }?.value
  }
}

@Suite struct PrometheusTests {
  @Test func `every kind is exposed in base units and parses`() {
    let registry = PrometheusRegistry(catalogue: [
      MetricDefinition("memq_test_things_total", .counter, "Things, with a \\ and a\nbreak.")
    ])
    Counter(label: "memq_test_things", factory: registry).increment(by: 3)
    Counter(label: "memq_test_things_total", factory: registry).increment(by: 4)
    FloatingPointCounter(label: "memq_test_busy_seconds", factory: registry).increment(by: 1.25)
    Gauge(label: "memq_test_level_bytes", factory: registry).record(17)
    Meter(label: "memq_test_temperature", factory: registry).set(-2.5)
    let timer = Timer(label: "memq_test_sync_duration_seconds", factory: registry)
    timer.recordMilliseconds(3)
    timer.recordSeconds(100)
    Recorder(label: "memq_test_batch_bytes", factory: registry).record(1 << 20)
    let page = Exposition(registry.exposition())
    #expect(page.value("memq_test_things_total") == 7)
    #expect(page.helps["memq_test_things_total"] == #"Things, with a \\ and a\nbreak."#)
    #expect(page.value("memq_test_busy_seconds_total") == 1.25)
    #expect(page.value("memq_test_level_bytes") == 17)
    #expect(page.value("memq_test_temperature") == -2.5)
    #expect(page.types["memq_test_sync_duration_seconds"] == "histogram")
    #expect(page.value("memq_test_sync_duration_seconds_bucket", ["le": "0.0025"]) == 0)
    #expect(page.value("memq_test_sync_duration_seconds_bucket", ["le": "0.005"]) == 1)
    #expect(page.value("memq_test_sync_duration_seconds_bucket", ["le": "60"]) == 1)
    #expect(page.value("memq_test_sync_duration_seconds_bucket", ["le": "+Inf"]) == 2)
    #expect(page.value("memq_test_sync_duration_seconds_sum") == 100.003)
    #expect(page.value("memq_test_sync_duration_seconds_count") == 2)
    #expect(page.value("memq_test_batch_bytes_bucket", ["le": "1048576"]) == 1)
  }

  @Test func `labels are escaped, sorted and one series whatever their order`() {
    let registry = PrometheusRegistry(catalogue: [])
    let value = "a \"b\" \\ \n{c},d=\"e\""
    for dimensions in [[("topic", value), ("code", "OK")], [("code", "OK"), ("topic", value)]] {
      Counter(label: "memq_test_calls", dimensions: dimensions, factory: registry).increment()
    }
    let page = Exposition(registry.exposition())
    let sample = page.samples.first { $0.name == "memq_test_calls_total" }
    #expect(sample?.value == 2)
    #expect(sample?.labels["topic"] == #"a \"b\" \\ \n{c},d=\"e\""#)
  }

  @Test func `a family never grows without bound`() {
    let registry = PrometheusRegistry(catalogue: [])
    for topic in 0..<(PrometheusRegistry.seriesPerFamilyMax + 50) {
      Counter(label: "memq_test_records", dimensions: [("topic", "t\(topic)")], factory: registry)
        .increment()
    }
    let page = Exposition(registry.exposition())
    let series = page.samples.filter { $0.name == "memq_test_records_total" }
    #expect(series.count == PrometheusRegistry.seriesPerFamilyMax + 1)
    #expect(page.value("memq_test_records_total", ["topic": "other"]) == 50)
    #expect(page.value("memq_telemetry_series_folded_total") == 50)
  }

  @Test func `one name cannot be two kinds, and what is destroyed is gone`() {
    let registry = PrometheusRegistry(catalogue: [])
    let gauge = Gauge(label: "memq_test_x", factory: registry)
    gauge.record(1)
    Timer(label: "memq_test_x", factory: registry).recordSeconds(1)
    #expect(Exposition(registry.exposition()).types["memq_test_x"] == "gauge")
    gauge.destroy()
    #expect(Exposition(registry.exposition()).value("memq_test_x") == nil)
  }

  @Test func `the process tells of itself`() throws {
    let registry = PrometheusRegistry()
    let process = ProcessMetrics(service: "test")
    registry.collect { process.collect() }
    let page = Exposition(registry.exposition())
    let info = try #require(page.samples.first { $0.name == "memq_build_info" })
    #expect(info.labels["version"] == BuildInfo.version && info.value == 1)
    #expect(try #require(page.value("process_resident_memory_bytes")) > 1_000_000)
    #expect(try #require(page.value("process_cpu_seconds_total")) >= 0)
    #expect(try #require(page.value("process_open_fds")) >= 3)
    #expect(try #require(page.value("memq_uptime_seconds")) >= 0)
    #expect(page.types["process_cpu_seconds_total"] == "counter")
  }

  @Test func `the catalogue is sound`() {
    let names = MetricCatalogue.all.map(\.name)
    #expect(Set(names).count == names.count)
    for metric in MetricCatalogue.all {
      #expect(metric.name.hasPrefix("memq_") || metric.name.hasPrefix("process_"))
      #expect((metric.kind == .counter) == metric.name.hasSuffix("_total"), "\(metric.name)")
      #expect(metric.help.hasSuffix("."), "\(metric.name)")
    }
  }
}
