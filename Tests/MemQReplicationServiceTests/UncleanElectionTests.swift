// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQSystem
import SwiftProtobuf
import Testing

extension ReplicaTests {
  /// All replicas have ten records; then the others are cut off, and whoever leads is in sync alone.
  private func leadAlone(
    _ partition: TopicPartition, in cluster: ReplicaCluster
  ) async throws -> (leader: Int, others: [Int]) {
    try await self.append(0..<10, to: partition, in: cluster)
    try await cluster.waitForISR(3, of: partition)
    try await cluster.waitUntilEqual(partition, end: 10)
    let leader = try await cluster.leader(of: partition)
    let others = cluster.numbers.filter { $0 != leader }
    for other in others { await cluster.cutOff(other) }
    try await cluster.waitForISR(1, of: partition)
    return (leader, others)
  }

  @Test
  func `an idle replica that ends below what was uploaded goes on behind it once it has to lead`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events", ["min.insync.replicas": "1"])
      let (leader, others) = try await self.leadAlone(partition, in: cluster)
      try await self.append(10..<20, to: partition, in: cluster)
      await cluster.cutOff(leader)
      try await cluster.wait(partition) { $0.leader == nil }
      // It lives with half of the log, and nobody leads.
      try await cluster.start(others[0])
      // It takes its replica up in a moment.
      var found = try await cluster.description(partition, on: others[0])
      for _ in 0..<400 where found?.logEndOffset != 10 {
        try await Task.sleep(for: .milliseconds(25))
        found = try await cluster.description(partition, on: others[0])
      }
      #expect(found?.logEndOffset == 10)
      // The lost leader's records were uploaded in time.
      try await cluster.upload(partition, through: 20)
      try await cluster.wait(partition) { $0.uploadedOffset == Offset(20) && $0.leader == nil }
      try await cluster.alter("events", ["unclean.leader.election.enable": "true"])
      let answer = try await cluster.append(try batch(["after"]), to: partition)
      #expect(!answer.hasError && answer.baseOffset == 20)
      let image = try await cluster.wait(partition) { $0.leader != nil }
      #expect(image.historyEpoch == HistoryEpoch(1) && image.logStart == .zero)
      // Who comes back with as little begins there, too.
      try await cluster.start(others[1])
      try await cluster.waitForISR(2, of: partition)
      try await cluster.waitUntilEqual(partition, end: 21)
      for number in others {
        let replica = try await cluster.description(partition, on: number)
        #expect(replica?.localStartOffset == 20)
      }
    }
  }

  @Test
  func
    `a replica that holds another history than what was uploaded goes on behind it once it has to lead`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic(
        "events", ["min.insync.replicas": "1", "unclean.leader.election.enable": "true"])
      let (first, others) = try await self.leadAlone(partition, in: cluster)
      // Nobody else will ever have these.
      try await self.append(10..<25, to: partition, in: cluster)
      await cluster.cutOff(first)
      try await cluster.start(others[0])
      let second = try await cluster.wait(partition) {
        $0.leader != nil && $0.historyEpoch.rawValue == 1
      }
      try await self.append(10..<20, to: partition, in: cluster)
      try await cluster.upload(
        partition, through: 20, HistoryEpoch(1), lastEpoch: second.leaderEpoch)
      try await cluster.wait(partition) { $0.uploadedOffset == Offset(20) }
      await cluster.cutOff(others[0])
      try await cluster.start(first)
      try await cluster.wait(partition) { $0.leader != nil && $0.historyEpoch.rawValue == 2 }
      let answer = try await cluster.append(try batch(["after"]), to: partition)
      #expect(!answer.hasError && answer.baseOffset == 20)
      let replica = try await cluster.description(partition, on: first)
      #expect(replica?.localStartOffset == 20 && replica?.logEndOffset == 21)
    }
  }
}

