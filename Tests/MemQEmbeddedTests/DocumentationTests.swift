// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQEmbedded
import MemQIngestService
import MemQMetadataService
import MemQRebalancerService
import MemQReplicationService
import MemQRuntime
import MemQScannerService
import MemQTelemetry
import MemQUploaderService
import Testing

/// The pages that are made from tables are those tables. `MEMQ_WRITE_DOCS=1 scripts/test --filter DocumentationTests` writes them.
@Suite struct DocumentationTests {
  static let root = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  static let tables = [
    MemQServer.table, MetadataProgram.table, ReplicationProgram.table, IngestProgram.table,
    UploaderProgram.table, ScannerProgram.table, RebalancerProgram.table,
  ]

  private func check(_ path: String, _ text: String) throws {
    let file = Self.root.appendingPathComponent(path)
    if ProcessInfo.processInfo.environment["MEMQ_WRITE_DOCS"] == "1" {
      try text.write(to: file, atomically: true, encoding: .utf8)
    }
    let found = (try? String(contentsOf: file, encoding: .utf8)) ?? ""
    #expect(found == text, "\(path) is not what the tables say")
  }

  @Test func `the page of configuration keys is made from the programs' tables`() throws {
    let head = """
      # Configuration

      Every program takes its keys from four places: a flag counts more than an environment variable, that more than the YAML file
      (`--config FILE` or `MEMQ_CONFIG`), that more than the default. In the file a key is written with dots or nested, as you like:
      `log.level: debug` and `log: {level: debug}` are the same. `PROGRAM config check` says what is wrong, `PROGRAM config print` shows
      the effective values and where each came from; for `memq serve` it is `memq config check|print`.

      Unknown flags and unknown keys in the file are errors (exit status 2) that name the key and the nearest known ones. An unknown
      `MEMQ_*` variable is one warning. `MEMQ_SERVER` and `MEMQ_CLIENT_…` belong to the command line, `MEMQ_DATA` to deployments: services
      read none of them.

      Sizes: whole numbers with B, KB, MB, GB, TB (powers of 1,000) or KiB, MiB, GiB, TiB (powers of 1,024); none means bytes. Times: whole
      numbers with us, ms, s, m, h, d. Addresses: `host:port`, `[v6]:port` or `unix:/path`.

      Keys that change "live" are read anew at SIGHUP; the others count from the next start.

      This page is made from the programs' own tables; a test compares them.


      """
    try self.check(
      "docs/operations/configuration.md", head + Self.tables.map(\.markdown).joined(separator: "\n")
    )
  }

  @Test func `the page of metrics is made from the catalogue`() throws {
    var text = """
      # Metrics

      `/metrics` on the admin port of each process, in Prometheus's text format. Counters end in `_total`; histograms have fixed buckets in
      base units (seconds, bytes), so that instances add up. A metric has at most \(PrometheusRegistry.seriesPerFamilyMax) label sets; those
      beyond share one whose labels are "other" (`memq_telemetry_series_folded_total` counts them).

      This page is made from the catalogue in MemQTelemetry; a test compares them, and another finds metrics that are missing in it.

      | metric | kind | labels | meaning |
      |---|---|---|---|

      """
    for metric in MetricCatalogue.all {
      let labels = metric.labels.isEmpty ? "none" : metric.labels.joined(separator: ", ")
      text += "| `\(metric.name)` | \(metric.kind.rawValue) | \(labels) | \(metric.help) |\n"
    }
    try self.check("docs/operations/metrics.md", text)
  }

  @Test func `every metric of the code is in the catalogue, and the other way round`() throws {
    let known = Set(MetricCatalogue.all.map(\.name))
    var used: Set<String> = []
    for folder in ["Sources", "services"] {
      let base = Self.root.appendingPathComponent(folder)
      let files = FileManager.default.enumerator(at: base, includingPropertiesForKeys: nil)
      for case let file as URL in try #require(files) where file.pathExtension == "swift" {
        if file.lastPathComponent.hasPrefix("MetricCatalogue") { continue }
        let text = try String(contentsOf: file, encoding: .utf8)
        for match in text.matches(of: /"((?:memq_[a-z0-9]+|process)(?:_[a-z0-9]+)+)"/) {
          used.insert(String(match.1))
        }
      }
    }
    // A counter's label may leave out the ending that it is exposed with.
    let exposed = Set(
      used.map { known.contains($0) || $0.hasSuffix("_total") ? $0 : $0 + "_total" })
    #expect(exposed.subtracting(known).sorted() == [])
    #expect(known.subtracting(exposed).sorted() == [])
  }

  @Test func `example configurations are right`() throws {
    for table in Self.tables.dropFirst() {
      let service = table.program.dropFirst("memq-".count)
      let path = Self.root.appendingPathComponent("services/\(service)/config.example.yaml").path
      #expect(throws: Never.self) {
        try ConfigurationLoader(
          table,
          arguments: ["--config", path] + (table.key("data") == nil ? [] : ["--data", "/d"]),
          environment: [:]
        ).load()
      }
    }
  }
}
