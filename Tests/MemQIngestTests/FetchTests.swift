// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRPC
import MemQRecords
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization
import Testing

@testable import MemQIngestService

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

@Suite(.serialized) struct FetchTests {
  private func put(_ ingest: TestIngest, _ partition: Int32, _ values: [String]) throws {
    let id = ingest.cluster.partition("t", partition)
    ingest.cluster.leader.change(id) { log in
      var builder = RecordBatchBuilder(compression: .lz4)
      for value in values {
        builder.append(value: Array(value.utf8), timestamp: Timestamp(milliseconds: 9))
      }
      var batch = try! builder.build()
      let end = log.end
      batch.withUnsafeMutableBytes {
        RecordBatchHeader.stamp($0, baseOffset: Offset(end), leaderEpoch: LeaderEpoch(0))
      }
      log.batches.append(batch)
      log.end += Int64(values.count)
    }
  }

  private func fetch(
    _ ingest: TestIngest, _ positions: [(Int32, Int64)], wait: Int32 = 0,
    format: Memq_V1_FetchFormat = .records, maxBytes: Int32 = 0
  ) async throws -> [Memq_V1_FetchResponse] {
    let request = Memq_V1_FetchRequest.with {
      $0.topic = "t"
      $0.positions = positions.map { partition, offset in
        .with {
          $0.partition = partition
          $0.offset = offset
        }
      }
      $0.waitMaxMs = wait
      $0.format = format
      $0.maxBytes = maxBytes
    }
    let reader = try await ingest.client.streamHot(IngestMethods.fetch, request)
    var pieces: [Memq_V1_FetchResponse] = []
    while let piece = try await reader.next() {
      var header = piece.header
      if format != .records { header.batches = .init(piece.payload.contiguous().readableBytesView) }
      pieces.append(header)
    }
    return pieces
  }

  private func texts(_ pieces: [Memq_V1_FetchResponse], _ partition: Int32) -> [String] {
    pieces.filter { $0.partition == partition }.flatMap(\.records).map {
      "\($0.offset):\(String(decoding: $0.value, as: UTF8.self))"
    }
  }

  @Test func `records and batches of several partitions come from the offsets asked for`()
    async throws
  {
    let ingest = try await TestIngest.start([("t", [])])
    try self.put(ingest, 0, ["a", "b", "c"])
    try self.put(ingest, 0, ["d"])
    try self.put(ingest, 1, ["x"])
    let records = try await self.fetch(ingest, [(0, 1), (1, 0)])
    #expect(self.texts(records, 0) == ["1:b", "2:c", "3:d"])
    #expect(self.texts(records, 1) == ["0:x"])
    #expect(records.last { $0.partition == 0 }?.nextOffset == 4)
    let batches = try await self.fetch(ingest, [(0, 1)], format: .batches)
    var walk = RecordBatchIterator([UInt8](batches[0].batches))
    #expect(try walk.next(checksum: true)?.header.baseOffset == .zero)
    #expect(try walk.next(checksum: true)?.header.baseOffset == Offset(3))
    await ingest.stop()
  }

