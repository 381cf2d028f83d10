// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation
import MemQSimulation

/// Cores this process may use.
func coreCount() -> Int { Swift.max(1, ProcessInfo.processInfo.activeProcessorCount) }

struct Run: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Runs a range of seeds and prints what they did.",
    discussion: """
      Stops at the first violation and exits with 1. At the end it prints how many events, elections, truncations and ISR
      changes there were, and how often each row of the cores' transition tables was taken.
      """)

  @Option(help: "The first seed.")
  var firstSeed: UInt64 = 1

  @Option(help: "How many seeds.")
  var seeds: UInt64 = 100

  @Flag(help: "Go on after a violation.")
  var keepGoing = false

  @Option(help: "Tell on standard error what was done, each time so many seeds are through.")
  var report: Int?

  @OptionGroup var jobs: JobOptions
  @OptionGroup var scenario: RunOptions

  func run() async throws {
    let campaign = Campaign(options: self.scenario.simulation, jobs: self.jobs.count)
    var (total, violations) = (Counters(), 0)
    let start = ContinuousClock.now
    await campaign.run(from: self.firstSeed, count: self.seeds) { outcome in
      switch outcome {
      case .passed(let report): total += report.counters
      case .violated(let violation, _):
        violations += 1
        print(violation)
      }
      if let report, total.seeds > 0, total.seeds % report == 0 { Self.tell(total, since: start) }
      return violations == 0 || self.keepGoing
    }
    for line in total.lines { print(line) }
    print("violations: \(violations)")
    Self.tell(total, since: start)
    if violations > 0 { throw ExitCode.failure }
  }

  /// Wall time differs from run to run, so it stays out of the standard output.
  private static func tell(_ total: Counters, since start: ContinuousClock.Instant) {
    let seconds = Swift.max((ContinuousClock.now - start) / Duration.milliseconds(1), 1) / 1_000
    let line =
      "\(total.seeds) seeds, \(total.events) events in \(seconds.rounded()) s: "
      + "\((Double(total.events) / seconds).rounded()) events/s\n"
    FileHandle.standardError.write(Data(line.utf8))
  }
}

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Runs one seed again; exits with 1 when it breaks a rule.")

  @Argument(help: "The seed.")
  var seed: UInt64

  @Flag(help: "Print every step, with virtual time.")
  var trace = false

  @OptionGroup var scenario: RunOptions

  func run() throws {
    var options = self.scenario.simulation
    options.keepsTrace = self.trace
    switch Simulation(seed: self.seed, options: options).run() {
    case .passed(let report):
      for line in report.trace.lines { print(line) }
      let counters = report.counters
      print(
        "seed \(report.seed): passed, \(counters.events) events, \(counters.committedRecords) records, "
          + "\(counters.acknowledgedBatches) batches acknowledged, \(counters.elections) elections, "
          + "\(counters.crashes) crashes, digest \(String(report.trace.digest, radix: 16))")
    case .violated(let violation, let trace):
      for line in trace.lines { print(line) }
      print(violation)
      throw ExitCode.failure
    }
  }
}

struct Shrink: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Finds the few faults that a failing seed needs.",
    discussion: """
      Leaves out faults, producers and what the network does, as long as the same rule breaks, and prints what is left and the
      command that runs it. Exits with 1 when the seed breaks no rule.
      """)

  @Argument(help: "The seed.")
  var seed: UInt64

  @OptionGroup var scenario: RunOptions

  func run() throws {
    guard var shrinker = Shrinker(seed: self.seed, options: self.scenario.simulation) else {
      print("seed \(self.seed): passed, there is nothing to shrink")
      throw ExitCode.failure
    }
    let before = shrinker.faults.count
    shrinker.shrink()
    print(shrinker.violation)
    print("\(shrinker.faults.count) of \(before) faults are needed (\(shrinker.runs) runs):")
    for fault in shrinker.faults { print("  \(fault)") }
    print(self.command(shrinker))
  }

  private func command(_ shrinker: Shrinker) -> String {
    var words = ["memq-sim replay \(self.seed) --trace"]
    let options = shrinker.options
    if let mutation = options.mutation { words.append("--mutation \(mutation.name)") }
    words.append("--fault-seconds \(options.faultSeconds)")
    words.append("--faults \(NumberList.text(shrinker.faults.map(\.number)))")
    if let clients = options.clients { words.append("--clients \(NumberList.text(clients))") }
    for disturbance in options.calm { words.append("--calm \(disturbance.rawValue)") }
    for kind in options.without { words.append("--without \(kind.rawValue)") }
    if let segments = options.diskSegments { words.append("--disk-segments \(segments)") }
    return words.joined(separator: " ")
  }
}
