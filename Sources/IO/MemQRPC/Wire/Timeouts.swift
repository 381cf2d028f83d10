// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// The `grpc-timeout` header: at most eight digits and a unit, of H M S m u n.
enum GRPCTimeout {
  /// Nanoseconds, or nil when the value is malformed. Very long timeouts are cut to about 100 years.
  static func parse(_ bytes: UnsafeBufferPointer<UInt8>) -> Int64? {
    guard bytes.count >= 2, bytes.count <= 9, let unit = bytes.last else { return nil }
    var value: Int64 = 0
    for byte in bytes.dropLast() {
      guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
      value = value * 10 + Int64(byte - UInt8(ascii: "0"))
    }
    let scale: Int64
    switch unit {
    case UInt8(ascii: "H"): scale = 3_600_000_000_000
    case UInt8(ascii: "M"): scale = 60_000_000_000
    case UInt8(ascii: "S"): scale = 1_000_000_000
    case UInt8(ascii: "m"): scale = 1_000_000
    case UInt8(ascii: "u"): scale = 1_000
    case UInt8(ascii: "n"): scale = 1
    default: return nil
    }
    let (product, overflow) = value.multipliedReportingOverflow(by: scale)
    return overflow ? Self.longest : min(product, Self.longest)
  }

  /// The shortest exact form is not needed: the finest unit that fits eight digits, rounded up.
  static func format(nanoseconds: Int64) -> String {
    let value = max(1, nanoseconds)
    let units: [(Int64, String)] = [
      (1, "n"), (1_000, "u"), (1_000_000, "m"), (1_000_000_000, "S"), (60_000_000_000, "M"),
    ]
    for (scale, unit) in units {
      let count = value / scale + (value % scale == 0 ? 0 : 1)
      if count <= 99_999_999 { return "\(count)\(unit)" }
    }
    return "\(min(99_999_999, value / 3_600_000_000_000 + 1))H"
  }

  private static let longest: Int64 = 3_153_600_000_000_000_000
}

extension Duration {
  /// Whole nanoseconds, cut to what 64 bits hold.
  var nanosecondsClamped: Int64 {
    let (seconds, attoseconds) = self.components
    let (whole, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    guard !overflow else { return seconds < 0 ? .min : .max }
    let (sum, overflowed) = whole.addingReportingOverflow(attoseconds / 1_000_000_000)
    return overflowed ? .max : sum
  }

  var timeAmount: TimeAmount { .nanoseconds(self.nanosecondsClamped) }
}

extension NIODeadline {
  /// The instant `duration` from now; saturates.
  static func after(_ duration: Duration) -> NIODeadline {
    // NIODeadline + TimeAmount traps on overflow: a century is as good as for ever.
    .now() + .nanoseconds(min(max(0, duration.nanosecondsClamped), 3_153_600_000_000_000_000))
  }
}
