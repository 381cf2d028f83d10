// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A JSON value whose objects keep the order of their keys.
enum JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
  case null
  case bool(Bool)
  case integer(Int64)
  case string(String)
  case array([JSON])
  case object([(String, JSON)])

  init(stringLiteral value: String) { self = .string(value) }
  init(integerLiteral value: Int64) { self = .integer(value) }
  init(booleanLiteral value: Bool) { self = .bool(value) }
  init(arrayLiteral elements: JSON...) { self = .array(elements) }
  init(dictionaryLiteral elements: (String, JSON)...) { self = .object(elements) }

  static func number(_ value: some BinaryInteger) -> JSON { .integer(Int64(value)) }
  static func text(_ value: some CustomStringConvertible) -> JSON { .string(value.description) }
  static func optional<T>(_ value: T?, _ body: (T) -> JSON) -> JSON { value.map(body) ?? .null }
  static func strings(_ values: [String]) -> JSON { .array(values.map(JSON.string)) }
  /// By name.
  static func dictionary(_ values: [String: String]) -> JSON {
    .object(values.sorted { $0.key < $1.key }.map { ($0.key, .string($0.value)) })
  }

  /// With two blanks per level; scalars of an array on one line.
  var text: String {
    var out = ""
    self.write(onto: &out, indent: 0)
    return out
  }

  /// On one line.
  var line: String {
    var out = ""
    self.write(onto: &out, indent: nil)
    return out
  }

  private func write(onto out: inout String, indent: Int?) {
    switch self {
    case .null: out += "null"
    case .bool(let value): out += value ? "true" : "false"
    case .integer(let value): out += String(value)
    case .string(let value): Self.quote(value, onto: &out)
    case .array(let values):
      let isFlat = values.allSatisfy(\.isScalar)
      Self.list(values, "[", "]", isFlat ? nil : indent, onto: &out) { value, inner, out in
        value.write(onto: &out, indent: inner)
      }
    case .object(let fields):
      Self.list(fields, "{", "}", indent, onto: &out) { field, inner, out in
        Self.quote(field.0, onto: &out)
        out += ": "
        field.1.write(onto: &out, indent: inner)
      }
    }
  }

  private var isScalar: Bool {
    switch self {
    case .array, .object: false
    case .null, .bool, .integer, .string: true
    }
  }

  private static func list<T>(
    _ elements: [T], _ open: String, _ close: String, _ indent: Int?, onto out: inout String,
    _ body: (T, Int?, inout String) -> Void
  ) {
    out += open
    let inner = indent.map { $0 + 2 }
    for (index, element) in elements.enumerated() {
      if index > 0 { out += inner == nil ? ", " : "," }
      if let inner { out += "\n" + String(repeating: " ", count: inner) }
      body(element, inner, &out)
    }
    if let indent, !elements.isEmpty { out += "\n" + String(repeating: " ", count: indent) }
    out += close
  }

  private static func quote(_ text: String, onto out: inout String) {
    out += "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": out += "\\\""
      case "\\": out += "\\\\"
      case "\n": out += "\\n"
      case "\r": out += "\\r"
      case "\t": out += "\\t"
      case _ where scalar.value < 0x20 || scalar.value == 0x7F:
        let hex = String(scalar.value, radix: 16)
        out += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
      default: out.unicodeScalars.append(scalar)
      }
    }
    out += "\""
  }
}
