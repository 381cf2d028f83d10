// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
@testable import MemQMetadataService
import MemQModel
import MemQObjectStore
import MemQRuntime
import MemQStore
import Testing

@Suite struct SnapshotTests {
  private static let logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }()

  private func bucket() async throws -> SnapshotStore {
    let objects = ObjectStoreConfiguration(folder: TestFolder().path + "-objects")
    return SnapshotStore(objects: try await ObjectStores.make(objects, logger: Self.logger))
  }

  private func restore(
    _ bucket: SnapshotStore, _ wanted: String = "newest"
  ) async throws -> MemoryStore {
    let store = MemoryStore()
    let restore = SnapshotRestore(
      snapshots: bucket, store: store, entropy: TestEntropy(), logger: Self.logger)
    #expect(try await restore.run(wanted))
    return store
  }

  private func write(_ metadata: TestMetadata, _ bucket: SnapshotStore) async throws {
    let writer = SnapshotWriter(
      instance: try metadata.node.instance(), snapshots: bucket, interval: .seconds(1))
    _ = try await writer.write()
  }

  private func names(_ store: MemoryStore) async throws -> [String] {
    let entries = try await store.range(KeyRange(prefix: .topicNames), limit: .max).entries
    return entries.map { String(decoding: $0.key.bytes.dropFirst(4), as: UTF8.self) }
  }

  @Test(.timeLimit(.minutes(1)))
  func `a restored store is the one of the snapshot, above all that was given out`() async throws {
    let bucket = try await self.bucket()
    let metadata = try await TestMetadata.start()
    let member = try await metadata.member(.replication, uuid: 1, volumes: [77])
    let topic = try await metadata.makeTopic("t", partitions: 250)
    try await metadata.makeTopic("gone")
    let gone = try TopicID(
      wire: try await metadata.call(MetadataMethods.deleteTopic) { $0.name = "gone" }.topicID,
      "topic_id")
    try await metadata.node.instance().runner.run("close-grave") { $0.closeGrave(gone) }
    // What changes while it is written is in it, as a whole.
    let later = Task {
      for number in 0..<20 { try await metadata.makeTopic("later-\(number)", partitions: 3) }
    }
    try await self.write(metadata, bucket)
    try await later.value
    try await self.write(metadata, bucket)
    let before = try await metadata.image()
    let restored = try await self.restore(bucket)
    var state = MetadataState()
    let entries = try await restored.range(KeyRange(prefix: .memory), limit: .max).entries
    _ = try state.apply(
      entries.map { StoreChange(key: $0.key, value: $0.value, revision: $0.revision) })
    let after = try #require(state.image)
    #expect(after.clusterID == before.clusterID && after.incarnation == Incarnation(2))
    #expect(after.incarnationID != before.incarnationID)
    #expect(after.topics == before.topics && after.topics.count == 21)
    #expect(after.partitions.count == before.partitions.count)
    for (old, new) in zip(before.partitions.values, after.partitions.values) {
      #expect(new.id == old.id && new.replicas == old.replicas && new.inSync == old.inSync)
      #expect(new.leader == nil && new.leaderEpoch > old.leaderEpoch && new.epoch > old.epoch)
    }
    // No session; the metadata instance's own row is gone, it makes another.
    #expect(after.nodes.count == 1)
    #expect(after.nodes[member.nodeID]?.state == .fenced)
    #expect(after.nodes[member.nodeID]!.epoch > before.nodes[member.nodeID]!.epoch)
    #expect(topic.name == "t")
    // That a topic was deleted is known: nodes that were away still ask.
    #expect(try await restored.get([.tombstone(gone)])[0] != nil)
    // It is a store that an instance takes.
    #expect(
      try await SnapshotRestore(
        snapshots: bucket, store: restored, entropy: TestEntropy(), logger: Self.logger
      ).run("newest") == false)
    await member.stop()
    await metadata.stop()
  }

  @Test(.timeLimit(.minutes(1)))
  func `what changes while a snapshot is written is in it or in the next, never by half`()
    async throws
  {
    let bucket = try await self.bucket()
    let metadata = try await TestMetadata.start()
    let member = try await metadata.member(.replication, uuid: 1, volumes: [77])
    let changing = Task {
      for number in 0..<60 {
        try await metadata.makeTopic("t-\(number)", partitions: 2)
        if number % 3 == 0 {
          _ = try await metadata.call(MetadataMethods.deleteTopic) { $0.name = "t-\(number)" }
        }
      }
    }
    for _ in 0..<5 {
      try await self.write(metadata, bucket)
      let store = try await self.restore(bucket)
      // Topics and their names, partitions and upload positions are of one moment.
      var state = MetadataState()
      let entries = try await store.range(KeyRange(prefix: .memory), limit: .max).entries
      _ = try state.apply(
        entries.map { StoreChange(key: $0.key, value: $0.value, revision: $0.revision) })
      #expect(state.names.values.allSatisfy { state.topics[$0.value.id] != nil })
      for topic in state.topics.values {
        #expect(state.image!.partitions(of: topic.value.id).count == 2)
      }
      for partition in state.partitions.values {
        let group = state.uploadGroups[partition.value.uploadGroup]?.value
        #expect(group?.positions[partition.value.id] != nil)
      }
    }
    try await changing.value
    await member.stop()
    await metadata.stop()
  }

  @Test(.timeLimit(.minutes(1)))
  func `a damaged snapshot gives way to the one before, and those of two clusters to a name`()
    async throws
  {
    let bucket = try await self.bucket()
    let metadata = try await TestMetadata.start()
    _ = try await metadata.silentNode(.replication, uuid: 1, volumes: [77])
    try await metadata.makeTopic("old")
    try await self.write(metadata, bucket)
    try await metadata.makeTopic("new")
    try await self.write(metadata, bucket)
    #expect(try await self.names(self.restore(bucket)) == ["new", "old"])
    let newest = try #require(try await bucket.list("meta/").whole.last)
    _ = try await bucket.put([1, 2, 3], try newest.part(0))
    #expect(try await self.names(self.restore(bucket)) == ["old"])
    // Kept are as many as wished; the rest goes with all its parts.
    try await self.write(metadata, bucket)
    try await bucket.keep(1, of: newest.cluster)
    let left = try await bucket.list("meta/")
    #expect(left.whole.count == 1 && left.keys.count == 1 && left.whole[0] > newest)

    let other = try await TestMetadata.start(entropy: TestEntropy(from: 99))
    try await self.write(other, bucket)
    let refused = await thrown { try await self.restore(bucket) }
    #expect(refused?.code == .invalidArgument)
    #expect(refused?.message.contains(newest.cluster.description) == true)
    #expect(
      try await self.names(self.restore(bucket, newest.cluster.description)) == ["new", "old"])
    let unknown = await thrown { try await self.restore(bucket, "nobody") }
    #expect(unknown?.code == .objectNotFound)
    await other.stop()
    await metadata.stop()
  }
}
