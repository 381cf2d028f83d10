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

/// A metadata service and one storage node in this process, on real files.
final class TestCluster {
  static let group = MultiThreadedEventLoopGroup.singleton
  private static let logger = Logger(label: "test")
  private static let wait: Duration = .seconds(30)

  let folder: String
  /// Of the node's volume from its next start on.
  var capacityBytes: Int64?
  private var metadata: MetadataNode!
  private var pool: ChannelPool!
  private(set) var session: ClusterSession!
  private(set) var node: ReplicationNode!
  private(set) var channel: (any RPCChannel)!

  init(capacityBytes: Int64? = nil) async throws {
    self.capacityBytes = capacityBytes
    var template = Array("/tmp/memq-replication-XXXXXX".utf8CString)
    self.folder = String(cString: mkdtemp(&template)!)
    try await self.start()
  }

  private func start() async throws {
    self.pool = ChannelPool(group: Self.group, logger: Self.logger)
    var configuration = MetadataNode.Configuration(
      dataFolder: "\(self.folder)/metadata", address: "inprocess:metadata")
    // A busy machine's pauses are no reason to fence anybody.
    configuration.sessionTimeout = Self.wait
    configuration.startGrace = Self.wait
    self.metadata = MetadataNode(configuration: configuration, logger: Self.logger)
    try await self.metadata.start()
    var router = RPCRouter()
    self.metadata.register(on: &router)
    self.pool.register(
      "inprocess:metadata",
      RPCInProcessChannel(router: router, group: Self.group, logger: Self.logger))
    try await self.startNode()
  }

  private func startNode() async throws {
    var configuration = ReplicationNode.Configuration(dataPath: "\(self.folder)/node")
    configuration.segmentBytes = 16 << 20
    configuration.volumes[0].capacityBytes = self.capacityBytes
    let prepared = try ReplicationNode.prepare(configuration)
    self.session = ClusterSession(
      ClusterSession.Configuration(
        service: .replication, nodeUUID: prepared.nodeUUID, address: "inprocess:replication",
        volumes: prepared.volumeIDs, clusterID: prepared.clusterID,
        metadataAddresses: ["inprocess:metadata"]),
      pool: self.pool, clock: SystemClock(), logger: Self.logger)
    try await self.session.start(timeout: Self.wait)
    self.node = ReplicationNode(
      configuration: configuration, cluster: self.session, pool: self.pool, clock: SystemClock(),
      logger: Self.logger)
    var router = RPCRouter()
    self.node.register(on: &router)
    self.channel = RPCInProcessChannel(router: router, group: Self.group, logger: Self.logger)
    self.pool.register("inprocess:replication", self.channel)
    try await self.node.start()
  }

  /// Stops everything in order and starts it again on the same folder.
  func restart() async throws {
    await self.stop()
    try await self.start()
  }

  /// After `stop`.
  func startAgain() async throws { try await self.start() }

  /// Starts again on what a crash at this moment would have left.
  ///
  /// - Parameter damage: changes the node's folder before it starts.
  func crash(damage: @escaping @Sendable (String) throws -> Void = { _ in }) async throws {
    let (live, image) = ("\(self.folder)/node", "\(self.folder)/image")
    try await Self.blocking { try Self.copy(live, to: image) }
    await self.stop()
    try await Self.blocking {
      try Self.remove(live)
      try Files.rename(image, to: live)
      try damage(live)
    }
    try await self.start()
  }

  static func blocking<R: Sendable>(_ body: @escaping @Sendable () throws -> R) async throws -> R {
    try await NIOThreadPool.singleton.runIfActive(body)
  }

  private static func copy(_ from: String, to: String) throws {
    try Files.makeFolder(to)
    for name in try Files.list(from) {
      let (old, new) = ("\(from)/\(name)", "\(to)/\(name)")
      if Files.isFolder(old) {
        try Self.copy(old, to: new)
        continue
      }
      let bytes = try Self.bytes(of: old)
      try bytes.withUnsafeBytes { try File(new, .create).write($0, at: 0) }
    }
  }

