// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
@testable import MemQMetadataService
import MemQModel
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf
import Testing

/// Metadata and its members over the network.
@Suite struct ReconnectTests {
  private struct Instance {
    let node: MetadataNode
    let server: RPCServer

    static func start(_ folder: TestFolder, port: Int = 0) async throws -> Instance {
      var configuration = MetadataNode.Configuration(
        dataFolder: folder.path, address: "127.0.0.1:\(port)")
      configuration.sessionTimeout = .seconds(60)
      configuration.startGrace = .seconds(60)
      configuration.heartbeatInterval = .milliseconds(50)
      let node = MetadataNode(configuration: configuration, logger: Logger(label: "test"))
      var router = RPCRouter()
      node.register(on: &router)
      let server = try await RPCServer.start(
        router: router, on: "127.0.0.1:\(port)", group: TestMetadata.group,
        logger: Logger(label: "test"))
      try await node.start()
      return Instance(node: node, server: server)
    }

    /// Of two partitions with one replica each.
    func makeTopic(_ number: UInt64) async throws -> TopicID {
      try await self.node.instance().runner.run("create-topic") { (state) throws(MemQError) in
        try state.createTopic(
          TopicCreation(
            id: TopicID(test: number), name: "t\(number)", partitionCount: 2,
            replicationFactor: 1, settings: [:], createdAt: .none))
      }.id
    }

    func stop() async {
      await self.node.drain(deadline: .seconds(5))
      await self.server.shutdown(deadline: .milliseconds(100))
    }
  }

