// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What runs did, summed up.
public struct Counters: Hashable, Sendable {
  public var seeds = 0
  public var events = 0
  public var elections = 0
  public var isrChanges = 0
  public var truncations = 0
  public var crashes = 0
  public var committedRecords = 0
  public var acknowledgedBatches = 0
  /// How often each row of the cores' transition tables was taken.
  public var rows = [Int](repeating: 0, count: TransitionRow.allCases.count)

  public init() {}

  public static func += (total: inout Counters, one: Counters) {
    total.seeds += one.seeds
    total.events += one.events
    total.elections += one.elections
    total.isrChanges += one.isrChanges
    total.truncations += one.truncations
    total.crashes += one.crashes
    total.committedRecords += one.committedRecords
    total.acknowledgedBatches += one.acknowledgedBatches
    for row in total.rows.indices { total.rows[row] += one.rows[row] }
  }

  mutating func hit(_ row: TransitionRow) { self.rows[row.rawValue] += 1 }

  /// One line each: the sums, then the rows.
  public var lines: [String] {
    let sums = [
      ("seeds", self.seeds), ("events", self.events), ("elections", self.elections),
      ("truncations", self.truncations), ("ISR changes", self.isrChanges),
      ("crashes", self.crashes), ("records committed", self.committedRecords),
      ("batches acknowledged", self.acknowledgedBatches),
    ]
    return sums.map { "\($0.0): \($0.1)" }
      + TransitionRow.allCases.map { "row \($0.name): \(self.rows[$0.rawValue])" }
  }
}
