// Part of MemQ. SPDX-License-Identifier: Apache-2.0

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
import Testing

/// Two metadata instances on one store.
@Suite struct FencingTests {
  private let store = MemoryStore()
  private let pool = ChannelPool(group: TestMetadata.group, logger: Logger(label: "test"))

  private func start(_ name: String) async throws -> MetadataNode {
    let (store, pool) = (self.store, self.pool)
    var logger = Logger(label: "test")
    logger.logLevel = .error
    let node = MetadataNode(
      configuration: MetadataNode.Configuration(dataFolder: "", address: "inprocess:\(name)"),
      logger: logger,
      shared: MetadataNode.SharedStore(
        open: { _ in store }, connect: { pool.channel($0, lane: .control) }))
    var router = RPCRouter()
    node.register(on: &router)
    pool.register(
      "inprocess:\(name)", RPCInProcessChannel(router: router, group: TestMetadata.group))
    try await node.start()
    return node
  }

  private func waitUntilItDecides(_ node: MetadataNode) async throws {
    while (try? node.instance().controller) == nil { await Task.yield() }
  }

  @Test(.timeLimit(.minutes(1)))
  func `a write of an instance that has just lost the right to it comes to nothing`() async throws {
    let node = try await self.start("one")
    try await self.waitUntilItDecides(node)
    let (store, late) = (self.store, StoreKey("o/late"))
    let runner = try node.instance().runner
    let error = await thrown {
      _ = try await runner.run(
        "test",
        reading: { (_: Int) async throws(MemQError) -> Void in
          // The lease ends between the decision and the write.
          _ = try await store.commit([Transaction([], [.delete(.controller)])])
        }
      ) { (_: MetadataState, _: Void) throws(MemQError) -> Plan<Void> in
        Plan([Transaction([], [.put(late, [1])])], outcome: ())
      }
    }
    #expect(error?.code == .unavailable && error?.isRetriable == true)
    #expect(try await store.get([late]) == [nil])
    // Nobody else is there: it decides again.
    try await self.waitUntilItDecides(node)
    await node.drain(deadline: .seconds(5))
  }

  @Test(.timeLimit(.minutes(1)))
  func `an instance that stands by passes changes on and takes over`() async throws {
    let first = try await self.start("one")
    try await self.waitUntilItDecides(first)
    let second = try await self.start("two")
    let channel = self.pool.channel("inprocess:two", lane: .control)
    let replica = try await channel.call(
      MetadataMethods.registerNode,
      .with {
        $0.nodeUuid = NodeUUID(test: 7).wire
        $0.service = ServiceKind.ingest.wire
        $0.address = "inprocess:ingest"
      }, timeout: .seconds(20))
    #expect(try first.instance().cell.read { $0.nodes[NodeID(replica.nodeID)] } != nil)
    // The image names who decides, whichever instance tells it.
    let updates = try await channel.stream(
      MetadataMethods.watchImage, Memq_V1_WatchImageRequest())
    #expect(try await updates.next()?.controllerAddress == "inprocess:one")
    _ = try await self.store.commit([
      Transaction(
        [],
        [
          .put(
            .controller,
            ControllerRecord(uuid: NodeUUID(test: 9), address: "inprocess:nobody")
              .encoded(for: .controller))
        ])
    ])
    while (try? first.instance().controller) != nil { await Task.yield() }
    let refused = await thrown {
      try await channel.call(
        MetadataMethods.deleteTopic, .with { $0.name = "x" }, timeout: .seconds(20))
    }
    #expect(refused?.code == .unavailable && refused?.isRetriable == true)
    _ = try await self.store.commit([Transaction([], [.delete(.controller)])])
    while (try? first.instance().controller) == nil, (try? second.instance().controller) == nil {
      await Task.yield()
    }
    await second.drain(deadline: .seconds(5))
    await first.drain(deadline: .seconds(5))
  }
}
