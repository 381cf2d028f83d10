// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import ArgumentParser
import Foundation
public import MemQFuzzing

/// Runs the fuzzers of MemQ's RPC and SSD log by seeds.
@main
struct MemQFuzz: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "memq-fuzz",
    abstract: "Feeds recorded and mutated bytes to MemQ's RPC and SSD log.",
    discussion: """
      Each seed makes the bytes and what is done with them. A seed that breaks an invariant prints
      "target frames seed N: what" and the command exits with 1; one that crashes is printed before the crash.
      """,
    subcommands: [Run.self, Replay.self], defaultSubcommand: Run.self)
}

extension FuzzTarget: ExpressibleByArgument {}

/// Says which seed a crash belongs to. Its bytes are ready before, as nothing can be allocated then.
enum CrashReport {
  nonisolated(unsafe) private static var line = [UInt8](repeating: 0, count: 128)
  nonisolated(unsafe) private static var count = 0

  static func install() {
    for number in [SIGILL, SIGTRAP, SIGSEGV, SIGBUS, SIGABRT, SIGFPE] {
      signal(number) { number in
        CrashReport.line.withUnsafeBytes { _ = write(2, $0.baseAddress!, CrashReport.count) }
        signal(number, SIG_DFL)
        raise(number)
      }
    }
  }

  static func now(_ target: FuzzTarget, _ seed: UInt64) {
    var index = 0
    for byte in "crash: target \(target.rawValue) seed \(seed)\n".utf8 where index < 128 {
      self.line[index] = byte
      index += 1
    }
    self.count = index
  }
}

/// Prints a line at once: the next seed may crash.
func say(_ line: String) {
  FileHandle.standardOutput.write(Data((line + "\n").utf8))
}

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Runs a range of seeds.")

  @Option(help: "frames, framing, headers, payload, batch, log or volume; all of them when absent.")
  var target: FuzzTarget?

  @Option(help: "The first seed.")
  var firstSeed: UInt64 = 1

  @Option(help: "How many seeds of each target.")
  var seeds: UInt64 = 1000

  @Option(help: "Resident memory may grow by so many MiB after the first tenth of the seeds.")
  var growthMax = 64

  @Flag(help: "Go on after a failure.")
  var keepGoing = false

  func run() throws {
    CrashReport.install()
    var failures = 0
    for target in self.target.map({ [$0] }) ?? FuzzTarget.allCases {
      let start = ContinuousClock.now
      var settled: Int?
      for offset in 0..<self.seeds {
        let seed = self.firstSeed &+ offset
        CrashReport.now(target, seed)
        do {
          try target.run(seed: seed)
        } catch {
          failures += 1
          say("target \(target.rawValue) seed \(seed): \(error)")
          if !self.keepGoing { throw ExitCode.failure }
        }
        if offset == self.seeds / 10 { settled = Self.residentBytes() }
      }
      let seconds = (ContinuousClock.now - start) / Duration.seconds(1)
      let grown = max(0, Self.residentBytes() - (settled ?? Self.residentBytes())) >> 20
      say(
        "\(target.rawValue): \(self.seeds) seeds, \(Int(Double(self.seeds) / max(seconds, 0.001))) a second, "
          + "resident memory grew by \(grown) MiB")
      if grown > self.growthMax {
        failures += 1
        say("target \(target.rawValue): memory grew by more than \(self.growthMax) MiB")
      }
    }
    if failures > 0 { throw ExitCode.failure }
  }

  private static func residentBytes() -> Int {
    guard let text = try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8),
      let pages = text.split(separator: " ").dropFirst().first.flatMap({ Int($0) })
    else { return 0 }
    return pages * 4096
  }
}

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Runs one seed again.")

  @Option(help: "frames, framing, headers, payload, batch, log or volume.")
  var target: FuzzTarget

  @Argument(help: "The seed.")
  var seed: UInt64

  func run() throws {
    CrashReport.install()
    CrashReport.now(self.target, self.seed)
    do {
      try self.target.run(seed: self.seed)
      say("target \(self.target.rawValue) seed \(self.seed): passed")
    } catch {
      say("target \(self.target.rawValue) seed \(self.seed): \(error)")
      throw ExitCode.failure
    }
  }
}
