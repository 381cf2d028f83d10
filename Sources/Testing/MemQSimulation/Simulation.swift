// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Runs the rules of log and replication, with everything around them, by a seed.
///
/// First a phase under faults, in which nothing may be lost, changed or doubled; then all faults end, and
/// within a time every partition must be led, every replica in sync, every producer answered. The rules
/// are checked after every event. The same seed gives the same run on every machine.
public struct Simulation {
  public let seed: UInt64
  public let options: SimulationOptions

  public init(seed: UInt64, options: SimulationOptions = SimulationOptions()) {
    self.seed = seed
    self.options = options
  }

  public enum Outcome: Sendable {
    case passed(SimulationReport)
    case violated(Violation, Trace)
  }

  public func run() -> Outcome {
    let world = World(seed: self.seed, options: self.options)
    do {
      try self.play(world)
    } catch {
      let violation = Violation(
        seed: self.seed, rule: error.rule, detail: error.detail,
        virtualNanoseconds: world.scheduler.now)
      world.log("violated: \(violation.rule): \(violation.detail)")
      return .violated(violation, world.trace)
    }
    var counters = world.counters
    counters.seeds = 1
    counters.committedRecords = world.shadow.committed.reduce(0) { $0 + $1.count }
    counters.acknowledgedBatches = world.shadow.acknowledgedBatches
    counters += world.store.counters
    return .passed(SimulationReport(seed: self.seed, counters: counters, trace: world.trace))
  }

  private func play(_ world: World) throws(Shadow.Broken) {
    for node in world.nodes.indices { try world.start(node) }
    for instance in world.controllers.indices { world.startController(instance) }
    for client in world.clients.indices {
      world.scheduler.schedule(.client(client), after: World.millisecond * 200)
    }
    let second = World.millisecond * 1_000
    let faultsEnd = Int64(self.options.faultSeconds) * second
    while let event = world.scheduler.next(before: faultsEnd) { try world.handle(event) }
    try self.settle(world, until: faultsEnd + Int64(self.options.healSeconds) * second)
  }

  /// Heals; lets the producers get one more batch through each; stops them; waits until all is equal.
  private func settle(_ world: World, until end: Int64) throws(Shadow.Broken) {
    try world.heal()
    let before = world.clients.map(\.acknowledged)
    while let event = world.scheduler.next(before: end) {
      try world.handle(event)
      for client in world.clients.indices where world.clients[client].acknowledged > before[client]
      {
        world.clients[client].isStopped = true
      }
      guard world.clients.allSatisfy(\.isStopped), world.unsettled() == nil else { continue }
      return try world.checkEnd()
    }
    let stuck = world.clients.first { !$0.isStopped }.map { "client \($0.number) made no progress" }
    throw Shadow.Broken(
      rule: Violation.noProgress, detail: world.unsettled() ?? stuck ?? "unknown")
  }
}
