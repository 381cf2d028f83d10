// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQModel
import MemQPacking
import MemQRecords
import NIOCore
import Synchronization
import Testing

@testable import MemQObjectStore

@Suite struct ObjectReaderTests {
  /// Objects in a folder and in a list, as metadata would keep them.
  private final class Bucket: Sendable {
    let store: any ObjectStore
    let folder: String
    let listed = Mutex<[ObjectRef]>([])

    init() async throws {
      self.folder = FileManager.default.temporaryDirectory.path + "/memq-reader-\(UUID())"
      self.store = try await ObjectStores.make(
        ObjectStoreConfiguration(folder: self.folder), logger: Logger(label: "test"))
    }

    func add(_ runs: [ExampleRun]) async throws {
      let sequence = self.listed.withLock { ($0.last?.sequence ?? 0) + 1 }
      let object = try ExampleObject(Examples.identity(UInt64(sequence)), runs)
      let key = ObjectKey.object(object.plan.footer.identity.objectID, group: 3)
      try await self.store.put(
        key, ObjectSource(slices: [ByteBuffer(bytes: object.bytes)]),
        crc32c: CRC32C.checksum(object.bytes), timeout: .seconds(30))
      self.listed.withLock { $0.append(object.ref(sequence: sequence, key: key.text)) }
    }

    func reader(
      _ change: (inout ObjectReader.Configuration) -> Void = { _ in },
      uploaded: @escaping UploadedOffsets = { _ in nil }
    ) -> ObjectReader {
      var configuration = ObjectReader.Configuration()
      change(&configuration)
      return ObjectReader(
        store: self.store, configuration: configuration, logger: Logger(label: "test"),
        uploaded: uploaded
      ) { _, after throws(MemQError) in
        // Pages of two.
        let rest = self.listed.withLock { $0.filter { $0.sequence > after } }
        return (Array(rest.prefix(2)), rest.count > 2)
      }
    }

    func remove() { try? FileManager.default.removeItem(atPath: self.folder) }
  }

  private let partition = Examples.partition(0)

  /// Five objects with 100 offsets each of partition 0, and others between.
  private func filled() async throws -> (Bucket, [UInt8]) {
    let bucket = try await Bucket()
    var all: [UInt8] = []
    for number in 0..<5 as Range<Int64> {
      var run = ExampleRun(self.partition, from: number * 100)
      for _ in 0..<20 { try run.add(records: 5, size: 30_000, time: 1_000_000 + number * 1_000) }
      all += run.bytes
      var other = ExampleRun(Examples.partition(1), from: number * 3)
      try other.add(records: 3)
      try await bucket.add([run, other])
    }
    return (bucket, all)
  }

