// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// One run: its faults and how long they last. Everything else follows from the seed.
public struct SimulationOptions: Sendable {
  /// A safety rule switched off, to prove that its loss is noticed; nil: all are in force.
  public var mutation: Mutation?
  public var keepsTrace = false
  /// Virtual seconds under faults.
  public var faultSeconds = 20
  /// Virtual seconds after healing within which everything must be in order again.
  public var healSeconds = 40
  /// Numbers of the faults that happen; nil: all of the seed's.
  public var faults: [Int]?
  /// Kinds of faults that don't happen.
  public var without: [Fault.Kind] = []
  /// Producers that send; nil: all of the seed's.
  public var clients: [Int]?
  /// What the network refrains from.
  public var calm: [Disturbance] = []
  /// Segment files that each disk has room for until all heals; nil: as many as it wants.
  public var diskSegments: Int?

  public init() {}
}

/// Which rule broke, and where.
public struct Violation: Error, Hashable, Sendable, CustomStringConvertible {
  public var seed: UInt64
  public var rule: String
  public var detail: String
  public var virtualNanoseconds: Int64
  public var description: String { "seed \(self.seed): \(self.rule): \(self.detail)" }

  /// The rule that no cluster stands still once faults are over; all others are about safety.
  public static let noProgress = "no progress after healing"
  public var isSafety: Bool { self.rule != Self.noProgress }
}

/// What a run that broke no rule did.
public struct SimulationReport: Sendable {
  public var seed: UInt64
  public var counters: Counters
  public var trace: Trace
}
