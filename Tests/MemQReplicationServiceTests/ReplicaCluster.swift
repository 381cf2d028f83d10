// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQAPI
import MemQMetadata
import MemQMetadataService
import MemQModel
import MemQRPC
import MemQRecords
import MemQReplication
import MemQReplicationService
import MemQRuntime
import MemQSystem
import NIOCore
import NIOPosix
import SwiftProtobuf

/// A metadata service and three storage nodes in this process, on real files, over sockets that can be cut.
final class ReplicaCluster {
  private static let group = MultiThreadedEventLoopGroup.singleton
  private static let logger = Logger(label: "test")
  static let wait: Duration = .seconds(60)

  /// One storage node: its folder stays, the rest lasts for one life.
  private struct Life {
    let pool: ChannelPool
    let session: ClusterSession
    let node: ReplicationNode
    let server: RPCServer
    let address: String
  }

  let folder: String
  private let metadataAddress: String
  private var metadata: MetadataNode!
  private var metadataServer: RPCServer!
  private var lives: [Int: Life] = [:]
  private var lifeCount = 0
  private let client: ChannelPool
  /// Watches the image on the test's behalf.
  private var observer: ClusterSession!

  init() async throws {
    var template = Array("/tmp/memq-replicas-XXXXXX".utf8CString)
    self.folder = String(cString: mkdtemp(&template)!)
    self.metadataAddress = "unix:\(self.folder)/metadata.sock"
    self.client = ChannelPool(group: Self.group, logger: Self.logger)
    try await self.startMetadata()
    for number in 1...3 { try await self.start(number) }
  }

  private func startMetadata() async throws {
    var configuration = MetadataNode.Configuration(
      dataFolder: "\(self.folder)/metadata", address: self.metadataAddress)
    configuration.electionRecoveryWait = .seconds(1)
    self.metadata = MetadataNode(configuration: configuration, logger: Self.logger)
    try await self.metadata.start()
    var router = RPCRouter()
    self.metadata.register(on: &router)
    self.metadataServer = try await RPCServer.start(
      router: router, on: self.metadataAddress, group: Self.group, logger: Self.logger)
    self.observer = ClusterSession(
      ClusterSession.Configuration(
        service: .ingest, nodeUUID: SystemEntropy().identifier(), address: "unix:/nowhere",
        metadataAddresses: [self.metadataAddress]),
      pool: self.client, clock: SystemClock(), logger: Self.logger)
    try await self.observer.start(timeout: Self.wait)
  }

