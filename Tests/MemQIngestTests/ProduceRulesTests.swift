// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords
import MemQTestSupport
import Testing

@testable import MemQIngestService

@Suite struct ProduceLineTests {
  private let late = MonotonicInstant(nanoseconds: .max / 2)
  private func at(_ milliseconds: Int64) -> MonotonicInstant {
    MonotonicInstant(nanoseconds: milliseconds * 1_000_000)
  }
  private func line(_ count: UInt64) -> ProduceLine {
    var line = ProduceLine()
    for id in 1...count { line.add(id, ready: true, deadline: self.late) }
    return line
  }
  private func take(_ line: inout ProduceLine, at time: Int64 = 0) -> [UInt64] {
    var taken: [UInt64] = []
    while let id = line.takeNext(at: self.at(time)) { taken.append(id) }
    return taken
  }

  @Test func `the first goes alone, then many go at once, within the window`() {
    var line = self.line(100)
    #expect(self.take(&line) == [1])
    line.settle(1, succeeded: true)
    #expect(self.take(&line) == (2...65).map { $0 })
    line.settle(2, succeeded: true)
    #expect(self.take(&line) == [66])
  }

  @Test
  func
    `after a failure everything in flight settles first, then they go again in order, one by one`()
  {
    var line = self.line(5)
    _ = self.take(&line)
    line.settle(1, succeeded: true)
    #expect(self.take(&line) == [2, 3, 4, 5])
    line.again(2, notBefore: self.at(10))
    #expect(line.hasFailedPredecessor(3))
    #expect(!line.hasFailedPredecessor(2))
    line.add(6, ready: true, deadline: self.late)
    #expect(self.take(&line, at: 20).isEmpty)
    line.again(3, notBefore: self.at(12))
    line.settle(4, succeeded: true)
    #expect(self.take(&line, at: 20).isEmpty)
    line.again(5, notBefore: self.at(30))
    #expect(self.take(&line, at: 29).isEmpty)
    #expect(self.take(&line, at: 30) == [2])
    line.settle(2, succeeded: true)
    #expect(self.take(&line, at: 31) == [3, 5, 6])
  }

  @Test func `a request under scan holds those behind it`() {
    var line = ProduceLine()
    line.add(1, ready: false, deadline: self.at(50))
    line.add(2, ready: true, deadline: self.late)
    #expect(self.take(&line).isEmpty)
    #expect(line.expired(at: self.at(49)).isEmpty)
    #expect(line.expired(at: self.at(50)) == [1])
    line.becameReady(1)
    #expect(self.take(&line) == [1])
    line.settle(1, succeeded: false)
    #expect(self.take(&line) == [2])
    line.settle(2, succeeded: true)
    #expect(line.isEmpty)
  }

  /// A leader that refuses at random and else demands the next sequence: whatever happens, what it has appended is in order
  /// and, in the end, whole.
  @Test(arguments: 1...200 as ClosedRange<UInt64>)
  func `an idempotent producer's batches arrive in order and none is lost`(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    var line = ProduceLine()
    var flying: [UInt64] = []
    var appended: [UInt64] = []
    var next: UInt64 = 1
    var time: Int64 = 0
    while appended.count < 120 {
      time += Int64(random.below(8))
      if next <= 120, random.below(2) == 0 {
        line.add(next, ready: true, deadline: self.late)
        next += 1
      }
      while let id = line.takeNext(at: self.at(time)) { flying.append(id) }
      guard !flying.isEmpty, random.below(2) == 0 else { continue }
      let id = flying.removeFirst()
      let expected = (appended.last ?? 0) + 1
      let refused = random.below(6) == 0
      if id <= (appended.last ?? 0) {
        line.settle(id, succeeded: true)
      } else if refused || id != expected {
        let error = MemQError(refused ? .notLeader : .outOfOrderSequence, "")
        let step = RetryDecision.step(
          after: error, attempts: line.attempts(of: id), now: self.at(time), deadline: self.late,
          isIdempotent: true, hasFailedPredecessor: line.hasFailedPredecessor(id), jitter: 0.5)
        guard case .again(let wait) = step else {
          Issue.record("gave up at \(id)")
          return
        }
        line.again(id, notBefore: self.at(time) + wait)
      } else {
        appended.append(id)
        // The reply may be lost: then it is sent again and known.
        if random.below(10) == 0 {
          line.again(id, notBefore: self.at(time))
        } else {
          line.settle(id, succeeded: true)
        }
      }
    }
    #expect(appended == (1...120).map { $0 })
  }
}

