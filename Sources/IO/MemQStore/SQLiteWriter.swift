// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import GRDB
import MemQMetadata
import MemQModel

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// What the writer's thread knows; a copy is taken for each SQLite transaction, and kept when that commits.
///
/// Tables: `store` (one row: format, revision, next lease), `entries` (key, value, revision, lease), `leases` (id, ttl). A lease's
/// time is not stored: after a restart each begins anew.
struct SQLiteWriter: Sendable {
  private struct Lease {
    var ttl: Duration
    var end: MonotonicInstant
  }

  private static let format = 0

  private(set) var revision: Revision
  /// Of the SQLite transaction under way.
  private(set) var changes: [StoreChange] = []
  private var nextLease: Int64
  private var leases: SortedMap<Int64, Lease> = [:]
  private var now: MonotonicInstant

  /// Makes the tables when there are none.
  init(_ db: Database, now: MonotonicInstant) throws {
    try db.inTransaction(.immediate) {
      try db.execute(
        sql: """
          CREATE TABLE IF NOT EXISTS store (
            id INTEGER PRIMARY KEY CHECK (id = 0), format INTEGER NOT NULL,
            revision INTEGER NOT NULL, next_lease INTEGER NOT NULL);
          CREATE TABLE IF NOT EXISTS entries (
            key BLOB PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER
          ) WITHOUT ROWID;
          CREATE INDEX IF NOT EXISTS entries_by_lease ON entries (lease) WHERE lease IS NOT NULL;
          CREATE TABLE IF NOT EXISTS leases (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);
          INSERT OR IGNORE INTO store VALUES (0, \(Self.format), 0, 1);
          """)
      return .commit
    }
    guard let row = try Row.fetchOne(db, sql: "SELECT format, revision, next_lease FROM store"),
      row[0] == Self.format
    else {
      throw MemQError(.corruptMessage, "the metadata store has another format than this version's")
    }
    self.revision = Revision(row[1])
    self.nextLease = row[2]
    self.now = now
    for row in try Row.fetchAll(db, sql: "SELECT id, ttl_ms FROM leases") {
      let ttl = Duration.milliseconds(row[1] as Int64)
      self.leases[row[0]] = Lease(ttl: ttl, end: now + ttl)
    }
  }

  mutating func begin(now: MonotonicInstant) {
    self.now = now
    self.changes = []
  }

  func writeRevision(_ db: Database) throws {
    try db.cachedStatement(sql: "UPDATE store SET revision = ?, next_lease = ?")
      .execute(arguments: [self.revision.rawValue, self.nextLease])
  }

  // MARK: Transactions

  mutating func run(_ transactions: [Transaction], _ db: Database) throws -> [CommitVerdict] {
    var verdicts: [CommitVerdict] = []
    for transaction in transactions {
      switch verdicts.last {
      case .conflict, .skipped: verdicts.append(.skipped)
      case .committed, nil:
        if try self.holds(transaction, db) {
          try self.apply(transaction, db)
          verdicts.append(.committed(self.revision))
        } else {
          verdicts.append(.conflict(self.revision))
        }
      }
    }
    return verdicts
  }

  private func holds(_ transaction: Transaction, _ db: Database) throws -> Bool {
    let statement = try db.cachedStatement(sql: "SELECT revision FROM entries WHERE key = ?")
    for condition in transaction.conditions {
      switch condition {
      case .revision(let key, let revision):
        let found = try Int64.fetchOne(statement, arguments: [Data(key.bytes)])
        guard (found ?? 0) == revision.rawValue else { return false }
      case .exists(let key):
        guard try Int64.fetchOne(statement, arguments: [Data(key.bytes)]) != nil else {
          return false
        }
      }
    }
    return transaction.operations.allSatisfy { operation in
      switch operation {
      case .put(_, _, let lease?): self.leases[lease.rawValue] != nil
      case .put, .delete: true
      }
    }
  }

  private mutating func apply(_ transaction: Transaction, _ db: Database) throws {
    self.revision = self.revision.next
    let put = try db.cachedStatement(
      sql: """
        INSERT INTO entries VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
        SET value = excluded.value, revision = excluded.revision, lease = excluded.lease
        """)
    let delete = try db.cachedStatement(sql: "DELETE FROM entries WHERE key = ?")
    for operation in transaction.operations {
      switch operation {
      case .put(let key, let value, let lease):
        try put.execute(
          arguments: [
            Data(key.bytes), Data(value), self.revision.rawValue, lease?.rawValue,
          ])
        self.changes.append(StoreChange(key: key, value: value, revision: self.revision))
      case .delete(let key):
        try delete.execute(arguments: [Data(key.bytes)])
        guard db.changesCount > 0 else { continue }
        self.changes.append(StoreChange(key: key, value: nil, revision: self.revision))
      }
    }
  }

  // MARK: Leases

  mutating func grant(_ ttl: Duration, _ db: Database) throws -> StoreLeaseID {
    let id = self.nextLease
    self.nextLease += 1
    try db.execute(sql: "INSERT INTO leases VALUES (?, ?)", arguments: [id, ttl.milliseconds])
    self.leases[id] = Lease(ttl: ttl, end: self.now + ttl)
    return StoreLeaseID(id)
  }

  mutating func renew(_ id: StoreLeaseID) -> Bool {
    guard let lease = self.leases[id.rawValue] else { return false }
    self.leases[id.rawValue]!.end = self.now + lease.ttl
    return true
  }

  mutating func expireLeases(_ db: Database) throws {
    for (id, lease) in self.leases where lease.end <= self.now {
      try self.end(StoreLeaseID(id), db)
    }
  }

  mutating func end(_ id: StoreLeaseID, _ db: Database) throws {
    guard self.leases.removeValue(forKey: id.rawValue) != nil else { return }
    try db.execute(sql: "DELETE FROM leases WHERE id = ?", arguments: [id.rawValue])
    let keys = try Data.fetchAll(
      db, sql: "SELECT key FROM entries WHERE lease = ? ORDER BY key", arguments: [id.rawValue])
    guard !keys.isEmpty else { return }
    try self.apply(
      Transaction([], keys.map { .delete(StoreKey(Array($0))) }), db)
  }
}