  @Test func `a fetch waits for the first record, and no longer than it is told`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    async let waiting = self.fetch(ingest, [(0, 0), (1, 0)], wait: 10_000)
    try await Task.sleep(for: .milliseconds(50))
    try self.put(ingest, 1, ["late"])
    #expect(self.texts(try await waiting, 1) == ["0:late"])
    let empty = try await self.fetch(ingest, [(0, 0), (1, 1)], wait: 30)
    #expect(empty.count == 2 && empty.allSatisfy { $0.records.isEmpty && !$0.hasError })
    #expect(empty.first { $0.partition == 1 }?.highWatermark == 1)
    await ingest.stop()
  }

  @Test func `an offset that does not exist names the nearest that does, others go on`()
    async throws
  {
    let ingest = try await TestIngest.start([("t", [])])
    try self.put(ingest, 0, ["a"])
    try self.put(ingest, 1, ["x"])
    let pieces = try await self.fetch(ingest, [(0, 5), (1, 0)], wait: 5_000)
    let piece = try #require(pieces.first { $0.partition == 0 })
    let error = piece.error
    #expect(error.code == .offsetOutOfRange && error.limit == 1 && error.actual == 5)
    #expect(piece.logStartOffset == 0 && piece.highWatermark == 1)
    #expect(self.texts(pieces, 1) == ["0:x"])
    await ingest.stop()
  }

  @Test func `a small bound gives one batch and leaves the rest for the next fetch`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    for i in 0..<5 { try self.put(ingest, 0, ["\(i)"]) }
    let pieces = try await self.fetch(ingest, [(0, 0)], maxBytes: 10)
    #expect(self.texts(pieces, 0) == ["0:0"])
    await ingest.stop()
  }

  @Test func `reads go over connections of their own, apart from appends`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    try self.put(ingest, 0, ["a"])
    #expect(self.texts(try await self.fetch(ingest, [(0, 0)]), 0) == ["0:a"])
    #expect(ingest.cluster.leaderLanes == [.read])
    await ingest.stop()
  }

  @Test func `a fetch whose reader went away ends at once`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    let topic = try #require(ingest.cluster.image.topic(named: "t"))
    let objects = ObjectReader(
      store: try await ObjectStores.make(
        ObjectStoreConfiguration(folder: ingest.cluster.folder, threads: 1),
        logger: Logger(label: "test")), logger: Logger(label: "test")
    ) { _, _ in ([], false) }
    let reader = LogReader(
      cluster: ingest.cluster, objects: objects, marks: PartitionMarks(), clock: SystemClock())
    let hasEnded = Mutex(false)
    var router = RPCRouter()
    router.handleHotServerStream(IngestMethods.fetch) { request, _, writer in
      defer { hasEnded.withLock { $0 = true } }
      try await FetchCall(
        reader: reader, clock: SystemClock(), metrics: IngestMetrics(), readsMax: 4, topic: topic,
        request: request, writer: writer
      ).run()
    }
    let channel = RPCInProcessChannel(router: router, group: ingest.cluster.loops)
    let call = Task {
      let pieces = try await channel.streamHot(
        IngestMethods.fetch,
        .with {
          $0.topic = "t"
          $0.positions = [.with { $0.partition = 0 }]
          $0.waitMaxMs = 60_000
        })
      while try await pieces.next() != nil {}
    }
    try await eventually("the leader is asked") { !ingest.cluster.leaderLanes.isEmpty }
    call.cancel()
    // Far less than the minute it was told to wait.
    try await eventually("the fetch ends") { hasEnded.withLock { $0 } }
    await ingest.stop()
  }

  @Test func `a topic is described by the image while metadata is away, not when metadata refuses`()
    async throws
  {
    let ingest = try await TestIngest.start([("t", [("retention.ms", "5000")])])
    func describe(_ name: String) async throws(MemQError) -> Memq_V1_DescribeTopicResponse {
      try await ingest.client.call(
        MetadataMethods.describeTopic, .with { $0.name = name }, timeout: .seconds(20))
    }
    func failure(_ name: String) async -> ErrorCode? {
      do throws(MemQError) {
        _ = try await describe(name)
        return nil
      } catch {
        return error.code
      }
    }
    #expect(await failure("t") == .topicNotFound, "metadata answers, and knows better")
    ingest.cluster.metadataService.isAway.store(true, ordering: .relaxed)
    let answer = try await describe("t")
    #expect(answer.topic.name == "t" && answer.partitions.count == 2)
    #expect(answer.partitions.map(\.leader) == [2, 2])
    #expect(answer.effectiveSettings["retention.ms"] == "5000")
    #expect(await failure("nowhere") == .unavailable)
    await ingest.stop()
  }

  @Test func `impossible wishes are refused`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    for (positions, code) in [
      ([], ErrorCode.invalidArgument), ([(0, -1)], .invalidArgument),
      ([(0, 0), (0, 0)], .invalidArgument), ([(7, 0)], .partitionNotFound),
    ] as [([(Int32, Int64)], ErrorCode)] {
      let error = await #expect(throws: MemQError.self) {
        try await self.fetch(ingest, positions)
      }
      #expect(error?.code == code)
    }
    await ingest.stop()
  }
}

@Suite struct ReadPlaceTests {
  static let places: [(Int64, ReadPlace)] = [
    (4, .outOfRange(nearest: Offset(5))), (5, .objects), (9, .objects), (10, .leader),
    (20, .leader), (21, .outOfRange(nearest: Offset(20))),
  ]

  @Test(arguments: Self.places)
  func `an offset is where the marks say`(offset: Int64, place: ReadPlace) {
    let marks = LogMarks(
      logStart: Offset(5), localStart: Offset(10), highWatermark: Offset(20))
    #expect(ReadPlace.of(Offset(offset), marks) == place)
  }
}
