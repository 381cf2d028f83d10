// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQModel
import MemQRecords
import NIOCore
import Testing

@testable import MemQObjectStore

@Suite struct FolderObjectStoreTests {
  private static let timeout: Duration = .seconds(30)

  private func withStore(
    _ body: (any ObjectStore, String) async throws -> Void
  ) async throws {
    let folder = FileManager.default.temporaryDirectory.path + "/memq-objects-\(UUID())"
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let store = try await self.open(folder)
    try await body(store, folder)
    await store.close()
  }

  private func open(_ folder: String) async throws -> any ObjectStore {
    try await ObjectStores.make(
      ObjectStoreConfiguration(folder: folder), logger: Logger(label: "test"))
  }

  private func put(_ store: any ObjectStore, _ key: String, _ bytes: [UInt8]) async throws {
    try await store.put(
      try ObjectKey(key), ObjectSource(slices: [ByteBuffer(bytes: bytes)]),
      crc32c: CRC32C.checksum(bytes), timeout: Self.timeout)
  }

  private func get(
    _ store: any ObjectStore, _ key: String, _ range: Range<Int64>
  ) async throws
    -> [UInt8]
  {
    Array(buffer: try await store.get(try ObjectKey(key), range: range, timeout: Self.timeout))
  }

  private func files(_ folder: String) -> [String] {
    let all = FileManager.default.enumerator(atPath: folder)?.allObjects as? [String] ?? []
    return all.filter { path in
      var isFolder: ObjCBool = false
      return FileManager.default.fileExists(atPath: folder + "/" + path, isDirectory: &isFolder)
        && !isFolder.boolValue
    }.sorted()
  }

  @Test func `what is put is got, whole and by range`() async throws {
    try await self.withStore { store, folder in
      let bytes = (0..<10_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
      let slices = stride(from: 0, to: bytes.count, by: 700_001).map {
        ByteBuffer(bytes: bytes[$0..<min($0 + 700_001, bytes.count)])
      }
      let key = try ObjectKey("objects/00000001/abc")
      try await store.put(
        key, ObjectSource(slices: slices), crc32c: CRC32C.checksum(bytes), timeout: Self.timeout)
      #expect(try await store.head(key, timeout: Self.timeout).byteCount == 10_000_000)
      #expect(try await self.get(store, key.text, 0..<10_000_000) == bytes)
      #expect(
        try await self.get(store, key.text, 9_999_990..<10_000_000).elementsEqual(bytes.suffix(10)))
      #expect(try await self.get(store, key.text, 5..<5) == [])
      #expect(self.files(folder) == ["objects/00000001/abc"])
    }
  }

