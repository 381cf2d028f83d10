// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQClient
import MemQModel
import MemQRecords
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(5))) struct ConsumerTests {
  static func filled(_ server: FakeServer, _ count: Int) async throws -> MemQClient {
    let client = server.client()
    var configuration = Producer.Configuration()
    configuration.batchBytes = 500
    configuration.batchBytesMax = 500
    let producer = try await client.producer(FakeServer.topic, configuration: configuration)
    for number in 0..<count { try await producer.send(ProducerRecord("\(number)")) }
    try await producer.close()
    return client
  }

  static func numbers(_ consumer: Consumer) async throws -> [PartitionIndex: [Int]] {
    var values: [PartitionIndex: [Int]] = [:]
    while let piece = try await consumer.next() {
      values[piece.partition, default: []] += piece.records.map {
        Int(String(decoding: $0.value!, as: UTF8.self))!
      }
    }
    return values
  }

  @Test func `everything below the high watermarks at the start comes once and in order`()
    async throws
  {
    let server = FakeServer(partitions: 3)
    let client = try await Self.filled(server, 5_000)
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    let producer = try await client.producer(FakeServer.topic)
    try await producer.send(ProducerRecord("9999"))
    try await producer.close()
    let values = try await Self.numbers(consumer)
    #expect(values.values.flatMap { $0 }.sorted() == Array(0..<5_000))
    for partition in values.values { #expect(partition == partition.sorted()) }
    try await consumer.close()
  }

  @Test func `a broken fetch goes on where it stood`() async throws {
    let server = FakeServer(fetchFault: { $0 % 3 == 2 ? MemQError(.unavailable, "gone") : nil })
    let client = try await Self.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    #expect(try await Self.numbers(consumer)[PartitionIndex(0)] == Array(0..<1_000))
  }

  @Test func `a server that cancels every fetch is given up, not asked for ever`() async throws {
    let server = FakeServer(fetchFault: { _ in MemQError(.cancelled, "not now") })
    let client = try await Self.filled(server, 1)
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    configuration.reconnectTimeout = .milliseconds(300)
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    let error = await #expect(throws: MemQError.self) { try await consumer.next() }
    #expect(error?.code == .cancelled)
    #expect(server.state.withLock { $0.fetches } < 30)
  }

  @Test func `a group goes on at what it has committed, whatever the start`() async throws {
    let server = FakeServer()
    let client = try await Self.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    configuration.group = "g"
    configuration.marksAutomatically = false
    let first = try await client.consumer(FakeServer.topic, configuration: configuration)
    _ = try await first.next()
    await first.markConsumed(PartitionIndex(0), below: Offset(123))
    try await first.close()
    #expect(server.state.withLock { $0.committed[0] } == 123)
    let second = try await client.consumer(FakeServer.topic, configuration: configuration)
    #expect(try await Self.numbers(second)[PartitionIndex(0)] == Array(123..<1_000))
    await second.markConsumed(PartitionIndex(0), below: Offset(1_000))
    // The group gives the second one up: what it marked cannot be committed any more.
    let third = try await client.consumer(FakeServer.topic, configuration: configuration)
    let error = await #expect(throws: MemQError.self) { try await second.commit() }
    #expect(error?.code == .groupMemberUnknown)
    try await third.close()
  }

  @Test func `a partition that goes is stopped, finished and committed before it is let go`()
    async throws
  {
    let server = FakeServer(partitions: 2)
    let client = try await Self.filled(server, 1_000)
    var configuration = Consumer.Configuration()
    configuration.group = "g"
    configuration.commitInterval = nil
    let changes = Mutex<[AssignmentChange]>([])
    configuration.onAssignment = { change in changes.withLock { $0.append(change) } }
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    let first = PartitionIndex(0)
    var delivered = Offset.zero
    while delivered == .zero {
      let piece = try #require(try await consumer.next())
      if piece.partition == first { delivered = piece.nextOffset }
    }
    server.assign([1])
    // It is being handled: the member still reads it, as far as the group knows.
    while !changes.withLock({ $0.contains(.revoked([first])) }) { await Task.yield() }
    #expect(await consumer.partitions.contains(first))
    #expect(server.state.withLock { $0.committed[0] } == nil)
    // The next call says that it was handled.
    let other = try #require(try await consumer.next())
    #expect(other.partition != first)
    while server.state.withLock({ !$0.reading.contains([1]) }) { await Task.yield() }
    #expect(server.state.withLock { $0.committed[0] } == delivered.rawValue)
    // It comes back, and goes on where it was committed, not where an old mark says.
    await consumer.markConsumed(first, below: Offset(0))
    server.assign([0, 1])
    while !(await consumer.positions.contains { $0.partition == first }) { await Task.yield() }
    #expect(await consumer.positions.first?.offset == delivered)
    await consumer.markConsumed(first, below: Offset(1))
    try await consumer.commit()
    #expect(server.state.withLock { $0.committed[0] } == delivered.rawValue)
    try await consumer.close()
  }

  @Test func `a member says what it reads with its first heartbeat and after each assignment`()
    async throws
  {
    let server = FakeServer(partitions: 2)
    let client = try await Self.filled(server, 10)
    var configuration = Consumer.Configuration()
    configuration.group = "g"
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    // The group may know of more than a successor's join told it.
    while server.state.withLock({ $0.reading.isEmpty }) { await Task.yield() }
    // A partition was given and taken between two heartbeats: the same again, with another epoch.
    server.assign([0, 1])
    while server.state.withLock({ $0.reading.count < 2 }) { await Task.yield() }
    #expect(server.state.withLock { $0.reading.allSatisfy { $0 == [0, 1] } })
    try await consumer.close()
  }

  @Test func `a member that the group gave up joins again and goes on`() async throws {
    let server = FakeServer()
    let client = try await Self.filled(server, 300)
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    configuration.group = "g"
    configuration.marksAutomatically = false
    configuration.sessionTimeout = .seconds(1)
    let lost = Mutex(0)
    configuration.onAssignment = { change in
      if case .lost = change { lost.withLock { $0 += 1 } }
    }
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    let first = try #require(try await consumer.next())
    await consumer.markConsumed(first.partition, below: first.nextOffset)
    try await consumer.commit()
    server.state.withLock { $0.memberID = "nobody" }
    while lost.withLock({ $0 == 0 }) { await Task.yield() }
    var next = first.nextOffset
    while let piece = try await consumer.next() {
      #expect(piece.records.first?.offset == next)
      next = piece.nextOffset
    }
    #expect(next == Offset(300))
    try await consumer.close()
  }

  @Test func `automatic marks count what was handed out before`() async throws {
    let server = FakeServer()
    let client = try await Self.filled(server, 500)
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    configuration.group = "g"
    let consumer = try await client.consumer(FakeServer.topic, configuration: configuration)
    _ = try await Self.numbers(consumer)
    try await consumer.close()
    #expect(server.state.withLock { $0.committed[0] } == 500)
  }

  @Test func `an offset that is gone is refused or the nearest taken`() async throws {
    let server = FakeServer()
    let client = try await Self.filled(server, 500)
    server.state.withLock { $0.partitions[0].logStart = 100 }
    var configuration = Consumer.Configuration()
    configuration.stopsAtEnd = true
    configuration.start = .offset(.zero)
    let nearest = try await client.consumer(FakeServer.topic, configuration: configuration)
    #expect(try await Self.numbers(nearest)[PartitionIndex(0)] == Array(100..<500))
    configuration.reset = .fail
    let strict = try await client.consumer(FakeServer.topic, configuration: configuration)
    let error = await #expect(throws: MemQError.self) { _ = try await strict.next() }
    #expect(error?.code == .offsetOutOfRange && error?.limit == 100)
  }

  @Test(arguments: [true, false], [0, 1_000_000_000])
  func `an offset that does not exist leads to the beginning or the end`(
    hidesMarks: Bool, start: Int64
  ) async throws {
    let server = FakeServer()
    let client = try await Self.filled(server, 500)
    server.state.withLock {
      $0.partitions[0].logStart = 100
      $0.hidesMarks = hidesMarks
    }
    var configuration = Consumer.Configuration()
    configuration.start = .offset(Offset(start))
    configuration.reset = .beginning
    let whole = try await client.consumer(FakeServer.topic, configuration: configuration)
    var seen: [Offset] = []
    while seen.count < 400 {
      guard let records = try await whole.next() else { break }
      if records.partition == PartitionIndex(0) { seen += records.records.map(\.offset) }
    }
    #expect(seen == (100..<500).map { Offset($0) })
    try await whole.close()
    server.state.withLock { $0.asked = [] }
    configuration.reset = .end
    let late = try await client.consumer(FakeServer.topic, configuration: configuration)
    let next = Task { try await late.next() }
    while !server.state.withLock({ $0.asked.contains(500) }) { await Task.yield() }
    next.cancel()
    _ = try? await next.value
    try? await late.close()
  }

  @Test func `cancelling the reader ends its wait`() async throws {
    let client = FakeServer().client()
    let consumer = try await client.consumer(FakeServer.topic)
    let reading = Task { try await consumer.next() }
    reading.cancel()
    let error = await #expect(throws: MemQError.self) { _ = try await reading.value }
    #expect(error?.code == .cancelled)
    try await consumer.close()
  }
}
