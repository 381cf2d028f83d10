// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import Testing

@Suite struct ProducerStateTests {
  func single(_ configuration: ReplicationConfiguration = .init()) -> Subject {
    var leader = Subject(1, configuration: configuration)
    leader.handle(.assigned(assignment(leader: 1, isr: [1], replicas: [1], minISR: 1)))
    leader.sync()
    return leader
  }

  /// Appends, syncs, and gives the outcome.
  func outcome(
    _ leader: inout Subject, _ records: Int64, producer: Int64 = 7, epoch: Int16 = 0,
    sequence: Int32, time: Int64 = 1_000
  ) -> AppendOutcome? {
    var effects = leader.append(
      records, producer: producer, epoch: epoch, sequence: sequence, time: time)
    effects += leader.sync()
    return effects.outcomes[leader.token]
  }

  @Test func `sequences are judged by range`() {
    var leader = self.single()
    #expect(outcome(&leader, 10, sequence: 3) == .refused(.unknownProducer))
    #expect(outcome(&leader, 10, sequence: 0) == .at(0, 10))
    #expect(outcome(&leader, 5, sequence: 10) == .at(10, 15))
    #expect(outcome(&leader, 5, sequence: 10) == .duplicate(base: Offset(10)))
    #expect(outcome(&leader, 3, sequence: 4) == .duplicate(base: Offset(4)), "cut elsewhere")
    #expect(outcome(&leader, 9, sequence: 3) == .duplicate(base: Offset(3)), "across batches")
    #expect(outcome(&leader, 6, sequence: 12) == .refused(.sequenceStraddles(last: 14)))
    #expect(outcome(&leader, 1, sequence: 16) == .refused(.outOfOrderSequence(last: 14)))
    #expect(outcome(&leader, 1, epoch: 1, sequence: 3) == .refused(.outOfOrderSequence(last: -1)))
    #expect(outcome(&leader, 1, epoch: 1, sequence: 0) == .at(15, 16))
    #expect(
      outcome(&leader, 1, sequence: 15) == .refused(.producerFenced(current: ProducerEpoch(1))))
  }

  @Test func `a duplicate older than the batches kept is known without its offset`() {
    var leader = self.single()
    for n in 0..<7 { _ = outcome(&leader, 1, sequence: Int32(n)) }
    #expect(outcome(&leader, 1, sequence: 1) == .duplicate(base: nil))
    #expect(outcome(&leader, 1, sequence: 2) == .duplicate(base: Offset(2)))
  }

  @Test func `sequences wrap to zero after Int32 max`() throws {
    let last = BatchSummary(
      baseOffset: .zero, endOffset: Offset(10), leaderEpoch: LeaderEpoch(0),
      producerID: ProducerID(7), producerEpoch: ProducerEpoch(0), baseSequence: .max - 9)
    let state = try ProducerState(
      snapshot: nil, start: .zero, batches: [last], limits: ProducerLimits())
    let judge = { state.judge(ProducerID(7), ProducerEpoch(0), base: $0, count: $1) }
    #expect(judge(0, 5) == .fresh)
    #expect(judge(.max, 1) == .duplicate(base: Offset(9), restsOn: Offset(10)))
    #expect(judge(.max, 2) == .straddles(last: .max, restsOn: Offset(10)))
    #expect(judge(1, 1) == .outOfOrder(last: .max, restsOn: Offset(10)))
  }

  @Test func `a cut log forgets exactly what was cut`() throws {
    var configuration = ReplicationConfiguration()
    configuration.snapshotBatches = 2
    var leader = self.single(configuration)
    var snapshots = 0
    for n in 0..<6 {
      var effects = leader.append(1, producer: 7, sequence: Int32(n))
      effects += leader.sync()
      for case .producerSnapshot(_, let at) in effects {
        snapshots += 1
        #expect(at <= leader.core.highWatermark)
      }
    }
    #expect(snapshots == 3)
    // Written, never durable; the next leader doesn't have them.
    leader.append(1, producer: 7, sequence: 6)
    leader.append(1, producer: 8, sequence: 0)
    var follower = leader
    follower.handle(.assigned(assignment(leader: 2, epoch: 2, isr: [2])))
    follower.sync()
    follower.handle(
      .follower(
        .answered(
          OpenAnswer(
            follower: replica(1), leaderEpoch: LeaderEpoch(2), number: OpenNumber(1),
            result: .diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(6)))))))
    follower.sync()
    follower.handle(.assigned(assignment(leader: 1, epoch: 3, isr: [1], minISR: 1)))
    follower.sync()
    #expect(outcome(&follower, 1, sequence: 5) == .duplicate(base: Offset(5)))
    #expect(outcome(&follower, 1, sequence: 6) == .at(6, 7))
    #expect(outcome(&follower, 1, producer: 8, sequence: 1) == .refused(.unknownProducer))
  }

  @Test func `a snapshot that is asked for covers all that is committed, and is given again`()
    throws
  {
    var leader = self.single()
    _ = outcome(&leader, 2, sequence: 0)
    _ = outcome(&leader, 3, producer: -1, sequence: -1)
    leader.append(1, sequence: 2)
    func wanted() throws -> (bytes: [UInt8], at: Offset) {
      for case .producerSnapshot(let bytes, let at) in leader.handle(.snapshotWanted) {
        return (bytes, at)
      }
      throw MemQError(.internalError, "no snapshot")
    }
    let first = try wanted()
    #expect(first.at == Offset(5))
    // The volume had no room for it: the batches are gone from memory, the snapshot isn't.
    let again = try wanted()
    #expect(again == first)
    leader.sync()
    #expect(try wanted().at == Offset(6))
    let state = try ProducerState(
      snapshot: first.bytes, start: .zero, batches: [], limits: ProducerLimits())
    #expect(state.judge(ProducerID(7), ProducerEpoch(0), base: 2, count: 1) == .fresh)
  }

  @Test func `a leader with a full memory of batches that are all committed takes more`() throws {
    var configuration = ReplicationConfiguration()
    configuration.uncommittedBatchesMax = 4
    configuration.snapshotBatches = 3
    let batches = (0..<5 as Range<Int64>).map {
      BatchSummary(
        baseOffset: Offset($0), endOffset: Offset($0 + 1), leaderEpoch: LeaderEpoch(0),
        producerID: ProducerID(7), producerEpoch: ProducerEpoch(0), baseSequence: Int32($0))
    }
    let log = ReplicaLog(
      start: .zero, end: Offset(5), highWatermark: Offset(5), uploadedOffset: .zero,
      epochs: try EpochCache([EpochStart(epoch: LeaderEpoch(0), start: .zero)]),
      producers: try ProducerState(
        snapshot: nil, start: .zero, batches: batches, limits: configuration.producers))
    var leader = Subject(1, log: log, configuration: configuration)
    leader.handle(.assigned(assignment(leader: 1, isr: [1], replicas: [1], minISR: 1)))
    leader.sync()
    #expect(outcome(&leader, 1, sequence: 5) == .at(5, 6))
  }

  @Test func `a snapshot survives, a damaged one is refused`() throws {
    var configuration = ReplicationConfiguration()
    configuration.snapshotBatches = 3
    var leader = self.single(configuration)
    var snapshot: ([UInt8], Offset)?
    let file = (Int64(1) << 62) + 5
    for (n, producer) in [3, file, 9].enumerated() {
      var effects = leader.append(2, producer: producer, sequence: 0, time: Int64(n))
      effects += leader.sync()
      for case .producerSnapshot(let bytes, let at) in effects { snapshot = (bytes, at) }
    }
    let (bytes, at) = try #require(snapshot)
    #expect(at == Offset(6))
    let state = try ProducerState(
      snapshot: bytes, start: .zero, batches: [], limits: ProducerLimits())
    #expect(state.producerCount == 3)
    #expect(
      state.judge(ProducerID(file), ProducerEpoch(0), base: 0, count: 2)
        == .duplicate(base: Offset(2), restsOn: Offset(4)))
    for at in bytes.indices {
      var damaged = bytes
      damaged[at] ^= 0x10
      #expect(throws: MemQError.self) {
        try ProducerState(snapshot: damaged, start: .zero, batches: [], limits: ProducerLimits())
      }
    }
    for count in 0..<bytes.count {
      #expect(throws: MemQError.self) {
        try ProducerState(
          snapshot: Array(bytes.prefix(count)), start: .zero, batches: [],
          limits: ProducerLimits())
      }
    }
  }

  @Test func `memory of producers is bounded, and files' is kept by time`() {
    var configuration = ReplicationConfiguration()
    configuration.producers.producersMax = 3
    configuration.producers.filesMax = 2
    var leader = self.single(configuration)
    let file = Int64(1) << 62
    #expect(outcome(&leader, 1, producer: file, sequence: 0, time: 0) == .at(0, 1, time: 0))
    for n in 0..<5 { _ = outcome(&leader, 1, producer: Int64(n), sequence: 0, time: 1) }
    #expect(outcome(&leader, 1, producer: 1, sequence: 1) == .refused(.unknownProducer))
    #expect(outcome(&leader, 1, producer: 2, sequence: 1) == .at(6, 7))
    #expect(
      outcome(&leader, 1, producer: file, sequence: 0) == .duplicate(base: .zero))
    #expect(
      outcome(&leader, 1, producer: file, sequence: 1) == .refused(.fileSequenceInvalid))
    _ = outcome(&leader, 1, producer: file + 1, sequence: 0, time: 10)
    #expect(
      outcome(&leader, 1, producer: file + 2, sequence: 0, time: 10)
        == .refused(.overloaded(limit: 2)))
    // 15 minutes later the oldest publication makes room for a new one; 7 days later all is forgotten.
    _ = outcome(&leader, 1, producer: 3, sequence: 1, time: 16 * 60_000)
    #expect(
      outcome(&leader, 1, producer: file + 2, sequence: 0, time: 16 * 60_000)
        == .at(9, 10, time: 16 * 60_000))
    let later = 6 * 24 * 3_600_000 as Int64
    #expect(
      outcome(&leader, 1, producer: file + 1, sequence: 0, time: later)
        == .duplicate(base: Offset(7)))
    _ = outcome(&leader, 1, producer: 100, sequence: 0, time: 8 * 24 * 3_600_000)
    #expect(outcome(&leader, 1, producer: 3, sequence: 2) == .refused(.unknownProducer))
    #expect(
      outcome(&leader, 1, producer: file + 1, sequence: 0, time: 8 * 24 * 3_600_000)
        == .at(11, 12, time: 8 * 24 * 3_600_000))
  }

  @Test func `limits that fit a snapshot give none that is larger`() throws {
    let limits = ProducerLimits().fitting(snapshotBytes: 10_000)
    var configuration = ReplicationConfiguration()
    configuration.producers = limits
    var leader = self.single(configuration)
    for n in 0..<200 {
      for sequence in 0..<5 as Range<Int32> {
        _ = outcome(&leader, 1, producer: Int64(n), sequence: sequence)
      }
      _ = outcome(&leader, 1, producer: (1 << 62) + Int64(n), sequence: 0)
    }
    for case .producerSnapshot(let bytes, _) in leader.handle(.snapshotWanted) {
      #expect(bytes.count <= 10_000 && bytes.count > 9_700)
    }
    #expect(limits.filesMax == 127 && limits.producersMax == 41)
    #expect(ProducerLimits().fitting(snapshotBytes: 8 << 20).producersMax > 30_000)
  }
}