  func start(_ number: Int) async throws {
    self.lifeCount += 1
    let address = "unix:\(self.folder)/\(number)-\(self.lifeCount).sock"
    let pool = ChannelPool(group: Self.group, logger: Self.logger)
    var configuration = ReplicationNode.Configuration(dataPath: "\(self.folder)/node\(number)")
    configuration.segmentBytes = 16 << 20
    // A follower that is gone is fenced by metadata; one that lags leaves within the test.
    configuration.rules.replicaLagMax = .seconds(3)
    let prepared = try ReplicationNode.prepare(configuration)
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: .replication, nodeUUID: prepared.nodeUUID, address: address,
        volumes: prepared.volumeIDs, clusterID: prepared.clusterID,
        metadataAddresses: [self.metadataAddress]),
      pool: pool, clock: SystemClock(), logger: Self.logger)
    try await session.start(timeout: Self.wait)
    let node = ReplicationNode(
      configuration: configuration, cluster: session, pool: pool, clock: SystemClock(),
      logger: Self.logger)
    var router = RPCRouter()
    node.register(on: &router)
    try await node.start()
    let server = try await RPCServer.start(
      router: router, on: address, group: Self.group, logger: Self.logger)
    self.lives[number] = Life(
      pool: pool, session: session, node: node, server: server, address: address)
  }

  /// In order, as a process that is asked to.
  func stop(_ number: Int) async {
    guard let life = self.lives.removeValue(forKey: number) else { return }
    await life.node.drain(deadline: .seconds(10))
    await life.server.shutdown(deadline: .seconds(1))
    await life.session.stop()
    await life.pool.closeAll(deadline: .seconds(1))
  }

  /// Cuts it off from everybody first, so that nobody hears of its end.
  func cutOff(_ number: Int) async {
    guard let life = self.lives.removeValue(forKey: number) else { return }
    await life.pool.closeAll(deadline: .zero)
    await life.server.shutdown(deadline: .zero)
    await life.node.drain(deadline: .milliseconds(200))
    await life.session.stop()
  }

  func node(_ number: Int) -> ReplicationNode { self.lives[number]!.node }
  func nodeID(_ number: Int) -> NodeID { self.lives[number]!.session.nodeID }
  /// Those that run.
  var numbers: [Int] { self.lives.keys.sorted() }

  /// Stops everything and removes the files.
  func end() async {
    for number in self.numbers { await self.stop(number) }
    await self.observer.stop()
    await self.metadata.drain(deadline: .seconds(5))
    await self.metadataServer.shutdown(deadline: .seconds(1))
    await self.client.closeAll(deadline: .seconds(1))
    try? await TestCluster.blocking { [folder] in try Self.remove(folder) }
  }

  private static func remove(_ folder: String) throws {
    for name in try Files.list(folder) {
      let path = "\(folder)/\(name)"
      if Files.isFolder(path) { try Self.remove(path) } else { try Files.remove(path) }
    }
    rmdir(folder)
  }

  // MARK: - The cluster

  var image: ClusterImage { self.observer.image }
  var metadataChannel: any RPCChannel { self.observer.metadata }

  func topic(_ name: String, _ settings: [String: String] = [:]) async throws -> TopicPartition {
    let answer = try await self.observer.metadata.call(
      MetadataMethods.createTopic,
      .with {
        $0.name = name
        $0.partitionCount = 1
        $0.replicationFactor = 3
        $0.settings = settings.merging(["min.insync.replicas": "2"]) { given, _ in given }
      }, timeout: Self.wait)
    return TopicPartition(
      try TopicID(wire: answer.topic.topicID, "topic_id"), PartitionIndex(0))
  }

  /// Waits until the image says so of the partition.
  @discardableResult
  func wait(
    _ partition: TopicPartition, _ until: @escaping @Sendable (PartitionImage) -> Bool
  ) async throws -> PartitionImage {
    let image = try await self.observer.waitForImage(timeout: Self.wait) {
      $0.partitions[partition].map(until) ?? false
    }
    return image.partitions[partition]!
  }

  func waitForISR(_ count: Int, of partition: TopicPartition) async throws {
    try await self.wait(partition) { $0.inSync.count == count && $0.leader != nil }
  }

  /// The leader's number, once it is not `other`.
  func leader(of partition: TopicPartition, not other: Int? = nil) async throws -> Int {
    let ids = self.lives.mapValues(\.session.nodeID)
    let excluded = other.flatMap { ids[$0] }
    let known = Set(ids.values)
    let found = try await self.wait(partition) { partition in
      partition.leader.map { $0 != excluded && known.contains($0) } ?? false
    }
    return ids.first { $0.value == found.leader }!.key
  }

  func leaderChannel(
    _ partition: TopicPartition, lane: Lane = .append
  ) throws -> (any RPCChannel)? {
    guard let known = self.image.partitions[partition]?.leader,
      let life = self.lives.values.first(where: { $0.session.nodeID == known })
    else { return nil }
    return self.client.channel(life.address, lane: lane)
  }

  func channel(to number: Int, lane: Lane = .append) -> any RPCChannel {
    self.client.channel(self.lives[number]!.address, lane: lane)
  }

  // MARK: - Records

  /// Appends until the leader of the moment took it; safe to repeat with a producer.
  func append(
    _ batch: [UInt8], to partition: TopicPartition, acks: Memq_V1_Acks = .all
  ) async throws -> Memq_V1_AppendResponse {
    let deadline = ContinuousClock.now + Self.wait
    var last = ""
    while ContinuousClock.now < deadline {
      do {
        if let channel = try self.leaderChannel(partition) {
          let answer = try await Self.append(batch, to: partition, acks: acks, over: channel)
          guard answer.hasError else { return answer }
          let error = MemQError(answer.error)
          guard error.isRetriable else { return answer }
          last = "\(error)"
        }
      } catch {
        last = "\(error)"
      }
      try await Task.sleep(for: .milliseconds(20))
    }
    throw MemQError(.deadlineExceeded, "nobody takes the batch: \(last)")
  }

  static func append(
    _ batch: [UInt8], to partition: TopicPartition, acks: Memq_V1_Acks,
    over channel: any RPCChannel
  ) async throws -> Memq_V1_AppendResponse {
    let stream = try await channel.openHot(
      ReplicationMethods.append, RPCCallOptions(timeout: .seconds(10)))
    try await stream.send(
      Hot(
        .with {
          $0.topicPartition = partition.wire
          $0.acks = acks
          $0.leaderEpoch = -1
          $0.timeoutMs = 5_000
        }, payload: RPCMessage(bytes: batch)))
    try await stream.halfClose()
    guard let answer = try await stream.responses.next() else {
      throw MemQError(.unavailable, "the stream ended without an answer")
    }
    return answer
  }

  func description(
    _ partition: TopicPartition, on number: Int
  ) async throws -> Memq_V1_ReplicaDescription? {
    try await self.channel(to: number, lane: .control).call(
      ReplicationMethods.describeReplicas, .with { $0.partitions = [partition.wire] },
      timeout: Self.wait
    ).replicas.first
  }

  /// Waits until every running node holds the partition up to `end`, all of it committed.
  func waitUntilEqual(_ partition: TopicPartition, end: Int64) async throws {
    let deadline = ContinuousClock.now + Self.wait
    while true {
      var found: [Memq_V1_ReplicaDescription?] = []
      for number in self.numbers { found.append(try await self.description(partition, on: number)) }
      if found.allSatisfy({ $0?.logEndOffset == end && $0?.highWatermark == end }) { return }
      guard ContinuousClock.now < deadline else {
        throw MemQError(.deadlineExceeded, "the replicas stay apart: \(found)")
      }
      try await Task.sleep(for: .milliseconds(20))
    }
  }

  /// The values of the partition, from its leader.
  func values(_ partition: TopicPartition, below end: Int64) async throws -> [String] {
    var found: [String] = []
    var offset: Int64 = 0
    let deadline = ContinuousClock.now + Self.wait
    while offset < end {
      guard ContinuousClock.now < deadline else {
        throw MemQError(.deadlineExceeded, "read up to \(offset) only", subject: "\(partition)")
      }
      do {
        guard let channel = try self.leaderChannel(partition, lane: .read) else { continue }
        let responses = try await channel.streamHot(
          ReplicationMethods.read,
          .with {
            $0.topicPartition = partition.wire
            $0.offset = offset
            $0.maxBytes = 16 << 20
            $0.waitMaxMs = 500
            $0.leaderEpoch = -1
          }, RPCCallOptions(timeout: .seconds(10)))
        while let response = try await responses.next() {
          let bytes = Array(response.payload.contiguous().readableBytesView)
          found += try records(bytes).map { String(decoding: $0.value ?? [], as: UTF8.self) }
          offset = response.header.nextOffset
        }
      } catch let error as MemQError where error.isRetriable {
        try await Task.sleep(for: .milliseconds(20))
      }
    }
    return found
  }
}
