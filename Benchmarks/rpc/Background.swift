// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQRPC
import NIOCore
import NIOPosix

/// Appends 1 MiB messages flat out over a connection, and from a loop, of its own.
final class Background: Sendable {
  private let peer: Peer

  /// In a process of its own: what is timed shares only the server's loop with it.
  init(port: Int) async throws {
    self.peer = Peer(["client", Stack.memq.rawValue, "\(port)", "\(1 << 20)", "16"])
    // More than any measurement lasts; it ends with its process.
    self.peer.say("\(1 << 40)")
  }

  func stop() { self.peer.kill() }
}

/// Memory of a server that holds connections nobody uses.
enum IdleConnections {
  static func measure(count: Int) {
    let server = Peer(["server", Stack.ping.rawValue, "100"])
    let port = UInt16(server.hear())!
    let before = server.residentKiB
    var sockets: [Int32] = []
    for _ in 0..<count { sockets.append(Self.connect(port)) }
    // The server answers usage once it has read what came before.
    server.say("usage")
    _ = server.hear()
    let after = server.residentKiB
    print(
      "\(count) idle connections: \((after - before) * 1024 / count) B each, \(after / 1024) MiB in all"
    )
    for socket in sockets { close(socket) }
    server.end()
  }

  /// A connection that has exchanged settings, as a client's has.
  private static func connect(_ port: UInt16) -> Int32 {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard result == 0 else { fatalError("connect: \(errno)") }
    let hello = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8) + [0, 0, 0, 4, 0, 0, 0, 0, 0]
    guard write(descriptor, hello, hello.count) == hello.count else {
      fatalError("write: \(errno)")
    }
    var answer = [UInt8](repeating: 0, count: 256)
    guard read(descriptor, &answer, answer.count) > 0 else { fatalError("no settings came") }
    return descriptor
  }
}
