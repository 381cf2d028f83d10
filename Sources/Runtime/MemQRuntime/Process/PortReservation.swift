// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import MemQModel

/// Holds a port without listening on it.
///
/// A process must know its port before it may serve: it registers its address first. The socket is bound, so the port is
/// chosen and a taken one is found at once, but it does not listen, so callers are refused rather than left waiting; a second
/// socket with SO_REUSEADDR may bind beside it and listen.
public final class PortReservation: Sendable {
  /// With the port that was chosen, when the wanted one was 0.
  public let address: ListenAddress
  private let socket: Int32

  private init(_ address: ListenAddress, _ socket: Int32) {
    self.address = address
    self.socket = socket
  }

  deinit { close(self.socket) }

  /// - Throws: `.addressInUse`, or `.unavailable` when the host has no such address.
  public static func take(_ address: ListenAddress) throws(MemQError) -> PortReservation {
    guard case .tcp(let host, let port) = address else { return PortReservation(address, -1) }
    var hints = addrinfo()
    hints.ai_flags = AI_PASSIVE
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var found: UnsafeMutablePointer<addrinfo>?
    let code = getaddrinfo(host, String(port), &hints, &found)
    guard code == 0, let info = found?.pointee else {
      throw MemQError(
        .unavailable, "cannot listen: \(String(cString: gai_strerror(code)))",
        subject: address.description)
    }
    defer { freeaddrinfo(found) }
    let socket = Glibc.socket(info.ai_family, info.ai_socktype | Int32(SOCK_CLOEXEC.rawValue), 0)
    var yes: Int32 = 1
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
    guard socket >= 0, bind(socket, info.ai_addr, info.ai_addrlen) == 0 else {
      let error = errno
      close(socket)
      throw Self.refused(address, error)
    }
    return PortReservation(.tcp(host: host, port: Self.port(of: socket)), socket)
  }

  static func refused(_ address: ListenAddress, _ error: Int32) -> MemQError {
    if error == EADDRINUSE {
      return MemQError(
        .addressInUse, "another process listens there: stop it or choose another port",
        subject: address.description)
    }
    return MemQError(
      .unavailable, "cannot listen: \(String(cString: strerror(error)))",
      subject: address.description)
  }

  private static func port(of socket: Int32) -> Int {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    withUnsafeMutablePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        _ = getsockname(socket, $0, &length)
      }
    }
    // The port stands at the same place in IPv4's and IPv6's form.
    return withUnsafeBytes(of: &storage) { Int($0[2]) << 8 | Int($0[3]) }
  }
}
