// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Dispatch
import GRDB
public import Logging
public import MemQMetadata
public import MemQModel
public import MemQSystem
import Synchronization

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// The store of a single metadata instance: SQLite in a folder of its own.
///
/// WAL with synchronous FULL: a transaction is answered after the fsync of the log that holds it. All writing happens on one thread;
/// transactions that wait while it syncs go into the next SQLite transaction together, each with its own verdict. The folder holds
/// `meta.sqlite` (with `-wal`, `-shm`) and `meta.lock`.
public final class SQLiteStore: MetadataStore {
  public struct Configuration: Sendable {
    public var folder: String
    /// Transactions that share one sync at most: bounds how long the first of them waits for the others' work.
    public var batchTransactionsMax = 512
    /// Transactions that may wait; more are refused with `.resourceExhausted`.
    public var waitingTransactionsMax = 16_384
    public var historyChangesMax = StoreLimits.historyChangesMax

    public init(folder: String) { self.folder = folder }
  }

  /// What is synced. Only tests that cut the power choose `normal`, to see themselves fail.
  @_spi(PowerCut) public enum Synchronous: Int, Sendable {
    case normal = 1
    case full = 2
  }

  private struct Request {
    enum Work {
      case transactions([Transaction])
      case grant(ttl: Duration)
      case renew(StoreLeaseID)
      case revoke(StoreLeaseID)
      case expire
    }
    let work: Work
    let answer: CheckedContinuation<Result<Answer, MemQError>, Never>
  }

  enum Answer: Sendable {
    case verdicts([CommitVerdict])
    case lease(StoreLeaseID)
    case done
  }

  private struct State {
    var waiting: [Request] = []
    var waitingTransactions = 0
    var isDraining = false
    /// Why nothing more is taken.
    var refusal: MemQError?
    /// A commit failed: what waits can't be done either.
    var hasFailed = false
  }

  private let configuration: Configuration
  private let lock: FolderLock
  private let pool: DatabasePool
  private let clock: any MemQClock
  private let logger: Logger
  private let queue = DispatchQueue(label: "memq.store.writer", qos: .userInitiated)
  private let history: ChangeHistory
  private let state = Mutex(State())
  private let writer: Mutex<SQLiteWriter>
  private let onSync: @Sendable (Int) -> Void

  // MARK: Opening

  /// Opens or makes the store of a folder.
  ///
  /// - Parameter onSync: told, on the writer's thread, after each sync how many transactions it made durable.
  /// - Throws: `.dataFolderInUse` when another process, or another store of this one, has it; `.unavailable` for what the
  ///   environment refuses; `.corruptMessage` for a file of another format.
  public static func open(
    _ configuration: Configuration, clock: any MemQClock = SystemClock(), logger: Logger,
    onSync: @escaping @Sendable (Int) -> Void = { _ in }
  ) async throws(MemQError) -> SQLiteStore {
    try await self.open(
      configuration, synchronous: .full, clock: clock, logger: logger, onSync: onSync)
  }

  @_spi(PowerCut) public static func open(
    _ configuration: Configuration, synchronous: Synchronous, clock: any MemQClock = SystemClock(),
    logger: Logger, onSync: @escaping @Sendable (Int) -> Void = { _ in }
  ) async throws(MemQError) -> SQLiteStore {
    let result: Result<SQLiteStore, MemQError> = await withCheckedContinuation { continuation in
      DispatchQueue(label: "memq.store.open").async {
        do throws(MemQError) {
          let store = try SQLiteStore(configuration, synchronous, clock, logger, onSync)
          continuation.resume(returning: .success(store))
        } catch {
          continuation.resume(returning: .failure(error))
        }
      }
    }
    return try result.get()
  }

