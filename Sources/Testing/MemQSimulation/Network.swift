// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// How the network treats messages: loss, duplicates, delays, links cut one way; in some runs messages
/// overtake each other, which streams don't do but reconnections can.
struct Network {
  var lossPerMille: Int
  var duplicatePerMille: Int
  /// Nanoseconds.
  var delayMax: Int
  var longDelayPerMille: Int
  var longDelayMax: Int
  var reorders: Bool
  private var cuts: [[Bool]]
  /// When the last message on each link arrives.
  private var lastArrival: [[Int64]]
  private let nodes: Int

  init(nodes: Int, clients: Int, random: inout Randomness) {
    self.nodes = nodes
    let places = 1 + nodes + clients
    self.cuts = Array(repeating: Array(repeating: false, count: places), count: places)
    self.lastArrival = Array(repeating: Array(repeating: 0, count: places), count: places)
    self.reorders = random.chance(400)
    self.lossPerMille = random.pick([0, 0, 1, 10, 50])
    self.duplicatePerMille = random.pick([0, 0, 5, 50])
    self.delayMax = random.pick([200_000, 1_000_000, 5_000_000])
    self.longDelayPerMille = random.pick([0, 2, 20])
    self.longDelayMax = random.pick([50_000_000, 2_000_000_000])
  }

  mutating func setCut(_ from: Address, _ to: Address, _ isCut: Bool) {
    self.cuts[from.index(nodes: self.nodes)][to.index(nodes: self.nodes)] = isCut
  }

  mutating func heal() {
    for row in self.cuts.indices {
      for column in self.cuts[row].indices { self.cuts[row][column] = false }
    }
    (self.lossPerMille, self.duplicatePerMille, self.longDelayPerMille) = (0, 0, 0)
    self.delayMax = 1_000_000
    self.reorders = false
  }

  /// When each copy of a message arrives, in nanoseconds from now; empty: it is lost.
  mutating func delays(
    _ from: Address, _ to: Address, now: Int64, _ random: inout Randomness
  ) -> [Int64] {
    let (row, column) = (from.index(nodes: self.nodes), to.index(nodes: self.nodes))
    if self.cuts[row][column] || random.chance(self.lossPerMille) { return [] }
    let copies = random.chance(self.duplicatePerMille) ? 2 : 1
    return (0..<copies).map { _ in
      let max = random.chance(self.longDelayPerMille) ? self.longDelayMax : self.delayMax
      var arrival = now + Int64(50_000 + random.number(0..<max))
      if !self.reorders { arrival = Swift.max(arrival, self.lastArrival[row][column] + 1) }
      self.lastArrival[row][column] = Swift.max(arrival, self.lastArrival[row][column])
      return arrival - now
    }
  }
}
