// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A place in a distributed trace, as the W3C's `traceparent` states it.
public struct RPCTrace: Sendable, Equatable {
  /// The name of the metadata.
  public static let metadataName = "traceparent"
  static let stateName = "tracestate"

  public let traceHigh: UInt64
  public let traceLow: UInt64
  public let span: UInt64
  public let flags: UInt8

  /// - Precondition: neither the trace nor the span is zero.
  public init(traceHigh: UInt64, traceLow: UInt64, span: UInt64, flags: UInt8) {
    precondition(traceHigh | traceLow != 0 && span != 0)
    self.traceHigh = traceHigh
    self.traceLow = traceLow
    self.span = span
    self.flags = flags
  }

  /// Nil when the text is not what the W3C allows: then the trace begins anew.
  public init?(_ text: String) {
    let bytes = Array(text.utf8.prefix(56))
    let dash = UInt8(ascii: "-")
    guard bytes.count >= 55, bytes[2] == dash, bytes[35] == dash, bytes[52] == dash,
      let version = Self.number(bytes[0..<2]), version != 0xff,
      let high = Self.number(bytes[3..<19]), let low = Self.number(bytes[19..<35]),
      let span = Self.number(bytes[36..<52]), let flags = Self.number(bytes[53..<55]),
      high | low != 0, span != 0
    else { return nil }
    // Later versions may say more behind another dash.
    if bytes.count > 55 { guard version > 0, bytes[55] == dash else { return nil } }
    self.init(traceHigh: high, traceLow: low, span: span, flags: UInt8(flags))
  }

  /// A trace of its own.
  static func random() -> RPCTrace {
    RPCTrace(
      traceHigh: .random(in: 1...UInt64.max), traceLow: .random(in: 1...UInt64.max),
      span: .random(in: 1...UInt64.max), flags: 0)
  }

  /// Another span of the same trace.
  func child() -> RPCTrace {
    RPCTrace(
      traceHigh: self.traceHigh, traceLow: self.traceLow, span: .random(in: 1...UInt64.max),
      flags: self.flags)
  }

  /// 32 hexadecimal digits.
  public var traceID: String { Self.hex(self.traceHigh, 16) + Self.hex(self.traceLow, 16) }

  public var traceparent: String {
    "00-\(self.traceID)-\(Self.hex(self.span, 16))-\(Self.hex(UInt64(self.flags), 2))"
  }

  private static func hex(_ value: UInt64, _ digits: Int) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: digits - text.utf8.count) + text
  }

  /// Lower case only, as the W3C says.
  private static func number(_ digits: ArraySlice<UInt8>) -> UInt64? {
    var value: UInt64 = 0
    for digit in digits {
      switch digit {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): value = value << 4 | UInt64(digit - 48)
      case UInt8(ascii: "a")...UInt8(ascii: "f"): value = value << 4 | UInt64(digit - 87)
      default: return nil
      }
    }
    return value
  }
}
