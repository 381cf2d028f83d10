// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQModel
import MemQRecords

/// A pattern that turns a record into bytes.
///
/// `%p` partition, `%o` offset, `%k` key, `%v` value, `%t` timestamp in milliseconds, `%T` the same in words, `%h` headers as `name=value`
/// with commas, `%n` newline, `%%` a percent sign; `\n`, `\t`, `\r`, `\0` and `\\`. Keys and values are printed as they are; null prints nothing.
struct RecordFormat: ExpressibleByArgument {
  private enum Part {
    case literal([UInt8])
    case partition, offset, key, value, timestamp, time, headers
  }

  private var parts: [Part] = []
  /// Nothing but the value: no part is looked at.
  private let isValueOnly: Bool

  static let value = RecordFormat(argument: "%v")!

  init?(argument: String) {
    var parts: [Part] = []
    var literal: [UInt8] = []
    var rest = argument[...]
    func flush() {
      if !literal.isEmpty { parts.append(.literal(literal)) }
      literal = []
    }
    while let character = rest.popFirst() {
      switch character {
      case "%":
        guard let letter = rest.popFirst() else { return nil }
        if letter == "%" || letter == "n" {
          literal.append(UInt8(ascii: letter == "%" ? "%" : "\n"))
          continue
        }
        guard let part = Self.part(letter) else { return nil }
        flush()
        parts.append(part)
      case "\\":
        guard let letter = rest.popFirst(), let byte = Self.escape(letter) else { return nil }
        literal.append(byte)
      default: literal += Array(String(character).utf8)
      }
    }
    flush()
    self.parts = parts
    if parts.count == 1, case .value = parts[0] {
      self.isValueOnly = true
    } else {
      self.isValueOnly = false
    }
  }

  private static func part(_ letter: Character) -> Part? {
    switch letter {
    case "p": .partition
    case "o": .offset
    case "k": .key
    case "v": .value
    case "t": .timestamp
    case "T": .time
    case "h": .headers
    default: nil
    }
  }

  private static func escape(_ letter: Character) -> UInt8? {
    switch letter {
    case "n": UInt8(ascii: "\n")
    case "t": UInt8(ascii: "\t")
    case "r": UInt8(ascii: "\r")
    case "0": 0
    case "\\": UInt8(ascii: "\\")
    default: nil
    }
  }

  func write(_ record: Record, _ partition: PartitionIndex, onto out: inout [UInt8]) {
    if self.isValueOnly {
      if let value = record.value { out.append(contentsOf: value) }
      return
    }
    for part in self.parts {
      switch part {
      case .literal(let bytes): out.append(contentsOf: bytes)
      case .partition: out.append(contentsOf: "\(partition)".utf8)
      case .offset: out.append(contentsOf: "\(record.offset)".utf8)
      case .key: out.append(contentsOf: record.key ?? [])
      case .value: out.append(contentsOf: record.value ?? [])
      case .timestamp: out.append(contentsOf: "\(record.timestamp)".utf8)
      case .time: out.append(contentsOf: TimeText.iso(record.timestamp).utf8)
      case .headers: Self.headers(record, onto: &out)
      }
    }
  }

  private static func headers(_ record: Record, onto out: inout [UInt8]) {
    for (index, header) in record.headers.enumerated() {
      if index > 0 { out.append(UInt8(ascii: ",")) }
      out.append(contentsOf: header.name.utf8)
      out.append(UInt8(ascii: "="))
      out.append(contentsOf: header.value ?? [])
    }
  }

  /// One record as JSON: bytes that are not UTF-8 stand under `…_base64`.
  static func json(_ record: Record, _ partition: PartitionIndex) -> JSON {
    var fields: [(String, JSON)] = [
      ("partition", .number(partition.rawValue)), ("offset", .number(record.offset.rawValue)),
      ("timestamp_ms", .number(record.timestamp.milliseconds)),
    ]
    fields.append(Self.field("key", record.key))
    fields.append(Self.field("value", record.value))
    if !record.headers.isEmpty {
      fields.append(
        (
          "headers",
          .array(
            record.headers.map { header in
              .object([("name", .string(header.name)), Self.field("value", header.value)])
            })
        ))
    }
    return .object(fields)
  }

  private static func field(_ name: String, _ bytes: [UInt8]?) -> (String, JSON) {
    guard let bytes else { return (name, .null) }
    if let text = String(validating: bytes, as: UTF8.self) { return (name, .string(text)) }
    return (name + "_base64", .string(Base64.encode(bytes)))
  }
}

/// RFC 4648, with padding.
enum Base64 {
  private static let digits = Array(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)

  static func encode(_ bytes: [UInt8]) -> String {
    var out: [UInt8] = []
    out.reserveCapacity((bytes.count + 2) / 3 * 4)
    for at in stride(from: 0, to: bytes.count, by: 3) {
      let count = min(3, bytes.count - at)
      var word = UInt32(bytes[at]) << 16
      if count > 1 { word |= UInt32(bytes[at + 1]) << 8 }
      if count > 2 { word |= UInt32(bytes[at + 2]) }
      for place in 0..<4 {
        out.append(
          place <= count ? Self.digits[Int(word >> UInt32(18 - 6 * place) & 63)] : UInt8(ascii: "=")
        )
      }
    }
    return String(decoding: out, as: UTF8.self)
  }
}
