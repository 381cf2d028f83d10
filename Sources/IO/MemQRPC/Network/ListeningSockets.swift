// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import NIOCore
import NIOPosix

/// Makes sockets that listen, where NIO's own way would take what belongs to others.
enum ListeningSockets {
  /// Connections that wait to be accepted.
  static let backlog: Int32 = 1024

  /// A TCP socket that listens and that others with SO_REUSEPORT may join from now on.
  ///
  /// It is bound without that option, so that another process, of the same user too, is found out; the kernel takes the option later.
  ///
  /// - Throws: `.addressInUse`, `.unavailable`.
  static func shareable(host: String, port: Int) throws(MemQError) -> (Int32, SocketAddress) {
    let name = RPCAddress.tcp(host: host, port: port).description
    guard let address = try? SocketAddress.makeAddressResolvingHost(host, port: port) else {
      throw MemQError(
        .unavailable, "cannot listen: the host's name leads to no address", subject: name)
    }
    let socket = try Self.socket(address.protocol == .inet6 ? AF_INET6 : AF_INET, name)
    Self.set(SO_REUSEADDR, on: socket)
    let isBound = address.withSockAddr { bind(socket, $0, socklen_t($1)) } == 0
    guard isBound, Glibc.listen(socket, Self.backlog) == 0 else {
      let error = errno
      Glibc.close(socket)
      throw Self.refused(name, error)
    }
    Self.set(SO_REUSEPORT, on: socket)
    return (socket, address)
  }

  static func socket(_ family: Int32, _ name: String) throws(MemQError) -> Int32 {
    let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let socket = Glibc.socket(family, kind, 0)
    guard socket >= 0 else { throw Self.refused(name, errno) }
    return socket
  }

  private static func set(_ option: Int32, on socket: Int32) {
    var yes: Int32 = 1
    setsockopt(socket, SOL_SOCKET, option, &yes, socklen_t(MemoryLayout<Int32>.size))
  }

  static func refused(_ name: String, _ error: Int32) -> MemQError {
    if error == EADDRINUSE {
      return MemQError(
        .addressInUse, "another process listens there: stop it or choose another port",
        subject: name)
    }
    return MemQError(
      .unavailable, "cannot listen: \(String(cString: strerror(error)))", subject: name)
  }
}

/// The file of a unix socket that we listen on.
///
/// A file that a dead process left is replaced; one that somebody answers behind is never touched. Looking, replacing and
/// removing happen under a lock of the folder, so that of two processes that start at once one is refused.
struct UnixSocketFile: Sendable {
  private let path: String
  private let device: dev_t
  private let inode: ino_t

  /// Makes the file and listens on it.
  ///
  /// - Throws: `.addressInUse` when somebody listens there, or the file is none of a socket; `.unavailable`.
  static func listen(
    on path: String, mode: UInt16
  ) throws(MemQError) -> (file: UnixSocketFile, socket: Int32) {
    let name = "unix:\(path)"
    let lock = try FolderLock(of: path)
    defer { lock.release() }
    try Self.clear(path)
    let socket = try ListeningSockets.socket(AF_UNIX, name)
    // The mode is right before anybody can connect: that takes `listen`.
    var made = stat()
    guard let address = try? SocketAddress(unixDomainSocketPath: path),
      address.withSockAddr({ bind(socket, $0, socklen_t($1)) }) == 0,
      chmod(path, mode_t(mode)) == 0, lstat(path, &made) == 0,
      Glibc.listen(socket, ListeningSockets.backlog) == 0
    else {
      let error = errno
      Glibc.close(socket)
      throw ListeningSockets.refused(name, error)
    }
    return (UnixSocketFile(path: path, device: made.st_dev, inode: made.st_ino), socket)
  }

  /// Removes the file of a socket that nobody listens on.
  private static func clear(_ path: String) throws(MemQError) {
    var found = stat()
    guard lstat(path, &found) == 0 else { return }
    guard found.st_mode & S_IFMT == S_IFSOCK else {
      throw MemQError(
        .addressInUse, "a file stands there that is no socket: remove it or choose another path",
        subject: "unix:\(path)")
    }
    let probe = try ListeningSockets.socket(AF_UNIX, "unix:\(path)")
    defer { Glibc.close(probe) }
    let isAnswered =
      (try? SocketAddress(unixDomainSocketPath: path)).map { address in
        address.withSockAddr { connect(probe, $0, socklen_t($1)) } == 0 || errno != ECONNREFUSED
      } ?? false
    if isAnswered {
      throw MemQError(
        .addressInUse, "another process listens there: stop it or choose another path",
        subject: "unix:\(path)")
    }
    unlink(path)
  }

  /// Removes the file, unless it is another one by now. Call it before the socket is closed.
  func remove() {
    guard let lock = try? FolderLock(of: self.path) else { return }
    defer { lock.release() }
    var found = stat()
    guard lstat(self.path, &found) == 0, found.st_dev == self.device, found.st_ino == self.inode
    else { return }
    unlink(self.path)
  }
}

/// An advisory lock of the folder a file is in. Held for moments.
private struct FolderLock {
  private let descriptor: Int32

  init(of path: String) throws(MemQError) {
    let folder = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
    self.descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard self.descriptor >= 0 else { throw ListeningSockets.refused("unix:\(path)", errno) }
    // Whoever may read the folder may lock it, too: nobody holds up a start for ever.
    var triesLeft = 500
    while flock(self.descriptor, LOCK_EX | LOCK_NB) != 0 {
      let error = errno
      triesLeft -= 1
      guard error == EWOULDBLOCK || error == EINTR, triesLeft > 0 else {
        close(self.descriptor)
        throw ListeningSockets.refused("unix:\(path)", error)
      }
      usleep(10_000)
    }
  }

  func release() { close(self.descriptor) }
}
