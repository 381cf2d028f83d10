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
import NIOPosix
import SwiftProtobuf

/// A metadata instance behind an in-process channel. The clock stands still; its own timers don't run into that.
final class TestMetadata: Sendable {
  static let group = MultiThreadedEventLoopGroup(numberOfThreads: 2)

  let node: MetadataNode
  let channel: any RPCChannel
  let pool: ChannelPool
  let clock: TestClock

  private init(_ node: MetadataNode, _ clock: TestClock) {
    var router = RPCRouter()
    node.register(on: &router)
    let channel = RPCInProcessChannel(router: router, group: Self.group)
    let pool = ChannelPool(group: Self.group, logger: Logger(label: "test"))
    pool.register("inprocess:metadata", channel)
    self.node = node
    self.channel = channel
    self.pool = pool
    self.clock = clock
  }

  static func start(
    folder: TestFolder? = nil, clock: TestClock = TestClock(), entropy: TestEntropy = TestEntropy(),
    _ change: (inout MetadataNode.Configuration) -> Void = { _ in },
    refuses: @escaping @Sendable (String) -> Bool = { _ in false }
  ) async throws -> TestMetadata {
    var configuration = MetadataNode.Configuration(
      dataFolder: folder?.path ?? "none", address: "inprocess:metadata")
    configuration.heartbeatInterval = .milliseconds(20)
    configuration.tickInterval = .milliseconds(20)
    change(&configuration)
    let node = MetadataNode(
      configuration: configuration, clock: clock, entropy: entropy, logger: Logger(label: "test"),
      refusesConnections: { address, _ in refuses(address) },
      store: folder == nil ? MemoryStore(clock: clock) : nil)
    let metadata = TestMetadata(node, clock)
    try await node.start()
    return metadata
  }

  func stop() async { await self.node.drain(deadline: .seconds(5)) }

  func call<Q, R>(_ method: Method<Q, R>, _ fill: (inout Q) -> Void) async throws(MemQError) -> R {
    var request = Q()
    fill(&request)
    return try await self.channel.call(method, request, timeout: .seconds(20))
  }

  /// A member with its session. Its heartbeats come by the real clock, its silence is judged by the test's.
  func member(
    _ service: ServiceKind, uuid: UInt64, volumes: [UInt64] = []
  ) async throws -> ClusterSession {
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: service, nodeUUID: NodeUUID(test: uuid), address: "inprocess:node\(uuid)",
        volumes: volumes.map { VolumeID(test: $0) }, metadataAddresses: ["inprocess:metadata"]),
      pool: self.pool, clock: SystemClock(), logger: Logger(label: "test"))
    try await session.start(timeout: .seconds(20))
    session.setState(.ready)
    let id = session.nodeID
    _ = try await session.waitForImage(timeout: .seconds(20)) { $0.nodes[id]?.state == .ready }
    return session
  }

  /// A node that registers and then says nothing.
  func silentNode(
    _ service: ServiceKind, uuid: UInt64, volumes: [UInt64] = []
  ) async throws -> Memq_V1_RegisterNodeResponse {
    try await self.call(MetadataMethods.registerNode) {
      $0.nodeUuid = NodeUUID(test: uuid).wire
      $0.service = service.wire
      $0.address = "inprocess:node\(uuid)"
      $0.volumes = volumes.map { VolumeImage(VolumeID(test: $0)).wire }
    }
  }

  @discardableResult
  func makeTopic(
    _ name: String, partitions: Int32 = 1, replicas: Int32 = 1, settings: [String: String] = [:]
  ) async throws -> Memq_V1_Topic {
    try await self.call(MetadataMethods.createTopic) {
      $0.name = name
      $0.partitionCount = partitions
      $0.replicationFactor = replicas
      $0.settings = settings
    }.topic
  }

  func image() async throws -> ClusterImage {
    let updates = try await self.channel.stream(
      MetadataMethods.watchImage, Memq_V1_WatchImageRequest())
    var assembly = ImageAssembly()
    while true {
      if let image = try assembly.take(try await updates.next()!) { return image }
    }
  }
}
