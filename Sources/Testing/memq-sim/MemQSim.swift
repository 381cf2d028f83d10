// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import ArgumentParser
public import MemQSimulation

/// Runs the simulator by seeds.
@main
struct MemQSim: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "memq-sim",
    abstract: "Runs MemQ's log, replication and metadata on a simulated cluster under faults.",
    discussion: """
      Each seed is a cluster, a workload and its faults; the same seed is the same run everywhere. A run that breaks a rule
      prints "seed N: rule: detail" and the command exits with 1; `replay N --trace` shows it step by step, `shrink N` finds
      the few faults that it takes.
      """,
    subcommands: [Run.self, Replay.self, Shrink.self, Mutations.self], defaultSubcommand: Run.self)
}

extension Mutation: ExpressibleByArgument {
  public init?(argument: String) {
    guard let found = Mutation.named(argument) else { return nil }
    self = found
  }
  public var defaultValueDescription: String { self.name }
  public static var allValueStrings: [String] { Mutation.all.map(\.name) }
}

extension Disturbance: ExpressibleByArgument {}
extension Fault.Kind: ExpressibleByArgument {}

/// Numbers with commas between, or "none".
struct NumberList: ExpressibleByArgument {
  let numbers: [Int]

  init?(argument: String) {
    if argument == "none" {
      self.numbers = []
      return
    }
    let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
    let numbers = parts.compactMap { Int($0) }
    guard numbers.count == parts.count, numbers.allSatisfy({ $0 >= 0 }) else { return nil }
    self.numbers = numbers
  }

  static func text(_ numbers: [Int]) -> String {
    numbers.isEmpty ? "none" : numbers.map(String.init).joined(separator: ",")
  }
}

/// What makes a run, beside its seed.
struct RunOptions: ParsableArguments {
  @Option(
    help: "Switch one safety rule off, to see it noticed (`memq-sim mutations` tells what each is)."
  )
  var mutation: Mutation?

  @Option(help: "Virtual seconds under faults, 1 to 3600.")
  var faultSeconds = 20

  @Option(help: "Only the faults with these numbers: 0,3,17 or none. `shrink` names them.")
  var faults: NumberList?

  @Option(help: "Only these producers send: 0,2 or none.")
  var clients: NumberList?

  @Option(help: "What the network refrains from; may stand several times.")
  var calm: [Disturbance] = []

  @Option(help: "A kind of fault that doesn't happen; may stand several times.")
  var without: [Fault.Kind] = []

  @Option(help: "Segment files of 64 KiB that each disk has room for until all heals, at least 8.")
  var diskSegments: Int?

  var simulation: SimulationOptions {
    var options = SimulationOptions()
    options.mutation = self.mutation
    options.faultSeconds = self.faultSeconds
    options.faults = self.faults?.numbers
    options.clients = self.clients?.numbers
    options.calm = self.calm
    options.without = self.without
    options.diskSegments = self.diskSegments
    return options
  }

  func validate() throws {
    guard (1...3_600).contains(self.faultSeconds) else {
      throw ValidationError("--fault-seconds is 1 to 3600, not \(self.faultSeconds)")
    }
    guard (8...20_000).contains(self.diskSegments ?? 8) else {
      throw ValidationError("--disk-segments is 8 to 20000")
    }
  }
}

/// How many seeds run at once.
struct JobOptions: ParsableArguments {
  @Option(help: "Seeds that run at once (default: one for each core).")
  var jobs: Int?

  var count: Int { self.jobs ?? coreCount() }

  func validate() throws {
    guard (1...1_024).contains(self.jobs ?? 1) else {
      throw ValidationError("--jobs is 1 to 1024")
    }
  }
}
