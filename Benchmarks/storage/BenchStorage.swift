// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CBenchSync
import Glibc
import MemQStorage
import MemQSystem

/// Figures of the SSD log, each against a floor of the same run.
@main
struct BenchStorage {
  struct Options {
    var folder = "/tmp/memq-bench-storage"
    var rounds = 7
    var mebibytes = 512
    var seconds = 5
    var partitions = 10_000
    var gibibytes = 5
    var syncMicroseconds = 2_000
    var rate = 200
    var writes = Volume.WritePath.cached

    init(_ arguments: ArraySlice<String>) {
      var rest = arguments
      while let name = rest.popFirst() {
        if name == "--help" { BenchStorage.help("", 0) }
        guard let value = rest.popFirst() else { BenchStorage.help("\(name) needs a value", 2) }
        if name == "--folder" {
          self.folder = value
          continue
        }
        if name == "--writes" {
          guard let writes = Volume.WritePath(rawValue: value) else {
            BenchStorage.help("--writes is cached or direct", 2)
          }
          self.writes = writes
          continue
        }
        guard let number = Int(value), number > 0 else {
          BenchStorage.help("\(name) needs a number above 0", 2)
        }
        switch name {
        case "--rounds": self.rounds = number
        case "--mib": self.mebibytes = number
        case "--seconds": self.seconds = number
        case "--partitions": self.partitions = number
        case "--gib": self.gibibytes = number
        case "--sync-us": self.syncMicroseconds = number
        case "--rate": self.rate = number
        default: BenchStorage.help("\(name) is not known", 2)
        }
      }
    }
  }

  private static let works:
    [(name: String, what: String, run: @Sendable (Options) async throws -> Void)] = [
      (
        "append",
        "durable 64 KiB batches over 16 partitions, to pwrite + fdatasync and to fio; CPU by stage",
        Works.append
      ),
      (
        "partitions", "10,000 partitions against 10: 16 KiB batches, the same MB/s offered",
        Works.partitions
      ),
      (
        "latency", "durable 4 KiB appends at a quarter of saturation, fdatasync takes 2 ms",
        Works.latency
      ),
      (
        "restart", "until a volume of --gib serves after a crash, cold, 10,000 partitions",
        Works.restart
      ),
      ("memory", "of an idle partition, and of the index of 100 GiB of 4 KiB runs", Works.memory),
      (
        "catch-up", "produce while another partition is read from its beginning, to without",
        Works.catchUp
      ),
      (
        "log-order", "16 partitions read from their beginning: each by itself, and in log order",
        Works.logOrder
      ),
    ]

  static func help(_ why: String, _ code: Int32) -> Never {
    if !why.isEmpty { print(why) }
    print("bench-storage WORK [OPTION VALUE]…\n")
    for work in Self.works {
      print("  \(work.name)\(String(repeating: " ", count: 12 - work.name.count))\(work.what)")
    }
    print(
      """

        --folder PATH     where the files go, on the disk to be measured (/tmp/memq-bench-storage)
        --rounds N        rounds that take turns; medians are printed (7; catch-up and partitions 5, latency 3 are enough)
        --mib N           bytes of a round and side of append (512)
        --seconds N       of a round of partitions, latency and catch-up (5)
        --rate N          MB/s offered by partitions (200)
        --partitions N    the many of partitions, restart, memory (10,000)
        --gib N           size of restart's volume; of catch-up's and log-order's partitions (5)
        --writes WAY      of the volume: cached (through the page cache) or direct (past it) (cached)
        --sync-us N       what an fdatasync takes at least in partitions, latency and catch-up (2,000)

      Figures and how they were made: docs/performance.md.
      """)
    exit(code)
  }

  static func main() async throws {
    MemoryAllocator.keepFreedMemory()
    let arguments = CommandLine.arguments.dropFirst()
    guard let name = arguments.first, name != "--help" else {
      Self.help("", arguments.isEmpty ? 2 : 0)
    }
    let options = Options(arguments.dropFirst())
    // What restart starts as processes of their own.
    if name == "restart-build" { return try await Works.restartBuild(options) }
    if name == "restart-open" { return try await Works.restartOpen(options) }
    guard let work = Self.works.first(where: { $0.name == name }) else {
      Self.help("\(name) is no work", 2)
    }
    try await work.run(options)
    show("peak memory \(Memory.peakMiB) MiB")
  }
}
