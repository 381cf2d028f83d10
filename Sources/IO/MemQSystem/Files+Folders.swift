// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CMemQSystem
import Glibc

/// Calls on paths. All block: disk threads only.
public enum Files {
  /// Makes a folder and the missing ones above it; each new name is durable. Permissions 0750.
  public static func makeFolder(_ path: String) throws(FileError) {
    if Self.isFolder(path) { return }
    let parent = Self.parent(of: path)
    if parent != path { try Self.makeFolder(parent) }
    guard mkdir(path, 0o750) == 0 || errno == EEXIST else {
      throw FileError(.makeFolder, path: path, number: errno)
    }
    try Self.syncFolder(parent)
  }

  public static func isFolder(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }

  public static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  /// The folder that holds `path`.
  public static func parent(of path: String) -> String {
    var parts = path.split(separator: "/", omittingEmptySubsequences: true)
    if !parts.isEmpty { parts.removeLast() }
    let joined = parts.joined(separator: "/")
    if path.hasPrefix("/") { return "/" + joined }
    return joined.isEmpty ? "." : joined
  }

  /// Names in a folder, sorted, without `.` and `..`.
  public static func list(_ path: String) throws(FileError) -> [String] {
    guard let folder = opendir(path) else { throw FileError(.list, path: path, number: errno) }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  /// Makes the names in a folder durable.
  public static func syncFolder(_ path: String) throws(FileError) {
    try File(path, .readOnly).sync()
  }

  /// Renames over what is there. Durable only after `syncFolder`.
  public static func rename(_ from: String, to: String) throws(FileError) {
    guard Glibc.rename(from, to) == 0 else {
      throw FileError(.rename, path: from, number: errno)
    }
  }

  /// Removes a file; a missing one is no error.
  public static func remove(_ path: String) throws(FileError) {
    guard unlink(path) == 0 || errno == ENOENT else {
      throw FileError(.remove, path: path, number: errno)
    }
  }

  /// A whole file; nil when there is none.
  ///
  /// - Parameter byteCountMax: what is longer is cut there.
  public static func contents(_ path: String, byteCountMax: Int) throws(FileError) -> [UInt8]? {
    let file: File
    do throws(FileError) {
      file = try File(path, .readOnly)
    } catch {
      if error.isNotFound { return nil }
      throw error
    }
    let count = min(Int(try file.byteCount()), byteCountMax)
    var bytes = [UInt8](repeating: 0, count: count)
    let result = bytes.withUnsafeMutableBytes { bytes in
      Result { () throws(FileError) in try file.read(into: bytes, at: 0) }
    }
    return Array(bytes.prefix(try result.get()))
  }

  /// Puts a file in the place of another, as a whole and durably: after a crash the old one is there or the new one.
  public static func replace(_ path: String, with bytes: [UInt8]) throws(FileError) {
    let temporary = path + ".new"
    try Self.remove(temporary)
    let file = try File(temporary, .createNew)
    let result = bytes.withUnsafeBytes { bytes in
      Result { () throws(FileError) in try file.write(bytes, at: 0) }
    }
    try result.get()
    try file.sync()
    try Self.rename(temporary, to: path)
    try Self.syncFolder(Self.parent(of: path))
  }

  /// Bytes the file system of `path` still gives an unprivileged process.
  public static func availableBytes(_ path: String) throws(FileError) -> Int64 {
    let bytes = memq_available_bytes(path)
    guard bytes >= 0 else { throw FileError(.status, path: path, number: Int32(-bytes)) }
    return bytes
  }
}
