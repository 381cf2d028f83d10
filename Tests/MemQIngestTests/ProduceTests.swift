// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import MemQTestSupport
import NIOCore
import NIOPosix
import SwiftProtobuf
import Synchronization
import Testing

@testable import MemQIngestService

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

@Suite(.serialized) struct ProduceTests {
  private typealias Stream = TypedStream<Hot<Memq_V1_ProduceRequest>, Memq_V1_ProduceResponse>

  private func plain(
    _ id: UInt64, _ topic: String, partition: Int32 = 0, _ values: [String],
    producer: (Int64, Int32)? = nil, acks: Memq_V1_Acks = .all
  ) -> Hot<Memq_V1_ProduceRequest> {
    Hot(
      .with {
        $0.requestID = id
        $0.topic = topic
        $0.partition = partition
        $0.acks = acks
        $0.records = values.map { value in .with { $0.value = Data(value.utf8) } }
        if let (producer, sequence) = producer {
          $0.producerID = producer
          $0.baseSequence = sequence
        }
      })
  }

  private func texts(_ ingest: TestIngest, _ topic: String, _ partition: Int32) throws -> [String] {
    try ingest.cluster.leader.records(ingest.cluster.partition(topic, partition))
      .map { String(decoding: $0.value ?? [], as: UTF8.self) }
  }

  private func answers(
    _ stream: Stream, _ count: Int
  ) async throws -> [UInt64: Memq_V1_ProduceResponse] {
    var found: [UInt64: Memq_V1_ProduceResponse] = [:]
    while found.count < count, let answer = try await stream.responses.next() {
      found[answer.requestID] = answer
    }
    return found
  }

