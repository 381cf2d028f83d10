// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRecords
import MemQReplicationService
import MemQRuntime
import SwiftProtobuf
import Testing

@Suite struct ReplicationNodeTests {
  func withCluster(_ body: (TestCluster) async throws -> Void) async throws {
    let cluster = try await TestCluster()
    do {
      try await body(cluster)
    } catch {
      await cluster.end()
      throw error
    }
    await cluster.end()
  }

  @Test func `what is acknowledged reads back, before and after a restart`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      let batches = try (0..<50).map { number in
        try batch(
          ["a\(number)", "b\(number)"], producer: 7, sequence: Int32(2 * number),
          time: 1_000 + Int64(number))
      }
      let answers = try await cluster.append(batches, to: partition)
      #expect(answers.map(\.baseOffset) == (0..<50).map { 2 * $0 })
      #expect(answers.allSatisfy { !$0.hasError && $0.appendTimeMs > 1_600_000_000_000 })
      for isRestarted in [false, true] {
        if isRestarted {
          try await cluster.restart()
          try await cluster.waitForLeader(of: partition)
        }
        let read = try await cluster.read(partition, from: 0)
        let found = try records(read.bytes)
        #expect(found.map(\.offset.rawValue) == Array(0..<100))
        #expect(
          found.compactMap(\.value).map { String(decoding: $0, as: UTF8.self) }
            == (0..<50).flatMap { ["a\($0)", "b\($0)"] })
        #expect(read.next == 100)
        #expect(read.highWatermark == 100)
        // The producer is known after the restart, too.
        let again = try await cluster.append([batches[49]], to: partition)
        #expect(again[0].duplicate)
        #expect(again[0].baseOffset == 98)
        #expect(try await cluster.offsets(partition, .earliest).offset == 0)
        #expect(try await cluster.offsets(partition, .latest).offset == 100)
        #expect(try await cluster.offsets(partition, .timestamp, at: 1_010).offset == 20)
        #expect(try await cluster.offsets(partition, .timestamp, at: 9_999).offset == -1)
      }
      let more = try await cluster.append(
        [try batch(["c"], producer: 7, sequence: 100)], to: partition)
      #expect(more[0].baseOffset == 100)
    }
  }

  @Test func `bad batches are refused by name, and the stream goes on`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("small", ["max.message.bytes": "1024"])
      var damaged = try batch(["x"])
      damaged[damaged.count - 1] ^= 1
      let large = try batch([String(repeating: "l", count: 2_000)])
      var transactional = try batch(["x"])
      transactional[22] |= 0x10
      let crc = CRC32C.checksum(transactional[21...])
      for at in 0..<4 {
        transactional[17 + at] = UInt8(truncatingIfNeeded: crc >> UInt32(24 - 8 * at))
      }
      let answers = try await cluster.append(
        [
          damaged, large, Array(damaged.prefix(30)), transactional, [], try batch(["good"]),
          try batch(["gap"], producer: 3, sequence: 5),
        ], to: partition)
      #expect(
        answers.map { MemQError($0.error).code } == [
          .recordBatchChecksumMismatch, .recordBatchTooLarge, .recordBatchInvalid, .feature,
          .recordBatchInvalid, .internalError, .unknownProducer,
        ])
      #expect(answers[1].error.limit == 1_024)
      #expect(answers[1].error.actual == Int64(large.count))
      #expect(answers[1].error.subject == "small/0")
      #expect(!answers[5].hasError)
      #expect(answers[5].baseOffset == 0)
      #expect(try await cluster.offsets(partition, .latest).offset == 1)
    }
  }

  @Test func `other leader epochs and partitions that are not here are refused`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      // A new life of the node leads in a new epoch.
      try await cluster.restart()
      try await cluster.waitForLeader(of: partition)
      let good = try batch(["x"])
      let epoch = try await cluster.offsets(partition, .latest).leaderEpoch
      func code(_ epoch: Int64) async throws -> ErrorCode? {
        let answer = try await cluster.append([good], to: partition, leaderEpoch: epoch)[0]
        return answer.hasError ? MemQError(answer.error).code : nil
      }
      #expect(try await code(epoch - 1) == .fencedLeaderEpoch)
      #expect(try await code(epoch + 1) == .unknownLeaderEpoch)
      #expect(try await code(epoch) == nil)
      let stranger = TopicPartition(partition.topic, PartitionIndex(9))
      let answer = try await cluster.append([good], to: stranger)[0]
      #expect(MemQError(answer.error).code == .notLeader)
      try await cluster.delete("events")
      _ = try await cluster.session.waitForImage(timeout: .seconds(20)) {
        $0.topics[partition.topic] == nil
      }
      var code = ErrorCode.internalError
      repeat {
        let answer = try await cluster.append([good], to: partition)[0]
        code = answer.hasError ? MemQError(answer.error).code : .internalError
      } while code != .notLeader
    }
  }

  @Test func `a straddling batch is told where to be cut`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      let answers = try await cluster.append(
        [
          try batch(["0", "1", "2"], producer: 5, sequence: 0),
          try batch(["1", "2", "3"], producer: 5, sequence: 1),
          try batch(["3"], producer: 5, sequence: 3),
        ], to: partition)
      #expect(MemQError(answers[1].error).code == .sequenceStraddles)
      #expect(answers[1].error.limit == 2)
      #expect(answers[2].baseOffset == 3)
    }
  }

  @Test func `acks none sends no answer, and the stream still ends in order`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      #expect(try await cluster.append([try batch(["x"])], to: partition, acks: .none).isEmpty)
      // The stream ended when the batch was taken; an append behind it comes after it.
      let answer = try await cluster.append([try batch(["y"])], to: partition)[0]
      #expect(answer.baseOffset == 1)
    }
  }

  @Test func `a reader waits for records that are committed later`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      let empty = try await cluster.read(partition, from: 0)
      #expect(empty.bytes.isEmpty && empty.next == 0)
      nonisolated(unsafe) let sender = cluster
      async let read = sender.read(partition, from: 0, wait: 20_000)
      _ = try await sender.append([try batch(["late"])], to: partition)
      let found = try records(try await read.bytes)
      #expect(found.count == 1)
      await #expect(throws: MemQError.self) { try await cluster.read(partition, from: 2) }
      await #expect(throws: MemQError.self) { try await cluster.read(partition, from: -1) }
    }
  }

  @Test func `large appends come back whole and in pieces`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("large", ["max.message.bytes": "8388608"])
      let values = (0..<12).map { String(repeating: String($0 % 10), count: 900_000) }
      let answers = try await cluster.append(try values.map { try batch([$0]) }, to: partition)
      #expect(answers.map(\.baseOffset) == Array(0..<12))
      let all = try records(try await cluster.read(partition, from: 0, maxBytes: 64 << 20).bytes)
      #expect(all.map { $0.value.map { String(decoding: $0, as: UTF8.self) } } == values)
      let one = try await cluster.read(partition, from: 5, maxBytes: 1)
      #expect(try records(one.bytes).map(\.offset.rawValue) == [5])
    }
  }

  @Test func `the node describes what it holds`() async throws {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events")
      _ = try await cluster.append([try batch(["a", "b"])], to: partition)
      let answer = try await cluster.channel.call(
        ReplicationMethods.describeReplicas, .init(), timeout: .seconds(20))
      #expect(answer.replicas.count == 1)
      #expect(answer.replicas[0].leader)
      #expect(answer.replicas[0].logEndOffset == 2)
      #expect(answer.replicas[0].localBytes > 0)
      #expect(answer.volumes.count == 1)
      #expect(answer.volumes[0].healthy && answer.volumes[0].usedBytes > 0)
      #expect(cluster.node.readiness.allSatisfy { $0.problem == nil })
    }
  }

  @Test func `a message that is none ends the stream`() async throws {
    try await self.withCluster { cluster in
      let stream = try await cluster.channel.bidirectional(
        ReplicationMethods.append.rpc, RPCCallOptions(timeout: .seconds(20)))
      try await stream.send(RPCMessage(bytes: [0xFF, 0xFF, 0xFF]))
      await #expect(throws: RPCStatus.self) { _ = try await stream.responses.next() }
    }
  }
}
