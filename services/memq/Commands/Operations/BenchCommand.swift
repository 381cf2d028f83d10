// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQModel
import MemQSystem

struct BenchCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench", abstract: "Measure this machine.", subcommands: [BenchDisk.self])
}

struct BenchDisk: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "disk",
    abstract: "Measure what a disk can do for the log: durable writes, and reads.",
    discussion: """
      Writes like the log does: one after the other over a file that is full already, each durable before the next, in several sizes and
      by several ways of asking the kernel. Run it while nothing else uses the disk. Its file goes with the command, however that ends.
      """)

  @Option(help: "A folder on the disk.")
  var path: String
  @Option(help: "About how long it may take, 1 to 3600.")
  var seconds = 20
  @Option(
    help: ArgumentHelp(
      "Size of the file, 16 to 65536 MiB; twice as much room is asked for.", valueName: "MiB"))
  var fileMib = 256
  @OptionGroup var output: OutputOptions

  static let sizes = [4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20]

  func validate() throws {
    guard (1...3_600).contains(self.seconds) else {
      throw ValidationError("--seconds must be from 1 to 3600")
    }
    guard (16...65_536).contains(self.fileMib) else {
      throw ValidationError("--file-mib must be from 16 to 65536")
    }
  }

  func run() async throws {
    let threads = DiskThreads(name: "memq-bench", count: 1)
    let report = try await threads.run { () throws(MemQError) in
      do throws(FileError) {
        return try self.measure()
      } catch {
        guard error.isNoSpace else { throw error.memqError(.invalidArgument) }
        throw MemQError(
          .invalidArgument, "there is too little room: twice the file is needed",
          subject: self.path, limit: Int64(self.fileMib) << 21)
      }
    }
    try await self.output.show(report.json, report.text)
  }

  private func measure() throws(FileError) -> DiskReport {
    let isShown = Output.errorsAreOnTerminal
    defer { if isShown { Output.status("") } }
    if isShown { Output.status("writing a file of \(self.fileMib) MiB") }
    let probe = try DiskProbe(folder: self.path, fileBytes: Int64(self.fileMib) << 20)
    var report = DiskReport(path: self.path, device: probe.device)
    let steps = Self.sizes.count * DiskProbe.BackEnd.allCases.count + 1
    let each = Duration.milliseconds(self.seconds * 1_000 / steps)
    var step = 0
    // Size by size: what changes on the disk meanwhile meets all ways alike.
    for size in Self.sizes {
      for backEnd in DiskProbe.BackEnd.allCases {
        step += 1
        if isShown {
          Output.status("\(step) of \(steps): \(byteText(Int64(size))) by \(backEnd.rawValue)")
        }
        guard let sample = try probe.writes(backEnd, byteCount: size, for: each) else { continue }
        report.samples.append(sample)
      }
    }
    if isShown { Output.status("\(steps) of \(steps): reads") }
    report.readBytesPerSecond = try probe.reads(for: each)
    report.missing = probe.missing
    return report
  }
}

/// What was measured, and what follows from it.
struct DiskReport: Sendable {
  let path: String
  let device: DiskProbe.Device
  var samples: [DiskProbe.Sample] = []
  var missing: [DiskProbe.BackEnd: String] = [:]
  var readBytesPerSecond = 0.0

  init(path: String, device: DiskProbe.Device) {
    self.path = path
    self.device = device
  }

  /// No disk that keeps its word over a power cut syncs faster.
  static let realSyncMin: Duration = .microseconds(20)
  /// Less than this is noise from one run to the next.
  static let gainMin = 1.15
  /// The log's groups are mostly of these sizes.
  static let groupSizes = [64 << 10, 256 << 10, 1 << 20]

  /// Why nothing here says what a power-safe disk would do; nil: nothing speaks against it.
  var doubt: String? {
    let sync = self.samples.first { $0.byteCount == 4 << 10 && $0.backEnd == .plain }?.p50
    if let sync, sync < Self.realSyncMin {
      return
        "a synced write takes \(Self.micros(sync)) µs: no power-safe disk is that fast, so syncs do not reach one here"
    }
    if self.device.isVirtual {
      return
        "the device \(self.device.name.isEmpty ? "(\(self.device.fileSystem))" : self.device.name) is virtual: its host decides what a sync does"
    }
    return nil
  }

