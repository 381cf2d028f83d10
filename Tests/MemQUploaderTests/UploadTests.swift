// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQAPI
import MemQModel
import MemQPacking
import MemQRPC
import MemQRuntime
import MemQUploaderService
import SwiftProtobuf
import Testing

@Suite(.serialized) struct UploadTests {
  private func flush(
    _ cluster: TestCluster, _ topic: String, at uploader: String = "uploader"
  ) async throws(MemQError) -> Memq_V1_FlushResponse {
    try await cluster.call(uploader, UploaderMethods.flush) { $0.topic = topic }
  }

  @Test func `a flush puts everything committed into objects, byte for byte`() async throws {
    let cluster = try await TestCluster()
    try await cluster.uploader { $0.objectBytes = 1 << 20 }
    let partitions = try await cluster.topic("events", partitions: 3)
    for partition in partitions { try await cluster.produce(partition, batches: 40, size: 2_000) }
    let done = try await self.flush(cluster, "events")
    for partition in partitions {
      try await cluster.until("the image knows") { cluster.uploaded(partition) == 400 }
      #expect(try await cluster.cold(partition, below: 400) == cluster.log(partition))
    }
    // Objects that filled up before the flush began are not counted as its own; together they hold every record once.
    let runs = try cluster.runs()
    for partition in partitions {
      let mine = runs.filter { $0.partition == partition }.sorted { $0.baseOffset < $1.baseOffset }
      #expect(mine.map(\.baseOffset) == [.zero] + mine.dropLast().map(\.endOffset))
      #expect(mine.last?.endOffset == Offset(400))
    }
    #expect(runs.reduce(0) { $0 + $1.recordCount } == 1_200 && done.records <= 1_200)

    let status = try await cluster.call("uploader", UploaderMethods.status) { $0.topic = "events" }
    #expect(status.partitions.map(\.partition) == [0, 1, 2])
    #expect(status.partitions.allSatisfy { $0.uploadedOffset == 400 && $0.highWatermark == 400 })
    #expect(status.objects == Int64(cluster.keys("objects").count))
    #expect(status.objects >= done.objects && status.objectBytes > 2_400_000)
    #expect(status.billedRequests >= status.objects)

    // Nothing new: nothing uploaded. An unknown topic: said so.
    #expect(try await self.flush(cluster, "events").objects == 0)
    let unknown = await #expect(throws: MemQError.self) { try await self.flush(cluster, "nope") }
    #expect(unknown?.code == .topicNotFound)
    await cluster.end()
  }

  @Test func `a few records are uploaded by themselves after their linger, and once`() async throws
  {
    let cluster = try await TestCluster()
    try await cluster.uploader { $0.linger = .milliseconds(300) }
    let partition = try await cluster.topic("slow")[0]
    try await cluster.produce(partition, batches: 1)
    try await cluster.until("they are uploaded") { cluster.uploaded(partition) == 10 }
    #expect(cluster.keys("objects").count == 1)
    try await cluster.produce(partition, batches: 1)
    try await cluster.until("they are uploaded") { cluster.uploaded(partition) == 20 }
    #expect(cluster.keys("objects").count == 2)
    #expect(try await cluster.cold(partition, below: 20) == cluster.log(partition))
    await cluster.end()
  }

  @Test func `topics without an object tier stay on the SSD`() async throws {
    let cluster = try await TestCluster()
    try await cluster.uploader()
    let partition = try await cluster.topic("local", ["object.tier": "false"])[0]
    try await cluster.produce(partition, batches: 1)
    #expect(try await self.flush(cluster, "local").objects == 0)
    #expect(try await self.flush(cluster, "").objects == 0)
    #expect(cluster.uploaded(partition) == 0 && cluster.keys("objects").isEmpty)
    await cluster.end()
  }

  @Test func `a flush works at any uploader, and after its holder left`() async throws {
    let cluster = try await TestCluster()
    try await cluster.uploader("uploader")
    let partition = try await cluster.topic("moves")[0]
    try await cluster.produce(partition, batches: 1)
    _ = try await self.flush(cluster, "moves")
    try await cluster.uploader("second")
    try await cluster.produce(partition, batches: 1)
    #expect(try await self.flush(cluster, "moves", at: "second").records == 10)
    #expect(try await self.flush(cluster, "moves", at: "uploader").records == 0)
    await cluster.stop(0)
    try await cluster.produce(partition, batches: 1)
    #expect(try await self.flush(cluster, "moves", at: "second").records == 10)
    #expect(try await cluster.cold(partition, below: 30) == cluster.log(partition))
    await cluster.end()
  }