@Suite struct RetryDecisionTests {
  private func step(
    _ code: ErrorCode, attempts: Int = 1, idempotent: Bool = false, predecessor: Bool = false,
    left: Duration = .seconds(30)
  ) -> RetryDecision.Step {
    RetryDecision.step(
      after: MemQError(code, ""), attempts: attempts, now: .zero, deadline: .zero + left,
      isIdempotent: idempotent, hasFailedPredecessor: predecessor, jitter: 0)
  }

  @Test func `a moved leader is asked again, waiting longer each time, until the deadline`() {
    #expect(self.step(.notLeader) == .again(after: .microseconds(2_500)))
    #expect(self.step(.notLeader, attempts: 3) == .again(after: .milliseconds(10)))
    #expect(self.step(.notLeader, attempts: 90) == .again(after: .milliseconds(100)))
    #expect(self.step(.notLeader, attempts: 90, left: .milliseconds(99)) == .giveUp)
  }

  @Test func `what may have been appended is sent again only when it can't be appended twice`() {
    #expect(self.step(.outcomeUnknown) == .giveUp)
    #expect(self.step(.outcomeUnknown, idempotent: true) != .giveUp)
    #expect(self.step(.outOfOrderSequence, idempotent: true) == .giveUp)
    #expect(self.step(.outOfOrderSequence, idempotent: true, predecessor: true) != .giveUp)
    #expect(self.step(.recordBatchTooLarge, idempotent: true, predecessor: true) == .giveUp)
  }
}

@Suite struct PartitionerTests {
  @Test func `keys stick, the keyless go in turn, numbers are checked`() throws {
    var partitioner = Partitioner(turn: 6)
    let key = Array("21".utf8)
    let none: [UInt8]? = nil
    #expect(
      try partitioner.choose(wanted: -1, key: key, among: 7, topic: "t").rawValue == 1_173_551_340
        % 7)
    let turns = try (0..<4).map { _ in
      try partitioner.choose(wanted: -1, key: none, among: 3, topic: "t").rawValue
    }
    #expect(turns == [1, 2, 0, 1])
    #expect(try partitioner.choose(wanted: 2, key: key, among: 3, topic: "t").rawValue == 2)
    for (wanted, code) in [(3, ErrorCode.partitionNotFound), (-2, .invalidArgument)] {
      let error = #expect(throws: MemQError.self) {
        try partitioner.choose(wanted: Int32(wanted), key: none, among: 3, topic: "t")
      }
      #expect(error?.code == code)
    }
  }
}

@Suite struct SequenceCutTests {
  private func batch(base: Int32) throws -> [UInt8] {
    var builder = RecordBatchBuilder(
      compression: .lz4, producerID: ProducerID(9), producerEpoch: ProducerEpoch(1),
      baseSequence: base)
    for i in 0..<5 { builder.append(value: [UInt8(i)], timestamp: Timestamp(milliseconds: 7)) }
    return try builder.build()
  }

  @Test(arguments: [(10, 12, 13), (Int32.max - 1, 0, 1)])
  func `the rest keeps its sequence`(base: Int32, last: Int32, next: Int32) throws {
    let whole = try self.batch(base: base)
    let rest = try #require(try whole.withUnsafeBytes { try SequenceCut.rest(of: $0, after: last) })
    #expect(rest.dropped == 3)
    try rest.batch.withUnsafeBytes { bytes in
      let header = try RecordBatchHeader.validate(bytes, maxBytes: 1 << 20)
      #expect(header.baseSequence == next)
      #expect(header.producerID == ProducerID(9))
      #expect(try RecordBatch.records(bytes).map(\.value) == [[3], [4]])
    }
  }

  @Test func `a refusal that can't be about the batch cuts nothing`() throws {
    let whole = try self.batch(base: 10)
    for last: Int32 in [9, 14, 1000, 3] {
      #expect(try whole.withUnsafeBytes { try SequenceCut.rest(of: $0, after: last) } == nil)
    }
  }
}
