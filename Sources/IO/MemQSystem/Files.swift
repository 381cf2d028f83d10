// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import CMemQSystem
import Glibc
public import MemQModel

/// A system call on a file that failed: which, on what, and the system's number.
public struct FileError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Operation: String, Sendable {
    case open, read, write, sync, allocate, rename, remove, list, lock, status, makeFolder
  }

  public let operation: Operation
  public let path: String
  /// errno.
  public let number: Int32

  public init(_ operation: Operation, path: String, number: Int32) {
    self.operation = operation
    self.path = path
    self.number = number
  }

  /// No space, or no quota, is left.
  public var isNoSpace: Bool { self.number == ENOSPC || self.number == EDQUOT }
  /// The device failed, not the call.
  public var isUnreadable: Bool { self.number == EIO }
  /// The process or the machine is out of descriptors or memory, or was interrupted: it says nothing of the device, and the same call may
  /// work in a moment. Never of a write or a sync: what the disk has after one that failed is unknown.
  public var isTransient: Bool {
    switch self.operation {
    case .write, .sync: false
    case .open, .read, .allocate, .rename, .remove, .list, .lock, .status, .makeFolder:
      [EMFILE, ENFILE, ENOMEM, EINTR, EAGAIN].contains(self.number)
    }
  }
  public var isNotFound: Bool { self.number == ENOENT }
  public var alreadyExists: Bool { self.number == EEXIST }
  /// Another process holds the lock.
  public var isLockedElsewhere: Bool { self.number == EWOULDBLOCK }

  public var description: String {
    "\(self.operation.rawValue) \(self.path): \(String(cString: strerror(self.number)))"
  }

  /// The same failure under one of the numbered reasons.
  public func memqError(_ code: ErrorCode) -> MemQError {
    MemQError(
      code, "\(self.operation.rawValue) failed: \(String(cString: strerror(self.number)))",
      subject: self.path)
  }
}

/// An open file; closed when the last reference goes. Every call blocks: disk threads only.
public final class File: Sendable {
  public enum Mode: Sendable {
    case readOnly
    case readWrite
    /// Read and write; made when missing.
    case create
    /// Read and write; must not exist.
    case createNew

    fileprivate var flags: Int32 {
      switch self {
      case .readOnly: O_RDONLY
      case .readWrite: O_RDWR
      case .create: O_RDWR | O_CREAT
      case .createNew: O_RDWR | O_CREAT | O_EXCL
      }
    }
  }

  public let path: String
  public let descriptor: Int32

  /// - Parameter mode: new files get permissions 0640.
  public init(_ path: String, _ mode: Mode) throws(FileError) {
    let descriptor = memq_open(path, mode.flags, 0o640)
    guard descriptor >= 0 else { throw FileError(.open, path: path, number: -descriptor) }
    self.path = path
    self.descriptor = descriptor
  }

  deinit { close(self.descriptor) }

  public func byteCount() throws(FileError) -> Int64 {
    var status = stat()
    guard fstat(self.descriptor, &status) == 0 else {
      throw FileError(.status, path: self.path, number: errno)
    }
    return Int64(status.st_size)
  }

  /// Fills `bytes` from `position`; returns how many there were before the end of the file.
  @discardableResult
  public func read(
    into bytes: UnsafeMutableRawBufferPointer, at position: Int64
  ) throws(FileError) -> Int {
    guard let base = bytes.baseAddress, !bytes.isEmpty else { return 0 }
    let count = memq_pread_all(self.descriptor, base, bytes.count, position)
    guard count >= 0 else { throw FileError(.read, path: self.path, number: Int32(-count)) }
    return Int(count)
  }

  /// Writes all of the pieces from `position` on; changes the pieces. Not durable before `syncData`.
  public func write(
    gathered pieces: UnsafeMutableBufferPointer<iovec>, at position: Int64
  ) throws(FileError) {
    guard let base = pieces.baseAddress, !pieces.isEmpty else { return }
    let result = memq_pwritev_all(self.descriptor, base, pieces.count, position)
    guard result >= 0 else { throw FileError(.write, path: self.path, number: Int32(-result)) }
  }

  public func write(_ bytes: UnsafeRawBufferPointer, at position: Int64) throws(FileError) {
    guard let base = bytes.baseAddress, !bytes.isEmpty else { return }
    var piece = iovec(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: bytes.count)
    let result = memq_pwritev_all(self.descriptor, &piece, 1, position)
    guard result >= 0 else { throw FileError(.write, path: self.path, number: Int32(-result)) }
  }

  /// Reserves space and makes the file `byteCount` long.
  public func allocate(_ byteCount: Int64) throws(FileError) {
    let result = memq_allocate(self.descriptor, byteCount)
    guard result >= 0 else { throw FileError(.allocate, path: self.path, number: -result) }
  }

  /// Makes what was written durable. An error is final: the kernel may have dropped what it could not write, and the next
  /// call would lie.
  public func syncData() throws(FileError) {
    let result = memq_fdatasync(self.descriptor)
    guard result >= 0 else { throw FileError(.sync, path: self.path, number: -result) }
  }

  /// As `syncData`, with the file's size and times.
  public func sync() throws(FileError) {
    let result = memq_fsync(self.descriptor)
    guard result >= 0 else { throw FileError(.sync, path: self.path, number: -result) }
  }

  /// Takes the exclusive lock of this open file, without waiting. It goes with the file or the process.
  public func lock() throws(FileError) {
    let result = memq_try_lock(self.descriptor)
    guard result >= 0 else { throw FileError(.lock, path: self.path, number: -result) }
  }

  /// Drops clean pages from the page cache: the next read asks the disk.
  public func dropCache() { _ = posix_fadvise(self.descriptor, 0, 0, POSIX_FADV_DONTNEED) }

  /// Whether reads of this open file in order make the kernel read further than it is asked to.
  public func advise(readsAhead: Bool) {
    _ = posix_fadvise(
      self.descriptor, 0, 0, readsAhead ? POSIX_FADV_NORMAL : POSIX_FADV_RANDOM)
  }
}

/// Bytes for a gathered write. An alias, as the type belongs to whichever C module is loaded first.
public typealias FilePiece = iovec

extension FilePiece {
  public var byteCount: Int { Int(self.iov_len) }

  /// The bytes must outlive the write.
  public init(_ base: UnsafeRawPointer?, count: Int) {
    self.init(iov_base: UnsafeMutableRawPointer(mutating: base), iov_len: count)
  }
}
