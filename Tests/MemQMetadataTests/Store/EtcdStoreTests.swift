// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import Logging
import MemQMetadata
import MemQModel
import MemQStore
import MemQSystem
import Testing

/// What only a store over the network can meet: members that die, stand still, restart, and answers that get lost.
@Suite struct EtcdStoreTests {
  private let key = StoreKey("counter")

  private func number(_ entry: StoredEntry?) -> Int {
    entry.flatMap { Int(String(decoding: $0.value, as: UTF8.self)) } ?? 0
  }

  /// Raises a counter by compare-and-set until told to end; answers how often it said that it did.
  private func count(_ store: EtcdStore, times: Int) async throws -> Int {
    var done = 0
    while done < times {
      let entry = try await store.get([self.key])[0]
      let verdict = try await store.commit([
        Transaction(
          [.revision(self.key, entry?.revision ?? .zero)],
          [.put(self.key, Array("\(self.number(entry) + 1)".utf8))])
      ])[0]
      if case .committed = verdict { done += 1 }
    }
    return done
  }

  /// All values that a watch tells of the counter, until it tells `last`.
  private func follow(_ store: EtcdStore, to last: Int) async throws -> [Int] {
    let watch = try store.watch(.all, after: .zero)
    var seen: [Int] = []
    while seen.last != last {
      for change in try await watch.next().changes {
        seen.append(Int(String(decoding: change.value ?? [], as: UTF8.self)) ?? -1)
      }
    }
    return seen
  }

  /// Writers and a watch while `trouble` happens: what was said to be done is exactly what was done, and told once, in order.
  private func survive(
    _ etcd: TestEtcd, times: Int, _ trouble: (EtcdStore) async throws -> Void
  ) async throws {
    let prefix = "/test/survive"
    let store = try await etcd.store(prefix: prefix) { $0.attemptTimeout = .seconds(1) }
    let other = try await etcd.store(prefix: prefix) { $0.attemptTimeout = .seconds(1) }
    let writers = [store, store, other].map { store in
      Task { try await self.count(store, times: times) }
    }
    let follower = Task { try await self.follow(other, to: 3 * times) }
    try await trouble(store)
    var done = 0
    for writer in writers { done += try await writer.value }
    #expect(done == 3 * times)
    #expect(self.number(try await store.get([self.key])[0]) == 3 * times)
    #expect(try await follower.value == Array(1...(3 * times)))
    await store.close()
    await other.close()
  }

  private func keys(of watch: any StoreWatch, to last: String) async throws -> [StoreKey] {
    var seen: [StoreKey] = []
    while seen.last != StoreKey(last) {
      let batch = try await watch.next()
      seen += batch.changes.map(\.key)
    }
    return seen
  }

  private func waitForCount(_ store: EtcdStore, _ count: Int) async throws {
    while self.number(try await store.get([self.key])[0]) < count { await Task.yield() }
  }

  @Test(.timeLimit(.minutes(2)))
  func `kill -9 and a restart of etcd lose no transaction and repeat none`() async throws {
    let etcd = try await TestEtcd.start()
    try await self.survive(etcd, times: 60) { store in
      for round in 1...2 {
        try await self.waitForCount(store, 40 * round)
        etcd.kill9(0)
        try etcd.run(0)
      }
    }
  }

  @Test(.timeLimit(.minutes(2)))
  func `of three members any may die, the leader, too`() async throws {
    let etcd = try await TestEtcd.start(3)
    try await self.survive(etcd, times: 60) { store in
      try await self.waitForCount(store, 40)
      let leader = try await self.leader(of: etcd)
      etcd.kill9(leader)
      try await self.waitForCount(store, 100)
      try etcd.run(leader)
    }
  }

