// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Makes a failing run small: leaves out faults, producers and what the network does, as long as the same rule still breaks.
public struct Shrinker {
  public let seed: UInt64
  /// What still fails.
  public private(set) var options: SimulationOptions
  public private(set) var violation: Violation
  public private(set) var runs = 1
  private let runsMax: Int

  /// Nil: the seed breaks no rule.
  ///
  /// - Parameter runsMax: how often the run may be tried.
  public init?(seed: UInt64, options: SimulationOptions, runsMax: Int = 2_000) {
    guard case .violated(let violation, _) = Simulation(seed: seed, options: options).run() else {
      return nil
    }
    self.seed = seed
    self.options = options
    self.violation = violation
    self.runsMax = runsMax
  }

  /// The faults that are left, in order.
  public var faults: [Fault] { World.faults(self.seed, self.options) }

  public mutating func shrink() {
    self.shortenFaults()
    var before = -1
    while before != self.size {
      before = self.size
      self.dropFaults()
      self.dropClients()
      for disturbance in Disturbance.allCases where !self.options.calm.contains(disturbance) {
        var smaller = self.options
        smaller.calm.append(disturbance)
        self.attempt(smaller)
      }
    }
  }

  private var size: Int {
    self.faults.count + World.clients(self.seed, self.options).count
      + Disturbance.allCases.count - self.options.calm.count
  }

  /// Takes over what still fails. False: it doesn't.
  @discardableResult
  private mutating func attempt(_ smaller: SimulationOptions) -> Bool {
    guard self.runs < self.runsMax else { return false }
    self.runs += 1
    guard case .violated(let violation, _) = Simulation(seed: self.seed, options: smaller).run(),
      violation.rule == self.violation.rule
    else { return false }
    self.options = smaller
    self.violation = violation
    return true
  }

  /// Faults after the rule broke, and virtual seconds that nothing needs.
  private mutating func shortenFaults() {
    let broken = self.violation.virtualNanoseconds
    var smaller = self.options
    smaller.faults = self.faults.filter { $0.at < broken }.map(\.number)
    self.attempt(smaller)
    let second: Int64 = 1_000_000_000
    let needed = Int((self.violation.virtualNanoseconds + second - 1) / second)
    guard needed < self.options.faultSeconds else { return }
    smaller = self.options
    smaller.faultSeconds = Swift.max(1, needed)
    self.attempt(smaller)
  }

  /// Delta debugging: halves first, then smaller pieces. Source: Zeller and Hildebrandt, 2002.
  private mutating func dropFaults() {
    var pieces = 2
    var numbers = self.faults.map(\.number)
    while !numbers.isEmpty {
      let length = Swift.max(1, numbers.count / pieces)
      var isSmaller = false
      var at = 0
      while at < numbers.count {
        var rest = numbers
        rest.removeSubrange(at..<Swift.min(at + length, numbers.count))
        var smaller = self.options
        smaller.faults = rest
        if self.attempt(smaller) {
          numbers = rest
          isSmaller = true
        } else {
          at += length
        }
      }
      if length == 1 && !isSmaller { return }
      pieces = isSmaller ? 2 : pieces * 2
    }
  }

  private mutating func dropClients() {
    for client in World.clients(self.seed, self.options) {
      var smaller = self.options
      smaller.clients = World.clients(self.seed, self.options).filter { $0 != client }
      self.attempt(smaller)
    }
  }
}
