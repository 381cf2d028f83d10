// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
public import Logging
import Synchronization

/// Logs and metrics of this process. swift-log and swift-metrics are set up once per process, whoever asks first.
public enum Telemetry {
  /// What `/metrics` shows.
  public static let registry = PrometheusRegistry()
  /// Level and format of the logs.
  public static let logs = LogControl()

  private static let isBooted = Mutex(false)

  /// Makes this process's loggers and metrics ours. Later calls only change level and format.
  ///
  /// - Parameter service: names the process in `memq_build_info`: "serve", "ingest", …
  public static func bootstrap(
    service: String, level: Logger.Level = .info, format: LogFormat = .text,
    sink: any LogSink = StandardErrorSink()
  ) {
    self.logs.level = level
    self.logs.format = format
    let isFirst = self.isBooted.withLock { isBooted in
      defer { isBooted = true }
      return !isBooted
    }
    guard isFirst else { return }
    LoggingSystem.bootstrap { StructuredLogHandler(label: $0, control: self.logs, sink: sink) }
    self.bootstrapMetrics(service: service)
  }

  private static func bootstrapMetrics(service: String) {
    let process = ProcessMetrics(service: service)
    self.registry.collect { process.collect() }
    MetricsSystem.bootstrap(self.registry)
  }
}
