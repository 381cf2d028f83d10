// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What runs did, summed up.
public struct Counters: Hashable, Sendable {
  public var seeds = 0
  public var events = 0
  public var elections = 0
  public var isrChanges = 0
  public var truncations = 0
  public var crashes = 0
  public var uncleanElections = 0
  public var recoveryElections = 0
  public var volumeFailures = 0
  public var diskFulls = 0
  public var corruptions = 0
  public var repairs = 0
  public var uploads = 0
  public var freshStarts = 0
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
    total.uncleanElections += one.uncleanElections
    total.recoveryElections += one.recoveryElections
    total.volumeFailures += one.volumeFailures
    total.diskFulls += one.diskFulls
    total.corruptions += one.corruptions
    total.repairs += one.repairs
    total.uploads += one.uploads
    total.freshStarts += one.freshStarts
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
      ("unclean elections", self.uncleanElections),
      ("recovery elections", self.recoveryElections),
      ("crashes", self.crashes), ("volume failures", self.volumeFailures),
      ("full disks", self.diskFulls), ("bits flipped", self.corruptions),
      ("damaged replicas filled anew", self.repairs), ("uploads", self.uploads),
      ("replicas filled anew", self.freshStarts), ("records committed", self.committedRecords),
      ("batches acknowledged", self.acknowledgedBatches),
    ]
    return sums.map { "\($0.0): \($0.1)" }
      + TransitionRow.allCases.map { "row \($0.name): \(self.rows[$0.rawValue])" }
  }
}
