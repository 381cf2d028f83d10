// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQAPI
import MemQMetadata
@testable import MemQMetadataService
import MemQModel
import MemQRPC
import MemQRuntime
import MemQStore
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization
import Testing

/// What metadata does when its store is slow, away, or tells what can't be.
@Suite(.timeLimit(.minutes(1))) struct StoreFaultTests {
  private let inner = MemoryStore()
  private let pool = ChannelPool(group: TestMetadata.group, logger: Logger(label: "test"))

  private static var quiet: Logger {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }

  /// One of several instances.
  private func start(_ name: String, on store: any MetadataStore) async throws -> MetadataNode {
    let pool = self.pool
    let node = MetadataNode(
      configuration: MetadataNode.Configuration(dataFolder: "", address: "inprocess:\(name)"),
      logger: Self.quiet,
      shared: MetadataNode.SharedStore(
        open: { _ in store }, connect: { pool.channel($0, lane: .control) }))
    try await self.serve(node, name)
    return node
  }

  /// The only instance.
  private func startAlone(
    _ store: FaultyStore, clock: any MemQClock = SystemClock()
  ) async throws -> (MetadataNode, any RPCChannel) {
    var configuration = MetadataNode.Configuration(dataFolder: "", address: "inprocess:alone")
    configuration.tickInterval = .milliseconds(20)
    let node = MetadataNode(
      configuration: configuration, clock: clock, logger: Self.quiet, store: store)
    return (node, try await self.serve(node, "alone"))
  }

  @discardableResult
  private func serve(_ node: MetadataNode, _ name: String) async throws -> any RPCChannel {
    var router = RPCRouter()
    node.register(on: &router)
    self.pool.register(
      "inprocess:\(name)", RPCInProcessChannel(router: router, group: TestMetadata.group))
    try await node.start()
    return self.pool.channel("inprocess:\(name)", lane: .control)
  }

  private func decides(_ node: MetadataNode) -> Bool { (try? node.instance().controller) != nil }

  private func makeTopic(_ channel: any RPCChannel, partitions: Int32) async throws -> Data {
    _ = try await channel.call(
      MetadataMethods.registerNode,
      .with {
        $0.nodeUuid = NodeUUID(test: 7).wire
        $0.service = ServiceKind.replication.wire
        $0.address = "inprocess:replica"
        $0.volumes = [VolumeImage(VolumeID(test: 70)).wire]
      }, timeout: .seconds(20))
    return try await channel.call(
      MetadataMethods.createTopic,
      .with {
        $0.name = "t"
        $0.partitionCount = partitions
        $0.replicationFactor = 1
      }, timeout: .seconds(20)
    ).topic.topicID
  }

  /// An administrator's.
  private func commit(
    _ channel: any RPCChannel, _ topic: Data, _ partition: Int32, _ offset: Int64,
    metadata: String = ""
  ) async throws {
    _ = try await channel.call(
      MetadataMethods.commitOffsets,
      .with {
        $0.group = "g"
        $0.memberEpoch = -1
        $0.offsets = [
          .with {
            $0.topicPartition.topicID = topic
            $0.topicPartition.partition = partition
            $0.offset = offset
            $0.metadata = metadata
          }
        ]
      }, timeout: .seconds(30))
  }

  private func offsets(_ channel: any RPCChannel) async throws -> [Int64] {
    try await channel.call(
      MetadataMethods.fetchOffsets, .with { $0.group = "g" }, timeout: .seconds(20)
    ).offsets.map(\.offset)
  }

  // MARK: Following the store

  @Test func `a state that must be loaded anew is loaded when the store is back`() async throws {
    let store = FaultyStore(self.inner)
    let (node, channel) = try await self.startAlone(store)
    let failures = Mutex(3)
    store.set {
      $0.beforeRange = { () throws(MemQError) in
        guard
          failures.withLock({
            $0 -= 1; return $0 < 0
          })
        else {
          throw MemQError(.unavailable, "the store is away")
        }
      }
    }
    store.endWatch(with: MemQError(.revisionCompacted, "the history is gone"))
    let topic = try await self.makeTopic(channel, partitions: 1)
    try await self.commit(channel, topic, 0, 5)
    #expect(failures.withLock { $0 } < 0)
    #expect(try node.instance().problem == nil)
    await node.drain(deadline: .seconds(5))
    await self.inner.close()
  }

  @Test func `an instance that can't follow its store any more gives its place to another`()
    async throws
  {
    let store = FaultyStore(self.inner)
    let first = try await self.start("one", on: store)
    while !self.decides(first) { await Task.yield() }
    let second = try await self.start("two", on: self.inner)
    store.endWatch(with: MemQError(.corruptMessage, "what can't be"))
    // Something that both are told of.
    let cluster = try #require(try await self.inner.get([.cluster])[0])
    _ = try await self.inner.commit([Transaction([], [.put(cluster.key, cluster.value)])])
    while !self.decides(second) { await Task.yield() }
    #expect(!self.decides(first))
    await first.drain(deadline: .seconds(5))
    await second.drain(deadline: .seconds(5))
  }

  // MARK: Groups

  @Test func `groups that are slow to write keep no silent node alive`() async throws {
    let store = FaultyStore(self.inner)
    let clock = TestClock()
    let (node, channel) = try await self.startAlone(store, clock: clock)
    _ = try await self.makeTopic(channel, partitions: 1)
    for member in 0..<3 {
      _ = try await channel.call(
        MetadataMethods.joinGroup,
        .with {
          $0.group = "g\(member)"
          $0.topics = ["t"]
          $0.clientID = "c"
          $0.sessionTimeoutMs = 1_000
        }, timeout: .seconds(20))
    }
    let replica = try node.instance().cell.read { state in
      state.nodes.values.first { $0.value.service == .replication }!.value.id
    }
    let gate = Gate()
    store.set {
      $0.beforeCommit = { transactions in
        let isGroups = transactions.contains { transaction in
          transaction.operations.contains { $0.key.hasPrefix(.group("")) }
        }
        if isGroups { await gate.pass() }
      }
    }
    while gate.arrivals == 0 {
      clock.advance(.milliseconds(50))
      try await Task.sleep(for: .milliseconds(30))
    }
    #expect(try node.instance().cell.read { $0.nodes[replica]!.value.state.isLive })
    while try node.instance().cell.read({ $0.nodes[replica]!.value.state.isLive }) {
      clock.advance(.milliseconds(50))
      try await Task.sleep(for: .milliseconds(30))
    }
    #expect(gate.arrivals == 1)
    gate.open()
    await node.drain(deadline: .seconds(5))
    await self.inner.close()
  }

  @Test func `a commit that comes while its group is deleted leaves nothing behind`() async throws {
    let store = FaultyStore(self.inner)
    let (node, channel) = try await self.startAlone(store)
    let topic = try await self.makeTopic(channel, partitions: 200)
    try await self.commit(channel, topic, 0, 5)
    let wasHere = Mutex(false)
    store.set {
      $0.afterRange = { range in
        guard range.contains(.offsets("g", TopicID(bytes: topic)!, chunk: 0)),
          !wasHere.withLock({ before in
            defer { before = true }
            return before
          })
        else { return }
        // The deletion has read what there is.
        try? await self.commit(channel, topic, 199, 7)
      }
    }
    _ = try await channel.call(
      MetadataMethods.deleteGroup, .with { $0.group = "g" }, timeout: .seconds(20))
    #expect(wasHere.withLock { $0 })
    #expect(try await self.offsets(channel).isEmpty)
    await node.drain(deadline: .seconds(5))
    await self.inner.close()
  }

  @Test func `commits that wait are bounded in bytes, and go with who waits for them`()
    async throws
  {
    let store = FaultyStore(self.inner)
    let (node, channel) = try await self.startAlone(store)
    let topic = try await self.makeTopic(channel, partitions: 10_000)
    let gate = Gate()
    store.set {
      $0.beforeCommit = { transactions in
        let isOffsets = transactions.contains { transaction in
          transaction.operations.contains { $0.key.hasPrefix(.offsets("g")) }
        }
        if isOffsets { await gate.pass() }
      }
    }
    let writer = try await node.instance().controller.offsets
    let session = GroupSession(group: "g", memberID: "", epoch: -1)
    let text = String(repeating: "x", count: 1_024)
    let id = TopicID(bytes: topic)!
    func request(_ count: Int32, _ offset: Int64) -> OffsetCommitRequest {
      OffsetCommitRequest(
        session: session,
        commits: (0..<count).map {
          OffsetCommit(
            partition: TopicPartition(id, PartitionIndex($0)), offset: Offset(offset),
            metadata: text)
        })
    }
    let first = Task { try await writer.commit(request(1, 1)) }
    while gate.arrivals == 0 { await Task.yield() }
    // Each has 10.4 MiB.
    let waiting = (0..<8).map { _ in Task { try await writer.commit(request(10_000, 2)) } }
    var refused = 0
    for await isRefused in AsyncStream(
      Bool.self,
      { stream in
        for task in waiting {
          Task {
            let error = await thrown { try await task.value }
            #expect(error?.code == .resourceExhausted || error?.code == .cancelled)
            if error?.code == .resourceExhausted { #expect(error?.limit == 64 << 20) }
            stream.yield(error?.code == .resourceExhausted)
          }
        }
      })
    {
      guard isRefused else { break }
      refused += 1
      guard refused == 2 else { continue }
      for task in waiting { task.cancel() }
    }
    #expect(refused == 2)
    for task in waiting { _ = await task.result }
    // Their room is free again.
    let last = Task { try await writer.commit(request(10_000, 3)) }
    gate.open()
    try await first.value
    try await last.value
    let stored = try await self.inner.range(KeyRange(prefix: .offsets("g")), limit: 1_000).entries
    #expect(stored.count == 157)
    for entry in stored {
      #expect(try OffsetChunkRecord(entry).offsets.values.allSatisfy { $0.offset == Offset(3) })
    }
    await node.drain(deadline: .seconds(5))
    await self.inner.close()
  }
}
