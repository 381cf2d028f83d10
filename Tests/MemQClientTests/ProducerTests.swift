// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQClient
import MemQModel
import MemQRecords
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(5))) struct ProducerTests {
  /// Small batches, so that many are in flight.
  static var smallBatches: Producer.Configuration {
    var configuration = Producer.Configuration()
    configuration.batchBytes = 1_000
    configuration.batchBytesMax = 1_000
    configuration.linger = .zero
    return configuration
  }

  /// Sends numbered records and returns the acknowledged ones with their offsets.
  static func send(
    _ count: Int, to server: FakeServer, _ configuration: Producer.Configuration
  ) async throws -> [Int: Result<RecordPosition, MemQError>] {
    let client = server.client()
    let producer = try await client.producer(FakeServer.topic, configuration: configuration)
    let results = Results()
    for number in 0..<count {
      try await producer.send(ProducerRecord("\(number)")) { results.set(number, $0) }
    }
    try await producer.close()
    await client.close()
    return results.all
  }

  final class Results: Sendable {
    private let values = Mutex<[Int: Result<RecordPosition, MemQError>]>([:])
    func set(_ number: Int, _ result: Result<RecordPosition, MemQError>) {
      self.values.withLock { values in
        precondition(values[number] == nil, "one acknowledgement per record")
        values[number] = result
      }
    }
    var all: [Int: Result<RecordPosition, MemQError>] { self.values.withLock { $0 } }
  }

  @Test func `every record is acknowledged with its offset`() async throws {
    let server = FakeServer()
    let results = try await Self.send(20_000, to: server, Producer.Configuration())
    #expect(server.values() == (0..<20_000).map { "\($0)" })
    for number in 0..<20_000 {
      #expect(try results[number]?.get().offset == Offset(Int64(number)))
    }
  }

  @Test(arguments: 0..<8)
  func `order holds and nothing is doubled over broken streams and refusals`(
    seed: Int
  ) async throws {
    let server = FakeServer(fault: { request in
      switch (request * 2_654_435_761 + seed * 97) % 23 {
      case 1: .dropBefore
      case 2: .dropAfter
      case 3: .refuse(MemQError(.notEnoughReplicas, "wait"))
      case 4: .refuse(MemQError(.leaderNotAvailable, "wait"))
      default: nil
      }
    })
    let results = try await Self.send(3_000, to: server, Self.smallBatches)
    let values = server.values()
    let isExact = values == (0..<3_000).map { "\($0)" }
    #expect(isExact, "\(values.count) records")
    let acknowledged = results.values.filter { (try? $0.get()) != nil }.count
    #expect(acknowledged == 3_000)
  }

  @Test func `a refused batch names its records and the others get through`() async throws {
    let server = FakeServer(fault: { $0 == 3 ? .refuse(MemQError(.infected, "a signature")) : nil })
    let results = try await Self.send(1_000, to: server, Self.smallBatches)
    let failed = results.filter { (try? $0.value.get()) == nil }.keys
    #expect(!failed.isEmpty)
    #expect(server.values() == (0..<1_000).filter { !failed.contains($0) }.map { "\($0)" })
  }

  @Test func `a batch that the server finds too large is halved`() async throws {
    let server = FakeServer()
    let client = server.client()
    let producer = try await client.producer(FakeServer.topic)
    server.state.withLock { $0.messageBytesMax = 2_000 }
    for number in 0..<1_000 { try await producer.send(ProducerRecord("\(number)")) }
    try await producer.close()
    #expect(server.values() == (0..<1_000).map { "\($0)" })
    #expect(server.state.withLock { $0.largestBatch } <= 2_000)
  }

  @Test func `a record larger than any batch names the limit it broke`() async throws {
    let producer = try await FakeServer().client().producer(FakeServer.topic)
    let error = await #expect(throws: MemQError.self) {
      try await producer.send(
        ProducerRecord(String(repeating: "x", count: Limits.recordBatchBytesMax)))
    }
    #expect(error?.code == .recordBatchTooLarge)
    #expect(error?.limit == Int64(Limits.recordBatchBytesMax))
    #expect((error?.actual ?? 0) > Int64(Limits.recordBatchBytesMax))
    try await producer.close()
  }

  @Test func `a record without a handler fails the flush`() async throws {
    let server = FakeServer(fault: { _ in .refuse(MemQError(.recordBatchTooLarge, "no", limit: 10))
    })
    let producer = try await server.client().producer(FakeServer.topic)
    try await producer.send(ProducerRecord("x"))
    let error = await #expect(throws: MemQError.self) { try await producer.flush() }
    #expect(error?.code == .recordBatchTooLarge && error?.limit == 10)
    try await producer.close()
  }

  @Test func `a full buffer lets senders wait until there is room`() async throws {
    let server = FakeServer()
    var configuration = Producer.Configuration()
    configuration.batchBytes = 10_000
    configuration.batchBytesMax = 10_000
    configuration.bufferBytesMax = 20_000
    let producer = try await server.client().producer(
      FakeServer.topic, configuration: configuration)
    let value = [UInt8](repeating: 0x78, count: 1_000)
    var refused = 0
    for _ in 0..<500 {
      while !(try producer.trySend(ProducerRecord(value: value))) {
        refused += 1
        try await producer.waitForRoom()
      }
    }
    try await producer.close()
    #expect(server.values().count == 500)
    // A wait ends when a quarter of the buffer is free, so four records at least find room after each.
    #expect((1...125).contains(refused))
  }

  @Test func `keys choose partitions as Kafka does, and acks none waits for nothing`() async throws
  {
    let server = FakeServer(partitions: 5)
    var configuration = Producer.Configuration()
    configuration.acks = .none
    let producer = try await server.client().producer(
      FakeServer.topic, configuration: configuration)
    for number in 0..<200 {
      try await producer.send(
        ProducerRecord(key: Array("key-\(number % 20)".utf8), value: Array("\(number)".utf8)))
    }
    try await producer.close()
    var count = 0
    for partition in 0..<5 {
      for record in server.state.withLock({ $0.partitions[partition].records }) {
        let key = try #require(record.key)
        #expect(
          key.withUnsafeBytes { KeyHash.partition(of: $0, among: 5) }.rawValue == Int32(partition))
        count += 1
      }
    }
    #expect(count == 200)
  }

  @Test func `an unknown topic and partition are named`() async throws {
    let client = FakeServer().client()
    let error = await #expect(throws: MemQError.self) { _ = try await client.producer("nowhere") }
    #expect(error?.code == .topicNotFound && error?.subject == "nowhere")
    let producer = try await client.producer(FakeServer.topic)
    let missing = await #expect(throws: MemQError.self) {
      try await producer.send(ProducerRecord(value: [], partition: PartitionIndex(9)))
    }
    #expect(missing?.code == .partitionNotFound && missing?.limit == 0 && missing?.actual == 9)
  }

  @Test func `a record past its delivery timeout fails with the last reason`() async throws {
    let server = FakeServer(fault: { _ in .refuse(MemQError(.notEnoughReplicas, "too few")) })
    var configuration = Producer.Configuration()
    configuration.requestTimeout = .seconds(5)
    configuration.deliveryTimeout = .seconds(5)
    let results = try await Self.send(3, to: server, configuration)
    for number in 0..<3 {
      guard case .failure(let error)? = results[number] else {
        Issue.record("record \(number) was acknowledged")
        continue
      }
      #expect(error.code == .notEnoughReplicas && error.message.contains("too few"))
    }
    // Each attempt ended before that time was over: an answer at its very end would still have been heard.
    let timeouts = server.state.withLock(\.timeouts)
    #expect(timeouts.count > 1 && timeouts.allSatisfy { $0 > 0 && $0 <= 4_000 })
  }
}
