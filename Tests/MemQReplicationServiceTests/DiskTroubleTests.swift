// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQAPI
import MemQLog
import MemQMetadata
import MemQModel
import MemQReplicationService
import MemQRuntime
import MemQStorage
import MemQSystem
import Testing

/// Full and damaged disks, as clients see them.
@Suite struct DiskTroubleTests {
  private func withCluster(
    capacityBytes: Int64? = nil, _ body: (TestCluster) async throws -> Void
  ) async throws {
    let cluster = try await TestCluster(capacityBytes: capacityBytes)
    do {
      try await body(cluster)
    } catch {
      await cluster.end()
      throw error
    }
    await cluster.end()
  }

  private func code(_ answer: Memq_V1_AppendResponse) -> ErrorCode? {
    answer.hasError ? MemQError(answer.error).code : nil
  }

  @Test
  func `a volume too full to lead on fails nothing, serves reads, and leads once it has room`()
    async throws
  {
    try await self.withCluster(capacityBytes: 64 << 20) { cluster in
      let partition = try await cluster.topic("events", ["max.message.bytes": "8000000"])
      let value = String(repeating: "f", count: 4 << 20)
      var taken = 0
      while taken < 40,
        self.code(try await cluster.append([try batch([value])], to: partition)[0]) == nil
      {
        taken += 1
      }
      #expect(taken > 5 && taken < 40)
      // Each opening after a crash takes a segment, until there is none.
      for _ in 0..<3 {
        try await cluster.crash()
        try await cluster.waitForLeader(of: partition)
      }
      let refused = try await cluster.append([try batch(["x"])], to: partition)[0]
      #expect(self.code(refused) == .volumeFull)
      #expect(cluster.node.readiness.allSatisfy { $0.problem == nil })
      #expect(try await cluster.read(partition, from: Int64(taken) - 1).next == Int64(taken))
      cluster.capacityBytes = 256 << 20
      try await cluster.restart()
      try await cluster.waitForLeader(of: partition)
      let accepted = try await cluster.append([try batch(["x"])], to: partition)[0]
      #expect(self.code(accepted) == nil && accepted.baseOffset == Int64(taken))
    }
  }

  @Test func `a batch that no segment takes is refused by its size, and the volume goes on`()
    async throws
  {
    try await self.withCluster { cluster in
      let partition = try await cluster.topic("events", ["max.message.bytes": "8388608"])
      let limit = (8 << 20) - 8_192
      let large = try batch([String(repeating: "l", count: limit)])
      let answers = try await cluster.append([large, try batch(["x"])], to: partition)
      #expect(self.code(answers[0]) == .recordBatchTooLarge)
      #expect(answers[0].error.limit == Int64(limit))
      #expect(answers[0].error.actual == Int64(large.count))
      #expect(self.code(answers[1]) == nil)
    }
  }

  @Test func `a damaged partition answers LOG_CORRUPT while others are served`() async throws {
    try await self.withCluster { cluster in
      let damaged = try await cluster.topic("damaged")
      let sound = try await cluster.topic("sound")
      _ = try await cluster.append([try batch(["a"], producer: 7, sequence: 0)], to: damaged)
      // Two segments further the first one's snapshot of producers stands in a sealed one.
      let value = String(repeating: "s", count: 1_000_000)
      for _ in 0..<36 { _ = try await cluster.append([try batch([value])], to: sound) }
      let files = "\(cluster.folder)/node/volume"
      await cluster.stop()
      let count = try await TestCluster.blocking { try Self.damageSnapshots(files) }
      #expect(count > 0)
      try await cluster.startAgain()
      try await cluster.waitForLeader(of: sound)
      #expect(try await cluster.read(sound, from: 35).next == 36)
      let deadline = ContinuousClock.now + .seconds(20)
      var answer = Memq_V1_AppendResponse()
      repeat {
        answer = try await cluster.append([try batch(["b"])], to: damaged)[0]
      } while self.code(answer) == .notLeader && ContinuousClock.now < deadline
      #expect(self.code(answer) == .logCorrupt)
      let offsets = try await cluster.offsets(damaged, .latest)
      #expect(MemQError(offsets.error).code == .logCorrupt)
      // The operator gives it up: its log goes, and the node with it goes on.
      try await cluster.delete("damaged")
      try await cluster.restart()
      try await cluster.waitForLeader(of: sound)
      #expect(try await cluster.read(sound, from: 35).next == 36)
    }
  }

