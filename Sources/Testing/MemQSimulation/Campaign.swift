// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Runs many seeds, as many at once as there are jobs; results come in the order of the seeds.
public struct Campaign: Sendable {
  public var options: SimulationOptions
  public var jobs: Int

  /// - Parameter jobs: at least 1.
  public init(options: SimulationOptions, jobs: Int) {
    precondition(jobs >= 1, "somebody must work")
    self.options = options
    self.jobs = jobs
  }

  /// Calls `each` with every outcome, until it says false.
  public func run(
    from first: UInt64, count: UInt64, _ each: (Simulation.Outcome) -> Bool
  ) async {
    let options = self.options
    var started: UInt64 = 0
    var finished: UInt64 = 0
    // Those that overtook earlier ones; at most a few, as seeds differ little in what they cost.
    var early: [(place: UInt64, outcome: Simulation.Outcome)] = []
    await withTaskGroup(of: (UInt64, Simulation.Outcome).self) { group in
      func start() {
        guard started < count else { return }
        let place = started
        started += 1
        group.addTask { (place, Simulation(seed: first &+ place, options: options).run()) }
      }
      for _ in 0..<self.jobs { start() }
      while let (place, outcome) = await group.next() {
        early.append((place, outcome))
        while let at = early.firstIndex(where: { $0.place == finished }) {
          finished += 1
          guard each(early.remove(at: at).outcome) else { return group.cancelAll() }
        }
        start()
      }
    }
  }

  /// How many seeds from 1 on it takes until one breaks a safety rule, and how; nil: none of `count` does.
  public func firstCatch(within count: UInt64) async -> Violation? {
    var found: Violation?
    await self.run(from: 1, count: count) { outcome in
      if case .violated(let violation, _) = outcome, violation.isSafety { found = violation }
      return found == nil
    }
    return found
  }
}
