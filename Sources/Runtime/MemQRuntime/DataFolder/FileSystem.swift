// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel

/// The few file calls a process makes while it starts.
enum FileSystem {
  static func failed(_ what: String, _ path: String) -> MemQError {
    MemQError(.unavailable, "\(what): \(String(cString: strerror(errno)))", subject: path)
  }

  /// Makes `path` and what is missing above it, each durable in its parent: what is written into a folder is lost with it.
  static func makeFolder(_ path: String) throws(MemQError) {
    let existing = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if existing >= 0 {
      close(existing)
      return
    }
    guard errno == ENOENT else { throw self.failed("cannot be opened as a folder", path) }
    var parent = "."
    if let slash = path.lastIndex(of: "/") {
      parent = slash == path.startIndex ? "/" : String(path[..<slash])
      if slash != path.startIndex { try self.makeFolder(parent) }
    }
    guard mkdir(path, 0o755) == 0 || errno == EEXIST else {
      throw self.failed("cannot be made", path)
    }
    try self.syncFolder(parent)
  }

  private static func syncFolder(_ path: String) throws(MemQError) {
    let folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard folder >= 0 else { throw self.failed("cannot be opened", path) }
    defer { close(folder) }
    guard fsync(folder) == 0 else { throw self.failed("cannot be synced", path) }
  }

  /// The first 4 KiB of a file.
  static func text(of file: Int32) -> String {
    let bytes = [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
      count = max(0, pread(file, buffer.baseAddress, buffer.count, 0))
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// For texts nobody relies on.
  static func replaceText(of file: Int32, with text: String) {
    _ = ftruncate(file, 0)
    var text = text
    text.withUTF8 { _ = pwrite(file, $0.baseAddress, $0.count, 0) }
  }

  /// All or nothing, also across a power cut: a file beside, synced, renamed, and the folder synced.
  static func writeDurably(
    _ text: String, to name: String, in folder: String
  ) throws(MemQError) {
    let path = "\(folder)/\(name)"
    let temporary = path + ".new"
    let file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard file >= 0 else { throw self.failed("cannot be written", temporary) }
    var text = text
    let written = text.withUTF8 { Glibc.write(file, $0.baseAddress, $0.count) == $0.count }
    let isDurable = written && fsync(file) == 0
    let error = self.failed("cannot be written", temporary)
    close(file)
    guard isDurable else { throw error }
    guard rename(temporary, path) == 0 else { throw self.failed("cannot be put in place", path) }
    try self.syncFolder(folder)
  }
}