  @Test
  func `a partition lost with all that named it is damaged, not begun anew as if it were empty`()
    async throws
  {
    try await self.withCluster { cluster in
      let other = try await cluster.topic("other")
      _ = try await cluster.append([try batch(["a"])], to: other)
      let lost = try await cluster.topic("lost")
      for number in 0..<5 { _ = try await cluster.append([try batch(["\(number)"])], to: lost) }
      for number in 0..<3 { _ = try await cluster.append([try batch(["\(number)"])], to: other) }
      try await cluster.crash { try Self.erase(lost, in: $0 + "/volume") }
      func damaged() async throws {
        try await cluster.waitForLeader(of: other)
        #expect(try await cluster.read(other, from: 0).next == 4)
        _ = try await cluster.session.waitForImage(timeout: .seconds(20)) {
          $0.partitions[lost]?.damaged.first?.from == .zero
        }
        let deadline = ContinuousClock.now + .seconds(20)
        var answer = Memq_V1_AppendResponse()
        repeat {
          answer = try await cluster.append([try batch(["again"])], to: lost)[0]
        } while [.notLeader, .leaderNotAvailable].contains(self.code(answer))
          && ContinuousClock.now < deadline
        #expect(self.code(answer) == .logCorrupt)
      }
      try await damaged()
      // Nor once the volume's tail is another one.
      try await cluster.restart()
      try await damaged()
      // The operator gives it up.
      await cluster.stop()
      let path = "\(cluster.folder)/node/volume"
      let check = try await TestCluster.blocking { try VolumeCheck(path: path) }
      let found = try await TestCluster.blocking { try check.verify() }
      #expect(found.losesRecords)
      #expect(try await check.cut(found).count == 1)
      try await cluster.startAgain()
      try await cluster.waitForLeader(of: lost)
      _ = try await cluster.session.waitForImage(timeout: .seconds(20)) {
        $0.partitions[lost]?.damaged.isEmpty == true
      }
      let answer = try await cluster.append([try batch(["again"])], to: lost)[0]
      #expect(self.code(answer) == nil && answer.baseOffset == 0)
    }
  }

  /// Writes zeros over the blocks from the partition's first frame to its last one.
  private static func erase(_ partition: TopicPartition, in folder: String) throws {
    var places: [FrameDescription] = []
    try VolumeDump(path: folder, requireStopped: false).forEachFrame(partition: partition) {
      places.append($0)
      return true
    }
    let positions = places.map(\.place.position)
    guard let first = positions.min(), let last = positions.max(),
      Set(places.map(\.place.segment)).count == 1
    else { throw MemQError(.internalError, "the partition is not in one segment") }
    let start = first / 4_096 * 4_096
    let zeros = [UInt8](repeating: 0, count: Int(last / 4_096 * 4_096 + 4_096 - start))
    try zeros.withUnsafeBytes {
      try File(folder + "/segment-00000000", .readWrite).write($0, at: start)
    }
  }

  /// Changes a byte of every producer snapshot; gives their number.
  private static func damageSnapshots(_ folder: String) throws -> Int {
    var count = 0
    for name in try Files.list(folder) where name.hasPrefix("segment-") {
      let path = "\(folder)/\(name)"
      var bytes = try TestCluster.bytes(of: path)
      let places = bytes.withUnsafeMutableBytes { bytes in
        var places: [Int] = []
        let start = bytes.baseAddress!
        var at = 0
        while let found = memchr(start + at, 77, bytes.count - at) {
          at = start.distance(to: found) + 1
          if memcmp(found, "MQPS", 4) == 0 { places.append(at - 1) }
        }
        return places
      }
      for place in places {
        try [bytes[place + 9] ^ 1].withUnsafeBytes {
          try File(path, .readWrite).write($0, at: Int64(place) + 9)
        }
        count += 1
      }
    }
    return count
  }
}
