// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQSystem

/// The rule files of a folder. Blocking: on disk threads only.
struct RuleFolder: Sendable {
  /// All rule files together: compiled rules take several times as much memory.
  static let byteCountMax = 256 << 20

  struct Source: Hashable, Sendable {
    /// Path below the folder.
    let name: String
    let text: [UInt8]
  }

  let path: String

  /// What tells one state of the folder from another without reading the files: name, size and change time of each.
  func fingerprint() throws(MemQError) -> [UInt8] {
    var writer = ByteWriter()
    for name in try self.names() {
      var status = stat()
      guard stat(self.path + "/" + name, &status) == 0 else { continue }
      writer.text(name)
      writer.integer(Int64(status.st_size))
      writer.integer(Int64(status.st_mtim.tv_sec))
      writer.integer(Int64(status.st_mtim.tv_nsec))
      writer.integer(UInt64(status.st_ino))
    }
    return SHA256.digest(of: writer.bytes)
  }

  /// The files `*.yar` and `*.yara`, by name.
  ///
  /// - Throws: `.rulesInvalid` when the folder or a file can't be read.
  func sources() throws(MemQError) -> [Source] {
    var sources: [Source] = []
    var total = 0
    for name in try self.names() {
      let text = try self.read(name)
      total += text.count
      guard total <= Self.byteCountMax else {
        throw MemQError(
          .rulesInvalid, "the rule files have too many bytes", subject: self.path,
          limit: Int64(Self.byteCountMax), actual: Int64(total))
      }
      sources.append(Source(name: name, text: text))
    }
    return sources
  }

  private func names() throws(MemQError) -> [String] {
    guard let stream = opendir(self.path) else { throw self.failure(self.path) }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) {
        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      let isRule = name.hasSuffix(".yar") || name.hasSuffix(".yara")
      if isRule && !name.hasPrefix(".") { names.append(name) }
    }
    return names.sorted()
  }

  private func read(_ name: String) throws(MemQError) -> [UInt8] {
    let path = self.path + "/" + name
    guard let file = fopen(path, "re") else { throw self.failure(path) }
    defer { fclose(file) }
    var text: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let count = fread(&piece, 1, piece.count, file)
      text += piece.prefix(count)
      guard count == piece.count, text.count <= Self.byteCountMax else { break }
    }
    guard ferror(file) == 0 else { throw self.failure(path) }
    return text
  }

  private func failure(_ path: String) -> MemQError {
    MemQError(
      .rulesInvalid, "can't be read: \(String(cString: strerror(errno)))", subject: path)
  }
}
