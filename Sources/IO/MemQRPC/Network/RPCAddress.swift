// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import MemQModel

/// Where to listen or connect: `host:port`, `[v6]:port` or `unix:/path`.
enum RPCAddress: Sendable, Equatable {
  case tcp(host: String, port: Int)
  case unix(path: String)

  init(_ text: String) throws(MemQError) {
    if text.hasPrefix("unix:") {
      let path = String(text.dropFirst(5))
      // sun_path holds 108 bytes with its terminating zero.
      guard !path.isEmpty, path.utf8.count <= 107 else {
        throw Self.malformed(text, "a socket path has 1 to 107 bytes")
      }
      self = .unix(path: path)
      return
    }
    guard let colon = text.lastIndex(of: ":"),
      let port = Int(text[text.index(after: colon)...]), (0...65535).contains(port)
    else { throw Self.malformed(text, "use host:port, [v6]:port or unix:/path") }
    var host = text[..<colon]
    if host.hasPrefix("["), host.hasSuffix("]") {
      host = host.dropFirst().dropLast()
    } else if host.contains(":") {
      throw Self.malformed(text, "write an IPv6 address in brackets")
    }
    guard !host.isEmpty else { throw Self.malformed(text, "the host is missing") }
    self = .tcp(host: String(host), port: port)
  }

  private static func malformed(_ text: String, _ why: String) -> MemQError {
    MemQError(.invalidArgument, "not an address: \(why)", subject: text)
  }
}

extension SocketAddress {
  /// `127.0.0.1:7460`, `[::1]:7460`, or `unix:/path`.
  var rpcDescription: String {
    switch self {
    case .v4: "\(self.ipAddress ?? "?"):\(self.port ?? 0)"
    case .v6: "[\(self.ipAddress ?? "?")]:\(self.port ?? 0)"
    case .unixDomainSocket: "unix:\(self.pathname ?? "")"
    }
  }
}
