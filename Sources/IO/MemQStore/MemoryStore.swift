// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQMetadata
public import MemQModel
public import MemQSystem
import Synchronization

/// A store in memory, for tests: the same promises but durability.
public final class MemoryStore: MetadataStore {
  private struct Entry {
    var value: [UInt8]
    var revision: Revision
    var lease: StoreLeaseID?
  }

  private struct Lease {
    var ttl: Duration
    var end: MonotonicInstant
  }

  private struct State {
    var entries: SortedMap<StoreKey, Entry> = [:]
    var revision = Revision.zero
    var leases: SortedMap<Int64, Lease> = [:]
    var nextLease: Int64 = 1
    var isClosed = false
  }

  private let clock: any MemQClock
  private let history: ChangeHistory
  private let state = Mutex(State())

  public init(
    clock: any MemQClock = SystemClock(), historyChangesMax: Int = StoreLimits.historyChangesMax
  ) {
    self.clock = clock
    self.history = ChangeHistory(from: .zero, changesMax: historyChangesMax)
  }

  public var revision: Revision { self.history.latest }

  public func get(_ keys: [StoreKey]) async throws(MemQError) -> [StoredEntry?] {
    try self.whileOpen { state in
      keys.map { key in
        state.entries[key].map { StoredEntry(key: key, value: $0.value, revision: $0.revision) }
      }
    }
  }

  public func range(_ range: KeyRange, limit: Int) async throws(MemQError) -> StoreReading {
    try self.whileOpen { state in
      var entries: [StoredEntry] = []
      var index = state.entries.lowerBound(range.lower)
      while index < state.entries.count, entries.count < limit,
        range.contains(state.entries.keys[index])
      {
        let entry = state.entries.values[index]
        entries.append(
          StoredEntry(
            key: state.entries.keys[index], value: entry.value, revision: entry.revision))
        index += 1
      }
      let hasMore = index < state.entries.count && range.contains(state.entries.keys[index])
      return StoreReading(entries: entries, hasMore: hasMore, revision: state.revision)
    }
  }

  public func commit(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict] {
    for transaction in transactions { try transaction.checkSize() }
    let now = self.clock.monotonic
    return try self.whileOpen { state in
      self.expire(&state, now)
      var verdicts: [CommitVerdict] = []
      for transaction in transactions {
        if case .conflict = verdicts.last {
          verdicts.append(.skipped)
        } else if verdicts.last == .skipped {
          verdicts.append(.skipped)
        } else if transaction.conditions.allSatisfy({ Self.holds($0, state) }),
          Self.leasesExist(transaction, state)
        {
          self.apply(transaction, &state)
          verdicts.append(.committed(state.revision))
        } else {
          verdicts.append(.conflict(state.revision))
        }
      }
      return verdicts
    }
  }

  private static func holds(_ condition: Condition, _ state: State) -> Bool {
    switch condition {
    case .revision(let key, let revision): (state.entries[key]?.revision ?? .zero) == revision
    case .exists(let key): state.entries[key] != nil
    }
  }

  private static func leasesExist(_ transaction: Transaction, _ state: State) -> Bool {
    transaction.operations.allSatisfy { operation in
      switch operation {
      case .put(_, _, let lease?): state.leases[lease.rawValue] != nil
      case .put, .delete: true
      }
    }
  }

  private func apply(_ transaction: Transaction, _ state: inout State) {
    state.revision = state.revision.next
    var changes: [StoreChange] = []
    for operation in transaction.operations {
      switch operation {
      case .put(let key, let value, let lease):
        state.entries[key] = Entry(value: value, revision: state.revision, lease: lease)
        changes.append(StoreChange(key: key, value: value, revision: state.revision))
      case .delete(let key):
        guard state.entries.removeValue(forKey: key) != nil else { continue }
        changes.append(StoreChange(key: key, value: nil, revision: state.revision))
      }
    }
    self.history.append(changes, through: state.revision)
  }

  public func watch(
    _ range: KeyRange, after revision: Revision
  ) throws(MemQError) -> any StoreWatch {
    try self.history.watch(range, after: revision)
  }

  public func compact(through revision: Revision) async { self.history.compact(through: revision) }

  // MARK: Leases

  public func grantLease(_ ttl: Duration) async throws(MemQError) -> StoreLeaseID {
    let end = self.clock.monotonic + ttl
    return try self.whileOpen { state in
      let id = state.nextLease
      state.nextLease += 1
      state.leases[id] = Lease(ttl: ttl, end: end)
      return StoreLeaseID(id)
    }
  }

  public func renewLease(_ id: StoreLeaseID) async throws(MemQError) {
    let now = self.clock.monotonic
    let isAlive = try self.whileOpen { state in
      self.expire(&state, now)
      guard let lease = state.leases[id.rawValue] else { return false }
      state.leases[id.rawValue]!.end = now + lease.ttl
      return true
    }
    guard isAlive else {
      throw MemQError(.leaseLost, "the lease has ended", subject: "lease \(id.rawValue)")
    }
  }

  public func revokeLease(_ id: StoreLeaseID) async throws(MemQError) {
    try self.whileOpen { state in self.end(id, &state) }
  }

  public func expireLeases() async throws(MemQError) {
    let now = self.clock.monotonic
    try self.whileOpen { state in self.expire(&state, now) }
  }

  private func expire(_ state: inout State, _ now: MonotonicInstant) {
    for (id, lease) in state.leases where lease.end <= now { self.end(StoreLeaseID(id), &state) }
  }

  private func end(_ id: StoreLeaseID, _ state: inout State) {
    guard state.leases.removeValue(forKey: id.rawValue) != nil else { return }
    var transaction = Transaction()
    for (key, entry) in state.entries where entry.lease == id { transaction.delete(key) }
    if !transaction.isEmpty { self.apply(transaction, &state) }
  }

  public func close() async {
    self.state.withLock { $0.isClosed = true }
    self.history.close()
  }

  private func whileOpen<R: Sendable>(
    _ body: (inout State) -> R
  ) throws(MemQError) -> R {
    let result: R? = self.state.withLock { state in state.isClosed ? nil : body(&state) }
    guard let result else { throw MemQError(.unavailable, "the store is closed") }
    return result
  }
}
