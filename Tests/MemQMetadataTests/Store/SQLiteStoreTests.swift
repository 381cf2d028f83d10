// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQMetadata
import MemQModel
@_spi(PowerCut) import MemQStore
import MemQSystem
import Synchronization
import Testing

@Suite struct SQLiteStoreTests {
  private func open(_ folder: TestFolder) async throws -> SQLiteStore {
    try await SQLiteStore.open(
      SQLiteStore.Configuration(folder: folder.path), logger: Logger(label: "test"))
  }

  @Test func `everything is there after it was closed and opened, and revisions go on`()
    async throws
  {
    let folder = TestFolder()
    var store = try await self.open(folder)
    let lease = try await store.grantLease(.seconds(100))
    for number in 0..<300 {
      _ = try await store.commit([
        Transaction([], [.put(StoreKey("k\(number % 7)"), [UInt8(number % 256)])])
      ])
    }
    _ = try await store.commit([Transaction([], [.put(StoreKey("leased"), [1], lease: lease)])])
    let before = try await store.range(.all, limit: 100)
    await store.close()

    store = try await self.open(folder)
    #expect(try await store.range(.all, limit: 100) == before)
    #expect(store.revision == Revision(301))
    #expect(
      await thrown { try store.watch(.all, after: Revision(300)) }?.code == .revisionCompacted)
    try await store.renewLease(lease)
    #expect(try await store.grantLease(.seconds(1)) != lease)
    let next = try await store.commit([Transaction([], [.put(StoreKey("n"), [])])])
    #expect(next == [.committed(Revision(302))])
    await store.close()
  }

  @Test func `a second one on the same folder is refused and changes nothing`() async throws {
    let folder = TestFolder()
    let store = try await self.open(folder)
    let error = await thrown { try await self.open(folder) }
    #expect(error?.code == .dataFolderInUse && error?.subject == folder.path)
    _ = try await store.commit([Transaction([], [.put(StoreKey("a"), [1])])])
    await store.close()
    let again = try await self.open(folder)
    #expect(try await again.get([StoreKey("a")])[0]?.value == [1])
    await again.close()
  }

  @Test func `a file that is no SQLite database is refused`() async throws {
    let folder = TestFolder()
    let file = Glibc.open("\(folder.path)/meta.sqlite", O_WRONLY | O_CREAT, 0o644)
    let garbage = [UInt8](repeating: 0x5A, count: 8_192)
    #expect(write(file, garbage, garbage.count) == garbage.count)
    close(file)
    #expect(await thrown { try await self.open(folder) }?.code == .corruptMessage)
  }

  @Test func `transactions that wait share one sync`() async throws {
    let folder = TestFolder()
    let syncs = Mutex<[Int]>([])
    let store = try await SQLiteStore.open(
      SQLiteStore.Configuration(folder: folder.path), logger: Logger(label: "test")
    ) { transactions in syncs.withLock { $0.append(transactions) } }
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      for caller in 0..<64 {
        tasks.addTask {
          for step in 0..<20 {
            _ = try await store.commit([
              Transaction([], [.put(StoreKey("\(caller)/\(step)"), [1])])
            ])
          }
        }
      }
      try await tasks.waitForAll()
    }
    let counts = syncs.withLock { $0 }
    #expect(counts.reduce(0, +) == 1_280)
    #expect(counts.count < 640, "64 callers, \(counts.count) syncs")
    await store.close()
  }

  @Test func `a test that cuts the power may open it without the sync`() async throws {
    let folder = TestFolder()
    let store = try await SQLiteStore.open(
      SQLiteStore.Configuration(folder: folder.path), synchronous: .normal,
      logger: Logger(label: "test"))
    _ = try await store.commit([Transaction([], [.put(StoreKey("a"), [1])])])
    await store.close()
  }
}