  private func leader(of etcd: TestEtcd) async throws -> Int {
    for index in etcd.endpoints.indices {
      let process = Process()
      process.executableURL = URL(filePath: "/usr/bin/etcdctl")
      process.environment = ["ETCDCTL_API": "3"]
      process.arguments = [
        "--endpoints", etcd.endpoints[index], "endpoint", "status", "-w", "fields",
      ]
      let output = Pipe()
      process.standardOutput = output
      try process.run()
      let text = String(
        decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      let fields = text.split(separator: "\n").reduce(into: [String: String]()) {
        fields, line in
        let parts = line.split(separator: ":", maxSplits: 1)
        if parts.count == 2 {
          fields[parts[0].trimmingCharacters(in: .whitespaces)] = parts[1].trimmingCharacters(
            in: .whitespaces)
        }
      }
      if let leader = fields["\"Leader\""], leader == fields["\"MemberID\""] { return index }
    }
    throw MemQError(.internalError, "no member leads")
  }

  @Test(.timeLimit(.minutes(1)))
  func `what became of a transaction whose answer was lost is found out`() async throws {
    let etcd = try await TestEtcd.start()
    let store = try await etcd.store { $0.attemptTimeout = .milliseconds(200) }
    _ = try await store.commit([Transaction([], [.put(StoreKey("a"), [1])])])
    for round in 0..<3 {
      let key = StoreKey("k\(round)")
      // The request waits in the member's socket and is done when nobody waits for it any more.
      etcd.stop(0)
      async let verdicts = store.commit([Transaction([.absent(key)], [.put(key, [7])])])
      try await Task.sleep(for: .milliseconds(350))
      etcd.goOn(0)
      let verdict = try await verdicts[0]
      let entry = try await store.get([key])[0]
      guard case .committed(let revision) = verdict else {
        Issue.record("nobody else writes \(key), but: \(verdict)")
        continue
      }
      #expect(entry == StoredEntry(key: key, value: [7], revision: revision))
    }
    await store.close()
  }

  @Test(.timeLimit(.minutes(1)))
  func `etcd that is away makes operations fail in time, and stores open again when it is back`()
    async throws
  {
    let etcd = try await TestEtcd.start()
    let store = try await etcd.store {
      $0.attemptTimeout = .milliseconds(200)
      $0.operationTimeout = .milliseconds(600)
    }
    etcd.kill9(0)
    #expect(await thrown { try await store.get([self.key]) }?.code == .unavailable)
    let lost = await thrown { try await store.commit([Transaction([], [.put(self.key, [1])])]) }
    #expect(lost?.code == .outcomeUnknown && lost?.isRetriable == true)
    #expect(await thrown { try await store.grantLease(.seconds(5)) }?.code == .unavailable)
    let opening = await thrown {
      try await etcd.store { $0.openTimeout = .milliseconds(300) }
    }
    #expect(opening?.code == .unavailable)
    try etcd.run(0)
    let again = try await etcd.store()
    #expect(try await again.get([self.key]) == [nil])
    await again.close()
    await store.close()
  }

  @Test func `large ranges come in pages of one revision`() async throws {
    let store = try await TestEtcd.shared().store()
    let value = [UInt8](repeating: 7, count: 64 << 10)
    for first in stride(from: 0, to: 300, by: 20) {
      let operations = (first..<(first + 20)).map {
        StoreOperation.put(StoreKey("large/\(1_000 + $0)"), value)
      }
      _ = try await store.commit([Transaction([], operations)])
    }
    // 19 MiB: more than one answer may hold.
    let reading = try await store.range(.all, limit: 1_000)
    #expect(reading.entries.map(\.key) == (0..<300).map { StoreKey("large/\(1_000 + $0)") })
    #expect(reading.entries.allSatisfy { $0.value == value } && !reading.hasMore)
    let some = try await store.range(KeyRange(prefix: StoreKey("large/")), limit: 299)
    #expect(some.entries.count == 299 && some.hasMore)
    let keys = (0..<126).map { StoreKey("huge/\($0)") }
    let huge = [UInt8](repeating: 8, count: 200 << 10)
    for key in keys { _ = try await store.commit([Transaction([], [.put(key, huge)])]) }
    let found = try await store.get(keys)
    #expect(found.map { $0?.key } == keys && found.allSatisfy { $0?.value == huge })
    // etcd's limit of a request.
    let error = await thrown {
      try await store.commit([
        Transaction([], (0..<10).map { .put(StoreKey("x\($0)"), huge) })
      ])
    }
    #expect(error?.code == .transactionTooLarge)
    #expect(try await store.get([StoreKey("x0")]) == [nil])
    await store.close()
  }

  @Test(.timeLimit(.minutes(1)))
  func `a watch that comes back after its history was compacted says so`() async throws {
    let etcd = try await TestEtcd.start()
    let store = try await etcd.store()
    func put(_ name: String) async throws -> Revision {
      guard
        case .committed(let revision) = try await store.commit([
          Transaction([], [.put(StoreKey(name), [])])
        ])[0]
      else { throw MemQError(.internalError, "not committed") }
      return revision
    }
    let first = try await put("a")
    let watch = try store.watch(.all, after: first)
    _ = try await put("b")
    #expect(try await watch.next().changes.map(\.key) == [StoreKey("b")])
    etcd.kill9(0)
    try etcd.run(0)
    let late = try await put("c")
    _ = try await store.commit([Transaction([], [.delete(StoreKey("a"))])])
    let last = try await put("d")
    try await store.compact(through: last)
    // It either saw what it had missed before that was gone, or says that it has not.
    do {
      #expect(try await self.keys(of: watch, to: "d") == ["c", "a", "d"].map { StoreKey($0) })
    } catch let error as MemQError {
      #expect(error.code == .revisionCompacted)
    }
    let old = try store.watch(.all, after: late)
    #expect(await thrown { try await old.next() }?.code == .revisionCompacted)
    // A store that was restored to an earlier revision keeps nobody waiting for the future.
    let ahead = try store.watch(.all, after: Revision(last.rawValue + 100))
    #expect(await thrown { try await ahead.next() }?.code == .revisionCompacted)
    await store.close()
  }

  @Test(.timeLimit(.minutes(1)))
  func `a user's store logs in again when its token is gone, and reaches its own prefix only`()
    async throws
  {
    let etcd = try await TestEtcd.start()
    _ = try await etcd.store()
    func control(_ arguments: String...) throws {
      let process = Process()
      process.executableURL = URL(filePath: "/usr/bin/etcdctl")
      process.environment = ["ETCDCTL_API": "3"]
      process.arguments = ["--endpoints", etcd.endpoints[0]] + arguments
      process.standardOutput = FileHandle.nullDevice
      try process.run()
      process.waitUntilExit()
      try #require(process.terminationStatus == 0)
    }
    try control("user", "add", "root:r")
    try control("user", "grant-role", "root", "root")
    try control("role", "add", "memq")
    try control("role", "grant-permission", "memq", "--prefix=true", "readwrite", "/test/own/")
    try control("user", "add", "memq:secret")
    try control("user", "grant-role", "memq", "memq")
    try control("auth", "enable")
    func open(_ prefix: String, _ password: String?) async throws -> EtcdStore {
      try await etcd.store(prefix: prefix) {
        $0.user = password.map { _ in "memq" }
        $0.password = password
        $0.openTimeout = .seconds(10)
      }
    }
    #expect(await thrown { try await open("/test/own", "wrong") }?.code == .configurationInvalid)
    #expect(await thrown { try await open("/test/own", nil) } != nil)
    #expect(
      await thrown { try await open("/test/other", "secret") }?.code == .configurationInvalid)
    let store = try await open("/test/own", "secret")
    let watch = try store.watch(.all, after: store.revision)
    _ = try await store.commit([Transaction([], [.put(StoreKey("a"), [1])])])
    var seen = try await watch.next().changes.map(\.key)
    let lease = try await store.grantLease(.seconds(60))
    // Its tokens go with the process. Who only listens finds that out, too.
    etcd.kill9(0)
    try etcd.run(0)
    let other = try await open("/test/own", "secret")
    _ = try await other.commit([Transaction([], [.put(StoreKey("b"), [2])])])
    while seen.count < 2 { seen += try await watch.next().changes.map(\.key) }
    #expect(seen == [StoreKey("a"), StoreKey("b")])
    etcd.kill9(0)
    try etcd.run(0)
    try await store.renewLease(lease)
    etcd.kill9(0)
    try etcd.run(0)
    _ = try await store.commit([Transaction([], [.put(StoreKey("c"), [3])])])
    #expect(try await store.range(.all, limit: 9).entries.map(\.value) == [[1], [2], [3]])
    await other.close()
    await store.close()
  }
}
