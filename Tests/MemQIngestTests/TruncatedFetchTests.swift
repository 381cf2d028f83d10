// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQPacking
import MemQRPC
import MemQRecords
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf
import Testing

@testable import MemQIngestService

/// Readers that name the epoch of what they read last, KIP-320.
@Suite(.serialized) struct TruncatedFetchTests {
  private func batch(at offset: Int64, _ values: [String], epoch: Int64) throws -> [UInt8] {
    var builder = RecordBatchBuilder()
    for value in values {
      builder.append(value: Array(value.utf8), timestamp: Timestamp(milliseconds: 9))
    }
    var bytes = try builder.build()
    bytes.withUnsafeMutableBytes {
      RecordBatchHeader.stamp($0, baseOffset: Offset(offset), leaderEpoch: LeaderEpoch(epoch))
    }
    return bytes
  }

  private func put(
    _ ingest: TestIngest, _ partition: Int32, _ values: [String], epoch: Int64
  ) throws {
    let id = ingest.cluster.partition("t", partition)
    let end = ingest.cluster.leader.log(id).end
    let batch = try self.batch(at: end, values, epoch: epoch)
    ingest.cluster.leader.change(id) { log in
      log.batches.append(batch)
      log.end += Int64(values.count)
    }
  }

  private func fetch(
    _ client: any RPCChannel, _ positions: [(Int32, Int64, Int64?)],
    format: Memq_V1_FetchFormat = .records
  ) async throws -> [Memq_V1_FetchResponse] {
    let request = Memq_V1_FetchRequest.with {
      $0.topic = "t"
      $0.positions = positions.map { partition, offset, epoch in
        .with {
          $0.partition = partition
          $0.offset = offset
          if let epoch { $0.lastEpoch = epoch }
        }
      }
      $0.format = format
    }
    let reader = try await client.streamHot(IngestMethods.fetch, request)
    var pieces: [Memq_V1_FetchResponse] = []
    while let piece = try await reader.next() { pieces.append(piece.header) }
    return pieces
  }

  @Test(arguments: [Memq_V1_FetchFormat.records, .batches])
  func `an answer names the epoch to come back with, and it reaches the leader`(
    format: Memq_V1_FetchFormat
  ) async throws {
    let ingest = try await TestIngest.start([("t", [])])
    try self.put(ingest, 0, ["a", "b"], epoch: 3)
    try self.put(ingest, 0, ["c"], epoch: 5)
    let pieces = try await self.fetch(ingest.client, [(0, 0, nil)], format: format)
    #expect(pieces.last?.nextOffset == 3 && pieces.last?.lastEpoch == 5)
    let id = ingest.cluster.partition("t", 0)
    #expect(ingest.cluster.leader.log(id).lastEpochs.isEmpty)
    _ = try await self.fetch(ingest.client, [(0, 3, 5)], format: format)
    #expect(ingest.cluster.leader.log(id).lastEpochs == [3: 5])
    await ingest.stop()
  }

