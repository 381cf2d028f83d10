// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQSystem
import NIOCore

/// Bytes to be put, readable from any place: a resume reads again what was not durable.
protocol PutSource: Sendable {
  var byteCount: Int64 { get }
  /// Exactly `count` bytes.
  ///
  /// - Throws: `.fileIncomplete` when there are fewer.
  func read(at position: Int64, count: Int) async throws(MemQError) -> ByteBuffer
  /// - Throws: `.fileIncomplete` when the bytes changed since they were opened.
  func check() async throws(MemQError)
}

struct BytesSource: PutSource {
  private let bytes: ByteBuffer

  init(_ bytes: [UInt8]) { self.bytes = ByteBuffer(bytes: bytes) }

  var byteCount: Int64 { Int64(self.bytes.readableBytes) }

  func read(at position: Int64, count: Int) async throws(MemQError) -> ByteBuffer {
    self.bytes.getSlice(at: Int(position), length: count)!
  }

  func check() async throws(MemQError) {}
}

/// A file on disk. Its size is taken at the open; bytes that come later are not part of it.
final class DiskSource: PutSource {
  let byteCount: Int64
  private let file: File
  private let modified: timespec
  private let threads: DiskThreads

  private init(_ file: File, _ status: stat, _ threads: DiskThreads) {
    self.file = file
    self.byteCount = Int64(status.st_size)
    self.modified = status.st_mtim
    self.threads = threads
  }

  /// - Throws: `.invalidArgument` when it cannot be opened or is not a regular file.
  static func open(_ path: String, _ threads: DiskThreads) async throws(MemQError) -> DiskSource {
    try await threads.run { () throws(MemQError) in
      do {
        // Before the open: that of a pipe waits for somebody to write, for ever.
        var status = stat()
        guard stat(path, &status) == 0 else {
          throw FileError(.open, path: path, number: errno)
        }
        try Self.checkKind(status, path)
        let file = try File(path, .readOnly)
        status = try Self.status(file)
        try Self.checkKind(status, path)
        return DiskSource(file, status, threads)
      } catch let error as FileError {
        throw error.memqError(.invalidArgument)
      } catch let error as MemQError {
        throw error
      } catch {
        throw MemQError(.internalError, "\(error)", subject: path)
      }
    }
  }

  private static func checkKind(_ status: stat, _ path: String) throws(MemQError) {
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw MemQError(
        .invalidArgument, "is not a regular file (a folder is put with --recursive)", subject: path)
    }
  }

  private static func status(_ file: File) throws(FileError) -> stat {
    var status = stat()
    guard fstat(file.descriptor, &status) == 0 else {
      throw FileError(.status, path: file.path, number: errno)
    }
    return status
  }

  func read(at position: Int64, count: Int) async throws(MemQError) -> ByteBuffer {
    let file = self.file
    return try await self.threads.run { () throws(MemQError) in
      var buffer = ByteBufferAllocator().buffer(capacity: count)
      do {
        try buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count) { bytes in
          try file.read(
            into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<count]), at: position)
        }
      } catch {
        throw (error as? FileError)?.memqError(.invalidArgument)
          ?? MemQError(.internalError, "\(error)", subject: file.path)
      }
      guard buffer.readableBytes == count else {
        throw MemQError(
          .fileIncomplete, "the file became shorter while it was read; put it again",
          subject: file.path, limit: position + Int64(count),
          actual: position + Int64(buffer.readableBytes))
      }
      return buffer
    }
  }

  func check() async throws(MemQError) {
    let (file, size, modified) = (self.file, self.byteCount, self.modified)
    try await self.threads.run { () throws(MemQError) in
      let now: stat
      do throws(FileError) {
        now = try Self.status(file)
      } catch {
        throw error.memqError(.invalidArgument)
      }
      guard Int64(now.st_size) == size, now.st_mtim.tv_sec == modified.tv_sec,
        now.st_mtim.tv_nsec == modified.tv_nsec
      else {
        throw MemQError(
          .fileIncomplete, "the file changed while it was read; put it again", subject: file.path,
          limit: size, actual: Int64(now.st_size))
      }
    }
  }
}
