// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// An element of what a store answers: its text, or the elements in it.
///
/// A reader for the little that stores send (no namespaces, no entities of their own, no CDATA), bounded in depth and size: a
/// whole XML library would be one more thing to ship and to trust with foreign bytes.
struct S3XML: Hashable, Sendable {
  static let bytesMax = 16 << 20
  static let depthMax = 16

  struct Malformed: Error {
    let at: Int
  }

  var name: String
  var text = ""
  var children: [S3XML] = []

  init(name: String) { self.name = name }

  /// Reads a document.
  init(_ bytes: [UInt8]) throws(Malformed) {
    guard bytes.count <= Self.bytesMax else { throw Malformed(at: Self.bytesMax) }
    var reader = Reader(bytes)
    try reader.skipProlog()
    self = try reader.element(depth: 0)
    try reader.skipProlog()
    guard reader.at == bytes.count else { throw Malformed(at: reader.at) }
  }

  /// The text of the first child of that name.
  subscript(name: String) -> String? { self.children.first { $0.name == name }?.text }

  func all(_ name: String) -> [S3XML] { self.children.filter { $0.name == name } }

  private struct Reader {
    let bytes: [UInt8]
    var at = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    func looking(at text: StaticString) -> Bool {
      let count = text.utf8CodeUnitCount
      guard self.at + count <= self.bytes.count else { return false }
      return (0..<count).allSatisfy { self.bytes[self.at + $0] == text.utf8Start[$0] }
    }

    mutating func skipSpace() {
      while self.at < self.bytes.count, [9, 10, 13, 32].contains(self.bytes[self.at]) {
        self.at += 1
      }
    }

    /// To just behind `end`.
    mutating func skip(through end: StaticString) throws(Malformed) {
      while !self.looking(at: end) {
        guard self.at < self.bytes.count else { throw Malformed(at: self.at) }
        self.at += 1
      }
      self.at += end.utf8CodeUnitCount
    }

    /// White space, the declaration and comments.
    mutating func skipProlog() throws(Malformed) {
      while true {
        self.skipSpace()
        if self.looking(at: "<?") {
          try self.skip(through: "?>")
        } else if self.looking(at: "<!--") {
          try self.skip(through: "-->")
        } else {
          return
        }
      }
    }

    mutating func name() throws(Malformed) -> String {
      let start = self.at
      while self.at < self.bytes.count, ![9, 10, 13, 32, 47, 62].contains(self.bytes[self.at]) {
        self.at += 1
      }
      guard self.at > start else { throw Malformed(at: start) }
      return String(decoding: self.bytes[start..<self.at], as: UTF8.self)
    }

    mutating func element(depth: Int) throws(Malformed) -> S3XML {
      guard depth < S3XML.depthMax, self.looking(at: "<") else { throw Malformed(at: self.at) }
      self.at += 1
      var element = S3XML(name: try self.name())
      // Attributes hold nothing that is needed.
      while self.at < self.bytes.count, self.bytes[self.at] != UInt8(ascii: ">") {
        if self.looking(at: "/>") {
          self.at += 2
          return element
        }
        self.at += 1
      }
      try self.skip(through: ">")
      var text: [UInt8] = []
      while true {
        guard self.at < self.bytes.count else { throw Malformed(at: self.at) }
        if self.looking(at: "</") {
          self.at += 2
          guard try self.name() == element.name else { throw Malformed(at: self.at) }
          self.skipSpace()
          guard self.looking(at: ">") else { throw Malformed(at: self.at) }
          self.at += 1
          element.text = String(decoding: text, as: UTF8.self)
          return element
        } else if self.looking(at: "<!--") {
          try self.skip(through: "-->")
        } else if self.looking(at: "<") {
          element.children.append(try self.element(depth: depth + 1))
        } else if self.looking(at: "&") {
          text += try self.entity()
        } else {
          text.append(self.bytes[self.at])
          self.at += 1
        }
      }
    }

    mutating func entity() throws(Malformed) -> [UInt8] {
      let start = self.at + 1
      guard let end = self.bytes[start...].prefix(12).firstIndex(of: UInt8(ascii: ";")) else {
        throw Malformed(at: self.at)
      }
      let name = String(decoding: self.bytes[start..<end], as: UTF8.self)
      self.at = end + 1
      switch name {
      case "amp": return [UInt8(ascii: "&")]
      case "lt": return [UInt8(ascii: "<")]
      case "gt": return [UInt8(ascii: ">")]
      case "quot": return [UInt8(ascii: "\"")]
      case "apos": return [UInt8(ascii: "'")]
      default:
        let number =
          name.hasPrefix("#x")
          ? UInt32(name.dropFirst(2), radix: 16)
          : name.hasPrefix("#") ? UInt32(name.dropFirst()) : nil
        guard let scalar = number.flatMap(Unicode.Scalar.init) else { throw Malformed(at: start) }
        return Array(String(Character(scalar)).utf8)
      }
    }
  }
}
