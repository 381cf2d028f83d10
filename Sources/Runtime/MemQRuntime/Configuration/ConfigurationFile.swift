// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import Yams

/// A YAML file flattened to dotted keys, with the line of each.
struct ConfigurationFile {
  struct Entry {
    let name: String
    /// Nil: the key stands there without a value.
    let value: String?
    let line: Int
  }

  /// A configuration file of any sense fits in 1 MiB.
  private static let bytesMax = 1 << 20

  let path: String
  private(set) var entries: [Entry] = []

  /// - Throws: ``ConfigurationError`` when the file cannot be read or is not YAML of the expected shape.
  init(path: String) throws(ConfigurationError) {
    self.path = path
    let text = try Self.read(path)
    do {
      guard let root = try Parser(yaml: text).singleRoot() else { return }
      if root.scalar != nil, root.string == "" { return }
      guard let mapping = root.mapping else {
        throw ConfigurationError("the file is not a list of keys and values", subject: path)
      }
      try self.flatten(mapping, [])
    } catch let error as ConfigurationError {
      throw error
    } catch {
      throw ConfigurationError("not YAML: \(Self.oneLine("\(error)"))", subject: path)
    }
  }

  private mutating func flatten(
    _ mapping: Node.Mapping, _ prefix: [String]
  ) throws(ConfigurationError) {
    for (keyNode, value) in mapping {
      let line = keyNode.mark?.line ?? 0
      guard let key = keyNode.string else {
        throw ConfigurationError("a key is not text", subject: "\(self.path):\(line)")
      }
      let name = prefix + [key]
      if let inner = value.mapping {
        try self.flatten(inner, name)
      } else {
        let text = try self.text(value, "\(self.path):\(line)", name)
        self.entries.append(Entry(name: name.joined(separator: "."), value: text, line: line))
      }
    }
  }

  private func text(
    _ node: Node, _ place: String, _ name: [String]
  ) throws(ConfigurationError) -> String? {
    if let scalar = node.scalar {
      let isNull = scalar.style == .plain && ["", "~", "null"].contains(scalar.string)
      return isNull ? nil : scalar.string
    }
    var parts: [String] = []
    for element in node.sequence ?? [] {
      guard let scalar = element.scalar else {
        throw ConfigurationError(
          "\(name.joined(separator: ".")) holds something else than values", subject: place)
      }
      parts.append(scalar.string)
    }
    return parts.joined(separator: ",")
  }

  private static func read(_ path: String) throws(ConfigurationError) -> String {
    func failed(_ why: String) -> ConfigurationError {
      ConfigurationError("cannot read the configuration file: \(why)", subject: path)
    }
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { throw failed(String(cString: strerror(errno))) }
    defer { close(file) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = Glibc.read(file, &buffer, buffer.count)
      guard count >= 0 else { throw failed(String(cString: strerror(errno))) }
      if count == 0 { break }
      bytes += buffer[..<count]
      guard bytes.count <= Self.bytesMax else { throw failed("it is over 1 MiB") }
    }
    guard let text = String(validating: bytes, as: UTF8.self) else { throw failed("not UTF-8") }
    return text
  }

  private static func oneLine(_ text: String) -> String {
    text.split(whereSeparator: \.isNewline).map { $0.trimmingPrefix { $0 == " " } }
      .joined(separator: " ")
  }
}