extension ReplicaTests {
  @Test
  func `a reader who read what an unclean election lost is told, the others are not`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events", ["min.insync.replicas": "1"])
      let (leader, others) = try await self.leadAlone(partition, in: cluster)
      try await self.append(10..<20, to: partition, in: cluster)
      let read = try await cluster.readHeader(partition, at: 0)
      let epoch = read.lastEpoch
      #expect(read.nextOffset == 20 && read.hasLastEpoch)
      let same = try await cluster.readHeader(partition, at: 20, lastEpoch: epoch)
      #expect(same.nextOffset == 20 && same.lastEpoch == epoch && !same.hasTruncation)
      await cluster.cutOff(leader)
      try await cluster.wait(partition) { $0.leader == nil }
      try await cluster.start(others[0])
      try await cluster.alter("events", ["unclean.leader.election.enable": "true"])
      // More than was lost: the old offset exists again.
      for number in 0..<15 {
        let answer = try await cluster.append(try batch(["new-\(number)"]), to: partition)
        #expect(!answer.hasError && answer.baseOffset == 10 + Int64(number))
      }
      for offset: Int64 in [15, 20, 25, 99] {
        let told = try await cluster.readHeader(partition, at: offset, lastEpoch: epoch)
        #expect(told.truncation.epoch == epoch && told.truncation.endOffset == 10)
        #expect(told.truncation.resumeOffset == 10 && told.truncation.resumeEpoch == epoch)
      }
      let agrees = try await cluster.readHeader(partition, at: 10, lastEpoch: epoch)
      #expect(!agrees.hasTruncation && agrees.nextOffset == 25 && agrees.lastEpoch > epoch)
      let unchecked = try await cluster.readHeader(partition, at: 20)
      #expect(!unchecked.hasTruncation && unchecked.nextOffset == 25)
      // A leader that is behind its reader does not judge it.
      let error = await #expect(throws: MemQError.self) {
        try await cluster.readHeader(partition, at: 20, lastEpoch: agrees.lastEpoch + 1)
      }
      #expect(error?.code == .unknownLeaderEpoch)
    }
  }
}

extension ReplicaCluster {
  /// The last answer's fields of one read that waits for nothing.
  func readHeader(
    _ partition: TopicPartition, at offset: Int64, lastEpoch: Int64? = nil
  ) async throws -> Memq_V1_ReadResponse {
    let channel = try #require(try self.leaderChannel(partition, lane: .read))
    let responses = try await channel.streamHot(
      ReplicationMethods.read,
      .with {
        $0.topicPartition = partition.wire
        $0.offset = offset
        $0.leaderEpoch = -1
        if let lastEpoch { $0.lastEpoch = lastEpoch }
      }, RPCCallOptions(timeout: Self.wait))
    var last = Memq_V1_ReadResponse()
    while let response = try await responses.next() { last = response.header }
    return last
  }

  func alter(_ topic: String, _ settings: [String: String]) async throws {
    _ = try await self.metadataChannel.call(
      MetadataMethods.alterTopic,
      .with {
        $0.name = topic
        $0.settings = settings
      }, timeout: Self.wait)
  }

  /// As an uploader announces it: the partition's records below `end` stand in an object.
  func upload(
    _ partition: TopicPartition, through end: Int64, _ history: HistoryEpoch = .zero,
    lastEpoch: LeaderEpoch = .none
  ) async throws {
    let entropy = SystemEntropy()
    let uploader = try await self.metadataChannel.call(
      MetadataMethods.registerNode,
      .with {
        $0.nodeUuid = (entropy.identifier() as NodeUUID).wire
        $0.service = .uploader
        $0.address = "unix:/no-uploader"
      }, timeout: Self.wait)
    let leases = try await self.metadataChannel.call(
      MetadataMethods.acquireUploadLeases,
      .with {
        $0.nodeID = uploader.nodeID
        $0.nodeEpoch = uploader.nodeEpoch
        $0.moreMax = 1
      }, timeout: Self.wait
    ).leases
    let lease = try #require(leases.first)
    let done = try await self.metadataChannel.call(
      MetadataMethods.commitObject,
      .with {
        $0.nodeID = uploader.nodeID
        $0.nodeEpoch = uploader.nodeEpoch
        $0.object = .with {
          $0.objectID = (entropy.identifier() as ObjectID).wire
          $0.groupID = lease.groupID
          $0.key = "objects/1"
          $0.size = 1
          $0.leaseEpoch = lease.leaseEpoch
        }
        $0.ranges = [
          .with {
            $0.topicPartition = partition.wire
            $0.endOffset = end
            $0.historyEpoch = history.rawValue
            if lastEpoch != .none { $0.lastLeaderEpoch = lastEpoch.rawValue }
          }
        ]
      }, timeout: Self.wait)
    #expect(done.sequence == 1 && done.refused.isEmpty)
  }
}