  /// How many times as many bytes a second as the plain way, at the worst of the log's sizes.
  func gain(_ backEnd: DiskProbe.BackEnd) -> Double? {
    var worst: Double?
    for size in Self.groupSizes {
      let plain = self.samples.first { $0.byteCount == size && $0.backEnd == .plain }
      let other = self.samples.first { $0.byteCount == size && $0.backEnd == backEnd }
      guard let plain, let other, plain.bytesPerSecond > 0 else { return nil }
      worst = min(worst ?? .infinity, other.bytesPerSecond / plain.bytesPerSecond)
    }
    return worst
  }

  /// The way that gains enough at all of the log's sizes, and how much; nil: none does.
  var better: (backEnd: DiskProbe.BackEnd, gain: Double)? {
    DiskProbe.BackEnd.allCases.dropFirst().compactMap { backEnd in
      self.gain(backEnd).map { (backEnd, $0) }
    }.filter { $0.1 >= Self.gainMin }.max { $0.1 < $1.1 }
  }

  var verdict: String {
    let found =
      self.better.map {
        "\($0.backEnd.rawValue) writes \(Int(($0.gain - 1) * 100)) % more or better at all of the log's sizes"
      } ?? "no other way gains 15 % at all of the log's sizes: pwritev + fdatasync is right here"
    guard let doubt = self.doubt else { return found }
    return "\(doubt). On this machine alone: \(found). No default follows from this run"
  }

  private static func micros(_ duration: Duration) -> Int64 { duration.nanoseconds / 1_000 }
  private static func mebibytes(_ bytes: Double) -> Int64 { Int64(bytes / 1_048_576) }

  var json: JSON {
    [
      "path": .string(self.path), "device": .string(self.device.name),
      "file_system": .string(self.device.fileSystem), "virtual": .bool(self.device.isVirtual),
      "write_cache": .string(self.device.writeCache),
      "writes": .array(
        self.samples.map { sample in
          [
            "back_end": .string(sample.backEnd.rawValue), "bytes": .number(sample.byteCount),
            "writes": .number(sample.writes),
            "per_second": .number(Int64(Double(sample.writes) / max(sample.seconds, 1e-9))),
            "bytes_per_second": .number(Int64(sample.bytesPerSecond)),
            "p50_us": .number(Self.micros(sample.p50)), "p99_us": .number(Self.micros(sample.p99)),
            "max_us": .number(Self.micros(sample.max)),
          ]
        }),
      "read_bytes_per_second": .number(Int64(self.readBytesPerSecond)),
      "missing": .object(
        DiskProbe.BackEnd.allCases.compactMap { backEnd in
          self.missing[backEnd].map { (backEnd.rawValue, .string($0)) }
        }),
      "better_back_end": .optional(self.better) { .string($0.backEnd.rawValue) },
      "trustworthy": .bool(self.doubt == nil), "doubt": .optional(self.doubt, JSON.string),
      "verdict": .string(self.verdict),
    ]
  }

  var text: String {
    var table = TextTable("WRITE", "BY", ">A SECOND", ">MiB/s", ">P50 µs", ">P99 µs", ">MAX µs")
    for sample in self.samples {
      table.add(
        byteText(Int64(sample.byteCount)), sample.backEnd.rawValue,
        "\(Int64(Double(sample.writes) / max(sample.seconds, 1e-9)))",
        "\(Self.mebibytes(sample.bytesPerSecond))", "\(Self.micros(sample.p50))",
        "\(Self.micros(sample.p99))", "\(Self.micros(sample.max))")
    }
    var text =
      "\(self.path) on \(self.device.name.isEmpty ? "no device" : self.device.name), \(self.device.fileSystem)"
    if !self.device.writeCache.isEmpty { text += ", cache: \(self.device.writeCache)" }
    text += "\n" + table.text
    text += "reads of 1 MiB: \(Self.mebibytes(self.readBytesPerSecond)) MiB/s\n"
    for backEnd in DiskProbe.BackEnd.allCases {
      if let why = self.missing[backEnd] { text += "no \(backEnd.rawValue): \(why)\n" }
    }
    return text + self.verdict + "\n"
  }
}
