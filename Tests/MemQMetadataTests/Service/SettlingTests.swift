// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
@testable import MemQMetadataService
import MemQModel
import MemQStore
import Synchronization
import Testing

/// A store that refuses writes of some keys, as one that is away for a moment.
private final class RefusingStore: MetadataStore {
  let under = MemoryStore()
  private let refused = Mutex<StoreKey?>(nil)

  func refuse(_ prefix: StoreKey?) { self.refused.withLock { $0 = prefix } }

  func commit(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict] {
    let refused = self.refused.withLock { $0 }
    let isRefused = transactions.contains { transaction in
      transaction.operations.contains { operation in
        refused.map { operation.key.hasPrefix($0) } ?? false
      }
    }
    guard !isRefused else { throw MemQError(.unavailable, "the store is away") }
    return try await self.under.commit(transactions)
  }

  var revision: Revision { self.under.revision }
  func get(_ keys: [StoreKey]) async throws(MemQError) -> [StoredEntry?] {
    try await self.under.get(keys)
  }
  func range(_ range: KeyRange, limit: Int) async throws(MemQError) -> StoreReading {
    try await self.under.range(range, limit: limit)
  }
  func watch(_ range: KeyRange, after revision: Revision) throws(MemQError) -> any StoreWatch {
    try self.under.watch(range, after: revision)
  }
  func compact(through revision: Revision) async throws(MemQError) {
    await self.under.compact(through: revision)
  }
  func grantLease(_ ttl: Duration) async throws(MemQError) -> StoreLeaseID {
    try await self.under.grantLease(ttl)
  }
  func renewLease(_ id: StoreLeaseID) async throws(MemQError) {
    try await self.under.renewLease(id)
  }
  func revokeLease(_ id: StoreLeaseID) async throws(MemQError) {
    try await self.under.revokeLease(id)
  }
  func expireLeases() async throws(MemQError) { try await self.under.expireLeases() }
  func close() async { await self.under.close() }
}

@Suite struct SettlingTests {
  private func start(_ store: RefusingStore, _ clock: TestClock) async throws -> MetadataNode {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    var configuration = MetadataNode.Configuration(dataFolder: "", address: "inprocess:metadata")
    // Only the test's ticks count.
    configuration.sessionTimeout = .seconds(3_600)
    configuration.tickInterval = .seconds(3_600)
    let node = MetadataNode(
      configuration: configuration, clock: clock, logger: logger, store: store)
    try await node.start()
    return node
  }

  private func join(_ controller: Controller, _ number: UInt64) async throws -> NodeImage {
    let registration = NodeRegistration(
      uuid: NodeUUID(test: number), service: .replication, address: "host\(number):1",
      volumes: [VolumeImage(VolumeID(test: 100 + number))])
    let node = try await controller.register(registration)
    try await controller.heartbeat(node.id, node.epoch, .ready)
    return node
  }

  @Test(.timeLimit(.minutes(1)))
  func `what a fenced node led passes on as soon as the store takes it`() async throws {
    let (store, clock) = (RefusingStore(), TestClock())
    let node = try await self.start(store, clock)
    let instance = try node.instance()
    let controller = try instance.controller
    for number in UInt64(1)...2 { _ = try await self.join(controller, number) }
    let topic = try await instance.runner.run("create") { (state) throws(MemQError) in
      try state.createTopic(
        TopicCreation(
          id: TopicID(test: 1), name: "t", partitionCount: 1, replicationFactor: 2,
          settings: [:], createdAt: .none))
    }
    func leader() -> NodeID? {
      instance.cell.read { $0.image?.partitions(of: topic.id).first?.leader }
    }
    let first = try #require(leader())
    // The session ends; what follows from it can't be written.
    store.refuse(.partitions)
    try await instance.runner.run("fence") { $0.fence(first) }
    await controller.tick()
    #expect(instance.cell.read { $0.nodes[first]?.value.state } == .fenced)
    #expect(leader() == first)
    store.refuse(nil)
    await controller.tick()
    let second = try #require(leader())
    #expect(second != first)
    // Nothing is written once all is settled.
    let revision = store.revision
    for _ in 0..<3 { await controller.tick() }
    #expect(store.revision == revision)
    await node.drain(deadline: .seconds(5))
  }

  @Test(.timeLimit(.minutes(1)))
  func `an unclean election waits for who may come back with everything`() async throws {
    let (store, clock) = (RefusingStore(), TestClock())
    let node = try await self.start(store, clock)
    let instance = try node.instance()
    let controller = try instance.controller
    var members: [NodeImage] = []
    for number in UInt64(1)...2 { members.append(try await self.join(controller, number)) }
    let topic = try await instance.runner.run("create") { (state) throws(MemQError) in
      try state.createTopic(
        TopicCreation(
          id: TopicID(test: 1), name: "t", partitionCount: 1, replicationFactor: 2,
          settings: ["min.insync.replicas": "1", "unclean.leader.election.enable": "true"],
          createdAt: .none))
    }
    func partition() throws -> PartitionImage {
      try #require(instance.cell.read { $0.image?.partitions(of: topic.id).first })
    }
    let first = try #require(try partition().leader)
    let other = try #require(members.first { $0.id != first })
    // The other one is away while the first goes on alone, which then restarts.
    try await controller.deregister(other.id, other.epoch)
    #expect(try partition().inSync == [first])
    _ = try await self.join(controller, other.uuid.value.low)
    let again = try await self.join(controller, first == members[0].id ? 1 : 2)
    #expect(again.id == first)
    #expect(try partition().leader == first && partition().historyEpoch == HistoryEpoch(0))
    // It leaves for good.
    try await controller.deregister(first, again.epoch)
    clock.advance(.milliseconds(9_900))
    await controller.tick()
    #expect(try partition().leader == nil)
    clock.advance(.milliseconds(200))
    await controller.tick()
    #expect(try partition().leader == other.id && partition().historyEpoch == HistoryEpoch(1))
    await node.drain(deadline: .seconds(5))
  }
}
