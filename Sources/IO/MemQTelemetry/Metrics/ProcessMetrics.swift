// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc

/// The process's own numbers, read from /proc at each scrape under the names every Prometheus library uses.
struct ProcessMetrics: Sendable {
  /// What runs: "serve", "ingest", …
  let service: String
  private let startedAt: Double
  private let ticksPerSecond = Double(sysconf(Int32(_SC_CLK_TCK)))
  private let pageBytes = Double(sysconf(Int32(_SC_PAGESIZE)))

  init(service: String) {
    self.service = service
    self.startedAt = Self.now(CLOCK_REALTIME)
    self.bootedAt = Self.now(CLOCK_MONOTONIC)
  }

  private let bootedAt: Double

  func collect() -> [CollectedMetric] {
    var metrics = [
      CollectedMetric(
        "memq_build_info",
        labels: [
          ("configuration", BuildInfo.configuration), ("service", self.service),
          ("version", BuildInfo.version),
        ], 1),
      CollectedMetric("memq_uptime_seconds", Self.now(CLOCK_MONOTONIC) - self.bootedAt),
      CollectedMetric("process_start_time_seconds", self.startedAt),
    ]
    // Fields after the name in parentheses, which may itself hold spaces: man 5 proc.
    let text = Self.read("/proc/self/stat")
    if let end = text.lastIndex(of: ")") {
      let fields = text[text.index(after: end)...].split(separator: " ").map { Double($0) ?? 0 }
      if fields.count > 21 {
        metrics += [
          CollectedMetric(
            "process_cpu_seconds_total", (fields[11] + fields[12]) / self.ticksPerSecond),
          CollectedMetric("process_threads", fields[17]),
          CollectedMetric("process_virtual_memory_bytes", fields[20]),
          CollectedMetric("process_resident_memory_bytes", fields[21] * self.pageBytes),
        ]
      }
    }
    if let count = Self.openFiles() { metrics.append(CollectedMetric("process_open_fds", count)) }
    return metrics
  }

  private static func now(_ clock: clockid_t) -> Double {
    var time = timespec()
    clock_gettime(clock, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }

  private static func read(_ path: String) -> String {
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return "" }
    defer { close(file) }
    let bytes = [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
      count = max(0, Glibc.read(file, buffer.baseAddress, buffer.count))
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private static func openFiles() -> Double? {
    guard let folder = opendir("/proc/self/fd") else { return nil }
    defer { closedir(folder) }
    var count = 0
    while readdir(folder) != nil { count += 1 }
    // Without ".", ".." and the folder just opened.
    return Double(max(0, count - 3))
  }
}
