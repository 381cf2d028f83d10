// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQAPI
import MemQMetadata
import MemQMetadataService
import MemQModel
import MemQObjectStore
import MemQPacking
import MemQRPC
import MemQRecords
import MemQReplicationService
import MemQRuntime
import MemQScannerService
import MemQSystem
import MemQUploaderService
import NIOCore
import NIOPosix
import SwiftProtobuf

/// Metadata, one storage node, and as many uploaders and scanners as a test wants, in this process on real files.
final class TestCluster: @unchecked Sendable {
  static let group = MultiThreadedEventLoopGroup.singleton
  static let wait: Duration = .seconds(60)

  let folder: String
  let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
  private(set) var metadata: MetadataNode!
  private(set) var pool: ChannelPool!
  private(set) var session: ClusterSession!
  private var node: ReplicationNode!
  private var members: [(ClusterSession, any ServiceNode)] = []

  var objects: String { "\(self.folder)/objects" }

  init() async throws {
    self.folder = FileManager.default.temporaryDirectory.path + "/memq-uploader-\(UUID())"
    try FileManager.default.createDirectory(
      atPath: self.folder, withIntermediateDirectories: true)
    self.pool = ChannelPool(group: Self.group, logger: self.logger)
    var configuration = MetadataNode.Configuration(
      dataFolder: "\(self.folder)/metadata", address: "inprocess:metadata")
    // A busy machine's pauses are no reason to fence anybody.
    configuration.sessionTimeout = Self.wait
    configuration.startGrace = Self.wait
    self.metadata = MetadataNode(configuration: configuration, logger: self.logger)
    try await self.metadata.start()
    var router = RPCRouter()
    self.metadata.register(on: &router)
    self.serve("metadata", router)
    try await self.startNode()
  }

  private func serve(_ name: String, _ router: RPCRouter) {
    self.pool.register(
      "inprocess:\(name)",
      RPCInProcessChannel(router: router, group: Self.group, logger: self.logger))
  }

  private func startNode() async throws {
    var configuration = ReplicationNode.Configuration(dataPath: "\(self.folder)/node")
    configuration.segmentBytes = 16 << 20
    let prepared = try ReplicationNode.prepare(configuration)
    self.session = ClusterSession(
      ClusterSession.Configuration(
        service: .replication, nodeUUID: prepared.nodeUUID, address: "inprocess:replication",
        volumes: prepared.volumeIDs, clusterID: prepared.clusterID,
        metadataAddresses: ["inprocess:metadata"]),
      pool: self.pool, clock: SystemClock(), logger: self.logger)
    try await self.session.start(timeout: Self.wait)
    self.node = ReplicationNode(
      configuration: configuration, cluster: self.session, pool: self.pool, clock: SystemClock(),
      logger: self.logger)
    var router = RPCRouter()
    self.node.register(on: &router)
    self.serve("replication", router)
    try await self.node.start()
  }

  private func join(_ service: ServiceKind, _ name: String) async throws -> ClusterSession {
    let session = ClusterSession(
      ClusterSession.Configuration(
        service: service, nodeUUID: SystemEntropy().identifier(), address: "inprocess:\(name)",
        metadataAddresses: ["inprocess:metadata"]),
      pool: self.pool, clock: SystemClock(), logger: self.logger)
    try await session.start(timeout: Self.wait)
    return session
  }

  /// Starts an uploader that packs only when told, unless changed.
  @discardableResult
  func uploader(
    _ name: String = "uploader", _ change: (inout UploaderNode.Configuration) -> Void = { _ in }
  ) async throws -> UploaderNode {
    let session = try await self.join(.uploader, name)
    var configuration = UploaderNode.Configuration(
      objects: ObjectStoreConfiguration(folder: self.objects))
    configuration.linger = .seconds(3_600)
    configuration.observeInterval = .milliseconds(100)
    change(&configuration)
    let node = try UploaderNode(
      configuration: configuration, cluster: session, pool: self.pool, clock: SystemClock(),
      logger: self.logger)
    var router = RPCRouter()
    node.register(on: &router)
    self.serve(name, router)
    try await node.start()
    self.members.append((session, node))
    return node
  }

  @discardableResult
  func scanner(
    _ change: (inout ScannerNode.Configuration) -> Void = { _ in }
  ) async throws -> ScannerNode {
    let session = try await self.join(.scanner, "scanner")
    var configuration = ScannerNode.Configuration(
      objects: ObjectStoreConfiguration(folder: self.objects),
      scratchFolder: "\(self.folder)/scratch")
    change(&configuration)
    let node = try ScannerNode(
      configuration: configuration, cluster: session, pool: self.pool, clock: SystemClock(),
      logger: self.logger)
    var router = RPCRouter()
    node.register(on: &router)
    self.serve("scanner", router)
    try await node.start()
    self.members.append((session, node))
    return node
  }

  /// A clean stop of the member started at this place.
  func stop(_ index: Int) async {
    let (session, node) = self.members.remove(at: index)
    await node.drain(deadline: .seconds(10))
    await session.stop()
  }

  func end() async {
    while !self.members.isEmpty { await self.stop(self.members.count - 1) }
    await self.node.drain(deadline: .seconds(5))
    await self.session.stop()
    await self.metadata.drain(deadline: .seconds(5))
    try? FileManager.default.removeItem(atPath: self.folder)
  }

  // MARK: Calls

