// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// What happened, one line each. The digest is always made; the text only when asked for.
public struct Trace: Sendable {
  /// FNV-1a over all lines.
  public private(set) var digest: UInt64 = 0xCBF2_9CE4_8422_2325
  public private(set) var lines: [String] = []
  let isKept: Bool

  init(isKept: Bool) { self.isKept = isKept }

  /// Numbers that make an event what it is, for the digest.
  mutating func note(_ number: Int64) {
    self.digest = (self.digest ^ UInt64(bitPattern: number)) &* 0x100_0000_01B3
  }

  mutating func note(_ first: Int64, _ second: Int64, _ third: Int64) {
    self.note(first)
    self.note(second)
    self.note(third)
  }

  mutating func line(at time: Int64, _ text: @autoclosure () -> String) {
    guard self.isKept else { return }
    self.lines.append("\(Self.seconds(time)) \(text())")
  }

  /// Seconds with six digits behind the point.
  static func seconds(_ nanoseconds: Int64) -> String {
    let micros = nanoseconds / 1_000
    let digits = String(micros % 1_000_000)
    return "\(micros / 1_000_000).\(String(repeating: "0", count: 6 - digits.count))\(digits)"
  }
}
