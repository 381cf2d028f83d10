// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import ArgumentParser
public import MemQSimulation

/// Runs the simulator by seeds.
struct MemQSim: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "memq-sim",
    abstract: "Runs MemQ's log and replication on a simulated cluster under faults.",
    discussion: """
      Each seed is a cluster, a workload and its faults. A run that breaks a rule prints
      "seed N: rule: detail" and the command exits with 1; `replay N --trace` shows it step by step.
      """,
    subcommands: [Run.self, Replay.self], defaultSubcommand: Run.self)
}

extension SimulationOptions.Mutation: ExpressibleByArgument {}

/// What both commands take.
struct CommonOptions: ParsableArguments {
  @Option(help: "Switch one safety rule off, to see it noticed.")
  var mutation = SimulationOptions.Mutation.none

  @Option(help: "Virtual seconds under faults.")
  var faultSeconds = 20

  var simulation: SimulationOptions {
    var options = SimulationOptions()
    options.mutation = self.mutation
    options.faultSeconds = self.faultSeconds
    return options
  }

  func validate() throws {
    guard (1...3_600).contains(self.faultSeconds) else {
      throw ValidationError("--fault-seconds is 1 to 3600, not \(self.faultSeconds)")
    }
  }
}

struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Runs a range of seeds.")

  @Option(help: "The first seed.")
  var firstSeed: UInt64 = 1

  @Option(help: "How many seeds.")
  var seeds: UInt64 = 100

  @Flag(help: "Go on after a violation.")
  var keepGoing = false

  @OptionGroup var common: CommonOptions

  func run() throws {
    let start = ContinuousClock.now
    var (runs, events, records, violations) = (0, 0, 0, 0)
    for seed in self.firstSeed..<(self.firstSeed &+ self.seeds) {
      runs += 1
      switch Simulation(seed: seed, options: self.common.simulation).run() {
      case .passed(let report):
        events += report.events
        records += report.committedRecords
      case .violated(let violation, _):
        violations += 1
        print(violation)
      }
      if violations > 0 && !self.keepGoing { break }
    }
    let milliseconds = (ContinuousClock.now - start) / Duration.milliseconds(1)
    let rate = Double(runs) * 1_000 / Swift.max(milliseconds, 1)
    print(
      "\(runs) seeds, \(violations) violations, \(events) events, \(records) records committed, "
        + "\(rate.rounded()) seeds/s")
    if violations > 0 { throw ExitCode.failure }
  }
}

struct Replay: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Runs one seed again.")

  @Argument(help: "The seed.")
  var seed: UInt64

  @Flag(help: "Print every step.")
  var trace = false

  @OptionGroup var common: CommonOptions

  func run() throws {
    var options = self.common.simulation
    options.keepsTrace = self.trace
    switch Simulation(seed: self.seed, options: options).run() {
    case .passed(let report):
      for line in report.trace.lines { print(line) }
      print(
        "seed \(report.seed): passed, \(report.events) events, \(report.committedRecords) records, "
          + "\(report.acknowledgedBatches) batches acknowledged, \(report.elections) elections, "
          + "\(report.crashes) crashes, digest \(String(report.trace.digest, radix: 16))")
    case .violated(let violation, let trace):
      for line in trace.lines { print(line) }
      print(violation)
      throw ExitCode.failure
    }
  }
}
