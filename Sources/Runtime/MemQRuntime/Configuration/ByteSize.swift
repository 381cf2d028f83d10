// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A number of bytes as people write it: `64MiB`, `1GB`, `4096`.
///
/// Units are B, KB, MB, GB, TB (powers of 1,000) and KiB, MiB, GiB, TiB (powers of 1,024), in any case; none means bytes.
public struct ByteSize: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let bytes: Int64

  public init(bytes: Int64) { self.bytes = bytes }

  /// Nil for anything that is not a whole number with a unit, or is too large for 63 bits.
  public init?(_ text: some StringProtocol) {
    let (digits, unit) = splitUnit(text)
    guard let number = Int64(digits), number >= 0,
      let scale = Self.units.first(where: { $0.name.lowercased() == unit.lowercased() })?.bytes
        ?? (unit.isEmpty ? 1 : nil)
    else { return nil }
    let (bytes, overflow) = number.multipliedReportingOverflow(by: scale)
    guard !overflow else { return nil }
    self.bytes = bytes
  }

  private static let units: [(name: String, bytes: Int64)] = [
    ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000), ("B", 1),
  ]

  /// With the largest unit that divides it: `64MiB`.
  public var description: String {
    guard self.bytes != 0, let unit = Self.units.first(where: { self.bytes % $0.bytes == 0 }) else {
      return "0B"
    }
    return "\(self.bytes / unit.bytes)\(unit.name)"
  }

  public static func < (a: Self, b: Self) -> Bool { a.bytes < b.bytes }
}

/// Digits (underscores allowed between them), then a unit after optional blanks.
func splitUnit(_ text: some StringProtocol) -> (digits: String, unit: String) {
  let digits = text.prefix { $0.isASCII && $0.isNumber || $0 == "_" }
  let unit = text.dropFirst(digits.count).drop { $0 == " " }
  return (String(digits.filter { $0 != "_" }), String(unit))
}
