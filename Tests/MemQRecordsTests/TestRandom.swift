// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A small seeded generator (SplitMix64): the same seed gives the same run on every machine.
struct TestRandom: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { self.state = seed }

  mutating func next() -> UInt64 {
    self.state &+= 0x9E37_79B9_7F4A_7C15
    var z = self.state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  /// From 0 up to `bound`, exclusive; 0 for a bound of 0.
  mutating func below(_ bound: Int) -> Int { bound == 0 ? 0 : Int(self.next() % UInt64(bound)) }

  mutating func bytes(_ count: Int) -> [UInt8] {
    (0..<count).map { _ in UInt8(truncatingIfNeeded: self.next()) }
  }
}
