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
      let epoch = cluster.image.partitions[partition]!.leaderEpoch
      let follower = HandFollower(partition, epoch.rawValue)
      let hello = Memq_V1_ReplicaHello.with {
        $0.clusterID = cluster.image.clusterID.wire
        $0.nodeID = replica.node.rawValue
        $0.nodeEpoch = cluster.image.nodes[id]!.epoch.rawValue
        $0.volumeID = replica.volume.wire
        $0.leaderNodeID = cluster.nodeID(leader).rawValue
        $0.session = 1_000
      }
      let channel = cluster.channel(to: leader, lane: .replicas)
      let tail = try await follower.open(hello, .tail, on: channel)
      let catchUp = try await follower.open(hello, .catchUp, on: channel)
      try await follower.openPartition(at: 3, on: tail)
      try await self.append(3..<27, to: partition, in: cluster, padding: 1_000_000)
      let node = cluster.node(leader)
      while node.replicaBytesInFlight[replica] ?? 0 < 6 << 20 {
        try await Task.sleep(for: .milliseconds(5))
      }
      #expect(node.replicaBytesInFlight[replica]! <= 10 << 20, "8 MiB and one message more")
      // From memory or from the disk, as the leader has it: all of it comes once it is confirmed.
      try await withThrowingTaskGroup(of: Void.self) { group in
        for stream in [tail, catchUp] {
          group.addTask { try await follower.confirm(from: stream, on: tail, until: 27) }
        }
        try await group.next()
        group.cancelAll()
      }
      tail.cancel()
      catchUp.cancel()
    }
  }
}

/// A follower of one partition that writes nothing and confirms when it is told to.
private struct HandFollower: Sendable {
  typealias Stream = TypedStream<Memq_V1_ReplicateRequest, Memq_V1_ReplicateResponse>

  let partition: TopicPartition
  let epoch: Int64

  init(_ partition: TopicPartition, _ epoch: Int64) {
    self.partition = partition
    self.epoch = epoch
  }

  func open(
    _ hello: Memq_V1_ReplicaHello, _ kind: Memq_V1_ReplicaStreamKind, on channel: any RPCChannel
  ) async throws -> Stream {
    let stream = try await channel.open(ReplicationMethods.replicate)
    try await stream.send(
      .with {
        $0.hello = hello
        $0.hello.kind = kind
      })
    return stream
  }

  /// Opens until the leader takes it up, and confirms the place.
  func openPartition(at end: Int64, on tail: Stream) async throws {
    for number in Int64(1_000)... {
      try await tail.send(
        .with {
          $0.opens = [
            .with {
              $0.topicPartition = self.partition.wire
              $0.leaderEpoch = self.epoch
              $0.openNumber = number
              $0.endOffset = end
              $0.lastEpoch = self.epoch
            }
          ]
        })
      var answer: Memq_V1_ReplicaOpenAnswer?
      while answer == nil, let message = try await tail.responses.next() {
        answer = message.answers.first
      }
      guard answer?.result == .accepted else {
        try await Task.sleep(for: .milliseconds(20))
        continue
      }
      return try await self.confirm(end, number, on: tail)
    }
  }

  private func confirm(_ end: Int64, _ number: Int64, on tail: Stream) async throws {
    try await tail.send(
      .with {
        $0.positions = [
          .with {
            $0.topicPartition = self.partition.wire
            $0.leaderEpoch = self.epoch
            $0.openNumber = number
            $0.durableEnd = end
          }
        ]
      })
  }

  /// Confirms what comes on a stream until `last` is there.
  func confirm(from stream: Stream, on tail: Stream, until last: Int64) async throws {
    while let message = try await stream.responses.next() {
      guard message.hasPush, let end = message.push.batches.last?.endOffset else { continue }
      try await self.confirm(end, message.push.openNumber, on: tail)
      if end == last { return }
    }
    throw MemQError(.unavailable, "the leader ended the stream")
  }
}
