// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// xoshiro256** seeded by SplitMix64: the same numbers for the same seed on every machine.
/// Source: Blackman and Vigna, prng.di.unimi.it.
public struct Randomness: RandomNumberGenerator, Sendable {
  private var s: (UInt64, UInt64, UInt64, UInt64)

  public init(seed: UInt64) {
    var state = seed
    func splitMix() -> UInt64 {
      state &+= 0x9E37_79B9_7F4A_7C15
      var z = state
      z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
      z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
      return z ^ (z >> 31)
    }
    self.s = (splitMix(), splitMix(), splitMix(), splitMix())
  }

  /// One of many independent streams of a seed: what draws from one never shifts another.
  init(seed: UInt64, stream: UInt64) {
    var mixed = Randomness(seed: seed)
    self.init(seed: mixed.next() ^ (stream &* 0xD134_2543_DE82_EF95))
  }

  public mutating func next() -> UInt64 {
    let product = self.s.1 &* 5
    let result = (product << 7 | product >> 57) &* 9
    let shifted = self.s.1 << 17
    self.s.2 ^= self.s.0
    self.s.3 ^= self.s.1
    self.s.1 ^= self.s.2
    self.s.0 ^= self.s.3
    self.s.2 ^= shifted
    self.s.3 = self.s.3 << 45 | self.s.3 >> 19
    return result
  }

  /// A number in `range`, by multiplication: the bias is below 2^-32 for the small ranges used here.
  mutating func number(_ range: Range<Int>) -> Int {
    let width = UInt64(range.upperBound - range.lowerBound)
    return range.lowerBound + Int(self.next().multipliedFullWidth(by: width).high)
  }

  mutating func number(_ range: ClosedRange<Int>) -> Int {
    self.number(range.lowerBound..<(range.upperBound + 1))
  }

  /// True with a chance of `perMille` in 1,000.
  mutating func chance(_ perMille: Int) -> Bool { self.number(0..<1_000) < perMille }

  mutating func pick<T>(_ values: [T]) -> T { values[self.number(0..<values.count)] }
}
