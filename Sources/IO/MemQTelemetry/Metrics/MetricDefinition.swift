// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What the catalogue says about one metric.
public struct MetricDefinition: Sendable, Hashable {
  /// Prometheus's kinds that we use.
  public enum Kind: String, Sendable {
    /// Only rises; its name ends in `_total`.
    case counter
    case gauge
    /// Counts per bucket, sum and count. Timers and aggregating recorders.
    case histogram
  }

  /// As exposed, units last: `memq_replication_append_bytes_total`.
  public let name: String
  public let kind: Kind
  /// One sentence with the unit.
  public let help: String
  /// Label names; their values are bounded sets (services, codes, topics), never record keys or addresses of clients.
  public let labels: [String]

  public init(_ name: String, _ kind: Kind, labels: [String] = [], _ help: String) {
    self.name = name
    self.kind = kind
    self.help = help
    self.labels = labels
  }
}

/// Upper bounds of histogram buckets, in the metric's base unit. Fixed, so that every instance's counts add up.
public enum HistogramBuckets {
  /// 50 µs (a cached answer) to 60 s (the longest deadline in common use), about 2.2 times apart.
  public static let seconds: [Double] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1, 2.5, 5, 10, 30, 60,
  ]
  /// 256 B to 4 GiB, 4 times apart.
  public static let bytes: [Double] = (4...16).map { Double(1 << (2 * $0)) }
  /// Counts of things: 1 to 1,000,000.
  public static let counts: [Double] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000, 1_000_000,
  ]
  /// Shares of one.
  public static let ratios: [Double] = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1]

  /// The bounds for a metric, by the unit at the end of its name.
  public static func bounds(of name: String) -> [Double] {
    if name.hasSuffix("_seconds") { return self.seconds }
    if name.hasSuffix("_bytes") { return self.bytes }
    if name.hasSuffix("_ratio") { return self.ratios }
    return self.counts
  }
}
