// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A length of time as people write it: `250ms`, `10s`, `7d`.
///
/// Units are us, ms, s, m, h, d; one is required, except for 0.
public struct TimeSpan: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let duration: Duration

  public init(_ duration: Duration) { self.duration = duration }

  /// Nil for anything that is not a whole number with a unit, or is longer than 292 years.
  public init?(_ text: some StringProtocol) {
    let (digits, unit) = splitUnit(text)
    guard let number = Int64(digits), number >= 0,
      let scale = Self.units.first(where: { $0.name == unit })?.microseconds
        ?? (unit.isEmpty && number == 0 ? 1 : nil)
    else { return nil }
    let (microseconds, overflow) = number.multipliedReportingOverflow(by: scale)
    guard !overflow, microseconds <= Int64.max / 1_000 else { return nil }
    self.duration = .microseconds(microseconds)
  }

  private static let units: [(name: String, microseconds: Int64)] = [
    ("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000),
    ("us", 1),
  ]

  /// With the largest unit that divides it: `10s`.
  public var description: String {
    let (seconds, attoseconds) = self.duration.components
    let microseconds = seconds * 1_000_000 + attoseconds / 1_000_000_000_000
    guard microseconds != 0,
      let unit = Self.units.first(where: { microseconds % $0.microseconds == 0 })
    else { return "0s" }
    return "\(microseconds / unit.microseconds)\(unit.name)"
  }

  public static func < (a: Self, b: Self) -> Bool { a.duration < b.duration }
}
