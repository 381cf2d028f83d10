// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQSystem
import Synchronization

/// Walks a folder, one entry at a time, by name within each folder. Its calls block.
final class FolderWalk: Sendable {
  enum Entry: Sendable {
    /// A regular file: where it is, and its name relative to the folder.
    case file(path: String, name: String)
    case skipped(name: String, why: String)
    case failed(name: String, MemQError)
  }

  private struct Level {
    var path: String
    var prefix: String
    /// Reversed: the next one is last.
    var names: [String]
  }

  private let levels: Mutex<[Level]>

  /// - Throws: `.invalidArgument` when the folder cannot be read.
  init(_ folder: String) throws(MemQError) {
    var path = folder
    while path.count > 1 && path.hasSuffix("/") { path.removeLast() }
    let (names, foreign) = try Self.names(in: path)
    self.levels = Mutex([Level(path: path, prefix: "", names: names)])
    if foreign > 0 { self.noteForeign(foreign, "") }
  }

  private let pending = Mutex<[Entry]>([])

  /// Nil at the end.
  func next() -> Entry? {
    if let entry = self.pending.withLock({ $0.popLast() }) { return entry }
    return self.levels.withLock { levels in
      while !levels.isEmpty {
        guard let name = levels[levels.count - 1].names.popLast() else {
          levels.removeLast()
          continue
        }
        let level = levels[levels.count - 1]
        if let entry = self.look("\(level.path)/\(name)", level.prefix + name, &levels) {
          return entry
        }
      }
      return nil
    }
  }

  private func look(_ path: String, _ name: String, _ levels: inout [Level]) -> Entry? {
    var status = stat()
    guard lstat(path, &status) == 0 else {
      return .failed(
        name: name, FileError(.status, path: path, number: errno).memqError(.invalidArgument))
    }
    switch status.st_mode & S_IFMT {
    case S_IFREG: return .file(path: path, name: name)
    case S_IFLNK: return .skipped(name: name, why: "symbolic link")
    case S_IFDIR:
      do throws(MemQError) {
        let (names, foreign) = try Self.names(in: path)
        levels.append(Level(path: path, prefix: name + "/", names: names))
        if foreign > 0 { self.noteForeign(foreign, name) }
        return nil
      } catch {
        return .failed(name: name, error)
      }
    default: return .skipped(name: name, why: "not a regular file")
    }
  }

  private func noteForeign(_ count: Int, _ folder: String) {
    self.pending.withLock {
      $0.append(
        .failed(
          name: folder,
          MemQError(
            .fileNameInvalid, "\(count) names in this folder are not UTF-8", subject: folder)))
    }
  }

  /// The names in a folder, in descending order, and how many are not UTF-8.
  private static func names(in path: String) throws(MemQError) -> ([String], foreign: Int) {
    guard let folder = opendir(path) else {
      throw FileError(.list, path: path, number: errno).memqError(.invalidArgument)
    }
    defer { closedir(folder) }
    var names: [String] = []
    var foreign = 0
    while let entry = readdir(folder) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(validatingCString: $0) }
      }
      guard let name else {
        foreign += 1
        continue
      }
      if name != "." && name != ".." { names.append(name) }
    }
    names.sort { $0.utf8.lexicographicallyPrecedes($1.utf8) }
    names.reverse()
    return (names, foreign)
  }
}
