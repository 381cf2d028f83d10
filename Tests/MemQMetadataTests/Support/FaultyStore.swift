// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQStore
import MemQSystem
import Synchronization

/// A store in memory whose operations meet what a test has in mind for them.
final class FaultyStore: MetadataStore {
  /// What happens at an operation; an error is its outcome.
  struct Faults: Sendable {
    var beforeCommit: @Sendable ([Transaction]) async throws(MemQError) -> Void = { _ in }
    var beforeRange: @Sendable () async throws(MemQError) -> Void = {}
    var afterRange: @Sendable (KeyRange) async throws(MemQError) -> Void = { _ in }
  }

  private final class Watch: StoreWatch {
    let inner: any StoreWatch
    let store: FaultyStore
    init(_ inner: any StoreWatch, of store: FaultyStore) {
      self.inner = inner
      self.store = store
    }

    func next() async throws(MemQError) -> WatchBatch {
      let batch = try await self.inner.next()
      if let error = self.store.watchEnd.withLock({ $0.take() }) { throw error }
      return batch
    }
  }

  private let inner: any MetadataStore
  private let faults = Mutex(Faults())
  private let watchEnd = Mutex<MemQError?>(nil)

  init(_ inner: any MetadataStore) { self.inner = inner }

  func set(_ change: (inout Faults) -> Void) { self.faults.withLock { change(&$0) } }

  /// What the next batch of a watch is replaced by.
  func endWatch(with error: MemQError) { self.watchEnd.withLock { $0 = error } }

  private var now: Faults { self.faults.withLock { $0 } }

  var revision: Revision { self.inner.revision }

  func get(_ keys: [StoreKey]) async throws(MemQError) -> [StoredEntry?] {
    try await self.inner.get(keys)
  }

  func range(_ range: KeyRange, limit: Int) async throws(MemQError) -> StoreReading {
    try await self.now.beforeRange()
    let reading = try await self.inner.range(range, limit: limit)
    try await self.now.afterRange(range)
    return reading
  }

  func commit(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict] {
    try await self.now.beforeCommit(transactions)
    return try await self.inner.commit(transactions)
  }

  func watch(_ range: KeyRange, after revision: Revision) throws(MemQError) -> any StoreWatch {
    Watch(try self.inner.watch(range, after: revision), of: self)
  }

  func compact(through revision: Revision) async throws(MemQError) {
    try await self.inner.compact(through: revision)
  }
  func grantLease(_ ttl: Duration) async throws(MemQError) -> StoreLeaseID {
    try await self.inner.grantLease(ttl)
  }
  func renewLease(_ id: StoreLeaseID) async throws(MemQError) {
    try await self.inner.renewLease(id)
  }
  func revokeLease(_ id: StoreLeaseID) async throws(MemQError) {
    try await self.inner.revokeLease(id)
  }
  func expireLeases() async throws(MemQError) { try await self.inner.expireLeases() }
  /// The one underneath is closed by whoever made it.
  func close() async {}
}

/// Opened once; whoever comes before waits.
final class Gate: Sendable {
  private struct State {
    var isOpen = false
    var waiters: [CheckedContinuation<Void, Never>] = []
    var arrivals = 0
  }

  private let state = Mutex(State())

  var arrivals: Int { self.state.withLock { $0.arrivals } }

  func pass() async {
    await withCheckedContinuation { continuation in
      let isOpen = self.state.withLock { state in
        state.arrivals += 1
        if !state.isOpen { state.waiters.append(continuation) }
        return state.isOpen
      }
      if isOpen { continuation.resume() }
    }
  }

  func open() {
    let waiters = self.state.withLock { state in
      state.isOpen = true
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.resume() }
  }
}