  @Test func `a partition reads from objects as it would from the log`() async throws {
    let (bucket, all) = try await self.filled()
    defer { bucket.remove() }
    let reader = bucket.reader { $0.spanBytes = 1 << 20 }
    var bytes: [UInt8] = []
    var offset = Offset(0)
    while offset < Offset(500) {
      let read = try await reader.read(self.partition, group: 3, from: offset, maxBytes: 400_000)
      #expect(read.batches.readableBytes <= 400_000 && read.baseOffset == offset)
      bytes += Array(buffer: read.batches)
      offset = read.nextOffset
    }
    #expect(bytes == all)
    // Inside a batch: the batch that holds it, whole.
    let inside = try await reader.read(self.partition, group: 3, from: Offset(243), maxBytes: 1)
    #expect(inside.baseOffset == Offset(240) && inside.nextOffset == Offset(245))
    let error = await #expect(throws: MemQError.self) {
      try await reader.read(self.partition, group: 3, from: Offset(500), maxBytes: 1)
    }
    #expect(error?.code == .offsetOutOfRange)
  }

  @Test func `many readers of one place cause one request`() async throws {
    let (bucket, _) = try await self.filled()
    defer { bucket.remove() }
    let reader = bucket.reader()
    _ = try await reader.read(self.partition, group: 3, from: Offset(0), maxBytes: 1)
    let before = bucket.store.requests.reads
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      for _ in 0..<50 {
        tasks.addTask {
          _ = try await reader.read(self.partition, group: 3, from: Offset(450), maxBytes: 1)
        }
      }
      try await tasks.waitForAll()
    }
    #expect(bucket.store.requests.reads == before + 1)
  }

  @Test func `new objects are found, collected ones are out of range`() async throws {
    let (bucket, _) = try await self.filled()
    defer { bucket.remove() }
    let reader = bucket.reader { $0.spanCacheBytes = 0 }
    _ = try await reader.read(self.partition, group: 3, from: Offset(0), maxBytes: 1)
    var run = ExampleRun(self.partition, from: 500)
    try run.add(records: 1)
    try await bucket.add([run])
    let new = try await reader.read(self.partition, group: 3, from: Offset(500), maxBytes: 1)
    #expect(new.nextOffset == Offset(501))

    let first = bucket.listed.withLock { $0[0] }
    try await bucket.store.delete(try ObjectKey(first.key), timeout: .seconds(60))
    func code() async -> ErrorCode? {
      let error = await #expect(throws: MemQError.self) {
        try await reader.read(self.partition, group: 3, from: Offset(0), maxBytes: 1)
      }
      return error?.code
    }
    // Still announced: damage, said so. No longer announced: collected.
    #expect(await code() == .objectCorrupt)
    bucket.listed.withLock { _ = $0.removeFirst() }
    #expect(await code() == .offsetOutOfRange)
    #expect(await code() == .offsetOutOfRange)
    _ = try await reader.read(self.partition, group: 3, from: Offset(100), maxBytes: 1)
  }

  @Test
  func `an announced object without bytes is damage where it may hold the offset, nowhere else`()
    async throws
  {
    let (bucket, _) = try await self.filled()
    defer { bucket.remove() }
    // Gone before anybody has read its footer: offsets 200 to 299, and 6 to 8 of the other partition.
    let lost = bucket.listed.withLock { $0[2] }
    try await bucket.store.delete(try ObjectKey(lost.key), timeout: .seconds(60))
    let reader = bucket.reader(uploaded: { $0 == self.partition ? Offset(500) : nil })
    func code(_ offset: Int64, _ partition: TopicPartition? = nil) async -> ErrorCode? {
      do throws(MemQError) {
        _ = try await reader.read(
          partition ?? self.partition, group: 3, from: Offset(offset), maxBytes: 1)
        return nil
      } catch {
        return error.code
      }
    }
    #expect(await code(250) == .objectCorrupt)
    #expect(await code(7, Examples.partition(1)) == .objectCorrupt)
    #expect(await code(199) == nil)
    #expect(await code(300) == nil)
    #expect(await code(500) == .offsetOutOfRange, "nothing is uploaded there yet")
    // What was unreadable and is collected is no damage any more.
    bucket.listed.withLock { _ = $0.remove(at: 2) }
    #expect(await code(250) == .offsetOutOfRange)
  }

  @Test func `a damaged block is never served`() async throws {
    let (bucket, _) = try await self.filled()
    defer { bucket.remove() }
    let reader = bucket.reader()
    let object = bucket.listed.withLock { $0[1] }
    let footer = try await reader.footer(of: object)
    let run = try #require(footer.run(of: self.partition))
    let path = bucket.folder + "/" + object.key
    let file = try #require(FileHandle(forUpdatingAtPath: path))
    try file.seek(toOffset: UInt64(run.endPosition - 5))
    try file.write(contentsOf: Data([0xFF, 0xFE]))
    try file.close()
    let error = await #expect(throws: MemQError.self) {
      try await reader.read(self.partition, group: 3, from: Offset(199), maxBytes: 1)
    }
    #expect(error?.code == .objectCorrupt && error?.subject == object.key)
    _ = try await reader.read(self.partition, group: 3, from: Offset(200), maxBytes: 1)
  }

  @Test func `a time leads to the first batch that reaches it`() async throws {
    let (bucket, _) = try await self.filled()
    defer { bucket.remove() }
    let reader = bucket.reader()
    for (time, wanted) in [(0, 0), (1_001_000, 100), (1_002_500, 300), (1_004_004, 400)]
      as [(Int64, Int64)]
    {
      let offset = try await reader.offset(
        self.partition, group: 3, atOrAfter: Timestamp(milliseconds: time))
      #expect(offset == Offset(wanted), "time \(time)")
    }
    let late = try await reader.offset(
      self.partition, group: 3, atOrAfter: Timestamp(milliseconds: 1_004_005))
    #expect(late == nil)
  }

  @Test func `the cache keeps to its bound and drops the least recently used`() {
    var cache = BoundedCache<Int, Int>(byteCountMax: 100)
    for key in 0..<10 { cache.insert(key, byteCount: 10, for: key) }
    #expect(cache.value(0) == 0 && cache.byteCount == 100)
    cache.insert(10, byteCount: 15, for: 10)
    #expect(cache.value(1) == nil && cache.value(2) == nil && cache.value(0) == 0)
    #expect(cache.byteCount == 95)
    cache.insert(11, byteCount: 101, for: 11)
    #expect(cache.value(11) == nil && cache.count == 9)
    for _ in 0..<1_000 { _ = cache.value(0) }
    cache.insert(12, byteCount: 95, for: 12)
    #expect(cache.count == 1 && cache.value(12) == 12)
  }
}