  @Test func `plain records and encoded batches are appended and answered`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    try await stream.send(self.plain(1, "t", ["a", "b"]))
    try await stream.send(self.plain(2, "", ["c"]))
    var builder = RecordBatchBuilder(compression: .zstd)
    builder.append(value: Array("d".utf8), timestamp: Timestamp(milliseconds: 5))
    let batch = RPCMessage(ByteBuffer(bytes: try builder.build()))
    try await stream.send(Hot(.with { $0.requestID = 3 }, payload: batch))
    let answers = try await self.answers(stream, 3)
    #expect(answers.values.allSatisfy { !$0.hasError })
    #expect(answers[1]?.baseOffset == 0 && answers[1]?.recordCount == 2)
    #expect(answers[2]?.baseOffset == 2)
    #expect(answers[3]?.baseOffset == 3)
    #expect(try self.texts(ingest, "t", 0) == ["a", "b", "c", "d"])
    try await stream.halfClose()
    #expect(try await stream.responses.next() == nil)
    await ingest.stop()
  }

  @Test func `each bad request is refused by itself and the stream goes on`() async throws {
    let ingest = try await TestIngest.start([("t", [("max.message.bytes", "1024")])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    var builder = RecordBatchBuilder()
    builder.append(value: [1, 2, 3], timestamp: Timestamp(milliseconds: 5))
    var broken = try builder.build()
    broken[broken.count - 2] ^= 1
    try await stream.send(self.plain(1, "nosuch", ["a"]))
    try await stream.send(self.plain(2, "t", partition: 9, ["a"]))
    try await stream.send(self.plain(3, "t", [String(repeating: "x", count: 2_000)]))
    try await stream.send(
      Hot(
        .with {
          $0.requestID = 4
          $0.topic = "t"
        }, payload: RPCMessage(ByteBuffer(bytes: broken))))
    try await stream.send(self.plain(5, "t", []))
    try await stream.send(self.plain(6, "t", ["good"]))
    let answers = try await self.answers(stream, 6)
    let codes = (1...5).map { answers[$0]?.error.code }
    #expect(
      codes == [
        .topicNotFound, .partitionNotFound, .recordBatchTooLarge, .recordBatchChecksumMismatch,
        .invalidArgument,
      ])
    #expect(answers[6]?.hasError == false)
    #expect(try self.texts(ingest, "t", 0) == ["good"])
    await ingest.stop()
  }

  /// Refusals, lost answers and broken streams in the middle of a pipelined idempotent stream.
  @Test(arguments: [1, 2, 3, 4])
  func `an idempotent stream survives its leader's faults in order and without duplicates`(
    seed: UInt64
  ) async throws {
    let ingest = try await TestIngest.start([("t", [])])
    var random = SeededGenerator(seed: seed)
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    let count = 300
    let faults: [FakeLeader.Fault] = [
      .refuse(.notLeader), .loseReply, .breakStream, .refuse(.notEnoughReplicas), .loseReply,
    ]
    async let sent: Void = {
      for i in 0..<count {
        if i % 37 == 0 { ingest.cluster.leader.play([faults[random.below(faults.count)]]) }
        try await stream.send(
          self.plain(UInt64(i + 1), "t", ["\(i)"], producer: (7, Int32(i))))
      }
    }()
    let answers = try await self.answers(stream, count)
    try await sent
    #expect(answers.count == count)
    #expect(answers.values.allSatisfy { !$0.hasError })
    #expect(try self.texts(ingest, "t", 0) == (0..<count).map { "\($0)" })
    for i in 0..<count { #expect(answers[UInt64(i + 1)]?.baseOffset == Int64(i)) }
    await ingest.stop()
  }

  @Test func `a batch whose start is known is cut and the rest sent`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    try await stream.send(self.plain(1, "t", ["0", "1"], producer: (7, 0)))
    try await stream.send(self.plain(2, "t", ["1", "2", "3"], producer: (7, 1)))
    try await stream.send(self.plain(3, "t", ["2", "3"], producer: (7, 2)))
    let answers = try await self.answers(stream, 3)
    #expect(answers[2]?.hasError == false && answers[2]?.recordCount == 3)
    #expect(answers[2]?.baseOffset == -1)
    #expect(answers[3]?.duplicate == true)
    #expect(try self.texts(ingest, "t", 0) == ["0", "1", "2", "3"])
    await ingest.stop()
  }

  @Test func `a request that finds no leader is answered at its deadline`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    ingest.cluster.change { $0.partitions.removeLeaders() }
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    var request = self.plain(1, "t", ["a"])
    request.header.timeoutMs = 60
    try await stream.send(request)
    let answer = try await self.answers(stream, 1)[1]
    #expect(answer?.error.code == .leaderNotAvailable && answer?.error.retriable == true)
    await ingest.stop()
  }

  @Test func `without acknowledgement nothing is answered and everything arrives`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    for i in 0..<50 { try await stream.send(self.plain(UInt64(i), "t", ["\(i)"], acks: .none)) }
    try await stream.halfClose()
    #expect(try await stream.responses.next() == nil)
    try await eventually("all records") { try self.texts(ingest, "t", 0).count == 50 }
    await ingest.stop()
  }

  @Test func `a gate lets clean records pass and names what it finds`() async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    try await stream.send(self.plain(1, "g", ["good", ""]))
    try await stream.send(self.plain(2, "g", ["good", "EVIL", "good"]))
    try await stream.send(self.plain(3, "g", ["also good"]))
    var answers = try await self.answers(stream, 3)
    #expect(answers[2]?.error.code == .infected)
    #expect(answers[2]?.error.message.contains("Test.Evil") == true)
    #expect(try self.texts(ingest, "g", 0) == ["good", "", "also good"])
    let copies = ingest.cluster.metadataService.uploads
    #expect(copies.count == 1 && copies[0].state == .quarantined)
    #expect(copies[0].verdict.signature == "Test.Evil" && copies[0].name.hasPrefix("records/g/0/"))
    #expect(answers[2]?.error.message.contains(copies[0].name.suffix(36)) == true)
    #expect([UInt8](copies[0].sha256) == SHA256.digest(of: [UInt8](copies[0].inlineBody)))
    let records = try [UInt8](copies[0].inlineBody).withUnsafeBytes { try RecordBatch.records($0) }
    #expect(
      records.map { String(decoding: $0.value ?? [], as: UTF8.self) } == ["good", "EVIL", "good"])
    ingest.cluster.scanner.setAway(true)
    try await stream.send(self.plain(4, "g", ["unseen"]))
    answers = try await self.answers(stream, 1)
    #expect(answers[4]?.error.code == .scanHeld && answers[4]?.error.retriable == true)
    #expect(try self.texts(ingest, "g", 0).count == 3)
    await ingest.stop()
  }

  @Test func `a large batch with malware is copied once, however often it is sent`() async throws {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    var builder = RecordBatchBuilder()
    builder.append(value: Array("EVIL".utf8), timestamp: Timestamp(milliseconds: 5))
    builder.append(
      value: [UInt8](repeating: 120, count: 300_000), timestamp: Timestamp(milliseconds: 5))
    let batch = try builder.build()
    for id in 1...2 as ClosedRange<UInt64> {
      var request = Memq_V1_ProduceRequest()
      request.requestID = id
      request.topic = "g"
      try await stream.send(Hot(request, payload: RPCMessage(ByteBuffer(bytes: batch))))
      #expect(try await self.answers(stream, 1)[id]?.error.code == .infected)
    }
    let copies = ingest.cluster.metadataService.uploads
    #expect(copies.count == 1 && copies[0].inlineBody.isEmpty)
    #expect([UInt8](copies[0].sha256) == SHA256.digest(of: batch))
    let path = "\(ingest.cluster.folder)/\(copies[0].bodyKey)"
    #expect(try [UInt8](Data(contentsOf: URL(fileURLWithPath: path))) == batch)
    await ingest.stop()
  }

  @Test func `a gate judges keys, header names and header values, in one call a batch`()
    async throws
  {
    let ingest = try await TestIngest.start([("g", [("scan.policy", "gate")])])
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    func record(_ key: String, _ header: String, _ headerValue: String) -> Memq_V1_Record {
      .with {
        $0.key = Data(key.utf8)
        $0.value = Data("good".utf8)
        $0.headers = [
          .with {
            $0.name = header
            $0.value = Data(headerValue.utf8)
          }
        ]
      }
    }
    let records = [
      record("EVIL key", "h", "v"), record("k", "EVIL name", "v"), record("k", "h", "EVIL value"),
      record("k", "h", "v"),
    ]
    for (index, record) in records.enumerated() {
      var request = Memq_V1_ProduceRequest()
      request.requestID = UInt64(index)
      request.topic = "g"
      request.records = [record, record]
      try await stream.send(Hot(request, payload: RPCMessage()))
    }
    let answers = try await self.answers(stream, 4)
    for id in 0..<3 { #expect(answers[UInt64(id)]?.error.code == .infected) }
    #expect(answers[3]?.hasError == false)
    #expect(ingest.cluster.scanner.scans == 4)
    #expect(try self.texts(ingest, "g", 0) == ["good", "good"])
    await ingest.stop()
  }

  @Test func `a stalled leader stops the client instead of filling memory`() async throws {
    let ingest = try await TestIngest.start([("t", [])]) { $0.streamBytesMax = 1 << 20 }
    ingest.cluster.leader.hold(true)
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    let value = String(repeating: "x", count: 500_000)
    let sender = Task {
      for i in 0..<100 { try await stream.send(self.plain(UInt64(i + 1), "t", [value])) }
    }
    try await eventually("a bound") { !ingest.node.load.isIdle }
    try await Task.sleep(for: .milliseconds(300))
    // The bound, one message over it, and what lies in the windows between client and ingest.
    #expect(ingest.node.load.bytesInFlight < 40 << 20)
    ingest.cluster.leader.hold(false)
    let answers = try await self.answers(stream, 100)
    try await sender.value
    #expect(answers.values.allSatisfy { !$0.hasError })
    #expect(ingest.node.load.isIdle && ingest.node.load.bytesInFlight == 0)
    await ingest.stop()
  }

  @Test func `what nobody waits for any more is not kept for a leader that takes nothing`()
    async throws
  {
    var router = RPCRouter()
    // It reads nothing: the lane's stream fills and stays full.
    router.handleHotBidirectional(ReplicationMethods.append) { _, _, _ in
      try await Task.sleep(for: .seconds(3_600))
    }
    let loop = MultiThreadedEventLoopGroup.singleton.next()
    let channel = RPCInProcessChannel(router: router, group: loop)
    let lane = AppendLane(
      loop: loop, clock: SystemClock(), open: { channel }, isAlive: { true })
    let failed = Mutex(0)
    try await loop.submit {
      for _ in 0..<64 {
        let job = AppendJob(
          partition: TopicPartition(TopicID(UniqueID(high: 1, low: 1)), PartitionIndex(0)),
          leaderEpoch: LeaderEpoch(0), acks: .all, deadline: SystemClock().monotonic,
          batch: RPCMessage(bytes: [UInt8](repeating: 1, count: 1 << 20)))
        lane.append(job) { _ in failed.withLock { $0 += 1 } }
      }
      #expect(lane.unsentCount > 0)
    }.get()
    try await eventually("all are given up") { failed.withLock { $0 } == 64 }
    #expect(try await loop.submit { lane.unsentCount }.get() == 0)
    lane.close()
  }

  @Test func `what waits for a leader that hangs is given back once the cluster gave its node up`()
    async throws
  {
    var router = RPCRouter()
    // It takes what comes and never answers.
    router.handleHotBidirectional(ReplicationMethods.append) { requests, _, _ in
      while try await requests.next() != nil {}
    }
    let loop = MultiThreadedEventLoopGroup.singleton.next()
    let channel = RPCInProcessChannel(router: router, group: loop)
    let isAlive = Mutex(true)
    let lane = AppendLane(
      loop: loop, clock: SystemClock(), open: { channel }, isAlive: { isAlive.withLock { $0 } })
    let errors = Mutex<[ErrorCode]>([])
    try await loop.submit {
      let job = AppendJob(
        partition: TopicPartition(TopicID(UniqueID(high: 1, low: 1)), PartitionIndex(0)),
        leaderEpoch: LeaderEpoch(0), acks: .all,
        deadline: SystemClock().monotonic + .seconds(3_600), batch: RPCMessage(bytes: [1]))
      lane.append(job) { result in
        if case .failure(let error) = result { errors.withLock { $0.append(error.code) } }
      }
    }.get()
    #expect(errors.withLock { $0 } == [])
    isAlive.withLock { $0 = false }
    // It may be in the log: only an idempotent one is sent again.
    try await eventually("it is given back") { errors.withLock { $0 } == [.outcomeUnknown] }
    lane.close()
  }

  @Test func `what a lost leader may have appended is told from what never left`() async throws {
    var router = RPCRouter()
    router.handleHotBidirectional(ReplicationMethods.append) { _, _, _ in
      // It takes nothing, so that not everything leaves.
      try await Task.sleep(for: .seconds(3_600))
    }
    let loop = MultiThreadedEventLoopGroup.singleton.next()
    let channel = RPCInProcessChannel(router: router, group: loop)
    let isAlive = Mutex(true)
    let lane = AppendLane(
      loop: loop, clock: SystemClock(), open: { channel }, isAlive: { isAlive.withLock { $0 } })
    let errors = Mutex<[ErrorCode]>([])
    let total = 64
    let unsent = try await loop.submit {
      for _ in 0..<total {
        let job = AppendJob(
          partition: TopicPartition(TopicID(UniqueID(high: 1, low: 1)), PartitionIndex(0)),
          leaderEpoch: LeaderEpoch(0), acks: .all,
          deadline: SystemClock().monotonic + .seconds(3_600),
          batch: RPCMessage(bytes: [UInt8](repeating: 1, count: 1 << 20)))
        lane.append(job) { result in
          if case .failure(let error) = result { errors.withLock { $0.append(error.code) } }
        }
      }
      return lane.unsentCount
    }.get()
    #expect(0 < unsent && unsent < total)
    isAlive.withLock { $0 = false }
    try await eventually("all are given back") { errors.withLock { $0.count } == total }
    let codes = errors.withLock { $0 }
    #expect(codes.first == .outcomeUnknown && codes.last == .unavailable)
    let unknown = codes.filter { $0 == .outcomeUnknown }.count
    // Some that waited may have left meanwhile, none the other way.
    #expect(total - unsent <= unknown && unknown < total)
    lane.close()
  }

  @Test func `draining refuses new requests and finishes what is in flight`() async throws {
    let ingest = try await TestIngest.start([("t", [])])
    ingest.cluster.leader.hold(true)
    let stream = try await ingest.client.openHot(IngestMethods.produce)
    try await stream.send(self.plain(1, "t", ["a"]))
    try await eventually("a request in flight") { !ingest.node.load.isIdle }
    let stopped = Task { await ingest.stop() }
    try await eventually("draining") { ingest.node.service.isDraining }
    try await stream.send(self.plain(2, "t", ["b"]))
    ingest.cluster.leader.hold(false)
    let answers = try await self.answers(stream, 2)
    #expect(answers[1]?.hasError == false)
    #expect(answers[2]?.error.code == .shuttingDown)
    await stopped.value
  }
}

extension PartitionMap<PartitionImage> {
  mutating func removeLeaders() {
    for key in Array(self.keys) { self[key]?.leader = nil }
  }
}
