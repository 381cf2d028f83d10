// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import GRDB
public import MemQMetadata
public import MemQModel

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// Reads a store's file without owning it, whether a server has it open or not: for tools. Blocks.
public enum SQLitePeek {
  /// Whether the folder holds a store.
  public static func exists(_ folder: String) -> Bool {
    FileManager.default.fileExists(atPath: Self.path(folder))
  }

  private static func path(_ folder: String) -> String { folder + "/meta.sqlite" }

  /// All entries of a range, by key.
  ///
  /// - Throws: `.unavailable`, `.corruptMessage` for a file of another format.
  public static func entries(
    _ folder: String, in range: KeyRange
  ) throws(MemQError) -> [StoredEntry] {
    do {
      var settings = GRDB.Configuration()
      settings.readonly = true
      settings.busyMode = .timeout(5)
      let queue = try DatabaseQueue(path: Self.path(folder), configuration: settings)
      defer { try? queue.close() }
      return try queue.read { db in
        let rows = try Row.fetchAll(
          db, sql: "SELECT key, value, revision FROM entries WHERE key >= ? ORDER BY key",
          arguments: [Data(range.lower.bytes)])
        return rows.map { row in
          StoredEntry(
            key: StoreKey([UInt8](row[0] as Data)), value: [UInt8](row[1] as Data),
            revision: Revision(row[2]))
        }.filter { entry in range.upper.map { entry.key < $0 } ?? true }
      }
    } catch {
      throw SQLiteStore.translate(error, Self.path(folder))
    }
  }
}
