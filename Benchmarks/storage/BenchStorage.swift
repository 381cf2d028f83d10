// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel

/// Durable appends through a volume against plain pwrite + fdatasync of the same group size, in the same run.
///
/// Rounds alternate between the two, so that a noisy disk is noisy for both; printed are medians over the rounds and the
/// median of the rounds' ratios. Both write fresh, preallocated 256 MiB files.
@main
struct BenchStorage {
  struct Options {
    var folder = "/tmp/memq-bench-storage"
    var rounds = 7
    /// Bytes of batches per round and side.
    var bytes = 512 << 20
    var batchBytes = 64 << 10
    var partitions = 16
    var groupBytes = 4 << 20
    /// Appends of the latency part.
    var lone = 200
    /// Batches under way, in groups.
    var windowGroups = 3

    init(_ arguments: [String]) {
      var rest = arguments.dropFirst()
      while let name = rest.popFirst() {
        guard let value = rest.popFirst() else { Self.usage("\(name) needs a value") }
        if name == "--folder" {
          self.folder = value
          continue
        }
        guard let number = Int(value), number > 0 else { Self.usage("\(name) needs a number") }
        switch name {
        case "--rounds": self.rounds = number
        case "--mib": self.bytes = number << 20
        case "--batch-kib": self.batchBytes = number << 10
        case "--partitions": self.partitions = number
        case "--group-kib": self.groupBytes = number << 10
        case "--lone": self.lone = number
        case "--window-groups": self.windowGroups = number
        default: Self.usage("\(name) is not known")
        }
      }
    }

    private static func usage(_ why: String) -> Never {
      print(
        "\(why)\nbench-storage [--folder PATH] [--rounds N] [--mib N] [--batch-kib N] [--partitions N] [--group-kib N] [--lone N] [--window-groups N]"
      )
      exit(2)
    }
  }

  static func main() async throws {
    let options = Options(CommandLine.arguments)
    var volumes: [Measure] = []
    var raws: [Measure] = []
    for round in 1...options.rounds {
      let raw = try RawFiles.run(options)
      let volume = try await VolumeRun.run(options)
      print(
        "round \(round): raw \(raw.text), volume \(volume.text), \(volume.groups) groups of \((volume.bytes / max(1, volume.groups)) >> 10) KiB"
      )
      fflush(nil)
      raws.append(raw)
      volumes.append(volume)
    }
    let ratios = zip(volumes, raws).map { $0.megabytesPerSecond / $1.megabytesPerSecond }
    print(
      """
      median raw:    \(Measure.median(raws).text)
      median volume: \(Measure.median(volumes).text)
      volume / raw:  \(rounded(median(ratios))) (lowest \(rounded(ratios.min()!)), highest \(rounded(ratios.max()!)))
      """)
    let lone = try await Lone.run(options)
    print(
      """
      one \(options.batchBytes >> 10) KiB append at a time, \(options.lone) of each in turn:
      raw p50 \(lone.raw) µs, volume p50 \(lone.volume) µs, ratio of medians \(rounded(Double(lone.volume) / Double(lone.raw)))
      """)
  }
}

/// What one side did in one round.
struct Measure {
  var bytes: Int
  var seconds: Double
  var cpuSeconds: Double
  var userSeconds: Double
  var groups = 0

  var megabytesPerSecond: Double { Double(self.bytes) / self.seconds / 1_000_000 }
  var cpuPerGiB: Double { self.cpuSeconds / (Double(self.bytes) / Double(1 << 30)) }
  var userPerGiB: Double { self.userSeconds / (Double(self.bytes) / Double(1 << 30)) }
  var text: String {
    "\(Int(self.megabytesPerSecond)) MB/s, \(rounded(self.cpuPerGiB)) CPU-s/GiB (user \(rounded(self.userPerGiB)))"
  }

  static func median(_ measures: [Measure]) -> Measure {
    measures.sorted { $0.megabytesPerSecond < $1.megabytesPerSecond }[measures.count / 2]
  }
}

func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }

func rounded(_ value: Double) -> String {
  let hundredths = Int((value * 1000).rounded())
  let fraction = String(hundredths % 1000)
  return "\(hundredths / 1000)." + String(repeating: "0", count: 3 - fraction.count) + fraction
}

/// Wall seconds and CPU seconds (user and system, all threads).
struct Stopwatch {
  private let wall = Stopwatch.wallSeconds
  private let cpu = Stopwatch.cpuSeconds

  static var wallSeconds: Double {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
  }

  static var cpuSeconds: (all: Double, user: Double) {
    var usage = rusage()
    getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
    func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
    return (seconds(usage.ru_utime) + seconds(usage.ru_stime), seconds(usage.ru_utime))
  }

  func measure(_ bytes: Int, groups: Int = 0) -> Measure {
    let cpu = Self.cpuSeconds
    return Measure(
      bytes: bytes, seconds: Self.wallSeconds - self.wall, cpuSeconds: cpu.all - self.cpu.all,
      userSeconds: cpu.user - self.cpu.user, groups: groups)
  }

  var microseconds: Int { Int((Self.wallSeconds - self.wall) * 1e6) }
}
