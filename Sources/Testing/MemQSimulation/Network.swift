// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What the network does of itself to messages. Each can be left out of a run.
public enum Disturbance: String, CaseIterable, Sendable {
  case loss, duplicates, delays, reordering
}

/// How the network treats messages: loss, duplicates, delays, links cut one way; in some runs messages
/// overtake each other, which streams don't do but reconnections can.
struct Network {
  private struct Link {
    var random: Randomness
    var isCut = false
    /// When the last message arrives.
    var lastArrival: Int64 = 0
  }

  private var lossPerMille: Int
  private var duplicatePerMille: Int
  /// Nanoseconds.
  private var delayMax: Int
  private var longDelayPerMille: Int
  private let longDelayMax: Int
  private(set) var reorders: Bool
  private var links: [Link]
  private let nodes: Int
  private let places: Int

  init(nodes: Int, clients: Int, seed: UInt64, without calm: [Disturbance]) {
    var random = Randomness(seed: seed, stream: 2)
    self.nodes = nodes
    self.places = Address.client(clients).index(nodes: nodes)
    self.links = (0..<(self.places * self.places)).map {
      Link(random: Randomness(seed: seed, stream: 1_000 + UInt64($0)))
    }
    self.reorders = random.chance(400)
    self.lossPerMille = random.pick([0, 0, 1, 10, 50])
    self.duplicatePerMille = random.pick([0, 0, 5, 50])
    self.delayMax = random.pick([200_000, 1_000_000, 5_000_000])
    self.longDelayPerMille = random.pick([0, 2, 20])
    self.longDelayMax = random.pick([50_000_000, 2_000_000_000])
    if calm.contains(.loss) { self.lossPerMille = 0 }
    if calm.contains(.duplicates) { self.duplicatePerMille = 0 }
    if calm.contains(.delays) { self.longDelayPerMille = 0 }
    if calm.contains(.reordering) { self.reorders = false }
  }

  private func link(_ from: Address, _ to: Address) -> Int {
    from.index(nodes: self.nodes) * self.places + to.index(nodes: self.nodes)
  }

  mutating func setCut(_ from: Address, _ to: Address, _ isCut: Bool) {
    self.links[self.link(from, to)].isCut = isCut
  }

  mutating func heal() {
    for at in self.links.indices { self.links[at].isCut = false }
    (self.lossPerMille, self.duplicatePerMille, self.longDelayPerMille) = (0, 0, 0)
    self.delayMax = 1_000_000
    self.reorders = false
  }

  /// When each copy of a message arrives, in nanoseconds from now; nil: it is lost.
  mutating func delays(_ from: Address, _ to: Address, now: Int64) -> (Int64, again: Int64?)? {
    let at = self.link(from, to)
    if self.links[at].isCut || self.links[at].random.chance(self.lossPerMille) { return nil }
    let isTwice = self.links[at].random.chance(self.duplicatePerMille)
    let first = self.arrival(at, now: now)
    return (first - now, isTwice ? self.arrival(at, now: now) - now : nil)
  }

  private mutating func arrival(_ at: Int, now: Int64) -> Int64 {
    let isLong = self.links[at].random.chance(self.longDelayPerMille)
    let max = isLong ? self.longDelayMax : self.delayMax
    var arrival = now + Int64(50_000 + self.links[at].random.number(0..<max))
    if !self.reorders { arrival = Swift.max(arrival, self.links[at].lastArrival + 1) }
    self.links[at].lastArrival = Swift.max(arrival, self.links[at].lastArrival)
    return arrival
  }
}
