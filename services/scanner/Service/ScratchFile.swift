// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQSystem
import NIOCore

/// A body on scratch disk while it is scanned. Every call blocks: used from the scanner's own threads only.
final class ScratchFile: @unchecked Sendable {
  let path: String
  private var descriptor: Int32
  private var hash = SHA256()
  private(set) var byteCount: Int64 = 0

  /// - Throws: `.resourceExhausted` when the disk is full, `.internalError` otherwise.
  init(folder: String, name: String) throws(MemQError) {
    self.path = "\(folder)/\(name)"
    self.descriptor = open(self.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard self.descriptor >= 0 else { throw Self.failure(self.path) }
  }

  func write(_ bytes: ByteBuffer) throws(MemQError) {
    let failure: MemQError? = bytes.withUnsafeReadableBytes { all in
      var rest = all
      while !rest.isEmpty {
        let count = Glibc.write(self.descriptor, rest.baseAddress, rest.count)
        if count < 0 {
          if errno == EINTR { continue }
          return Self.failure(self.path)
        }
        rest = UnsafeRawBufferPointer(rebasing: rest[count...])
      }
      self.hash.update(all)
      return nil
    }
    if let failure { throw failure }
    self.byteCount += Int64(bytes.readableBytes)
  }

  /// Ends the writing; the digest of what was written.
  func finish() -> [UInt8] {
    close(self.descriptor)
    self.descriptor = -1
    return self.hash.digest()
  }

  func remove() {
    if self.descriptor >= 0 { close(self.descriptor) }
    self.descriptor = -1
    unlink(self.path)
  }

  /// Makes the folder and takes out what an earlier life left.
  static func prepare(folder: String) throws(MemQError) {
    var made = ""
    for part in folder.split(separator: "/", omittingEmptySubsequences: true) {
      made += (made.isEmpty && !folder.hasPrefix("/") ? "" : "/") + part
      guard mkdir(made, 0o700) == 0 || errno == EEXIST else { throw Self.failure(made) }
    }
    guard let stream = opendir(folder) else { throw Self.failure(folder) }
    defer { closedir(stream) }
    while let entry = readdir(stream) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name.hasPrefix("scan-") { unlink("\(folder)/\(name)") }
    }
  }

  private static func failure(_ path: String) -> MemQError {
    let number = errno
    return MemQError(
      number == ENOSPC || number == EDQUOT ? .resourceExhausted : .internalError,
      "scratch disk: \(String(cString: strerror(number)))", subject: path)
  }
}
