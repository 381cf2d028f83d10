// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import NIOCore

/// Where to listen or connect: `host:port`, `[v6]:port` or `unix:/path`.
enum RPCAddress: Sendable, Equatable, CustomStringConvertible {
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

  var description: String {
    switch self {
    case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    case .unix(let path): "unix:\(path)"
    }
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

extension Channel {
  /// `127.0.0.1:5000`, or `unix:` with the process and the user at the other end: `unix:pid=4711,uid=1000`.
  var peerDescription: String {
    switch self.remoteAddress {
    case .some(.v4(let address)): return SocketAddress.v4(address).rpcDescription
    case .some(.v6(let address)): return SocketAddress.v6(address).rpcDescription
    case .some(.unixDomainSocket), .none: break
    }
    guard self.eventLoop.inEventLoop, let provider = self as? any SocketOptionProvider else {
      return "unix:"
    }
    // ucred: process, user, group.
    let found: EventLoopFuture<(Int32, UInt32, UInt32)> = provider.unsafeGetSocketOption(
      level: .socket, name: NIOBSDSocket.Option(rawValue: SO_PEERCRED))
    var text = "unix:"
    // On the loop it has come already.
    found.assumeIsolated().whenSuccess { text = "unix:pid=\($0.0),uid=\($0.1)" }
    return text
  }
}
