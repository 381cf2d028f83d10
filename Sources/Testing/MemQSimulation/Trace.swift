// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What happened, one line each. The digest is always made; the text only when asked for.
public struct Trace: Sendable {
  /// FNV-1a over all lines.
  public private(set) var digest: UInt64 = 0xCBF2_9CE4_8422_2325
  public private(set) var lines: [String] = []
  let isKept: Bool

  init(isKept: Bool) { self.isKept = isKept }

  /// Numbers that make an event what it is, for the digest.
  mutating func note(_ numbers: Int64...) {
    for number in numbers {
      self.digest = (self.digest ^ UInt64(bitPattern: number)) &* 0x100_0000_01B3
    }
  }

  mutating func line(at time: Int64, _ text: @autoclosure () -> String) {
    guard self.isKept else { return }
    let micros = time / 1_000
    self.lines.append("\(micros / 1_000_000).\(Self.padded(micros % 1_000_000)) \(text())")
  }

  private static func padded(_ number: Int64) -> String {
    let digits = String(number)
    return String(repeating: "0", count: 6 - digits.count) + digits
  }
}
