// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQSimulation
import Testing

@Suite struct SimulationTests {
  static func options(_ mutation: Mutation? = nil, faultSeconds: Int = 8) -> SimulationOptions {
    var options = SimulationOptions()
    options.mutation = mutation
    options.faultSeconds = faultSeconds
    return options
  }

  @Test(arguments: 1...12) func `nothing acknowledged is lost and a healed cluster goes on`(
    seed: UInt64
  ) {
    let simulation = Simulation(seed: seed, options: Self.options())
    switch simulation.run() {
    case .passed(let report): #expect(report.counters.acknowledgedBatches > 0)
    case .violated(let violation, _): Issue.record("\(violation)")
    }
  }

  /// A leader's proposal was taken on what was known of a new member's node when it was planned: the node could register anew
  /// before the write (108). With the rule in force the seed passes.
  /// A node that was to get a replica left, and was forgotten, in the same moment (100325).
  /// A leader elected uncleanly told of records that it had not made durable (501).
  /// A log deleted through the start of its leader's epoch could not be compared, was given up, and led without its producers
  /// (2511252).
  /// A volume gave back a watermark from before a cut below it (20002025).
  /// A probe that left out sequences was held back by the network until it was the next batch (20007291).
  /// The cleaner left a hole below the log start, and recovery took the producers before it for released (20007404).
  /// A bit flipped in what was durable, but that nothing on the disk says so of: recovery may take it for torn (20006850).
  /// The run ended while a leader that had just handed over still had to cut what nobody committed (20007271).
  @Test(arguments: [
    108, 501, 100_325, 2_511_252, 20_002_025, 20_006_850, 20_007_271, 20_007_291, 20_007_404,
  ])
  func `a seed that broke a rule once passes`(
    seed: UInt64
  ) {
    if case .violated(let violation, _) = Simulation(
      seed: seed, options: Self.options(faultSeconds: 20)
    ).run() {
      Issue.record("\(violation)")
    }
  }

  /// Those that one of the first seeds notices; `memq-sim mutations` runs them all.
  @Test(arguments: [
    "ack-before-sync", "leader-alone-commits", "pass-unopened", "ignore-min-isr", "join-early",
    "truncate-to-high-watermark", "answer-before-commit", "answer-duplicates-at-once",
    "skip-sequence-check", "keep-eligible", "elect-any-replica", "count-failed-writes",
    "skip-syncs",
  ]) func `a safety rule switched off is noticed`(name: String) throws {
    let mutation = try #require(Mutation.named(name))
    for seed in UInt64(1)...6 {
      let simulation = Simulation(seed: seed, options: Self.options(mutation, faultSeconds: 20))
      if case .violated(let violation, _) = simulation.run(), violation.isSafety { return }
    }
    Issue.record("no seed noticed that \(mutation.name) is in force")
  }

  @Test func `the same seed gives the same trace`() {
    var options = Self.options(faultSeconds: 4)
    options.keepsTrace = true
    guard case .passed(let first) = Simulation(seed: 7, options: options).run(),
      case .passed(let second) = Simulation(seed: 7, options: options).run(),
      case .passed(let other) = Simulation(seed: 8, options: options).run()
    else {
      Issue.record("a rule broke")
      return
    }
    #expect(first.trace.digest == second.trace.digest)
    #expect(first.trace.lines == second.trace.lines)
    #expect(first.trace.lines.count > 300)
    #expect(first.trace.digest != other.trace.digest)
  }

  @Test func `a failing run shrinks to few faults and still breaks the same rule`() throws {
    let options = Self.options(Mutation.named("leader-alone-commits"))
    let failing = (UInt64(1)...50).lazy.compactMap { Shrinker(seed: $0, options: options) }
      .first { $0.violation.isSafety && $0.faults.count > 3 }
    var shrinker = try #require(failing)
    let (before, rule) = (shrinker.faults.count, shrinker.violation.rule)
    shrinker.shrink()
    #expect(shrinker.faults.count < before)
    guard
      case .violated(let violation, _) = Simulation(
        seed: shrinker.seed, options: shrinker.options
      ).run()
    else {
      Issue.record("what is left breaks no rule")
      return
    }
    #expect(violation.rule == rule)
  }
}