  private init(
    _ configuration: Configuration, _ synchronous: Synchronous, _ clock: any MemQClock,
    _ logger: Logger, _ onSync: @escaping @Sendable (Int) -> Void
  ) throws(MemQError) {
    self.configuration = configuration
    self.onSync = onSync
    self.clock = clock
    self.logger = logger
    self.lock = try FolderLock(configuration.folder, file: "meta.lock")
    let path = configuration.folder + "/meta.sqlite"
    do {
      var settings = GRDB.Configuration()
      settings.label = "memq.store"
      settings.maximumReaderCount = 4
      settings.busyMode = .timeout(5)
      self.pool = try DatabasePool(path: path, configuration: settings)
      let writer = try self.pool.writeWithoutTransaction { db in
        // The pool itself sets NORMAL, under which a commit that was answered may be gone after a power cut.
        try db.execute(sql: "PRAGMA synchronous = \(synchronous.rawValue)")
        let level = try Int.fetchOne(db, sql: "PRAGMA synchronous")
        let mode = try String.fetchOne(db, sql: "PRAGMA journal_mode")
        guard level == synchronous.rawValue, mode == "wal" else {
          throw MemQError(
            .unavailable, "SQLite did not take synchronous \(synchronous.rawValue) and WAL",
            subject: path, actual: Int64(level ?? -1))
        }
        try Self.settleLog(db, logger)
        return try SQLiteWriter(db, now: clock.monotonic)
      }
      self.history = ChangeHistory(
        from: writer.revision, changesMax: configuration.historyChangesMax)
      self.writer = Mutex(writer)
    } catch {
      throw Self.translate(error, path)
    }
    try self.lock.syncFolder()
  }

  /// Moves what an earlier process left in the log into the database, and empties the log.
  ///
  /// That process may have ended because a sync failed: the system then has pages that it believes to be on the disk and that aren't. Its
  /// log reads well, but whatever is appended to it stands behind a hole after a power cut. Written to the database, the pages are synced anew.
  private static func settleLog(_ db: Database, _ logger: Logger) throws {
    do {
      _ = try db.checkpoint(.truncate)
    } catch let error as DatabaseError where error.resultCode == .SQLITE_FULL {
      // Nothing was lost but room; what is there is served, and the next one finds it.
      logger.warning("No room to move the metadata store's log into its database")
    }
  }

  static func translate(_ error: any Error, _ path: String) -> MemQError {
    if let error = error as? MemQError { return error }
    guard let error = error as? DatabaseError else {
      return MemQError(.unavailable, "the metadata store failed: \(error)", subject: path)
    }
    let isForeign = error.resultCode == .SQLITE_NOTADB || error.resultCode == .SQLITE_CORRUPT
    return MemQError(
      isForeign ? .corruptMessage : .unavailable, "SQLite says: \(error.message ?? "\(error)")",
      subject: path, actual: Int64(error.extendedResultCode.rawValue))
  }

  // MARK: Reading

  public var revision: Revision { self.history.latest }

  public func get(_ keys: [StoreKey]) async throws(MemQError) -> [StoredEntry?] {
    precondition(keys.count <= StoreLimits.keysPerGetMax)
    return try await self.read { db in
      let statement = try db.cachedStatement(
        sql: "SELECT value, revision FROM entries WHERE key = ?")
      return try keys.map { key in
        let row = try Row.fetchOne(statement, arguments: [Data(key.bytes)])
        return row.map { row in
          StoredEntry(
            key: key, value: Array(row[0] as Data), revision: Revision(row[1] as Int64))
        }
      }
    }
  }

  public func range(_ range: KeyRange, limit: Int) async throws(MemQError) -> StoreReading {
    try await self.read { db in
      let upper = range.upper == nil ? "" : " AND key < ?"
      let statement = try db.cachedStatement(
        sql: "SELECT key, value, revision FROM entries WHERE key >= ?\(upper) ORDER BY key LIMIT ?")
      var arguments: StatementArguments = [Data(range.lower.bytes)]
      if let upper = range.upper { arguments += [Data(upper.bytes)] }
      // Of a range that is larger, one more tells so.
      arguments += [limit < .max ? limit + 1 : limit]
      var entries: [StoredEntry] = []
      let rows = try Row.fetchCursor(statement, arguments: arguments)
      while let row = try rows.next() {
        entries.append(
          StoredEntry(
            key: StoreKey(Array(row[0] as Data)), value: Array(row[1] as Data),
            revision: Revision(row[2] as Int64)))
      }
      let hasMore = entries.count > limit
      if hasMore { entries.removeLast() }
      let revision = try Int64.fetchOne(db, sql: "SELECT revision FROM store") ?? 0
      return StoreReading(entries: entries, hasMore: hasMore, revision: Revision(revision))
    }
  }

