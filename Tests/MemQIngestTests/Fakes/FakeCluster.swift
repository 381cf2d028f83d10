// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import NIOPosix
import SwiftProtobuf
import Synchronization

@testable import MemQIngestService

/// A cluster of fakes around one real ingest, in this process: every fault a test wants can be told to the fakes.
final class FakeCluster: IngestCluster {
  static let leaderID = NodeID(2)
  static let uploaderID = NodeID(3)
  static let scannerID = NodeID(4)

  let nodeID = NodeID(1)
  let leader: FakeLeader
  let metadataService: FakeMetadata
  let uploader: FakeUploader
  let scanner: FakeScanner
  let folder: String
  private let state: Mutex<ClusterImage>
  private let lanesAsked = Mutex<Set<Lane>>([])
  /// Lanes that the leader was called on.
  var leaderLanes: Set<Lane> { self.lanesAsked.withLock { $0 } }
  private let channels: [NodeID: any RPCChannel]
  let metadata: any RPCChannel
  let loops: any EventLoopGroup = MultiThreadedEventLoopGroup.singleton

  /// - Parameter topics: name and settings; two partitions each.
  init(topics: [(String, [(String, String)])]) async throws {
    let entropy = SystemEntropy()
    self.folder = "/tmp/memq-ingest-\(entropy.next())"
    var image = ClusterImage(
      clusterID: entropy.identifier(), incarnation: Incarnation(1),
      incarnationID: UniqueID(high: 1, low: 1), revision: Revision(1))
    for (id, service) in [
      (NodeID(1), ServiceKind.ingest), (Self.leaderID, .replication), (Self.uploaderID, .uploader),
      (Self.scannerID, .scanner),
    ] {
      image.nodes[id] = NodeImage(
        id: id, uuid: entropy.identifier(), service: service, address: "inprocess:\(service.name)",
        epoch: NodeEpoch(1), state: .ready)
    }
    for (name, settings) in topics {
      var given: SortedMap<String, String> = [:]
      for (key, value) in settings { given[key] = value }
      let topic = try TopicImage(
        id: entropy.identifier(), name: name, partitionCount: 2, replicationFactor: 1, given: given,
        createdAt: .none)
      image.put(topic)
      for index: Int32 in 0..<2 {
        let id = TopicPartition(topic.id, PartitionIndex(index))
        image.partitions[id] = PartitionImage(
          id: id, leader: Self.leaderID, leaderEpoch: LeaderEpoch(0), epoch: PartitionEpoch(0),
          replicas: [], inSync: [Self.leaderID], uploadGroup: 1)
      }
    }
    let loops = self.loops
    func channel(_ build: (inout RPCRouter) -> Void) -> any RPCChannel {
      var router = RPCRouter()
      build(&router)
      return RPCInProcessChannel(router: router, group: loops)
    }
    let store = try await ObjectStores.make(
      ObjectStoreConfiguration(folder: self.folder, threads: 2), logger: Logger(label: "test"))
    let leader = FakeLeader()
    let metadata = FakeMetadata()
    let uploader = FakeUploader(store: store)
    let scanner = FakeScanner(store: store)
    self.leader = leader
    self.metadataService = metadata
    self.uploader = uploader
    self.scanner = scanner
    self.metadata = channel { metadata.register(on: &$0) }
    self.channels = [
      Self.leaderID: channel { leader.register(on: &$0) },
      Self.uploaderID: channel { uploader.register(on: &$0) },
      Self.scannerID: channel { scanner.register(on: &$0) },
    ]
    self.state = Mutex(image)
  }

  var image: ClusterImage { self.state.withLock { $0 } }

  func change(_ body: (inout ClusterImage) -> Void) {
    self.state.withLock {
      body(&$0)
      $0.revision = $0.revision.next
    }
  }

  func channel(to node: NodeID, lane: Lane) throws(MemQError) -> any RPCChannel {
    if node == Self.leaderID { self.lanesAsked.withLock { _ = $0.insert(lane) } }
    guard let channel = self.channels[node] else {
      throw MemQError(.nodeUnknown, "no such node", subject: "\(node)")
    }
    return channel
  }

  func channel(_ service: ServiceKind, lane: Lane) throws(MemQError) -> any RPCChannel {
    if service == .metadata { return self.metadata }
    guard let node = self.image.liveNodes(service).first else {
      throw MemQError(.unavailable, "no \(service.name) is alive")
    }
    return try self.channel(to: node.id, lane: lane)
  }

  func waitForImage(
    timeout: Duration, _ until: @Sendable (ClusterImage) -> Bool
  ) async throws(MemQError) -> ClusterImage {
    let image = self.image
    guard until(image) else { throw MemQError(.deadlineExceeded, "the image does not come") }
    return image
  }

  func partition(_ topic: String, _ index: Int32) -> TopicPartition {
    TopicPartition(self.image.topic(named: topic)!.id, PartitionIndex(index))
  }
}

/// One ingest on a fake cluster, and a channel to its public port.
struct TestIngest {
  let cluster: FakeCluster
  let node: IngestNode
  let client: any RPCChannel

  static func start(
    _ topics: [(String, [(String, String)])], clock: any MemQClock = SystemClock(),
    configure: (inout IngestNode.Configuration) -> Void = { _ in }
  ) async throws -> TestIngest {
    let cluster = try await FakeCluster(topics: topics)
    var configuration = IngestNode.Configuration(
      objects: ObjectStoreConfiguration(folder: cluster.folder, threads: 2))
    configuration.finisherInterval = .milliseconds(100)
    configuration.scannerPatience = .zero
    configure(&configuration)
    let node = try IngestNode(
      configuration: configuration, view: cluster, session: nil, clock: clock,
      loops: cluster.loops, logger: Logger(label: "test"))
    var router = RPCRouter()
    node.registerPublic(on: &router)
    try await node.start()
    return TestIngest(
      cluster: cluster, node: node,
      client: RPCInProcessChannel(router: router, group: cluster.loops))
  }

  func stop() async { await self.node.drain(deadline: .seconds(5)) }
}

/// A clock that moves on when it is told to.
final class SteppedClock: MemQClock {
  private let now = Mutex(MonotonicInstant(nanoseconds: 1_000_000_000))

  var monotonic: MonotonicInstant { self.now.withLock { $0 } }
  var wall: Timestamp { SystemClock().wall }
  func advance(_ time: Duration) { self.now.withLock { $0 = $0 + time } }
}

/// Waits until something holds; fails after a minute.
func eventually(_ what: String, _ holds: () async throws -> Bool) async throws {
  for _ in 0..<12_000 {
    if try await holds() { return }
    try await Task.sleep(for: .milliseconds(5))
  }
  throw MemQError(.deadlineExceeded, "it did not come: \(what)")
}