  func channel(_ name: String) -> any RPCChannel { self.pool.channel("inprocess:\(name)") }

  func call<Q, R>(
    _ name: String, _ method: Method<Q, R>, _ fill: (inout Q) -> Void = { _ in }
  ) async throws(MemQError) -> R {
    var request = Q()
    fill(&request)
    return try await self.channel(name).call(method, request, timeout: Self.wait)
  }

  /// Makes a topic and waits until every partition has a leader that serves.
  func topic(
    _ name: String, partitions: Int32 = 1, _ settings: [String: String] = [:]
  ) async throws -> [TopicPartition] {
    let topic = try await self.call("metadata", MetadataMethods.createTopic) {
      $0.name = name
      $0.partitionCount = partitions
      $0.replicationFactor = 1
      $0.settings = settings
    }.topic
    let id = try TopicID(wire: topic.topicID, "topic_id")
    let all = (0..<partitions).map { TopicPartition(id, PartitionIndex($0)) }
    try await self.until("the topic has leaders") {
      let answer = try await self.call("replication", ReplicationMethods.listOffsets) {
        $0.partitions = all.map(\.wire)
        $0.spec = .latest
      }
      return answer.offsets.allSatisfy { !$0.hasError }
    }
    return all
  }

  /// Appends batches of records of about `size` bytes; they are committed when it returns.
  func produce(
    _ partition: TopicPartition, batches: Int, records: Int = 10, size: Int = 100
  ) async throws {
    let stream = try await self.channel("replication").openHot(
      ReplicationMethods.append, RPCCallOptions(timeout: Self.wait))
    for number in 0..<batches {
      var builder = RecordBatchBuilder()
      for record in 0..<records {
        let value = (0..<size).map { UInt8(truncatingIfNeeded: $0 + number * 7 + record) }
        builder.append(value: value, timestamp: SystemClock().wall)
      }
      try await stream.send(
        Hot(
          .with {
            $0.requestID = UInt64(number)
            $0.topicPartition = partition.wire
            $0.acks = .all
            $0.leaderEpoch = -1
          }, payload: RPCMessage(bytes: try builder.build())))
    }
    try await stream.halfClose()
    while let answer = try await stream.responses.next() {
      if answer.hasError { throw MemQError(answer.error) }
    }
  }

  /// The partition's bytes as its leader has them.
  func log(_ partition: TopicPartition) async throws -> [UInt8] {
    var bytes: [UInt8] = []
    var next: Int64 = 0
    while true {
      let before = next
      let replies = try await self.channel("replication").streamHot(
        ReplicationMethods.read,
        .with {
          $0.topicPartition = partition.wire
          $0.offset = next
          $0.maxBytes = 1 << 20
          $0.leaderEpoch = -1
        }, RPCCallOptions(timeout: Self.wait))
      while let reply = try await replies.next() {
        bytes += Array(buffer: reply.payload.contiguous())
        next = reply.header.nextOffset
      }
      if next == before { return bytes }
    }
  }

  /// The partition's bytes below `end` as its objects have them.
  func cold(_ partition: TopicPartition, below end: Int64) async throws -> [UInt8] {
    let store = try await ObjectStores.make(
      ObjectStoreConfiguration(folder: self.objects), logger: self.logger)
    let reader = ObjectReader(store: store, logger: self.logger) { group, after throws(MemQError) in
      try await ObjectList.page(group, after: after, self.channel("metadata"))
    }
    let group = self.session.image.partitions[partition]!.uploadGroup
    var bytes: [UInt8] = []
    var offset = Offset.zero
    while offset < Offset(end) {
      let read = try await reader.read(partition, group: group, from: offset, maxBytes: 300_000)
      bytes += Array(buffer: read.batches)
      offset = read.nextOffset
    }
    await store.close()
    return bytes
  }

  /// What all objects of the store hold, by their own footers.
  func runs() throws -> [ObjectRun] {
    try self.keys("objects").flatMap { key in
      let bytes = [UInt8](
        try Data(contentsOf: URL(fileURLWithPath: "\(self.objects)/objects/\(key)")))
      let tail = try ObjectFooter.footerByteCount(
        inTrailer: Array(bytes.suffix(ObjectLayout.trailerByteCount)),
        objectByteCount: Int64(bytes.count))
      return try ObjectFooter(
        decodingTail: Array(bytes.suffix(Int(tail))), objectByteCount: Int64(bytes.count)
      ).runs
    }
  }

  func uploaded(_ partition: TopicPartition) -> Int64 {
    self.session.image.partitions[partition]?.uploadedOffset.rawValue ?? -1
  }

  /// Keys of the files below a folder of the store.
  func keys(_ prefix: String) -> [String] {
    let root = "\(self.objects)/\(prefix)"
    let all = FileManager.default.enumerator(atPath: root)?.allObjects as? [String] ?? []
    return all.filter { path in
      var isFolder: ObjCBool = false
      return FileManager.default.fileExists(atPath: "\(root)/\(path)", isDirectory: &isFolder)
        && !isFolder.boolValue
    }.sorted()
  }

  func until(_ what: String, _ condition: () async throws -> Bool) async throws {
    let deadline = ContinuousClock.now + Self.wait
    while ContinuousClock.now < deadline {
      if try await condition() { return }
      try await Task.sleep(for: .milliseconds(20))
    }
    throw MemQError(.deadlineExceeded, "in vain: \(what)")
  }
}