  static func bytes(of path: String) throws -> [UInt8] {
    let file = try File(path, .readOnly)
    var bytes = [UInt8](repeating: 0, count: Int(try file.byteCount()))
    _ = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: 0) }
    return bytes
  }

  private static func remove(_ folder: String) throws {
    for name in try Files.list(folder) {
      let path = "\(folder)/\(name)"
      if Files.isFolder(path) { try Self.remove(path) } else { try Files.remove(path) }
    }
    rmdir(folder)
  }

  func stop() async {
    await self.node.drain(deadline: .seconds(5))
    await self.session.stop()
    await self.metadata.drain(deadline: .seconds(5))
  }

  /// Stops and removes the files.
  func end() async {
    await self.stop()
    _ = try? await NIOThreadPool.singleton.runIfActive { [folder] in
      for path in ["\(folder)/node/volume", "\(folder)/node", "\(folder)/metadata", folder] {
        for name in try Files.list(path) where !Files.isFolder("\(path)/\(name)") {
          try Files.remove("\(path)/\(name)")
        }
        rmdir(path)
      }
    }
  }

  /// Makes a topic of one partition and waits until its leader serves.
  func topic(_ name: String, _ settings: [String: String] = [:]) async throws -> TopicPartition {
    let answer = try await self.session.metadata.call(
      MetadataMethods.createTopic,
      .with {
        $0.name = name
        $0.partitionCount = 1
        $0.replicationFactor = 1
        $0.settings = settings
      }, timeout: Self.wait)
    let partition = TopicPartition(
      try TopicID(wire: answer.topic.topicID, "topic_id"), PartitionIndex(0))
    try await self.waitForLeader(of: partition)
    return partition
  }

  func delete(_ name: String) async throws {
    _ = try await self.session.metadata.call(
      MetadataMethods.deleteTopic, .with { $0.name = name }, timeout: Self.wait)
  }

  func waitForLeader(of partition: TopicPartition) async throws {
    let deadline = ContinuousClock.now + Self.wait
    var error = ""
    while ContinuousClock.now < deadline {
      let offsets = try await self.offsets(partition, .latest)
      guard offsets.hasError else { return }
      error = "\(MemQError(offsets.error))"
      try await Task.sleep(for: .milliseconds(5))
    }
    throw MemQError(.deadlineExceeded, "nobody leads \(partition): \(error)")
  }

  func offsets(
    _ partition: TopicPartition, _ spec: Memq_V1_OffsetSpec, at time: Int64 = 0
  ) async throws -> Memq_V1_PartitionOffset {
    let answer = try await self.channel.call(
      ReplicationMethods.listOffsets,
      .with {
        $0.partitions = [partition.wire]
        $0.spec = spec
        $0.timestampMs = time
      }, timeout: Self.wait)
    return answer.offsets[0]
  }

  /// Sends batches on one stream and gives their answers by request, from 0.
  func append(
    _ batches: [[UInt8]], to partition: TopicPartition, acks: Memq_V1_Acks = .all,
    leaderEpoch: Int64 = -1
  ) async throws -> [Memq_V1_AppendResponse] {
    let stream = try await self.channel.openHot(
      ReplicationMethods.append, RPCCallOptions(timeout: Self.wait))
    for (number, batch) in batches.enumerated() {
      try await stream.send(
        Hot(
          .with {
            $0.requestID = UInt64(number)
            $0.topicPartition = partition.wire
            $0.acks = acks
            $0.leaderEpoch = leaderEpoch
          }, payload: RPCMessage(bytes: batch)))
    }
    try await stream.halfClose()
    var answers: [Memq_V1_AppendResponse] = []
    while let answer = try await stream.responses.next() { answers.append(answer) }
    return answers.sorted { $0.requestID < $1.requestID }
  }

  struct Read {
    var bytes: [UInt8] = []
    var next: Int64 = 0
    var highWatermark: Int64 = 0
  }

  func read(
    _ partition: TopicPartition, from offset: Int64, maxBytes: Int32 = 0, wait: Int32 = 0,
    minBytes: Int32 = 0
  ) async throws -> Read {
    let responses = try await self.channel.streamHot(
      ReplicationMethods.read,
      .with {
        $0.topicPartition = partition.wire
        $0.offset = offset
        $0.maxBytes = maxBytes
        $0.minBytes = minBytes
        $0.waitMaxMs = wait
        $0.leaderEpoch = -1
      }, RPCCallOptions(timeout: Self.wait))
    var read = Read()
    while let response = try await responses.next() {
      read.bytes += Array(response.payload.contiguous().readableBytesView)
      read.next = response.header.nextOffset
      read.highWatermark = response.header.highWatermark
    }
    return read
  }
}

/// A batch of records with the values given.
func batch(
  _ values: [String], producer: Int64 = -1, epoch: Int16 = 0, sequence: Int32 = -1,
  time: Int64 = 1_000
) throws -> [UInt8] {
  var builder = RecordBatchBuilder(
    compression: .none, producerID: ProducerID(producer),
    producerEpoch: producer < 0 ? .none : ProducerEpoch(epoch), baseSequence: sequence)
  for value in values {
    builder.append(
      key: nil, value: Array(value.utf8), headers: [], timestamp: Timestamp(milliseconds: time))
  }
  return try builder.build()
}

/// The records of concatenated batches.
func records(_ bytes: [UInt8]) throws -> [Record] {
  var found: [Record] = []
  var iterator = RecordBatchIterator(bytes)
  while let next = try iterator.next(checksum: true) { found += try iterator.records(of: next) }
  return found
}
