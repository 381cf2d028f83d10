// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQReplicationService
import MemQRuntime
import SwiftProtobuf
import Testing

/// Three nodes, replication factor 3, two replicas at least in sync.
@Suite(.serialized, .timeLimit(.minutes(5))) struct ReplicaTests {
  func withCluster(_ body: (ReplicaCluster) async throws -> Void) async throws {
    let cluster = try await ReplicaCluster()
    do {
      try await body(cluster)
    } catch {
      await cluster.end()
      throw error
    }
    await cluster.end()
  }

  /// Appends `range` as one record each, by an idempotent producer; gives the batches.
  @discardableResult
  func append(
    _ range: Range<Int>, to partition: TopicPartition, in cluster: ReplicaCluster, padding: Int = 0
  ) async throws -> [[UInt8]] {
    let tail = String(repeating: "-", count: padding)
    var batches: [[UInt8]] = []
    for number in range {
      let made = try batch(["\(number)\(tail)"], producer: 7, sequence: Int32(number))
      let answer = try await cluster.append(made, to: partition)
      guard !answer.hasError else { throw MemQError(answer.error) }
      batches.append(made)
    }
    return batches
  }

  @Test func `what is acknowledged by all stands on every replica`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      try await self.append(0..<50, to: partition, in: cluster)
      try await cluster.waitForISR(3, of: partition)
      // The watermark comes to followers of an idle partition, too.
      try await cluster.waitUntilEqual(partition, end: 50)
      #expect(try await cluster.values(partition, below: 50) == (0..<50).map { "\($0)" })
    }
  }

  @Test
  func
    `a leader that is cut off is replaced, and what it acknowledged is neither lost nor doubled`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      let batches = try await self.append(0..<30, to: partition, in: cluster)
      try await cluster.waitForISR(3, of: partition)
      let first = try await cluster.leader(of: partition)
      await cluster.cutOff(first)
      let second = try await cluster.leader(of: partition, not: first)
      #expect(second != first)
      let again = try await cluster.append(batches[29], to: partition)
      #expect(!again.hasError)
      #expect(again.duplicate)
      #expect(again.baseOffset == 29)
      try await self.append(30..<40, to: partition, in: cluster)
      #expect(try await cluster.values(partition, below: 40) == (0..<40).map { "\($0)" })
      try await cluster.start(first)
      try await cluster.waitForISR(3, of: partition)
      try await cluster.waitUntilEqual(partition, end: 40)
    }
  }

  @Test func `a follower that was away catches up from its leader's disk and is in sync again`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      try await self.append(0..<5, to: partition, in: cluster)
      try await cluster.waitForISR(3, of: partition)
      let leader = try await cluster.leader(of: partition)
      let away = cluster.numbers.first { $0 != leader }!
      await cluster.stop(away)
      try await cluster.waitForISR(2, of: partition)
      // 12 MiB: more than the leader may have on its way to one follower.
      try await self.append(5..<30, to: partition, in: cluster, padding: 512 << 10)
      // Nodes that start again have nothing in memory.
      for number in cluster.numbers {
        await cluster.stop(number)
        try await cluster.start(number)
        try await cluster.waitForISR(2, of: partition)
      }
      try await cluster.start(away)
      try await cluster.waitForISR(3, of: partition)
      try await cluster.waitUntilEqual(partition, end: 30)
      try await self.append(30..<35, to: partition, in: cluster)
      try await cluster.waitUntilEqual(partition, end: 35)
      let values = try await cluster.values(partition, below: 35)
      #expect(values.map { $0.prefix { $0 != "-" } } == (0..<35).map { "\($0)" })
    }
  }

  @Test func `what a leader wrote for itself is cut when it comes back`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      try await self.append(0..<10, to: partition, in: cluster)
      try await cluster.waitForISR(3, of: partition)
      let leader = try await cluster.leader(of: partition)
      let others = cluster.numbers.filter { $0 != leader }
      for number in others { await cluster.stop(number) }
      try await cluster.waitForISR(1, of: partition)
      // Durable here, and committed nowhere: the ISR is too small.
      let channel = cluster.channel(to: leader)
      let answer = try await ReplicaCluster.append(
        try batch(["mine"]), to: partition, acks: .leader, over: channel)
      #expect(!answer.hasError)
      #expect(answer.baseOffset == 10)
      let refused = try await ReplicaCluster.append(
        try batch(["not enough"]), to: partition, acks: .all, over: channel)
      #expect(MemQError(refused.error).code == .notEnoughReplicas)
      await cluster.cutOff(leader)
      for number in others { try await cluster.start(number) }
      try await self.append(10..<20, to: partition, in: cluster)
      try await cluster.start(leader)
      try await cluster.waitForISR(3, of: partition)
      try await cluster.waitUntilEqual(partition, end: 20)
      #expect(try await cluster.values(partition, below: 20) == (0..<20).map { "\($0)" })
    }
  }

  @Test func `a node that is stopped hands its leaderships over before it goes`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      try await self.append(0..<5, to: partition, in: cluster)
      try await cluster.waitForISR(3, of: partition)
      let first = try await cluster.leader(of: partition)
      let epoch = cluster.image.partitions[partition]!.leaderEpoch
      let id = cluster.nodeID(first)
      await cluster.stop(first)
      let image = try await cluster.wait(partition) { $0.leader != id }
      // One election: it went over by hand, and was not taken up again when the node had gone.
      #expect(image.leader != nil)
      #expect(image.leaderEpoch == epoch.next)
      try await self.append(5..<10, to: partition, in: cluster)
      #expect(try await cluster.values(partition, below: 10) == (0..<10).map { "\($0)" })
    }
  }

  @Test
  func `a follower that confirms nothing is sent no more than the limit, and all of it later`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events", ["min.insync.replicas": "1"])
      try await self.append(0..<3, to: partition, in: cluster)
      try await cluster.waitForISR(3, of: partition)
      let leader = try await cluster.leader(of: partition)
      let slow = cluster.numbers.first { $0 != leader }!
      let id = cluster.nodeID(slow)
      await cluster.stop(slow)
      try await cluster.waitForISR(2, of: partition)
      let replica = cluster.image.partitions[partition]!.replicas.first { $0.node == id }!
      // This test takes its place.
      let stream = try await cluster.channel(to: leader, lane: .replicas).open(
        ReplicationMethods.replicate)
      try await stream.send(
        .with {
          $0.hello.clusterID = cluster.image.clusterID.wire
          $0.hello.nodeID = replica.node.rawValue
          $0.hello.nodeEpoch = cluster.image.nodes[id]!.epoch.rawValue
          $0.hello.volumeID = replica.volume.wire
          $0.hello.leaderNodeID = cluster.nodeID(leader).rawValue
          $0.hello.session = 1_000
          $0.hello.kind = .tail
        })
      let epoch = cluster.image.partitions[partition]!.leaderEpoch
      try await stream.send(
        .with {
          $0.opens = [
            .with {
              $0.topicPartition = partition.wire
              $0.leaderEpoch = epoch.rawValue
              $0.openNumber = 1_000
              $0.endOffset = 3
              $0.lastEpoch = epoch.rawValue
            }
          ]
        })
      // Three times the limit, and no more than the leader keeps in memory: nothing comes from its disk.
      try await self.append(3..<27, to: partition, in: cluster, padding: 1_000_000)
      let inFlight = cluster.node(leader).replicaBytesInFlight[replica] ?? 0
      #expect(inFlight >= 6 << 20)
      #expect(inFlight <= 10 << 20, "8 MiB and one message more")
      var end: Int64 = 3
      while end < 27 {
        guard let message = try await stream.responses.next() else {
          Issue.record("the leader ended the stream")
          return
        }
        guard message.hasPush else { continue }
        #expect(message.push.batches[0].baseOffset == end)
        end = message.push.batches.last!.endOffset
        let confirmed = end
        try await stream.send(
          .with {
            $0.positions = [
              .with {
                $0.topicPartition = partition.wire
                $0.leaderEpoch = epoch.rawValue
                $0.openNumber = 1_000
                $0.durableEnd = confirmed
              }
            ]
          })
      }
      stream.cancel()
    }
  }
}
