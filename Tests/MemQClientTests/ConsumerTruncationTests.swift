// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQClient
import MemQModel
import MemQRecords
import Synchronization
import Testing

/// A log that lost records behind its readers, KIP-320.
@Suite(.timeLimit(.minutes(5))) struct ConsumerTruncationTests {
  private static let partition = PartitionIndex(0)

  /// Reads until `end` was handed out.
  private func read(_ consumer: Consumer, to end: Int) async throws -> [String] {
    var values: [String] = []
    while let piece = try await consumer.next() {
      values += piece.records.map { "\($0.offset):\(String(decoding: $0.value!, as: UTF8.self))" }
      if piece.nextOffset >= Offset(Int64(end)) { break }
    }
    return values
  }

  private func append(_ client: MemQClient, _ values: [String]) async throws {
    let producer = try await client.producer(FakeServer.topic)
    for value in values { try await producer.send(ProducerRecord(value)) }
    try await producer.close()
  }

  @Test func `it goes back to where both histories agree, tells so, and commits what is true`()
    async throws
  {
    let server = FakeServer()
    let client = try await ConsumerTests.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.group = "g"
    configuration.commitInterval = nil
    configuration.reset = .beginning
    let losses = Mutex<[TruncatedPartition]>([])
    configuration.onTruncation = { loss in losses.withLock { $0.append(loss) } }
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    #expect(try await self.read(consumer, to: 1_000).count == 1_000)
    await consumer.markConsumed(Self.partition, below: Offset(1_000))
    try await consumer.commit()
    #expect(server.state.withLock { $0.committedEpochs[0] } == 1)
    let end = server.state.withLock { state in
      state.partitions[0].lose(from: 600)
      return state.partitions[0].records.count
    }
    try await self.append(client, (0..<700).map { "new-\($0)" })
    let new = try await self.read(consumer, to: end + 700)
    #expect(new == (0..<700).map { "\(end + $0):new-\($0)" })
    let loss = TruncatedPartition(
      partition: Self.partition, read: Offset(1_000), next: Offset(Int64(end)))
    #expect(losses.withLock { $0 } == [loss])
    #expect(await consumer.truncationCount == 1)
    try await consumer.close()
    #expect(server.state.withLock { $0.committed[0] } == Int64(end) + 700)
    #expect(server.state.withLock { $0.committedEpochs[0] } == 2)
  }

  @Test func `a mark from the lost history does not pass over the new one`() async throws {
    let server = FakeServer()
    let client = try await ConsumerTests.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.group = "g"
    configuration.commitInterval = nil
    configuration.marksAutomatically = false
    let isTold = Mutex(false)
    configuration.onTruncation = { _ in isTold.withLock { $0 = true } }
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    _ = try await self.read(consumer, to: 1_000)
    await consumer.markConsumed(Self.partition, below: Offset(900))
    server.state.withLock { $0.partitions[0].lose(from: 600) }
    let end = server.state.withLock { Int64($0.partitions[0].records.count) }
    while !isTold.withLock({ $0 }) { await Task.yield() }
    await consumer.markConsumed(Self.partition, below: Offset(1_000))
    try await consumer.commit()
    #expect(server.state.withLock { $0.committed[0] } == end)
    try await consumer.close()
  }

  @Test func `who goes on from a commit is told, and without a policy it fails`() async throws {
    let server = FakeServer()
    let client = try await ConsumerTests.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.group = "g"
    let first = try await client.consumer(FakeServer.topic, configuration: configuration)
    _ = try await self.read(first, to: 1_000)
    try await first.close()
    server.state.withLock { $0.partitions[0].lose(from: 600) }
    let end = server.state.withLock { $0.partitions[0].records.count }
    // More than was lost: the old offset exists again.
    try await self.append(client, (0..<1_000).map { "new-\($0)" })
    configuration.reset = .fail
    let strict = try await client.consumer(FakeServer.topic, configuration: configuration)
    let error = await #expect(throws: MemQError.self) { _ = try await strict.next() }
    #expect(error?.code == .logTruncated && error?.isRetriable == false)
    #expect(error?.limit == Int64(end) && error?.actual == 1_000)
    #expect(error?.subject.contains("events/0") == true)
    try? await strict.close()
    configuration.reset = .end
    let second = try await client.consumer(FakeServer.topic, configuration: configuration)
    let values = try await self.read(second, to: end + 1_000)
    #expect(values.first == "\(end):new-0" && values.count == 1_000)
    try await second.close()
  }

  @Test func `what was fetched and not handed out is fetched again without a word`() async throws {
    let server = FakeServer()
    let client = try await ConsumerTests.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.onTruncation = { _ in Issue.record("nothing that was handed out is lost") }
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    let first = try #require(try await consumer.next())
    // All is fetched ahead.
    while !server.state.withLock({ $0.asked.contains(1_000) }) { await Task.yield() }
    let end = server.state.withLock { state in
      state.partitions[0].lose(from: first.nextOffset.rawValue + 200)
      state.asked = []
      return state.partitions[0].records.count
    }
    try await self.append(client, ["new"])
    while !server.state.withLock({ $0.asked.contains(Int64(end) + 1) }) { await Task.yield() }
    let rest = try await self.read(consumer, to: end + 1)
    #expect(rest.first == "\(first.nextOffset):\(first.nextOffset)")
    #expect(rest.last == "\(end):new" && rest.count == end + 1 - Int(first.nextOffset.rawValue))
    #expect(await consumer.truncationCount == 0)
    try await consumer.close()
  }
}
