// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where to listen or connect: `host:port`, `[v6]:port` or `unix:/path`.
public enum ListenAddress: Hashable, Sendable, CustomStringConvertible {
  case tcp(host: String, port: Int)
  case unix(path: String)

  /// - Throws: `.configurationInvalid` naming the text.
  public init(_ text: String) throws(MemQError) {
    guard let address = Self.parse(text) else {
      throw MemQError(.configurationInvalid, Self.wanted, subject: text)
    }
    self = address
  }

  static let wanted = "an address such as 127.0.0.1:7460, [::1]:7460 or unix:/run/memq.sock"

  static func problem(_ text: String) -> String? { self.parse(text) == nil ? self.wanted : nil }

  private static func parse(_ text: String) -> ListenAddress? {
    if text.hasPrefix("unix:") {
      let path = String(text.dropFirst(5))
      // sun_path holds 108 bytes with its terminating zero.
      return path.isEmpty || path.utf8.count > 107 ? nil : .unix(path: path)
    }
    guard let colon = text.lastIndex(of: ":"),
      let port = Int(text[text.index(after: colon)...]), (0...65535).contains(port)
    else { return nil }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") {
      host = host.dropFirst().dropLast()
    } else if host.contains(":") {
      return nil
    }
    guard !host.isEmpty, !host.contains(where: \.isWhitespace) else { return nil }
    return .tcp(host: String(host), port: port)
  }

  public var description: String {
    switch self {
    case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    case .unix(let path): "unix:\(path)"
    }
  }

  /// Where the admin pages are when nobody says: on the same host, 1,000 ports up; any port beside port 0.
  ///
  /// - Throws: `.configurationInvalid` when there is no such port.
  public func adminAddress() throws(MemQError) -> ListenAddress {
    switch self {
    case .tcp(let host, 0): return .tcp(host: host, port: 0)
    case .tcp(let host, let port):
      guard port <= 65535 - 1000 else {
        throw MemQError(
          .configurationInvalid,
          "there is no port 1,000 above it for the admin pages: give --admin-listen",
          subject: self.description, limit: 64535, actual: Int64(port))
      }
      return .tcp(host: host, port: port + 1000)
    case .unix:
      throw MemQError(
        .configurationInvalid,
        "a unix socket leaves the admin pages without a port: give --admin-listen",
        subject: self.description)
    }
  }

  /// Whether it means every interface, and so cannot be told to others.
  public var isUnspecified: Bool {
    switch self {
    case .tcp(let host, _): ["0.0.0.0", "::", "*"].contains(host)
    case .unix: false
    }
  }
}