  @Test func `who read what the leader lost hears where to go on, others go on`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    try self.put(ingest, 0, ["a", "b", "c"], epoch: 3)
    try self.put(ingest, 1, ["x"], epoch: 3)
    ingest.cluster.leader.change(ingest.cluster.partition("t", 0)) {
      $0.truncated = (
        4,
        LogTruncation(
          epoch: LeaderEpoch(3), end: Offset(2), resume: Offset(2), resumeEpoch: LeaderEpoch(3))
      )
    }
    let pieces = try await self.fetch(ingest.client, [(0, 3, 4), (1, 0, nil)])
    let piece = try #require(pieces.first { $0.partition == 0 })
    #expect(piece.error.code == .logTruncated && !piece.error.retriable)
    #expect(piece.error.limit == 2 && piece.error.actual == 3 && piece.error.subject == "t/0")
    #expect(piece.nextOffset == 2 && piece.lastEpoch == 3 && piece.highWatermark == 3)
    #expect(piece.truncation.epoch == 3 && piece.truncation.endOffset == 2)
    #expect(pieces.contains { $0.partition == 1 && $0.records.count == 1 })
    await ingest.stop()
  }

  @Test func `objects tell those who read what was lost before the upload`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    let id = ingest.cluster.partition("t", 0)
    let topic = try #require(ingest.cluster.image.topic(named: "t"))
    let store = try await ObjectStores.make(
      ObjectStoreConfiguration(folder: ingest.cluster.folder, threads: 1),
      logger: Logger(label: "test"))
    // Epoch 1 up to 10, then 4; uploaded in two objects, the border inside the second.
    var listed: [ObjectRef] = []
    for (sequence, base, epochs) in [(1, 0, [1]), (2, 5, [1, 4])] as [(Int64, Int64, [Int64])] {
      var run = RunBuilder(
        partition: id, baseOffset: Offset(base), historyEpoch: HistoryEpoch(0),
        leaseEpoch: LeaseEpoch(1))
      var bytes: [UInt8] = []
      for (number, epoch) in epochs.enumerated() {
        let batch = try self.batch(
          at: base + 5 * Int64(number), (0..<5).map { "\($0)" }, epoch: epoch)
        try batch.withUnsafeBytes { try run.append(try RecordBatchHeader(parsing: $0), $0) }
        bytes += batch
      }
      let objectID = (SystemEntropy().identifier() as ObjectID)
      let plan = try ObjectPlan(
        identity: ObjectIdentity(
          clusterID: ingest.cluster.image.clusterID, incarnation: Incarnation(1),
          incarnationID: UniqueID(high: 1, low: 1), objectID: objectID, groupID: 1,
          leaseEpoch: LeaseEpoch(1)), runs: [run])
      let key = ObjectKey.object(objectID, group: 1)
      let whole = plan.head + bytes + plan.tail
      try await store.put(
        key, ObjectSource(slices: [ByteBuffer(bytes: whole)]), crc32c: CRC32C.checksum(whole),
        timeout: .seconds(30))
      listed.append(
        ObjectRef(
          id: objectID, groupID: 1, sequence: sequence, key: key.text, byteCount: plan.byteCount,
          footerByteCount: plan.footer.footerByteCount))
    }
    let objects = ObjectReader(store: store, logger: Logger(label: "test")) { [listed] _, after in
      (listed.filter { $0.sequence > after }, false)
    }
    // The leader holds nothing below 15.
    ingest.cluster.leader.change(id) {
      $0.localStart = 15
      $0.end = 15
    }
    let reader = LogReader(
      cluster: ingest.cluster, objects: objects, marks: PartitionMarks(), clock: SystemClock())
    var router = RPCRouter()
    router.handleHotServerStream(IngestMethods.fetch) { request, _, writer in
      try await FetchCall(
        reader: reader, clock: SystemClock(), metrics: IngestMetrics(), readsMax: 4, topic: topic,
        request: request, writer: writer
      ).run()
    }
    let client = RPCInProcessChannel(router: router, group: ingest.cluster.loops)
    let whole = try await self.fetch(client, [(0, 12, 4)])
    #expect(whole.allSatisfy { !$0.hasError && $0.fromObjects } && whole.last?.lastEpoch == 4)
    #expect(try await self.fetch(client, [(0, 5, 1)]).allSatisfy { !$0.hasError })
    // Epoch 1 went on beyond 10 for this reader, epoch 2 came after it for that one.
    for epoch: Int64 in [1, 2] {
      let piece = try #require(try await self.fetch(client, [(0, 12, epoch)]).first)
      #expect(piece.error.code == .logTruncated && piece.nextOffset == 10 && piece.lastEpoch == 1)
      #expect(piece.truncation.epoch == 1 && piece.truncation.endOffset == 10)
    }
    // Nothing tells where epoch 2 began for a reader below the end of epoch 1.
    let unclear = try #require(try await self.fetch(client, [(0, 8, 2)]).first)
    #expect(unclear.error.code == .logTruncated && unclear.nextOffset == 0)
    #expect(unclear.truncation.epoch == 1 && unclear.truncation.endOffset == 8)
    // All the objects' epochs are above its own.
    let old = try #require(try await self.fetch(client, [(0, 8, 0)]).first)
    #expect(old.nextOffset == 0 && old.truncation.epoch == -1 && !old.hasLastEpoch)
    await ingest.stop()
  }
}
