// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Lists files below a folder in the byte order of their keys. Blocking.
struct FolderWalk {
  let root: String
  let prefix: String
  let after: String?
  let limit: Int
  private var found: [ObjectHead] = []
  private var hasMore = false

  init(root: String, prefix: String, after: String?, limit: Int) {
    self.root = root
    self.prefix = prefix
    self.after = after
    self.limit = limit
  }

  mutating func run() throws(MemQError) -> ObjectListing {
    let folder = self.prefix.split(separator: "/", omittingEmptySubsequences: false)
      .dropLast().joined(separator: "/")
    try self.visit(folder)
    return ObjectListing(objects: self.found, hasMore: self.hasMore)
  }

  /// A folder sorts as its name with the slash, so that full keys come in byte order: "a-b" before "a/b".
  private mutating func visit(_ folder: String) throws(MemQError) {
    let path = folder.isEmpty ? self.root : self.root + "/" + folder
    let start = folder.isEmpty ? "" : folder + "/"
    let entries = try Folders.entries(path).map { entry in
      (key: start + entry.name + (entry.isFolder ? "/" : ""), isFolder: entry.isFolder)
    }
    for entry in entries.sorted(by: { Self.precedes($0.key, $1.key) }) {
      guard !self.hasMore else { return }
      if entry.isFolder {
        let name = String(entry.key.dropLast())
        guard self.mayHold(entry.key) else { continue }
        try self.visit(name)
      } else {
        try self.take(entry.key)
      }
    }
  }

  private static func precedes(_ left: String, _ right: String) -> Bool {
    left.utf8.lexicographicallyPrecedes(right.utf8)
  }

  /// Whether keys that begin with `start` can match the prefix and lie after the place to go on from.
  private func mayHold(_ start: String) -> Bool {
    guard start.hasPrefix(self.prefix) || self.prefix.hasPrefix(start) else { return false }
    guard let after = self.after else { return true }
    return after.hasPrefix(start) || Self.precedes(after, start)
  }

  private mutating func take(_ text: String) throws(MemQError) {
    guard text.hasPrefix(self.prefix), self.after.map({ Self.precedes($0, text) }) ?? true,
      let key = try? ObjectKey(text)
    else { return }
    guard self.found.count < self.limit else {
      self.hasMore = true
      return
    }
    do {
      let byteCount = try OpenFile(self.root + "/" + text, 0).status().byteCount
      self.found.append(ObjectHead(key: key, byteCount: byteCount))
    } catch {
      // Deleted since the folder was read.
      guard error.code == .objectNotFound else { throw error }
    }
  }
}