  private func read<R: Sendable>(
    _ body: @escaping @Sendable (Database) throws -> R
  ) async throws(MemQError) -> R {
    if let refusal = self.state.withLock({ $0.refusal }) { throw refusal }
    do {
      return try await self.pool.read(body)
    } catch is CancellationError {
      throw MemQError(.cancelled, "reading metadata was cancelled")
    } catch {
      throw Self.translate(error, self.pool.path)
    }
  }

  // MARK: Writing

  public func commit(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict] {
    for transaction in transactions { try transaction.checkSize() }
    guard case .verdicts(let verdicts) = try await self.submit(.transactions(transactions)) else {
      preconditionFailure("transactions are answered with verdicts")
    }
    return verdicts
  }

  public func grantLease(_ ttl: Duration) async throws(MemQError) -> StoreLeaseID {
    guard case .lease(let id) = try await self.submit(.grant(ttl: ttl)) else {
      preconditionFailure("a grant is answered with a lease")
    }
    return id
  }

  public func renewLease(_ id: StoreLeaseID) async throws(MemQError) {
    _ = try await self.submit(.renew(id))
  }

  public func revokeLease(_ id: StoreLeaseID) async throws(MemQError) {
    _ = try await self.submit(.revoke(id))
  }

  public func expireLeases() async throws(MemQError) {
    _ = try await self.submit(.expire)
  }

  private func submit(_ work: Request.Work) async throws(MemQError) -> Answer {
    let result = await withCheckedContinuation { answer in
      let request = Request(work: work, answer: answer)
      let refusal: MemQError? = self.state.withLock { state in
        if let refusal = state.refusal { return refusal }
        let weight = Self.weight(work)
        guard state.waitingTransactions + weight <= self.configuration.waitingTransactionsMax else {
          return MemQError(
            .resourceExhausted, "too many transactions wait for the metadata store",
            limit: Int64(self.configuration.waitingTransactionsMax),
            actual: Int64(state.waitingTransactions + weight))
        }
        state.waiting.append(request)
        state.waitingTransactions += weight
        if !state.isDraining {
          state.isDraining = true
          self.queue.async { self.drain() }
        }
        return nil
      }
      if let refusal { answer.resume(returning: .failure(refusal)) }
    }
    return try result.get()
  }

  private static func weight(_ work: Request.Work) -> Int {
    switch work {
    case .transactions(let transactions): max(transactions.count, 1)
    case .grant, .renew, .revoke, .expire: 1
    }
  }

  // MARK: The writer's thread

  private func drain() {
    while let batch = self.nextBatch() { self.run(batch) }
  }

  /// What waits now, as far as one sync may carry; nil, and done, when nothing does.
  private func nextBatch() -> [Request]? {
    self.state.withLock { state in
      var count = 0
      var weight = 0
      for request in state.waiting {
        let next = Self.weight(request.work)
        guard count == 0 || weight + next <= self.configuration.batchTransactionsMax else { break }
        count += 1
        weight += next
      }
      guard count > 0 else {
        state.isDraining = false
        return nil
      }
      let batch = Array(state.waiting.prefix(count))
      state.waiting.removeFirst(count)
      state.waitingTransactions -= weight
      return batch
    }
  }

