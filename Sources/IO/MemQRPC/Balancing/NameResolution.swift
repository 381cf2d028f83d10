// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import NIOCore
import NIOPosix

/// The addresses of names.
enum NameResolution {
  /// More are not used.
  static let addressesMax = 64

  /// `target` with its host's addresses in its place, sorted; `target` itself when it needs no resolving. Empty: the name leads nowhere
  /// at the moment. Blocks a thread of NIO's pool, not the loop.
  static func addresses(of target: String) async -> [String] {
    guard case .tcp(let host, let port) = try? RPCAddress(target), !self.isLiteral(host) else {
      return [target]
    }
    let found = try? await NIOThreadPool.singleton.runIfActive { self.look(up: host, port: port) }
    return found ?? []
  }

  static func isLiteral(_ host: String) -> Bool {
    (try? SocketAddress(ipAddress: host, port: 0)) != nil
  }

  private static func look(up host: String, port: Int) -> [String] {
    var hints = addrinfo()
    hints.ai_family = AF_UNSPEC
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var first: UnsafeMutablePointer<addrinfo>?
    guard getaddrinfo(host, nil, &hints, &first) == 0 else { return [] }
    defer { freeaddrinfo(first) }
    var found: Set<String> = []
    var cursor = first
    while let info = cursor {
      cursor = info.pointee.ai_next
      var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
      guard
        getnameinfo(
          info.pointee.ai_addr, info.pointee.ai_addrlen, &text, socklen_t(text.count), nil, 0,
          NI_NUMERICHOST) == 0
      else { continue }
      let address = String(
        decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
      found.insert(
        info.pointee.ai_family == AF_INET6 ? "[\(address)]:\(port)" : "\(address):\(port)")
    }
    return Array(found.sorted().prefix(Self.addressesMax))
  }
}
