// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import CMemQSystem
import Glibc

/// Memory in which bytes are put together for a direct write: whole blocks at an aligned address. Given back with the last reference.
public final class StagingMemory: @unchecked Sendable {
  fileprivate let base: UnsafeMutableRawPointer
  public let byteCount: Int

  /// - Parameter byteCount: whole pages of 2 MiB.
  /// - Throws: ENOMEM.
  public init(_ byteCount: Int) throws(FileError) {
    guard let base = memq_staging(byteCount) else {
      throw FileError(.allocate, path: "staging memory", number: ENOMEM)
    }
    self.base = base
    self.byteCount = byteCount
  }

  deinit { memq_staging_free(self.base, self.byteCount) }
}

/// An open file that is written past the page cache (O_DIRECT): whole blocks, from aligned memory. Closed when the last reference goes.
public final class DirectDescriptor: Sendable {
  private let path: String
  private let descriptor: Int32

  /// - Throws: EINVAL where the file system has no such thing.
  public init(_ path: String) throws(FileError) {
    let descriptor = memq_open_direct(path)
    guard descriptor >= 0 else { throw FileError(.open, path: path, number: -descriptor) }
    self.path = path
    self.descriptor = descriptor
  }

  deinit { close(self.descriptor) }

  /// Writes all of the pieces from `position` on. Not durable before a `syncData` of the same file.
  ///
  /// - Parameters:
  ///   - pieces: together whole blocks, as `position` is.
  ///   - staging: where they are put together; nobody else's meanwhile.
  public func write(
    _ pieces: UnsafeMutableBufferPointer<FilePiece>, at position: Int64,
    staging: StagingMemory
  ) throws(FileError) {
    guard let base = pieces.baseAddress, !pieces.isEmpty else { return }
    let result = memq_pwritev_staged(
      self.descriptor, base, pieces.count, position, staging.base, staging.byteCount)
    guard result >= 0 else { throw FileError(.write, path: self.path, number: Int32(-result)) }
  }
}