  @Test func `each refusal is typed and changes nothing`() async throws {
    try await self.withStore { store, folder in
      func code(_ body: () async throws -> Void) async -> ErrorCode? {
        do { try await body() } catch { return (error as? MemQError)?.code }
        return nil
      }
      let key = try ObjectKey("a/b")
      #expect(await code { _ = try await self.get(store, "a/b", 0..<1) } == .objectNotFound)
      #expect(
        await code { _ = try await store.head(key, timeout: .seconds(60)) } == .objectNotFound)
      #expect(
        await code {
          try await store.put(
            key, ObjectSource(slices: [ByteBuffer(bytes: [1])]), crc32c: 1, timeout: .seconds(60))
        } == .objectCorrupt)
      #expect(
        await code {
          let short = ObjectSource(byteCount: 2) { { () async throws(MemQError) in nil } }
          try await store.put(key, short, crc32c: 0, timeout: .seconds(60))
        } == .objectCorrupt)
      #expect(
        await code {
          let source = ObjectSource(byteCount: 1) {
            { () async throws(MemQError) in throw MemQError(.cancelled, "the caller went") }
          }
          try await store.put(key, source, crc32c: 0, timeout: .seconds(60))
        } == .cancelled)
      #expect(self.files(folder) == [])
      try await self.put(store, "a/b", [1, 2, 3])
      #expect(await code { _ = try await self.get(store, "a/b", 1..<4) } == .rangeInvalid)
      #expect(await code { _ = try await self.get(store, "a", 0..<1) } == .objectNotFound)
      #expect(await code { _ = try await self.get(store, "a/b/c", 0..<1) } == .objectNotFound)
      #expect(
        await code { _ = try await store.head(key, timeout: .zero) } == .objectStoreUnavailable)
      for bad in ["", "/a", "a/", "a//b", "../a", "a/..", ".partial/x", "a b", "ü", "a\0"] {
        #expect(throws: MemQError.self, "\(bad)") { try ObjectKey(bad) }
      }
      try await store.delete(key, timeout: .seconds(60))
      try await store.delete(key, timeout: .seconds(60))
      #expect(self.files(folder) == [])
    }
  }

  @Test func `keys are listed in byte order, page by page`() async throws {
    try await self.withStore { store, _ in
      let keys = ["a-b", "a/b", "a/c/d", "a/c-d", "a.x", "ab", "b/1", "b/10", "b/2", "z"]
      for key in keys { try await self.put(store, key, [0]) }
      let sorted = keys.sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
      for prefix in ["", "a", "a/", "a/c", "b/1", "q", "b/"] {
        let wanted = sorted.filter { $0.hasPrefix(prefix) }
        for limit in [1, 3, 100] {
          var found: [String] = []
          while true {
            let page = try await store.list(
              prefix: prefix,
              after: try found.last.map { last throws(MemQError) in try ObjectKey(last) },
              limit: limit, timeout: Self.timeout)
            found += page.objects.map(\.key.text)
            #expect(page.objects.count <= limit)
            if !page.hasMore { break }
          }
          #expect(found == wanted, "prefix \(prefix), limit \(limit)")
        }
      }
    }
  }

  @Test func `leftovers of a crashed put go at the next open; one being written stays`()
    async throws
  {
    try await self.withStore { store, folder in
      let put = folder + "/.partial/put/"
      try Data([1, 2]).write(to: URL(fileURLWithPath: put + "left-behind"))
      let busy = try OpenFile(put + "busy", O_RDWR | O_CREAT)
      #expect(try busy.tryLock())
      let second = try await self.open(folder)
      #expect(self.files(folder) == [".partial/put/busy"])
      await second.close()
    }
  }

  // MARK: Bodies

  private func write(_ writer: any ObjectBodyWriter, _ bytes: [UInt8]) async throws {
    try await writer.write([ByteBuffer(bytes: bytes)], timeout: Self.timeout)
  }

  @Test func `a body goes on where it was durable, and is there only when whole`() async throws {
    try await self.withStore { store, folder in
      let key = try ObjectKey("bodies/t/u")
      let writer = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await self.write(writer, [1, 2, 3])
      try await writer.sync(timeout: Self.timeout)
      #expect(await writer.durableByteCount == 3)
      try await self.write(writer, [9, 9])
      #expect(await writer.byteCount == 5)
      await writer.close()

      // As after a crash: another store on the same folder.
      let again = try await self.open(folder)
      await #expect(throws: MemQError.self) { try await self.get(again, key.text, 0..<1) }
      let short = await #expect(throws: MemQError.self) {
        try await again.openBody(key, from: 6, timeout: Self.timeout)
      }
      #expect(short?.code == .uploadOffsetMismatch && short?.actual == 5)
      let resumed = try await again.openBody(key, from: 3, timeout: Self.timeout)
      try await self.write(resumed, [4, 5, 6])
      let wrong = await #expect(throws: MemQError.self) {
        try await resumed.finish(byteCount: 5, timeout: Self.timeout)
      }
      #expect(wrong?.code == .uploadOffsetMismatch)
      try await resumed.finish(byteCount: 6, timeout: Self.timeout)
      try await resumed.finish(byteCount: 6, timeout: Self.timeout)
      #expect(try await self.get(store, key.text, 0..<6) == [1, 2, 3, 4, 5, 6])
      #expect(self.files(folder) == ["bodies/t/u"])
      await again.close()
    }
  }

  @Test func `a whole body takes the same bytes again and no others`() async throws {
    try await self.withStore { store, _ in
      let key = try ObjectKey("bodies/t/u")
      let writer = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await self.write(writer, [1, 2, 3, 4])
      try await writer.finish(byteCount: 4, timeout: Self.timeout)
      await writer.close()
      let again = try await store.openBody(key, from: 2, timeout: Self.timeout)
      #expect(await again.durableByteCount == 4)
      try await self.write(again, [3, 4])
      try await again.finish(byteCount: 4, timeout: Self.timeout)
      let other = try await store.openBody(key, from: 2, timeout: Self.timeout)
      let differs = await #expect(throws: MemQError.self) { try await self.write(other, [3, 5]) }
      #expect(differs?.code == .digestMismatch)
      let longer = await #expect(throws: MemQError.self) { try await self.write(other, [3, 4, 5]) }
      #expect(longer?.code == .digestMismatch)
      #expect(try await self.get(store, key.text, 0..<4) == [1, 2, 3, 4])
    }
  }

  @Test func `a body has one writer at a time`() async throws {
    try await self.withStore { store, _ in
      let key = try ObjectKey("bodies/t/u")
      let writer = try await store.openBody(key, from: 0, timeout: Self.timeout)
      let second = await #expect(throws: MemQError.self) {
        try await store.openBody(key, from: 0, timeout: Self.timeout)
      }
      #expect(second?.code == .uploadInProgress && second?.isRetriable == true)
      await writer.close()
      let third = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await third.finish(byteCount: 0, timeout: Self.timeout)
      #expect(try await store.head(key, timeout: Self.timeout).byteCount == 0)
    }
  }

  @Test func `a deleted body is gone, finished or not`() async throws {
    try await self.withStore { store, folder in
      let key = try ObjectKey("bodies/t/u")
      let writer = try await store.openBody(key, from: 0, timeout: Self.timeout)
      try await self.write(writer, [1])
      try await store.delete(key, timeout: Self.timeout)
      let late = await #expect(throws: MemQError.self) {
        try await writer.finish(byteCount: 1, timeout: Self.timeout)
      }
      #expect(late?.code == .uploadAbandoned)
      #expect(self.files(folder) == [])
    }
  }

  @Test func `requests are counted as stores bill them`() async throws {
    try await self.withStore { store, _ in
      try await self.put(store, "a", [1])
      _ = try await self.get(store, "a", 0..<1)
      _ = try await store.head(try ObjectKey("a"), timeout: Self.timeout)
      _ = try await store.list(prefix: "", after: nil, limit: 1, timeout: Self.timeout)
      try await store.delete(try ObjectKey("a"), timeout: Self.timeout)
      #expect(store.requests.writes == 2 && store.requests.reads == 2)
      #expect(store.requests.deletes == 1 && store.requests.billed == 4)
      let body = try await store.openBody(try ObjectKey("b"), from: 0, timeout: Self.timeout)
      try await self.write(body, [1])
      try await body.sync(timeout: Self.timeout)
      try await body.finish(byteCount: 1, timeout: Self.timeout)
      #expect(store.requests.writes == 5)
    }
  }
}
