// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Ordered metadata of a call: headers of the request, or trailers of the response.
///
/// Names are lowercase. Values of names that end in `-bin` are raw bytes here and base64 on the wire;
/// other values are printable ASCII. A name may stand more than once.
public struct RPCMetadata: Sendable, Equatable {
  /// One name and its value.
  public struct Entry: Sendable, Equatable {
    public let name: String
    public let value: Value
  }

  public enum Value: Sendable, Equatable {
    case text(String)
    case binary([UInt8])
  }

  public private(set) var entries: [Entry] = []

  public init() {}

  /// Metadata of text values. Names are lowercased.
  public init(_ pairs: [(String, String)]) {
    for (name, value) in pairs { self.add(name, value) }
  }

  public var isEmpty: Bool { self.entries.isEmpty }
  public var count: Int { self.entries.count }

  /// The first text value under `name`, which must be lowercase.
  public subscript(first name: String) -> String? {
    for entry in self.entries where entry.name == name {
      if case .text(let value) = entry.value { return value }
    }
    return nil
  }

  /// All text values under `name`, in order.
  public func all(_ name: String) -> [String] {
    self.entries.compactMap { entry in
      guard entry.name == name, case .text(let value) = entry.value else { return nil }
      return value
    }
  }

  /// The first binary value under `name`, which ends in `-bin`.
  public func binary(first name: String) -> [UInt8]? {
    for entry in self.entries where entry.name == name {
      if case .binary(let value) = entry.value { return value }
    }
    return nil
  }

  /// Adds a text value.
  ///
  /// - Precondition: `name` is a legal header name that does not begin with `grpc-` or `:` and does
  ///   not end in `-bin`. Bytes of `value` outside printable ASCII are sent as `?`.
  public mutating func add(_ name: String, _ value: String) {
    let name = name.lowercased()
    precondition(Self.isLegal(name) && !name.hasSuffix("-bin"), "illegal metadata name \(name)")
    self.entries.append(Entry(name: name, value: .text(value)))
  }

  /// Adds a binary value. `name` ends in `-bin`.
  public mutating func addBinary(_ name: String, _ value: [UInt8]) {
    let name = name.lowercased()
    precondition(Self.isLegal(name) && name.hasSuffix("-bin"), "illegal metadata name \(name)")
    self.entries.append(Entry(name: name, value: .binary(value)))
  }

  /// Removes every value under `name`.
  public mutating func removeAll(_ name: String) {
    self.entries.removeAll { $0.name == name }
  }

  /// Adds all entries of `other` behind ours.
  public mutating func append(_ other: RPCMetadata) {
    self.entries.append(contentsOf: other.entries)
  }

  /// Bytes in a header list, as HTTP/2 counts them.
  var listBytes: Int {
    self.entries.reduce(0) { sum, entry in
      switch entry.value {
      case .text(let value): sum + entry.name.utf8.count + value.utf8.count + 32
      case .binary(let value): sum + entry.name.utf8.count + value.count * 4 / 3 + 34
      }
    }
  }

  /// For the wire: the name was checked by the HTTP/2 layer, binary values are decoded already.
  mutating func appendReceived(_ name: String, _ value: Value) {
    self.entries.append(Entry(name: name, value: value))
  }

  static func isLegal(_ name: String) -> Bool {
    guard !name.isEmpty, !name.hasPrefix("grpc-"), !Self.reserved.contains(name) else {
      return false
    }
    return name.utf8.allSatisfy { byte in
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
        UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "."):
        true
      default: false
      }
    }
  }

  /// Headers with a meaning of their own in HTTP/2 or gRPC.
  private static let reserved: Set<String> = [
    "te", "content-type", "connection", "keep-alive", "transfer-encoding", "upgrade", "host",
    "proxy-connection",
  ]
}
