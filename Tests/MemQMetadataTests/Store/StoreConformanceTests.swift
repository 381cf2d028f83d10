// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQMetadata
import MemQModel
import MemQStore
import MemQSystem
import Testing

/// A folder of one test, gone with it.
final class TestFolder: Sendable {
  let path: String

  init() {
    var template = Array("/tmp/memq-metadata-XXXXXX".utf8CString)
    self.path = template.withUnsafeMutableBufferPointer {
      String(cString: mkdtemp($0.baseAddress!))
    }
  }

  deinit {
    for name in ["meta.sqlite", "meta.sqlite-wal", "meta.sqlite-shm", "meta.lock"] {
      unlink("\(self.path)/\(name)")
    }
    rmdir(self.path)
  }
}

/// Every kind of store, each new and empty.
enum StoreKind: String, CaseIterable, Sendable {
  case memory, sqlite, etcd

  /// - Parameter isAlone: nobody else's writes, nor a compaction, reach another test's store.
  func withStore(
    clock: TestClock = TestClock(), historyChangesMax: Int = 100, isAlone: Bool = false,
    _ body: (any MetadataStore) async throws -> Void
  ) async throws {
    let folder = TestFolder()
    var etcd: TestEtcd?
    let store: any MetadataStore
    switch self {
    case .memory: store = MemoryStore(clock: clock, historyChangesMax: historyChangesMax)
    case .sqlite:
      var configuration = SQLiteStore.Configuration(folder: folder.path)
      configuration.historyChangesMax = historyChangesMax
      store = try await SQLiteStore.open(
        configuration, clock: clock, logger: Logger(label: "test"))
    case .etcd:
      let own = try await isAlone ? TestEtcd.start() : TestEtcd.shared()
      etcd = own
      store = try await own.store()
    }
    do {
      try await body(store)
    } catch {
      await store.close()
      throw error
    }
    await store.close()
    withExtendedLifetime((folder, etcd)) {}
  }
}

/// What each store promises.
@Suite struct StoreConformanceTests {
  private func key(_ text: String) -> StoreKey { StoreKey(text) }

  private func put(
    _ store: any MetadataStore, _ pairs: (String, UInt8)...
  ) async throws -> Revision {
    let operations = pairs.map { StoreOperation.put(key($0.0), [$0.1]) }
    let verdicts = try await store.commit([Transaction([], operations)])
    guard case .committed(let revision) = verdicts[0] else {
      throw MemQError(.internalError, "not committed")
    }
    return revision
  }