  private func run(_ batch: [Request]) {
    let refusal = self.state.withLock { $0.hasFailed ? $0.refusal : nil }
    if let refusal {
      for request in batch { request.answer.resume(returning: .failure(refusal)) }
      return
    }
    var isCommitting = false
    var answers: [Result<Answer, MemQError>] = []
    let now = self.clock.monotonic
    do {
      let (next, changes) = try self.pool.writeWithoutTransaction { db in
        var writer = self.writer.withLock { $0 }
        writer.begin(now: now)
        try db.beginTransaction(.immediate)
        do {
          try writer.expireLeases(db)
          for request in batch { answers.append(try Self.perform(request.work, &writer, db)) }
          try writer.writeRevision(db)
          isCommitting = true
          try db.commit()
        } catch {
          if db.isInsideTransaction { try? db.rollback() }
          throw error
        }
        return (writer, writer.changes)
      }
      self.writer.withLock { $0 = next }
      self.history.append(changes, through: next.revision)
      self.onSync(batch.reduce(0) { $0 + Self.weight($1.work) })
      for (request, answer) in zip(batch, answers) { request.answer.resume(returning: answer) }
    } catch {
      self.fail(batch, error, isCommitting: isCommitting)
    }
  }

  private static func perform(
    _ work: Request.Work, _ writer: inout SQLiteWriter, _ db: Database
  ) throws -> Result<Answer, MemQError> {
    switch work {
    case .transactions(let transactions):
      return .success(.verdicts(try writer.run(transactions, db)))
    case .grant(let ttl):
      return .success(.lease(try writer.grant(ttl, db)))
    case .renew(let id):
      guard writer.renew(id) else {
        return .failure(
          MemQError(.leaseLost, "the lease has ended", subject: "lease \(id.rawValue)"))
      }
      return .success(.done)
    case .revoke(let id):
      try writer.end(id, db)
      return .success(.done)
    case .expire:
      return .success(.done)
    }
  }

  /// A batch that did not begin to commit changed nothing. After a failed commit nobody knows what is on the disk: the store is
  /// of no use until it is opened anew. But for a full disk: nothing was synced then, the next commit overwrites what was
  /// written of this one, and until then it may only come back whole, which is what "unknown" says.
  private func fail(_ batch: [Request], _ error: any Error, isCommitting: Bool) {
    var reason = Self.translate(error, self.pool.path)
    let isFull = (error as? DatabaseError)?.resultCode == .SQLITE_FULL
    if isCommitting, isFull {
      self.logger.error(
        "The metadata store could not write, the disk is full", metadata: ["error": "\(reason)"])
      reason.isRetriable = true
      reason.code = .outcomeUnknown
    } else if isCommitting {
      reason.isRetriable = true
      reason.code = .unavailable
      self.state.withLock {
        $0.refusal = reason
        $0.hasFailed = true
      }
      self.history.close()
      self.logger.error(
        "The metadata store failed to commit and takes no more work",
        metadata: ["error": "\(reason)"]
      )
      reason.code = .outcomeUnknown
    } else {
      self.logger.error("The metadata store could not write", metadata: ["error": "\(reason)"])
    }
    for request in batch { request.answer.resume(returning: .failure(reason)) }
  }

  // MARK: Watching and the end

  public func watch(
    _ range: KeyRange, after revision: Revision
  ) throws(MemQError) -> any StoreWatch {
    try self.history.watch(range, after: revision)
  }

  public func compact(through revision: Revision) async { self.history.compact(through: revision) }

  public func close() async {
    let isFirst = self.state.withLock { state in
      defer { state.refusal = state.refusal ?? MemQError(.unavailable, "the store is closed") }
      return state.refusal == nil || state.hasFailed
    }
    guard isFirst else { return }
    await withCheckedContinuation { continuation in
      // Behind what waits: that is still written.
      self.queue.async {
        self.history.close()
        do {
          try self.pool.close()
        } catch {
          self.logger.warning("SQLite did not close cleanly", metadata: ["error": "\(error)"])
        }
        self.lock.release()
        continuation.resume()
      }
    }
  }
}
