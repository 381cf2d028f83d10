// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A key of the metadata store: bytes in lexicographic order. The table of keys is in docs/formats/metadata-store.md.
public struct StoreKey: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let bytes: [UInt8]

  public init(_ bytes: [UInt8]) { self.bytes = bytes }
  public init(_ text: String) { self.bytes = Array(text.utf8) }

  public static func < (a: Self, b: Self) -> Bool { a.bytes.lexicographicallyPrecedes(b.bytes) }

  public func hasPrefix(_ prefix: StoreKey) -> Bool { self.bytes.starts(with: prefix.bytes) }

  /// Printable bytes as they are, others as `\xx`.
  public var description: String {
    let digits = Array("0123456789abcdef".utf8)
    var text: [UInt8] = []
    for byte in self.bytes {
      if byte >= 0x20, byte < 0x7F, byte != UInt8(ascii: "\\") {
        text.append(byte)
      } else {
        text += [UInt8(ascii: "\\"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
      }
    }
    return String(decoding: text, as: UTF8.self)
  }
}

/// Keys from `lower` up to `upper`, exclusive; nil: to the end.
public struct KeyRange: Hashable, Sendable {
  public var lower: StoreKey
  public var upper: StoreKey?

  public init(_ lower: StoreKey, upTo upper: StoreKey?) {
    self.lower = lower
    self.upper = upper
  }

  /// All keys that begin so.
  public init(prefix: StoreKey) {
    var end = prefix.bytes
    while let last = end.last, last == 0xFF { end.removeLast() }
    if let last = end.last { end[end.count - 1] = last + 1 }
    self.init(prefix, upTo: end.isEmpty ? nil : StoreKey(end))
  }

  public static let all = KeyRange(StoreKey([]), upTo: nil)

  public func contains(_ key: StoreKey) -> Bool {
    key >= self.lower && self.upper.map { key < $0 } ?? true
  }

  /// The part of the range after `key`.
  public func after(_ key: StoreKey) -> KeyRange {
    KeyRange(Swift.max(self.lower, StoreKey(key.bytes + [0])), upTo: self.upper)
  }
}
