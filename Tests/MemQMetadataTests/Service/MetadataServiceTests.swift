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
import SwiftProtobuf
import Synchronization
import Testing

@Suite struct MetadataServiceTests {
  @Test func `a fresh cluster has an identity, one node, and says what is missing`() async throws {
    let metadata = try await TestMetadata.start()
    let cluster = try await metadata.call(MetadataMethods.describeCluster) { _ in }
    #expect(cluster.incarnation == 1 && cluster.clusterID.count == 16 && !cluster.ready)
    #expect(cluster.nodes.map(\.service) == [.metadata] && cluster.nodes[0].state == .ready)
    #expect(cluster.problems.contains("no ingest node is ready") && cluster.problems.count == 5)
    #expect(metadata.node.readiness.allSatisfy { $0.problem == nil })
    await metadata.stop()
    #expect(metadata.node.readiness[0].problem == "shut down")
    let late = await thrown { try await metadata.call(MetadataMethods.listTopics) { _ in } }
    #expect(late?.code == .shuttingDown)
  }

  @Test func `with a ready node of each service and a leader for each partition it is ready`()
    async throws
  {
    let metadata = try await TestMetadata.start()
    var members: [ClusterSession] = []
    for (index, service) in ServiceKind.allCases.enumerated() where service != .metadata {
      members.append(
        try await metadata.member(
          service, uuid: UInt64(index), volumes: service == .replication ? [77] : []))
    }
    try await metadata.makeTopic("t", partitions: 3)
    let cluster = try await metadata.call(MetadataMethods.describeCluster) { _ in }
    #expect(cluster.ready && cluster.problems.isEmpty, "\(cluster.problems)")
    #expect(cluster.nodes.count == 6 && cluster.partitions.count == 3)
    await members[0].stop()
    let after = try await metadata.call(MetadataMethods.describeCluster) { _ in }
    #expect(!after.ready && after.problems.contains("partition t/0 has no live leader"))
    for member in members.dropFirst() { await member.stop() }
    await metadata.stop()
  }