  @Test func `a member outlives metadata's restart with its number and epoch`() async throws {
    let folder = TestFolder()
    var instance = try await Instance.start(folder)
    let port = instance.server.localPort
    let pool = ChannelPool(group: TestMetadata.group, logger: Logger(label: "test"))
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: .replication, nodeUUID: NodeUUID(test: 1), address: "127.0.0.1:1",
        volumes: [VolumeID(test: 7)], metadataAddresses: ["127.0.0.1:\(port)"]),
      pool: pool, clock: SystemClock(), logger: Logger(label: "test"))
    try await session.start(timeout: .seconds(30))
    session.setState(.ready)
    let id = session.nodeID
    let before = try await session.waitForImage(timeout: .seconds(30)) {
      $0.nodes[id]?.state == .ready
    }
    await instance.stop()
    #expect(session.image == before, "what it knows stays")

    instance = try await Instance.start(folder, port: port)
    let created = try await instance.node.instance().runner.run("create-topic") {
      (state) throws(MemQError) in
      try state.createTopic(
        TopicCreation(
          id: TopicID(test: 5), name: "t", partitionCount: 2, replicationFactor: 1, settings: [:],
          createdAt: .none))
    }
    let after = try await session.waitForImage(timeout: .seconds(30)) { $0.topics.count == 1 }
    #expect(after.partitions(of: created.id).allSatisfy { $0.leader == id })
    #expect(session.nodeID == id && session.nodeEpoch == before.nodes[id]?.epoch)
    await session.stop()
    let left = instance.node
    #expect(try left.instance().cell.read { $0.nodes[id]?.value.state } == .gone)
    await instance.stop()
    await pool.closeAll(deadline: .seconds(1))
  }

  @Test func `a volume that fails while metadata is away is told once it is back, and stays known`()
    async throws
  {
    let folder = TestFolder()
    var instance = try await Instance.start(folder)
    let port = instance.server.localPort
    let pool = ChannelPool(group: TestMetadata.group, logger: Logger(label: "test"))
    let (broken, fit) = (VolumeID(test: 7), VolumeID(test: 8))
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: .replication, nodeUUID: NodeUUID(test: 1), address: "127.0.0.1:1",
        volumes: [broken, fit], metadataAddresses: ["127.0.0.1:\(port)"]),
      pool: pool, clock: SystemClock(), logger: Logger(label: "test"))
    try await session.start(timeout: .seconds(30))
    session.setState(.ready)
    session.setVolumes([VolumeImage(broken), VolumeImage(fit, capacityBytes: 5)])
    let id = session.nodeID
    _ = try await session.waitForImage(timeout: .seconds(30)) {
      $0.nodes[id]?.volumes == [VolumeImage(broken), VolumeImage(fit, capacityBytes: 5)]
    }
    let topic = try await instance.makeTopic(5)
    let lead = try await session.waitForImage(timeout: .seconds(30)) {
      $0.partitions(of: topic).count == 2
    }
    #expect(Set(lead.partitions(of: topic).map { $0.replicas[0].volume }) == [broken, fit])
    await instance.stop()
    session.setVolumes([VolumeImage(broken, .failed, problem: "EIO")])
    instance = try await Instance.start(folder, port: port)
    let after = try await session.waitForImage(timeout: .seconds(30)) {
      $0.nodes[id]?.volume(broken)?.state == .failed
        && $0.partitions(of: topic).contains { $0.leader == nil }
    }
    #expect(after.nodes[id]?.volume(broken)?.problem == "EIO")
    for partition in after.partitions(of: topic) {
      #expect(partition.leader == (partition.replicas[0].volume == fit ? id : nil))
    }
    // Another instance knows it from the store.
    await instance.stop()
    instance = try await Instance.start(folder, port: port)
    let later = try await instance.makeTopic(6)
    let image = try await session.waitForImage(timeout: .seconds(30)) {
      $0.partitions(of: later).count == 2
    }
    #expect(image.partitions(of: later).allSatisfy { $0.replicas[0].volume == fit })
    await session.stop()
    await instance.stop()
    await pool.closeAll(deadline: .seconds(1))
  }

  @Test func `without metadata a start gives up in time and says where it tried`() async throws {
    let pool = ChannelPool(group: TestMetadata.group, logger: Logger(label: "test"))
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: .ingest, nodeUUID: NodeUUID(test: 1), address: "127.0.0.1:1",
        metadataAddresses: ["127.0.0.1:1", "inprocess:nowhere"]),
      pool: pool, clock: SystemClock(), logger: Logger(label: "test"))
    let error = await thrown { try await session.start(timeout: .milliseconds(300)) }
    #expect(error?.code == .unavailable && error?.subject == "127.0.0.1:1,inprocess:nowhere")
    await pool.closeAll(deadline: .seconds(1))
  }

  @Test func `a node that has seen more than there is isn't registered, and nothing is written`()
    async throws
  {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1)
    let image = try await metadata.image()
    func register(_ seen: SeenMetadata) async throws(MemQError) {
      let _: Memq_V1_RegisterNodeResponse = try await metadata.call(MetadataMethods.registerNode) {
        $0.nodeUuid = NodeUUID(test: 1).wire
        $0.service = .replication
        $0.address = "inprocess:node1"
        $0.clusterID = image.clusterID.wire
        $0.seen = seen.wire
      }
    }
    let known = SeenMetadata(image)
    for change: (inout SeenMetadata) -> Void in [
      { $0.revision = Revision($0.revision.rawValue + 1) },
      { $0.incarnation = $0.incarnation.next },
      { $0.incarnationID = UniqueID(high: 9, low: 9) },
    ] {
      var ahead = known
      change(&ahead)
      let error = await thrown { try await register(ahead) }
      #expect(error?.code == .staleImage)
    }
    #expect(try await metadata.image() == image)
    try await register(known)
    #expect(try await metadata.image().nodes[NodeID(2)]?.epoch == NodeEpoch(2))
    await metadata.stop()
  }

  @Test func `data of another cluster is refused at once`() async throws {
    let metadata = try await TestMetadata.start()
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: .replication, nodeUUID: NodeUUID(test: 1), address: "inprocess:r",
        clusterID: ClusterID(test: 99), metadataAddresses: ["inprocess:metadata"]),
      pool: metadata.pool, clock: SystemClock(), logger: Logger(label: "test"))
    let error = await thrown { try await session.start(timeout: .seconds(60)) }
    #expect(error?.code == .wrongCluster)
    await metadata.stop()
  }
}
