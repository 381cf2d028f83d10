// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import NIOCore
import Synchronization

/// An open file; closed when nobody holds it any more. Blocking calls: on file threads only.
final class OpenFile: Sendable {
  let path: String
  private let descriptor: Int32

  /// - Parameter flags: of open(2); close-on-exec is added.
  init(_ path: String, _ flags: Int32) throws(MemQError) {
    self.path = path
    self.descriptor = try posix("open", path) { open(path, flags | O_CLOEXEC, 0o644) }
  }

  deinit { close(self.descriptor) }

  /// Size in bytes, and whether a name still leads to the file.
  func status() throws(MemQError) -> (byteCount: Int64, isLinked: Bool) {
    var status = stat()
    _ = try posix("fstat", self.path) { fstat(self.descriptor, &status) }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw MemQError(.objectNotFound, "not an object", subject: self.path)
    }
    return (Int64(status.st_size), status.st_nlink > 0)
  }

  /// False: another open file holds the lock. It ends with this file.
  func tryLock() throws(MemQError) -> Bool {
    while flock(self.descriptor, LOCK_EX | LOCK_NB) != 0 {
      let code = errno
      if code == EWOULDBLOCK { return false }
      guard code == EINTR else { throw systemError("flock", self.path, code) }
    }
    return true
  }

  func truncate(to byteCount: Int64) throws(MemQError) {
    _ = try posix("ftruncate", self.path) { ftruncate(self.descriptor, off_t(byteCount)) }
  }

  func sync() throws(MemQError) {
    _ = try posix("fsync", self.path) { fsync(self.descriptor) }
  }

  func write(_ buffers: [ByteBuffer], at position: Int64) throws(MemQError) {
    var position = position
    for buffer in buffers {
      let result = buffer.withUnsafeReadableBytes { bytes in
        Result { () throws(MemQError) in try self.write(bytes, at: position) }
      }
      try result.get()
      position += Int64(buffer.readableBytes)
    }
  }

  private func write(_ bytes: UnsafeRawBufferPointer, at position: Int64) throws(MemQError) {
    var done = 0
    while done < bytes.count {
      done += try posix("write", self.path) {
        pwrite(
          self.descriptor, bytes.baseAddress! + done, bytes.count - done,
          off_t(position + Int64(done)))
      }
    }
  }

  /// Exactly `count` bytes; `.objectCorrupt` when the file ends before.
  func read(at position: Int64, count: Int) throws(MemQError) -> ByteBuffer {
    var buffer = ByteBuffer()
    buffer.reserveCapacity(count)
    let path = self.path
    let descriptor = self.descriptor
    var failure: MemQError?
    buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count) { bytes in
      var done = 0
      do throws(MemQError) {
        while done < count {
          let read = try posix("read", path) {
            pread(
              descriptor, bytes.baseAddress! + done, count - done, off_t(position + Int64(done)))
          }
          guard read > 0 else {
            throw MemQError(
              .objectCorrupt, "the file ended while it was read", subject: path,
              limit: position + Int64(count), actual: position + Int64(done))
          }
          done += read
        }
      } catch {
        failure = error
      }
      return done
    }
    if let failure { throw failure }
    return buffer
  }
}

/// Calls again after EINTR; a negative result becomes an error.
@discardableResult
func posix<T: SignedInteger>(
  _ call: StaticString, _ path: String, _ body: () -> T
) throws(MemQError) -> T {
  while true {
    let result = body()
    if result >= 0 { return result }
    let code = errno
    if code != EINTR { throw systemError(call, path, code) }
  }
}

func systemError(_ call: StaticString, _ path: String, _ code: Int32) -> MemQError {
  if code == ENOENT || code == ENOTDIR {
    return MemQError(.objectNotFound, "there is no such object", subject: path)
  }
  return MemQError(
    .objectStoreUnavailable, "\(call) failed: \(String(cString: strerror(code)))", subject: path)
}

/// Folder operations of the store. Blocking.
enum Folders {
  /// Makes `relative`'s folders below `root`, each durable in its parent before it is used.
  static func make(_ relative: String, below root: String) throws(MemQError) {
    var path = root
    for part in relative.split(separator: "/") {
      let parent = path
      path += "/" + part
      if mkdir(path, 0o755) == 0 {
        try Self.sync(parent)
      } else if errno != EEXIST {
        throw systemError("mkdir", path, errno)
      }
    }
  }

  /// Makes a folder and those above it.
  static func makeAll(_ path: String) throws(MemQError) {
    if path.hasPrefix("/") {
      try Self.make(path, below: "")
    } else {
      try Self.make(path, below: ".")
    }
  }

  /// Makes the folder's entries durable.
  static func sync(_ path: String) throws(MemQError) {
    try OpenFile(path.isEmpty ? "/" : path, O_RDONLY | O_DIRECTORY).sync()
  }

  /// False: nothing was there.
  static func unlink(_ path: String) throws(MemQError) -> Bool {
    if Glibc.unlink(path) == 0 { return true }
    let code = errno
    if code == ENOENT || code == ENOTDIR { return false }
    throw systemError("unlink", path, code)
  }

  static func rename(_ from: String, _ to: String) throws(MemQError) {
    try posix("rename", to) { Glibc.rename(from, to) }
  }

  struct Entry {
    let name: String
    let isFolder: Bool
  }

  /// Regular files and folders whose names do not begin with a dot; empty when the folder is not there.
  static func entries(_ path: String) throws(MemQError) -> [Entry] {
    guard let stream = opendir(path) else {
      if errno == ENOENT || errno == ENOTDIR { return [] }
      throw systemError("opendir", path, errno)
    }
    defer { closedir(stream) }
    var entries: [Entry] = []
    while true {
      errno = 0
      guard let entry = readdir(stream) else {
        guard errno == 0 else { throw systemError("readdir", path, errno) }
        return entries
      }
      let name = withUnsafeBytes(of: &entry.pointee.d_name) {
        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard !name.hasPrefix(".") else { continue }
      switch Self.kind(of: path + "/" + name, Int32(entry.pointee.d_type)) {
      case Int32(DT_DIR): entries.append(Entry(name: name, isFolder: true))
      case Int32(DT_REG): entries.append(Entry(name: name, isFolder: false))
      default: continue
      }
    }
  }

  /// Some file systems do not tell the kind with the name.
  private static func kind(of path: String, _ told: Int32) -> Int32 {
    guard told == Int32(DT_UNKNOWN) else { return told }
    var status = stat()
    guard lstat(path, &status) == 0 else { return told }
    switch status.st_mode & S_IFMT {
    case S_IFDIR: return Int32(DT_DIR)
    case S_IFREG: return Int32(DT_REG)
    default: return told
    }
  }
}