  @Test(arguments: StoreKind.allCases)
  func `what is put is read, by key and by range in order`(kind: StoreKind) async throws {
    try await kind.withStore { store in
      let before = store.revision
      #expect(try await store.range(.all, limit: 10).entries.isEmpty)
      let first = try await put(store, ("b", 2), ("a", 1), ("ab", 3), ("c", 4))
      #expect(first > before && store.revision >= first)
      let found = try await store.get([key("b"), key("none"), key("a")])
      #expect(found.map { $0?.value } == [[2], nil, [1]])
      #expect(found[0]?.revision == first)
      let page = try await store.range(KeyRange(prefix: key("a")), limit: 10)
      #expect(page.entries.map(\.key) == [key("a"), key("ab")] && !page.hasMore)
      let half = try await store.range(.all, limit: 2)
      #expect(half.entries.map(\.key) == [key("a"), key("ab")] && half.hasMore)
      let rest = try await store.range(KeyRange.all.after(key("ab")), limit: 2)
      #expect(rest.entries.map(\.key) == [key("b"), key("c")] && !rest.hasMore)
      #expect(rest.revision >= first)
      #expect(try await store.range(.all, limit: .max).entries.count == 4)
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `a transaction happens whole when its conditions hold, else not at all`(
    kind: StoreKind
  ) async throws {
    try await kind.withStore { store in
      let first = try await put(store, ("a", 1))
      /// The revision of the commit; nil: a conflict, at a revision that is not older than what was seen.
      func run(_ conditions: Condition...) async throws -> Revision? {
        let transaction = Transaction(conditions, [.put(key("x"), [9]), .delete(key("a"))])
        switch try await store.commit([transaction])[0] {
        case .committed(let revision): return revision
        case .conflict(let revision):
          #expect(revision >= first)
          return nil
        case .skipped: throw MemQError(.internalError, "skipped")
        }
      }
      #expect(try await run(.absent(key("a"))) == nil)
      #expect(try await run(.exists(key("b"))) == nil)
      #expect(
        try await run(.exists(key("a")), .revision(key("a"), Revision(first.rawValue + 6))) == nil)
      #expect(try await store.get([key("x")]) == [nil])
      let done = try #require(try await run(.revision(key("a"), first), .absent(key("x"))))
      #expect(done > first)
      let after = try await store.get([key("x"), key("a")])
      #expect(after == [StoredEntry(key: key("x"), value: [9], revision: done), nil])
      // A key made again has another revision: who knew the old one is refused.
      _ = try await put(store, ("a", 1))
      #expect(try await run(.revision(key("a"), first)) == nil)
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `of a list of transactions those before the first conflict happen`(
    kind: StoreKind
  ) async throws {
    try await kind.withStore { store in
      let verdicts = try await store.commit([
        Transaction([], [.put(key("a"), [1])]),
        Transaction([.exists(key("a"))], [.put(key("b"), [2])]),
        Transaction([.absent(key("a"))], [.put(key("c"), [3])]),
        Transaction([], [.put(key("d"), [4])]),
      ])
      guard case .committed(let first) = verdicts[0], case .committed(let second) = verdicts[1],
        case .conflict(let third) = verdicts[2]
      else { throw MemQError(.internalError, "\(verdicts)") }
      #expect(first < second && second <= third && verdicts[3] == .skipped)
      #expect(try await store.range(.all, limit: 9).entries.map(\.key) == [key("a"), key("b")])
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `a transaction has at most 126 operations and conditions`(kind: StoreKind) async throws {
    try await kind.withStore { store in
      let operations = (0..<127).map { StoreOperation.put(key("\($0)"), []) }
      let error = await thrown { try await store.commit([Transaction([], operations)]) }
      #expect(error?.code == .transactionTooLarge && error?.limit == 126 && error?.actual == 127)
      let lease = try await store.grantLease(.seconds(60))
      let most = operations.prefix(126).map { StoreOperation.put($0.key, [], lease: lease) }
      let verdict = try await store.commit([Transaction(most.map { .absent($0.key) }, most)])[0]
      guard case .committed = verdict else { throw MemQError(.internalError, "\(verdict)") }
      #expect(try await store.range(.all, limit: 1_000).entries.count == 126)
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `many at once each get their own verdict, and one wins`(kind: StoreKind) async throws {
    try await kind.withStore(historyChangesMax: 10_000) { store in
      let winners = try await withThrowingTaskGroup(of: CommitVerdict.self) { tasks in
        for number in 0..<200 {
          tasks.addTask {
            try await store.commit([
              Transaction(
                [.absent(StoreKey("lock\(number % 10)"))],
                [.put(StoreKey("lock\(number % 10)"), [UInt8(number)])])
            ])[0]
          }
        }
        var winners: Set<Revision> = []
        for try await verdict in tasks {
          if case .committed(let revision) = verdict { winners.insert(revision) }
        }
        return winners
      }
      #expect(winners.count == 10)
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `a watch tells all changes of its range after a revision, in order`(
    kind: StoreKind
  ) async throws {
    try await kind.withStore { store in
      _ = try await put(store, ("w/a", 1))
      let from = try await put(store, ("w/b", 2), ("other", 0))
      let second = try await put(store, ("w/b", 3), ("w/c", 4))
      _ = try await store.commit([Transaction([], [.delete(key("w/a")), .delete(key("w/none"))])])
      let watch = try store.watch(KeyRange(prefix: key("w/")), after: from)
      var seen: [StoreChange] = []
      while seen.count < 3 { seen += try await watch.next().changes }
      #expect(seen[2].revision > second)
      #expect(
        seen == [
          StoreChange(key: key("w/b"), value: [3], revision: second),
          StoreChange(key: key("w/c"), value: [4], revision: second),
          StoreChange(key: key("w/a"), value: nil, revision: seen[2].revision),
        ])
      // It waits for what is still to come, and may say how far it has come when that is not its range's.
      let waiting = Task { try await watch.next() }
      let elsewhere = try await put(store, ("elsewhere", 1))
      if kind != .etcd {
        let progress = try await waiting.value
        #expect(progress == WatchBatch(changes: [], through: elsewhere))
      }
      let last = try await put(store, ("w/d", 5))
      let batch = kind == .etcd ? try await waiting.value : try await watch.next()
      #expect(batch.changes == [StoreChange(key: key("w/d"), value: [5], revision: last)])
    }
  }

  private func eight(_ store: any MetadataStore) async throws -> [Revision] {
    var revisions: [Revision] = []
    for number in 1...8 {
      let revision = try await put(store, ("k\(number)", 0))
      revisions.append(revision)
    }
    return revisions
  }

  /// How a watch is refused, at once or at its first step; nil: it is not.
  private func refusal(
    of store: any MetadataStore, after revision: Revision
  ) async -> MemQError? {
    do {
      _ = try await store.watch(.all, after: revision).next()
      return nil
    } catch {
      return error
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `history that is gone is said to be gone`(kind: StoreKind) async throws {
    try await kind.withStore(historyChangesMax: 4, isAlone: true) { store in
      let base = store.revision
      let slow = try store.watch(.all, after: base)
      let revisions = try await self.eight(store)
      if kind == .etcd { try await store.compact(through: revisions[3]) }
      #expect(await thrown { try await slow.next() }?.code == .revisionCompacted)
      let tooOld = await self.refusal(of: store, after: revisions[2])
      #expect(tooOld?.code == .revisionCompacted && tooOld?.actual == revisions[2].rawValue)
      if kind != .etcd { #expect(tooOld?.limit == revisions[3].rawValue) }
      var seen: [Revision] = []
      let watch = try store.watch(.all, after: revisions[3])
      while seen.count < 4 { seen += try await watch.next().changes.map(\.revision) }
      #expect(seen == Array(revisions[4...]))
      try await store.compact(through: revisions[5])
      let isGone = await self.refusal(of: store, after: revisions[4])
      #expect(isGone?.code == .revisionCompacted)
      let late = try store.watch(.all, after: revisions[5])
      var rest = 0
      while rest < 2 { rest += try await late.next().changes.count }
      #expect(rest == 2)
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `a waiting watch ends when its task is cancelled or the store is closed`(
    kind: StoreKind
  ) async throws {
    try await kind.withStore { store in
      let watch = try store.watch(.all, after: .zero)
      let waiting = Task { await thrown { try await watch.next() } }
      waiting.cancel()
      #expect(await waiting.value?.code == .cancelled)
      let other = try store.watch(.all, after: .zero)
      let closing = Task { await thrown { try await other.next() } }
      await store.close()
      #expect(await closing.value?.code == .unavailable)
      #expect(await thrown { try await store.get([StoreKey("a")]) }?.code == .unavailable)
      #expect(await thrown { try await store.commit([]) }?.code == .unavailable)
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `keys go with their lease`(kind: StoreKind) async throws {
    let clock = TestClock()
    try await kind.withStore(clock: clock) { store in
      // etcd's time is the machine's: long enough for what comes before the end on a busy one.
      let lease = try await store.grantLease(.seconds(10))
      let other = try await store.grantLease(.seconds(100))
      _ = try await store.commit([
        Transaction(
          [],
          [
            .put(key("mine"), [1], lease: lease), .put(key("mine2"), [2], lease: lease),
            .put(key("other"), [3], lease: other), .put(key("free"), [4]),
          ])
      ])
      clock.advance(.seconds(9))
      try await store.renewLease(lease)
      clock.advance(.seconds(9))
      try await store.expireLeases()
      #expect(try await store.get([key("mine")])[0] != nil)
      let watch = try store.watch(.all, after: store.revision)
      clock.advance(.seconds(2))
      try await store.expireLeases()
      var gone: [StoreChange] = []
      while gone.count < 2 { gone += try await watch.next().changes }
      #expect(Set(gone.map(\.key)) == [key("mine"), key("mine2")])
      #expect(gone.allSatisfy { $0.value == nil } && gone[0].revision == gone[1].revision)
      #expect(
        try await store.range(.all, limit: 9).entries.map(\.key) == [key("free"), key("other")])
      #expect(await thrown { try await store.renewLease(lease) }?.code == .leaseLost)
      // Under a lease that has ended nothing is put.
      let late = try await store.commit([Transaction([], [.put(key("x"), [], lease: lease)])])[0]
      guard case .conflict = late else { throw MemQError(.internalError, "\(late)") }
      try await store.revokeLease(other)
      try await store.revokeLease(other)
      #expect(try await store.range(.all, limit: 9).entries.map(\.key) == [key("free")])
    }
  }

  @Test(arguments: StoreKind.allCases)
  func `a key put again without its lease outlives it`(kind: StoreKind) async throws {
    try await kind.withStore { store in
      let lease = try await store.grantLease(.seconds(10))
      _ = try await store.commit([Transaction([], [.put(key("a"), [1], lease: lease)])])
      _ = try await put(store, ("a", 2))
      try await store.revokeLease(lease)
      #expect(try await store.get([key("a")])[0]?.value == [2])
    }
  }
}