  @Test func `a store that fails is tried again until it works`() async throws {
    let cluster = try await TestCluster()
    try await cluster.uploader()
    let partition = try await cluster.topic("stubborn")[0]
    try await cluster.produce(partition, batches: 1)
    // A file where the folder of objects must be.
    let obstacle = "\(cluster.objects)/objects"
    try Data().write(to: URL(fileURLWithPath: obstacle))
    let late = await #expect(throws: MemQError.self) {
      try await cluster.channel("uploader").call(
        UploaderMethods.flush, .with { $0.topic = "stubborn" }, timeout: .seconds(1))
    }
    #expect(late?.code == .deadlineExceeded && cluster.uploaded(partition) == 0)
    try FileManager.default.removeItem(atPath: obstacle)
    #expect(try await self.flush(cluster, "stubborn").records == 10)
    #expect(try await cluster.cold(partition, below: 10) == cluster.log(partition))
    #expect(cluster.keys("objects").count == 1 && cluster.keys(".partial/put").isEmpty)
    await cluster.end()
  }

  @Test func `objects of deleted topics go, others stay; so do objects never announced`()
    async throws
  {
    let cluster = try await TestCluster()
    try await cluster.uploader()
    let kept = try await cluster.topic("kept")[0]
    let gone = try await cluster.topic("gone")[0]
    for (partition, name) in [(kept, "kept"), (gone, "gone")] {
      try await cluster.produce(partition, batches: 1)
      _ = try await self.flush(cluster, name)
    }
    let before = cluster.keys("objects")
    #expect(before.count == 2)
    // As an uploader leaves it that dies between PUT and announcement.
    let orphan = before[0].split(separator: "/")[0] + "/\(UUID().uuidString.lowercased())"
    try Data([1]).write(to: URL(fileURLWithPath: "\(cluster.objects)/objects/\(orphan)"))
    await cluster.stop(0)
    _ = try await cluster.call("metadata", MetadataMethods.deleteTopic) { $0.name = "gone" }
    try await cluster.uploader("collecting") { $0.collectInterval = .milliseconds(100) }
    try await cluster.until("one object is left") { cluster.keys("objects").count == 1 }
    #expect(try await cluster.cold(kept, below: 10) == cluster.log(kept))
    await cluster.end()
  }

  @Test func `objects of the only topic go when it is deleted, and the counts with them`()
    async throws
  {
    let cluster = try await TestCluster()
    try await cluster.uploader { $0.collectInterval = .milliseconds(100) }
    let only = try await cluster.topic("only")[0]
    try await cluster.produce(only, batches: 1)
    _ = try await self.flush(cluster, "only")
    let before = try await cluster.call("uploader", UploaderMethods.status)
    #expect(before.objects == 1 && before.objectBytes > 0)
    _ = try await cluster.call("metadata", MetadataMethods.deleteTopic) { $0.name = "only" }
    try await cluster.until("no object is left") { cluster.keys("objects").isEmpty }
    try await cluster.until("the counts say so") {
      let status = try await cluster.call("uploader", UploaderMethods.status)
      return status.objects == 0 && status.objectBytes == 0
    }
    await cluster.end()
  }

  @Test func `a body that can't be deleted holds up no other`() async throws {
    let cluster = try await TestCluster()
    let topic = try await cluster.topic("files")[0].topic
    let folder = "\(cluster.objects)/bodies/\(topic)"
    // The first by name is a folder with something in it: it can't be unlinked.
    let names = ["00000000-0000-4000-8000-000000000001", "ffffffff-0000-4000-8000-000000000002"]
    try FileManager.default.createDirectory(
      atPath: "\(folder)/\(names[0])/in the way", withIntermediateDirectories: true)
    try Data([1]).write(to: URL(fileURLWithPath: "\(folder)/\(names[1])"))
    for name in names {
      let id = UploadID(name)!
      var upload = try await cluster.call("metadata", MetadataMethods.createUpload) {
        $0.upload.uploadID = Data(id.bytes)
        $0.upload.topicID = Data(topic.bytes)
        $0.upload.name = name
        $0.upload.declaredSize = 1
        $0.upload.state = .open
        $0.upload.bodyKey = "bodies/\(topic)/\(name)"
      }
      upload.state = .abandoned
      let step = upload
      _ = try await cluster.call("metadata", MetadataMethods.advanceUpload) { $0.upload = step }
    }
    try await cluster.uploader { $0.collectInterval = .milliseconds(100) }
    try await cluster.until("the other body is gone") {
      !FileManager.default.fileExists(atPath: "\(folder)/\(names[1])")
    }
    let left = try await cluster.call("metadata", MetadataMethods.listDroppingBodies)
    #expect(left.bodyKeys.contains("bodies/\(topic)/\(names[0])"))
    await cluster.end()
  }
}
