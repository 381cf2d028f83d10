// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CBenchSync
import Glibc

/// Wall and CPU time, and memory, of a stretch of work.
struct Stretch {
  private let wall = Clock.nanoseconds
  private let cpu = Clock.cpuSeconds

  func end(bytes: Int) -> Cost {
    let cpu = Clock.cpuSeconds
    return Cost(
      bytes: bytes, seconds: Double(Clock.nanoseconds - self.wall) / 1e9,
      cpuSeconds: cpu.all - self.cpu.all, userSeconds: cpu.user - self.cpu.user)
  }
}

struct Cost {
  var bytes: Int
  var seconds: Double
  var cpuSeconds: Double
  var userSeconds: Double

  var rate: Double { Double(self.bytes) / self.seconds / 1e6 }
  var cpuPerGiB: Double { self.cpuSeconds / self.gibibytes }
  var userPerGiB: Double { self.userSeconds / self.gibibytes }
  var gibibytes: Double { Double(self.bytes) / Double(1 << 30) }
}

enum Clock {
  static var nanoseconds: Int64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
  }

  static var cpuSeconds: (all: Double, user: Double) {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
    return (seconds(usage.ru_utime) + seconds(usage.ru_stime), seconds(usage.ru_utime))
  }

  static func sleep(until time: Int64) {
    var until = timespec(tv_sec: Int(time / 1_000_000_000), tv_nsec: Int(time % 1_000_000_000))
    while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nil) == EINTR {}
  }
}

enum Memory {
  /// Of the process since its start.
  static var peakMiB: Int {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    return Int(usage.ru_maxrss) >> 10
  }

  static var heapBytes: Int { Int(bench_heap_bytes()) }
}

func median(_ values: [Double]) -> Double {
  values.isEmpty ? 0 : values.sorted()[values.count / 2]
}

/// Three decimals below 10, one below 1,000, none above.
func text(_ value: Double) -> String {
  let digits = value < 10 ? 3 : value < 1_000 ? 1 : 0
  var scale = 1.0
  for _ in 0..<digits { scale *= 10 }
  let whole = Int((value * scale).rounded())
  guard digits > 0 else { return String(whole) }
  let fraction = String(whole % Int(scale))
  return "\(whole / Int(scale))." + String(repeating: "0", count: digits - fraction.count)
    + fraction
}

func show(_ line: String) {
  print(line)
  fflush(nil)
}

/// Latencies in microseconds.
struct Latencies {
  private var sorted: [UInt32]
  init(_ values: [UInt32]) { self.sorted = values.sorted() }
  func at(_ quantile: Double) -> Double {
    guard !self.sorted.isEmpty else { return 0 }
    let index = min(self.sorted.count - 1, Int(Double(self.sorted.count) * quantile))
    return Double(self.sorted[index])
  }
  var p50: Double { self.at(0.5) }
  var p99: Double { self.at(0.99) }
}

struct BenchError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

extension bench_calls {
  static func - (a: Self, b: Self) -> Self {
    bench_calls(
      write_cpu_nanoseconds: a.write_cpu_nanoseconds - b.write_cpu_nanoseconds,
      sync_cpu_nanoseconds: a.sync_cpu_nanoseconds - b.sync_cpu_nanoseconds,
      write_nanoseconds: a.write_nanoseconds - b.write_nanoseconds,
      sync_nanoseconds: a.sync_nanoseconds - b.sync_nanoseconds,
      sync_to_write_nanoseconds: a.sync_to_write_nanoseconds - b.sync_to_write_nanoseconds,
      write_to_sync_nanoseconds: a.write_to_sync_nanoseconds - b.write_to_sync_nanoseconds,
      writes: a.writes - b.writes, syncs: a.syncs - b.syncs)
  }

  /// What one cycle of write and sync is made of, in microseconds.
  var cycle: String {
    func each(_ nanoseconds: Int64, _ count: Int64) -> String {
      text(Double(nanoseconds) / 1e3 / Double(max(1, count)))
    }
    return
      "sync \(each(self.sync_nanoseconds, self.syncs)), to write \(each(self.sync_to_write_nanoseconds, self.writes)), write \(each(self.write_nanoseconds, self.writes)), to sync \(each(self.write_to_sync_nanoseconds, self.syncs)) us; \(text(Double(self.writes) / Double(max(1, self.syncs)))) writes a sync"
  }
}