  @Test func `a session sees each change of the image, its own first`() async throws {
    let metadata = try await TestMetadata.start()
    let session = try await metadata.member(.replication, uuid: 1, volumes: [77])
    let seen = Mutex<[Revision]>([])
    session.onImage { image in seen.withLock { $0.append(image.revision) } }
    for name in ["a", "b", "c"] { try await metadata.makeTopic(name) }
    let image = try await session.waitForImage(timeout: .seconds(20)) { $0.topics.count == 3 }
    #expect(image.topic(named: "b")?.partitionCount == 1)
    #expect(image.partitions.values.allSatisfy { $0.leader == session.nodeID })
    _ = try await metadata.call(MetadataMethods.deleteTopic) { $0.name = "b" }
    let smaller = try await session.waitForImage(timeout: .seconds(20)) { $0.topics.count == 2 }
    #expect(smaller.topic(named: "b") == nil && smaller.partitions.count == 2)
    #expect(seen.withLock { $0 == $0.sorted() })
    #expect(
      await thrown {
        try await session.waitForImage(timeout: .milliseconds(50)) { $0.topics.isEmpty }
      }?.code == .deadlineExceeded)
    let channel = try session.channel(to: session.nodeID, lane: .append)
    let nobody = await thrown {
      try await channel.call(
        ReplicationMethods.listOffsets, Memq_V1_ListOffsetsRequest(), timeout: .seconds(5))
    }
    #expect(nobody?.code == .unavailable)
    #expect(thrown { () throws(MemQError) in try session.channel(.scanner) }?.code == .unavailable)
    await session.stop()
    await metadata.stop()
  }

  @Test func `a reconnecting watcher gets only what it missed, a stranger everything`()
    async throws
  {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let before = try await metadata.image()
    try await metadata.makeTopic("t")
    func first(_ revision: Int64, incarnation: Int64) async throws -> Memq_V1_ImageUpdate {
      let updates = try await metadata.channel.stream(
        MetadataMethods.watchImage,
        .with {
          $0.fromRevision = revision
          $0.incarnation = incarnation
        })
      return try await updates.next()!
    }
    let missed = try await first(before.revision.rawValue, incarnation: 1)
    #expect(!missed.full && missed.topics.map(\.name) == ["t"] && missed.nodes.isEmpty)
    var image = before
    try image.apply(missed)
    #expect(image == (try await metadata.image()))
    #expect(try await first(before.revision.rawValue, incarnation: 2).full)
    #expect(try await first(0, incarnation: 1).full)
    await metadata.stop()
  }

  @Test func `a silent node is fenced and comes back with a higher epoch`() async throws {
    let metadata = try await TestMetadata.start()
    let silent = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    try await metadata.makeTopic("t")
    // In steps, as a controller that is awake sees time pass.
    for _ in 0..<20 {
      metadata.clock.advance(.milliseconds(100))
      await metadata.node.tick()
    }
    var image = try await metadata.image()
    #expect(image.nodes[NodeID(silent.nodeID)]?.state == .fenced)
    #expect(image.partitions.values.first!.leader == nil)
    let stream = try await metadata.channel.open(MetadataMethods.heartbeat)
    try await stream.send(
      .with {
        $0.nodeID = silent.nodeID
        $0.nodeEpoch = silent.nodeEpoch
        $0.state = .ready
      })
    #expect(await thrown { try await stream.responses.next() }?.code == .nodeFenced)
    let again = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    #expect(again.nodeID == silent.nodeID && again.nodeEpoch == silent.nodeEpoch + 1)
    image = try await metadata.image()
    #expect(image.partitions.values.first!.leader == NodeID(silent.nodeID))
    await metadata.stop()
  }

  /// A ready node that heartbeats by hand, until the stream is let go.
  private func heartbeats(
    of node: Memq_V1_RegisterNodeResponse, _ metadata: TestMetadata
  ) async throws -> TypedStream<Memq_V1_HeartbeatRequest, Memq_V1_HeartbeatResponse> {
    let stream = try await metadata.channel.open(MetadataMethods.heartbeat)
    try await stream.send(
      .with {
        $0.nodeID = node.nodeID
        $0.nodeEpoch = node.nodeEpoch
        $0.state = .ready
      })
    _ = try await stream.responses.next()
    return stream
  }

  @Test func `a node that broke off and refuses connections is fenced without waiting for it`()
    async throws
  {
    let metadata = try await TestMetadata.start(refuses: { $0 == "inprocess:node1" })
    let lost = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let stream = try await self.heartbeats(of: lost, metadata)
    let other = try await metadata.member(.replication, uuid: 2, volumes: [78])
    try await metadata.makeTopic("t", replicas: 2)
    var image = try await metadata.image()
    #expect(image.partitions.values.first!.leader == NodeID(lost.nodeID))
    let epoch = image.partitions.values.first!.leaderEpoch
    stream.cancel()
    // The clock of its sessions stands still: silence has nothing to do with it.
    image = try await other.waitForImage(timeout: .seconds(20)) {
      $0.nodes[NodeID(lost.nodeID)]?.state == .fenced && $0.partitions.values.first!.leader != nil
        && $0.partitions.values.first!.leader != NodeID(lost.nodeID)
    }
    #expect(image.partitions.values.first!.leader == other.nodeID)
    #expect(image.partitions.values.first!.inSync == [other.nodeID])
    #expect(image.partitions.values.first!.leaderEpoch > epoch)
    await other.stop()
    await metadata.stop()
  }

  @Test func `a node that broke off and takes connections keeps its time`() async throws {
    let (asked, asking) = AsyncStream.makeStream(of: Void.self)
    let metadata = try await TestMetadata.start(refuses: { _ in
      asking.yield()
      return false
    })
    let node = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let stream = try await self.heartbeats(of: node, metadata)
    stream.cancel()
    for await _ in asked { break }
    await metadata.node.tick()
    #expect(try await metadata.image().nodes[NodeID(node.nodeID)]?.state == .ready)
    await metadata.stop()
  }

  @Test func `a goodbye is answered when the leaderships have moved`() async throws {
    let metadata = try await TestMetadata.start()
    let leaving = try await metadata.member(.replication, uuid: 1, volumes: [77])
    let staying = try await metadata.member(.replication, uuid: 2, volumes: [78])
    try await metadata.makeTopic("t", partitions: 4, replicas: 2)
    leaving.setState(.draining)
    await leaving.stop()
    let image = try await metadata.image()
    #expect(image.partitions.values.allSatisfy { $0.leader == staying.nodeID })
    #expect(image.nodes[leaving.nodeID]?.state == .gone)
    await staying.stop()
    await metadata.stop()
  }

  @Test func `a new controller gives everybody time and then passes on what nobody came back for`()
    async throws
  {
    let folder = TestFolder()
    let clock = TestClock()
    let entropy = TestEntropy()
    let first = try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy)
    let lost = try await first.silentNode(.replication, uuid: 1, volumes: [77])
    let kept = try await first.silentNode(.replication, uuid: 2, volumes: [78])
    try await first.makeTopic("t", replicas: 2)
    await first.stop()
    let second = try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy) {
      $0.sessionTimeout = .seconds(2)
      $0.startGrace = .seconds(4)
    }
    func pass(_ steps: Int) async throws {
      for _ in 0..<steps {
        clock.advance(.milliseconds(100))
        let stream = try await self.heartbeats(of: kept, second)
        await second.node.tick()
        stream.cancel()
      }
    }
    try await pass(35)
    var image = try await second.image()
    #expect(image.nodes[NodeID(lost.nodeID)]?.state.isLive == true)
    #expect(image.partitions.values.first!.leader == NodeID(lost.nodeID))
    // A tick is left out while the one before is busy, so it may take some more; the election comes after the fencing.
    for _ in 0..<100 where image.partitions.values.first!.leader == NodeID(lost.nodeID) {
      try await pass(1)
      image = try await second.image()
    }
    #expect(image.nodes[NodeID(lost.nodeID)]?.state == .fenced)
    #expect(image.nodes[NodeID(kept.nodeID)]?.state == .ready)
    #expect(image.partitions.values.first!.leader == NodeID(kept.nodeID))
    await second.stop()
  }

  @Test func `a fenced session registers again by itself`() async throws {
    let metadata = try await TestMetadata.start()
    let session = try await metadata.member(.uploader, uuid: 1)
    let epoch = session.nodeEpoch
    // Somebody else with its name, as after a copied disk.
    _ = try await metadata.silentNode(.uploader, uuid: 1)
    let id = session.nodeID
    _ = try await session.waitForImage(timeout: .seconds(20)) {
      $0.nodes[id].map { $0.epoch > epoch && $0.state == .ready } ?? false
    }
    #expect(session.nodeEpoch == NodeEpoch(epoch.rawValue + 2))
    await session.stop()
    await metadata.stop()
  }

  @Test func `everything is there after a restart`() async throws {
    let folder = TestFolder()
    let clock = TestClock()
    let entropy = TestEntropy()
    var metadata = try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy)
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    try await metadata.makeTopic("events", partitions: 3)
    let topic = try await metadata.makeTopic("media", settings: ["scan.policy": "gate"])
    let producer = try await metadata.call(MetadataMethods.initProducer) { _ in }
    let member = try await metadata.call(MetadataMethods.joinGroup) {
      $0.group = "g"
      $0.topics = ["events"]
    }
    _ = try await metadata.call(MetadataMethods.commitOffsets) {
      $0.group = "g"
      $0.memberID = member.memberID
      $0.memberEpoch = member.memberEpoch
      $0.offsets = [
        .with {
          $0.topicPartition = member.assigned[1]
          $0.offset = 42
        }
      ]
    }
    let before = try await metadata.image()
    let second = await thrown {
      try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy)
    }
    #expect(second?.code == .dataFolderInUse)
    await metadata.stop()

    metadata = try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy)
    var after = try await metadata.image()
    #expect(after.clusterID == before.clusterID && after.topics == before.topics)
    #expect(after.partitions == before.partitions && after.uploadGroups == before.uploadGroups)
    #expect(after.nodes.keys == before.nodes.keys, "metadata keeps its number, too")
    #expect(after.topics[try TopicID(wire: topic.topicID, "")]?.settings.scanPolicy == .gate)
    let next = try await metadata.call(MetadataMethods.initProducer) { _ in }
    #expect(next.producerID > producer.producerID)
    let offsets = try await metadata.call(MetadataMethods.fetchOffsets) { $0.group = "g" }
    #expect(offsets.offsets.map(\.offset) == [42])
    let cluster = try await metadata.call(MetadataMethods.describeCluster) { _ in }
    #expect(!cluster.ready, "the nodes of before were not heard since")
    // Everybody gets the start's grace before being judged.
    for _ in 0..<40 {
      clock.advance(.milliseconds(100))
      await metadata.node.tick()
    }
    after = try await metadata.image()
    #expect(after.nodes.values.allSatisfy { $0.state.isLive })
    for _ in 0..<60 {
      clock.advance(.milliseconds(100))
      await metadata.node.tick()
    }
    after = try await metadata.image()
    #expect(after.nodes.values.filter { $0.service == .replication }[0].state == .fenced)
    await metadata.stop()
  }

  @Test func `topics are listed and described with effective settings`() async throws {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    for name in ["b", "a", "ab"] { try await metadata.makeTopic(name) }
    let all = try await metadata.call(MetadataMethods.listTopics) { _ in }
    #expect(all.topics.map(\.name) == ["a", "ab", "b"])
    let some = try await metadata.call(MetadataMethods.listTopics) { $0.prefix = "a" }
    #expect(some.topics.map(\.name) == ["a", "ab"] && !some.more)
    let page = try await metadata.call(MetadataMethods.listTopics) { $0.limit = 2 }
    #expect(page.topics.map(\.name) == ["a", "ab"] && page.more)
    let rest = try await metadata.call(MetadataMethods.listTopics) {
      $0.limit = 2
      $0.after = "ab"
    }
    #expect(rest.topics.map(\.name) == ["b"] && !rest.more)
    _ = try await metadata.call(MetadataMethods.alterTopic) {
      $0.name = "a"
      $0.settings = ["retention.ms": "5000"]
      $0.partitionCount = 3
    }
    let topic = try await metadata.call(MetadataMethods.describeTopic) { $0.name = "a" }
    #expect(topic.partitions.map(\.topicPartition.partition) == [0, 1, 2])
    #expect(topic.effectiveSettings["retention.ms"] == "5000")
    #expect(topic.effectiveSettings["scan.policy"] == "off")
    let none = await thrown {
      try await metadata.call(MetadataMethods.describeTopic) { $0.name = "nowhere" }
    }
    #expect(none?.code == .topicNotFound && none?.subject == "nowhere")
    let many = await thrown {
      try await metadata.call(MetadataMethods.createTopic) {
        $0.name = "t"
        $0.replicationFactor = 3
      }
    }
    #expect(many?.code == .replicationFactorInvalid && many?.limit == 1 && many?.actual == 3)
    await metadata.stop()
  }

  @Test func `a page of a list is no larger than a client takes, and pages leave nothing out`()
    async throws
  {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let topic = try await metadata.makeTopic("media")
    // Attributes as large as they may be: 50 such files fill a page.
    var attributes: [String: String] = [:]
    for number in 0..<64 {
      attributes["k\(number)"] = String(repeating: "v", count: 1_000)
    }
    let names = (0..<120).map { "file \(1_000 + $0)" }
    for (number, name) in names.enumerated() {
      var record = try await metadata.call(MetadataMethods.createUpload) { [attributes] in
        $0.upload = .with {
          $0.uploadID = UploadID(test: UInt64(number)).wire
          $0.topicID = topic.topicID
          $0.name = name
          $0.state = number < 60 ? .publishing : .quarantined
          $0.declaredSize = 3
          $0.offset = 3
          $0.sha256 = .init(repeating: 1, count: 32)
          $0.verdict.kind = number < 60 ? .off : .infected
          $0.inlineBody = .init([1, 2, 3])
          $0.attributes = attributes
        }
      }
      guard number < 60 else { continue }
      record.state = .published
      record.recordOffset = Int64(number)
      _ = try await metadata.call(MetadataMethods.advanceUpload) { [record] in $0.upload = record }
    }

    var files: [String] = []
    var pages = 0
    while true {
      let page = try await metadata.call(MetadataMethods.listFiles) { [files] in
        $0.topicID = topic.topicID
        $0.after = files.last ?? ""
        $0.limit = 10_000
      }
      #expect(try page.serializedData().count <= 4 << 20)
      files += page.files.map(\.name)
      pages += 1
      if !page.more { break }
    }
    #expect(files == Array(names[..<60]) && pages == 2)

    var uploads: [Memq_V1_UploadRecord] = []
    while true {
      let page = try await metadata.call(MetadataMethods.listUploads) { [uploads] in
        $0.states = [.published]
        $0.limit = 1_000
        if let last = uploads.last {
          $0.afterUpdatedAtMs = last.updatedAtMs
          $0.afterUploadID = last.uploadID
        }
      }
      #expect(try page.serializedData().count <= 4 << 20)
      uploads += page.uploads
      if !page.more { break }
    }
    #expect(uploads.map(\.name).sorted() == Array(names[..<60]))

    var entries: [Memq_V1_UploadRecord] = []
    while true {
      let page = try await metadata.call(MetadataMethods.listQuarantine) { [entries] in
        if let last = entries.last {
          $0.afterUpdatedAtMs = last.updatedAtMs
          $0.afterUploadID = last.uploadID
        }
      }
      #expect(try page.serializedData().count <= 4 << 20)
      entries += page.entries
      if !page.more { break }
    }
    #expect(entries.map(\.name).sorted() == Array(names[60...]))
    await metadata.stop()
  }

  /// A member of group "g" that reads topic "t", as its requests name it.
  private struct Reader {
    let metadata: TestMetadata
    let memberID: String
    var epoch: Int64
    var number: Int64 = 0
    var assigned: [Memq_V1_TopicPartition]

    init(
      _ metadata: TestMetadata, _ fill: (inout Memq_V1_JoinGroupRequest) -> Void = { _ in }
    ) async throws {
      let place = try await metadata.call(MetadataMethods.joinGroup) {
        $0.group = "g"
        $0.topics = ["t"]
        $0.clientID = "c"
        $0.sessionTimeoutMs = 4_000
        fill(&$0)
      }
      self.metadata = metadata
      self.memberID = place.memberID
      self.epoch = place.memberEpoch
      self.assigned = place.assigned
    }

    func request(
      reading: [Memq_V1_TopicPartition]? = nil, wait: Int32 = 0
    ) -> Memq_V1_HeartbeatGroupRequest {
      .with {
        $0.group = "g"
        $0.memberID = self.memberID
        $0.memberEpoch = self.epoch
        $0.number = self.number
        $0.waitMaxMs = wait
        if let reading { $0.reading.partitions = reading }
      }
    }

    mutating func beat(
      reading: [Memq_V1_TopicPartition]? = nil, wait: Int32 = 0
    ) async throws {
      self.number += 1
      let request = self.request(reading: reading, wait: wait)
      self.hear(try await self.metadata.call(MetadataMethods.heartbeatGroup) { $0 = request })
    }

    mutating func hear(_ answer: Memq_V1_HeartbeatGroupResponse) {
      self.epoch = answer.memberEpoch
      if answer.hasAssigned { self.assigned = answer.assigned.partitions }
    }

    func commit(_ partition: Memq_V1_TopicPartition, _ offset: Int64) async throws {
      _ = try await self.metadata.call(MetadataMethods.commitOffsets) {
        $0.group = "g"
        $0.memberID = self.memberID
        $0.memberEpoch = self.epoch
        $0.offsets = [
          .with {
            $0.topicPartition = partition
            $0.offset = offset
          }
        ]
      }
    }
  }

  private static func groupMetadata(
    partitions: Int32 = 4
  ) async throws -> TestMetadata {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    try await metadata.makeTopic("t", partitions: partitions)
    return metadata
  }

  private func pass(_ metadata: TestMetadata, milliseconds: Int) async {
    for _ in 0..<(milliseconds / 100) {
      metadata.clock.advance(.milliseconds(100))
      await metadata.node.tick()
    }
  }

  private func group(_ metadata: TestMetadata) async throws -> Memq_V1_GroupDescription {
    try await metadata.call(MetadataMethods.describeGroup) { $0.group = "g" }
  }

  @Test func `a group's silent member leaves, its offsets stay`() async throws {
    let metadata = try await Self.groupMetadata()
    var reader = try await Reader(metadata)
    for _ in 0..<3 {
      await pass(metadata, milliseconds: 3_200)
      try await reader.beat()
    }
    try await reader.commit(reader.assigned[1], 42)
    var group = try await group(metadata)
    #expect(group.members.map(\.memberID) == [reader.memberID] && group.state == .stable)
    #expect(group.members[0].topics == ["t"] && group.members[0].assigned.count == 4)
    await pass(metadata, milliseconds: 4_200)
    group = try await self.group(metadata)
    #expect(group.members.isEmpty && group.state == .empty && group.offsets.map(\.offset) == [42])
    #expect(await thrown { try await reader.beat() }?.code == .groupMemberUnknown)
    let partition = reader.assigned[1]
    #expect(await thrown { try await reader.commit(partition, 43) }?.code == .groupMemberUnknown)
    _ = try await metadata.call(MetadataMethods.deleteGroup) { $0.group = "g" }
    #expect(try await metadata.call(MetadataMethods.listGroups) { _ in }.groups.isEmpty)
    await metadata.stop()
  }

  @Test func `a held heartbeat hears at once what it is to give back and to get`() async throws {
    let metadata = try await Self.groupMetadata()
    var first = try await Reader(metadata)
    #expect(first.assigned.count == 4)
    first.number = 1
    let held = first.request(wait: 30_000)
    async let told = metadata.call(MetadataMethods.heartbeatGroup) { $0 = held }
    var second = try await Reader(metadata)
    #expect(second.assigned.isEmpty)
    first.hear(try await told)
    #expect(first.assigned.count == 2)
    second.number = 1
    let waiting = second.request(wait: 30_000)
    async let given = metadata.call(MetadataMethods.heartbeatGroup) { $0 = waiting }
    try await first.beat(reading: first.assigned)
    second.hear(try await given)
    #expect(second.assigned.count == 2)
    #expect(Set(first.assigned).isDisjoint(with: second.assigned))
    // A topic that grows.
    first.number = 3
    let grown = first.request(wait: 30_000)
    async let more = metadata.call(MetadataMethods.heartbeatGroup) { $0 = grown }
    _ = try await metadata.call(MetadataMethods.alterTopic) {
      $0.name = "t"
      $0.partitionCount = 6
    }
    await metadata.node.tick()
    first.hear(try await more)
    #expect(first.assigned.count == 3)
    await metadata.stop()
  }

  @Test func `who keeps partitions for too long is taken out`() async throws {
    let metadata = try await Self.groupMetadata()
    var first = try await Reader(metadata) { $0.rebalanceTimeoutMs = 10_000 }
    var second = try await Reader(metadata)
    // It lives, and reads on.
    let all = first.assigned
    for _ in 0..<3 {
      await pass(metadata, milliseconds: 3_000)
      try await first.beat(reading: all)
      try await second.beat()
    }
    #expect(second.assigned.isEmpty)
    await pass(metadata, milliseconds: 1_500)
    try await second.beat()
    #expect(second.assigned.count == 4)
    #expect(await thrown { try await first.beat() }?.code == .groupMemberUnknown)
    await metadata.stop()
  }

  @Test func `who gives back in time is not taken out, however many come`() async throws {
    let metadata = try await Self.groupMetadata(partitions: 60)
    var first = try await Reader(metadata) { $0.rebalanceTimeoutMs = 10_000 }
    var others: [Reader] = []
    // What it reads, and since when, in half seconds, it is to give some of that back.
    var reading = first.assigned
    var asked: [Memq_V1_TopicPartition: Int] = [:]
    for turn in 0..<60 {
      if turn % 12 == 0 { others.append(try await Reader(metadata)) }
      await pass(metadata, milliseconds: 500)
      // Eight seconds for each.
      reading.removeAll { partition in asked[partition].map { turn - $0 >= 16 } ?? false }
      try await first.beat(reading: reading)
      for index in others.indices { try await others[index].beat(reading: others[index].assigned) }
      let kept = Set(first.assigned)
      for partition in reading where !kept.contains(partition) && asked[partition] == nil {
        asked[partition] = turn
      }
    }
    #expect(others.count == 5 && asked.count > 40)
    await metadata.stop()
  }

  @Test func `a member whose connection broke makes room for the next one at once`() async throws {
    let metadata = try await Self.groupMetadata()
    var first = try await Reader(metadata)
    try await first.beat()
    // A notice of an earlier call says nothing of this one.
    let early = first.request()
    try await first.beat()
    func breakOff(_ request: Memq_V1_HeartbeatGroupRequest) async throws {
      _ = try await metadata.call(MetadataMethods.heartbeatGroup) {
        $0 = request
        $0.brokeOff = true
      }
    }
    try await breakOff(early)
    let second = try await Reader(metadata)
    #expect(second.assigned.isEmpty)
    try await breakOff(first.request())
    let third = try await Reader(metadata)
    #expect(third.assigned.count == 2)
    #expect(await thrown { try await first.beat() }?.code == .groupMemberUnknown)
    // One that is heard again stays.
    var last = third
    try await last.beat()
    try await breakOff(last.request())
    try await last.beat()
    await pass(metadata, milliseconds: 3_200)
    try await last.beat()
    await metadata.stop()
  }

  @Test func `after a restart of metadata members go on, and each has its full time`() async throws
  {
    let folder = TestFolder()
    let clock = TestClock()
    let entropy = TestEntropy()
    var metadata = try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy)
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    try await metadata.makeTopic("t", partitions: 4)
    var first = try await Reader(metadata)
    var second = try await Reader(metadata)
    try await first.beat()
    try await first.beat(reading: first.assigned)
    try await second.beat()
    let before = try await group(metadata)
    await metadata.stop()
    metadata = try await TestMetadata.start(folder: folder, clock: clock, entropy: entropy)
    #expect(try await group(metadata).members == before.members)
    // Eight seconds are the start's grace.
    await pass(metadata, milliseconds: 7_000)
    let answer = try await metadata.call(MetadataMethods.heartbeatGroup) { $0 = first.request() }
    #expect(!answer.hasAssigned && answer.memberEpoch == first.epoch)
    await pass(metadata, milliseconds: 3_000)
    // A tick of the instance's own may still be at it.
    while try await group(metadata).members.count > 1 { await Task.yield() }
    #expect(try await group(metadata).members.map(\.memberID) == [first.memberID])
    await metadata.stop()
  }

  @Test func `commits that come together are written together`() async throws {
    let metadata = try await Self.groupMetadata(partitions: 100)
    let reader = try await Reader(metadata)
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      for (index, partition) in reader.assigned.enumerated() {
        tasks.addTask { try await reader.commit(partition, Int64(index)) }
      }
      try await tasks.waitForAll()
    }
    let offsets = try await metadata.call(MetadataMethods.fetchOffsets) { $0.group = "g" }
    #expect(offsets.offsets.map(\.offset).sorted() == Array(0..<100))
    await metadata.stop()
  }

  @Test func `leases and objects over the wire`() async throws {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let uploader = try await metadata.silentNode(.uploader, uuid: 2)
    try await metadata.makeTopic("t", partitions: 2)
    func acquire() async throws -> [Memq_V1_UploadLease] {
      try await metadata.call(MetadataMethods.acquireUploadLeases) {
        $0.nodeID = uploader.nodeID
        $0.nodeEpoch = uploader.nodeEpoch
        $0.moreMax = 4
      }.leases
    }
    let lease = try await acquire()[0]
    #expect(lease.positions.map(\.nextOffset) == [0, 0])
    func commit(
      _ object: UInt64, base: Int64, end: Int64
    ) async throws -> Memq_V1_CommitObjectResponse {
      try await metadata.call(MetadataMethods.commitObject) {
        $0.nodeID = uploader.nodeID
        $0.nodeEpoch = uploader.nodeEpoch
        $0.object = .with {
          $0.objectID = ObjectID(test: object).wire
          $0.groupID = lease.groupID
          $0.key = "objects/\(object)"
          $0.size = 10
          $0.leaseEpoch = lease.leaseEpoch
        }
        $0.ranges = [
          .with {
            $0.topicPartition = lease.positions[0].topicPartition
            $0.baseOffset = base
            $0.endOffset = end
          }
        ]
        $0.billedRequests = 1
      }
    }
    for number in 0..<5 {
      let done = try await commit(
        UInt64(number), base: Int64(number * 10), end: Int64(number * 10 + 10))
      #expect(done.sequence == Int64(number + 1) && done.refused.isEmpty)
    }
    let gap = try await commit(9, base: 60, end: 70)
    #expect(gap.sequence == 0 && gap.refused == [0] && gap.positions[0].nextOffset == 50)
    let page = try await metadata.call(MetadataMethods.listObjects) {
      $0.groupID = lease.groupID
      $0.afterSequence = 1
      $0.limit = 2
    }
    #expect(page.objects.map(\.sequence) == [2, 3] && page.more)
    #expect(try await metadata.image().partitions.values.first!.uploadedOffset == Offset(50))
    let live = try await metadata.call(MetadataMethods.barObject) {
      $0.objectID = ObjectID(test: 1).wire
      $0.groupID = lease.groupID
    }
    #expect(live.live)
    let over = await thrown {
      try await metadata.call(MetadataMethods.listObjects) { $0.limit = 10_001 }
    }
    #expect(over?.code == .invalidArgument && over?.limit == 10_000)
    await metadata.stop()
  }

  @Test func `a file goes from upload to list, a deleted topic takes all along`() async throws {
    let metadata = try await TestMetadata.start { $0.housekeepingInterval = .milliseconds(20) }
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let topic = try await metadata.makeTopic("media")
    func publish(_ id: UInt64, _ name: String) async throws -> Memq_V1_UploadRecord {
      var record = try await metadata.call(MetadataMethods.createUpload) {
        $0.upload = .with {
          $0.uploadID = UploadID(test: id).wire
          $0.topicID = topic.topicID
          $0.name = name
          $0.state = .publishing
          $0.declaredSize = 3
          $0.offset = 3
          $0.sha256 = .init(repeating: 1, count: 32)
          $0.verdict.kind = .off
          $0.inlineBody = .init([1, 2, 3])
        }
      }
      #expect(record.inlineBody.isEmpty && record.producerID >= 1 << 62)
      let whole = try await metadata.call(MetadataMethods.getUpload) {
        $0.uploadID = record.uploadID
      }
      #expect(Array(whole.inlineBody) == [1, 2, 3])
      record.state = .published
      record.recordOffset = Int64(id)
      return try await metadata.call(MetadataMethods.advanceUpload) { [record] in
        $0.upload = record
      }
    }
    for (id, name) in [(1, "b"), (2, "a"), (3, "a"), (4, "ä"), (5, "a/c")] as [(UInt64, String)] {
      #expect(try await publish(id, name).state == .published)
    }
    let page = try await metadata.call(MetadataMethods.listFiles) {
      $0.topicID = topic.topicID
      $0.limit = 3
    }
    #expect(page.files.map(\.name) == ["a", "a/c", "b"] && page.more)
    #expect(page.files.map(\.version) == [2, 1, 1])
    let rest = try await metadata.call(MetadataMethods.listFiles) {
      $0.topicID = topic.topicID
      $0.after = "b"
    }
    #expect(rest.files.map(\.name) == ["ä"] && !rest.more)
    let old = try await metadata.call(MetadataMethods.getFile) {
      $0.topicID = topic.topicID
      $0.name = "a"
      $0.version = 1
    }
    #expect(old.offset == 2)
    let done = try await metadata.call(MetadataMethods.listUploads) { $0.states = [.published] }
    #expect(done.uploads.count == 5)
    _ = try await metadata.call(MetadataMethods.removeFile) {
      $0.topicID = topic.topicID
      $0.name = "a"
    }
    let none = await thrown {
      try await metadata.call(MetadataMethods.getFile) {
        $0.topicID = topic.topicID
        $0.name = "a"
      }
    }
    #expect(none?.code == .fileNotFound)

    _ = try await metadata.call(MetadataMethods.deleteTopic) { $0.name = "media" }
    let store = try metadata.node.instance().store
    let watch = try store.watch(KeyRange(prefix: .graves), after: store.revision)
    while try await store.range(KeyRange(prefix: .graves), limit: 1).entries.count > 0 {
      _ = try await watch.next()
    }
    #expect(try await store.range(KeyRange(prefix: StoreKey("f/")), limit: 9).entries.isEmpty)
    #expect(try await store.range(KeyRange(prefix: .partitions), limit: 9).entries.isEmpty)
    await metadata.stop()
  }

  @Test func `two steps from the same version: one gets through`() async throws {
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    let topic = try await metadata.makeTopic("media")
    let record = try await metadata.call(MetadataMethods.createUpload) {
      $0.upload = .with {
        $0.uploadID = UploadID(test: 1).wire
        $0.topicID = topic.topicID
        $0.name = "f"
        $0.state = .open
        $0.declaredSize = -1
      }
    }
    let outcomes = await withTaskGroup(of: ErrorCode?.self) { tasks in
      for offset in 1...8 {
        tasks.addTask {
          await thrown {
            try await metadata.call(MetadataMethods.advanceUpload) {
              $0.upload = record
              $0.upload.offset = Int64(offset)
            }
          }?.code
        }
      }
      var outcomes: [ErrorCode?] = []
      for await outcome in tasks { outcomes.append(outcome) }
      return outcomes
    }
    #expect(outcomes.count { $0 == nil } == 1)
    #expect(outcomes.count { $0 == .revisionConflict } == 7)
    let unknown = await thrown {
      try await metadata.call(MetadataMethods.getUpload) { $0.uploadID = UploadID(test: 9).wire }
    }
    #expect(unknown?.code == .uploadNotFound)
    await metadata.stop()
  }
}
