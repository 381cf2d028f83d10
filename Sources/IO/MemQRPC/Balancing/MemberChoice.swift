// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// How the calls of a balanced channel are spread over its members.
public enum RPCBalancing: Sendable {
  /// Each call to the next connected member.
  case roundRobin
  /// All calls to one member, the first of the list that can be reached, until it is gone.
  case pickFirst
  /// Calls with the same ``RPCCallOptions/affinity`` to the same member. Only the keys of a member that is gone move, and they return with
  /// it. Calls without a key go round.
  case sticky
}

/// Which member gets a call. Pure; members are places in a list.
struct MemberChoice: Sendable {
  /// What is known of a member.
  enum Health: Sendable, Equatable {
    case connected
    /// Nobody tried, or an attempt is on its way.
    case unknown
    case failing
  }

  let balancing: RPCBalancing
  private var turn: UInt64
  /// Pick first: the place of the member in use.
  private(set) var current = 0

  /// - Parameter start: where going round begins, so that many clients do not begin with the same member.
  init(_ balancing: RPCBalancing, start: UInt64) {
    self.balancing = balancing
    self.turn = start
  }

  /// The list has changed: the member in use is there now; nil: it is gone.
  mutating func moved(to place: Int?) {
    self.current = place ?? 0
  }

  /// Nil only when there are no members. A member that fails is chosen only when all do.
  mutating func pick(
    _ count: Int, affinity: UInt64?, seed: (Int) -> UInt64, health: (Int) -> Health
  ) -> Int? {
    guard count > 0 else { return nil }
    switch (self.balancing, affinity) {
    case (.pickFirst, _):
      if self.current >= count { self.current = 0 }
      for step in 0..<count {
        let place = (self.current + step) % count
        guard health(place) != .failing else { continue }
        self.current = place
        return place
      }
      // All fail: each is asked in turn.
      self.current = (self.current + 1) % count
      return self.current
    case (.sticky, let key?): return Self.sticky(count, key, seed, health)
    case (.roundRobin, _), (.sticky, nil): return self.next(count, health)
    }
  }

  private mutating func next(_ count: Int, _ health: (Int) -> Health) -> Int {
    self.turn &+= 1
    let first = Int(self.turn % UInt64(count))
    var second: Int?
    for step in 0..<count {
      let place = (first + step) % count
      switch health(place) {
      case .connected: return place
      case .unknown: second = second ?? place
      case .failing: break
      }
    }
    return second ?? first
  }

  /// Rendezvous hashing: the member with the highest product of key and name. Without those that fail, unless all do.
  private static func sticky(
    _ count: Int, _ key: UInt64, _ seed: (Int) -> UInt64, _ health: (Int) -> Health
  ) -> Int {
    var best: (place: Int, score: UInt64)?
    var bestOfAll = (place: 0, score: UInt64.min)
    for place in 0..<count {
      let score = Self.mix(key ^ seed(place))
      if score >= bestOfAll.score { bestOfAll = (place, score) }
      guard health(place) != .failing else { continue }
      if best.map({ score > $0.score }) ?? true { best = (place, score) }
    }
    return best?.place ?? bestOfAll.place
  }

  /// The finisher of SplitMix64: every bit of the input moves half of the output's.
  static func mix(_ value: UInt64) -> UInt64 {
    var mixed = value &+ 0x9e37_79b9_7f4a_7c15
    mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
    return mixed ^ mixed >> 31
  }

  /// The same in every process: FNV-1a.
  static func hash(_ text: String) -> UInt64 {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in text.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    return hash
  }
}

extension RPCCallOptions {
  /// The ``affinity`` for a key, the same in every process.
  public static func affinity(of key: String) -> UInt64 { MemberChoice.hash(key) }
}
