// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import Testing

/// The rules of docs/protocols/replication.md that no other suite states by name.
@Suite struct ReplicationRuleTests {
  private func leader(
    epoch: Int64 = 1, isr: [Int32] = [1, 2, 3], minISR: Int = 2, log: ReplicaLog? = nil
  ) -> Subject {
    var leader = Subject(1, log: log)
    leader.handle(.assigned(assignment(leader: 1, epoch: epoch, isr: isr, minISR: minISR)))
    leader.sync()
    return leader
  }

  @Test(arguments: [true, false])
  func `the answer to a proposal and the image may come in either order`(
    imageFirst: Bool
  ) throws {
    var leader = leader(isr: [1, 2])
    leader.open(from: 2, end: 0)
    let proposal = try #require(leader.open(from: 3, end: 0).proposal)
    leader.append(5)
    leader.sync()
    leader.position(of: 2, end: 5)
    let answer = PartitionReplica.Event.leader(
      .proposalAnswered(
        proposal,
        .accepted(
          PartitionEpoch(2), isr: [replica(1), replica(2), replica(3)], minISR: 2)))
    let image = PartitionReplica.Event.assigned(
      assignment(leader: 1, partitionEpoch: 2, isr: [1, 2, 3]))
    // One from before, late.
    let older = PartitionReplica.Event.assigned(assignment(leader: 1, isr: [1, 2]))
    for event in imageFirst ? [image, answer, older] : [answer, older, image] {
      #expect(leader.handle(event).highWatermark == nil, "the third has not confirmed anything")
    }
    #expect(leader.position(of: 3, end: 5).highWatermark == Offset(5))
  }

  @Test func `the minimum that comes with an answer holds until the image is as new`() throws {
    var leader = leader()
    leader.open(from: 2, end: 0)
    leader.append(5)
    leader.sync()
    leader.position(of: 2, end: 5)
    let proposal = try #require(leader.pass(.seconds(11)).proposal)
    // It was raised before the image shows it: the third stays eligible.
    let answer = ISRAnswer.accepted(PartitionEpoch(2), isr: [replica(1), replica(2)], minISR: 3)
    #expect(leader.handle(.leader(.proposalAnswered(proposal, answer))).highWatermark == nil)
    let older = assignment(leader: 1, isr: [1, 2, 3], minISR: 2)
    #expect(leader.handle(.assigned(older)).highWatermark == nil)
    #expect(leader.position(of: 2, end: 5).highWatermark == nil)
    let lowered = assignment(leader: 1, partitionEpoch: 3, isr: [1, 2], minISR: 2)
    #expect(leader.handle(.assigned(lowered)).highWatermark == Offset(5))
  }

  @Test func `nobody is proposed who is below the leader's epoch start, or silent in this epoch`()
    throws
  {
    // The watermark is behind, as a new leader's may be.
    var leader = leader(
      epoch: 5, isr: [1, 2], log: try log([(1, 0)], end: 20, highWatermark: 10))
    #expect(leader.open(from: 3, end: 15, lastEpoch: 1, epoch: 5).proposal == nil)
    #expect(leader.position(of: 3, end: 19, epoch: 5).proposal == nil)
    #expect(leader.position(of: 3, 1, end: 20, epoch: 4).proposal == nil, "said in another epoch")
    let proposal = try #require(leader.position(of: 3, end: 20, epoch: 5).proposal)
    #expect(proposal.isr.map(\.id) == [replica(1), replica(2), replica(3)])
  }

  @Test func `a follower takes over its leader's watermark even when it is lower`() {
    var follower = Subject(1)
    follower.handle(.assigned(assignment(leader: 2)))
    follower.handle(accepted(.zero, number: 1, epoch: 1))
    follower.handle(push(0, 8, number: 1, epoch: 1, highWatermark: 8))
    follower.sync()
    #expect(follower.core.highWatermark == Offset(8))
    let heartbeat = Heartbeat(
      leaderEpoch: LeaderEpoch(1), number: OpenNumber(1), highWatermark: Offset(3),
      pushedThrough: Offset(8))
    #expect(follower.handle(.follower(.heartbeat(heartbeat))).highWatermark == Offset(3))
    #expect(follower.core.log.end == Offset(8))
  }

  @Test func `nothing is cut because a watermark is low`() throws {
    var follower = Subject(1, log: try log([(1, 0)], end: 20, highWatermark: 4))
    let effects = follower.handle(.assigned(assignment(leader: 2, epoch: 2)))
    #expect(effects.cut == nil && effects.open?.end == Offset(20))
    // And it leads with all it has.
    let led = follower.handle(.assigned(assignment(leader: 1, epoch: 3)))
    #expect(led.cut == nil && follower.core.log.end == Offset(20))
  }

  @Test func `an epoch without records is known, compared and ended like any other`() throws {
    var leader = leader(epoch: 7, log: try log([(1, 0), (6, 20)], end: 20))
    #expect(
      leader.open(from: 2, end: 20, lastEpoch: 6, epoch: 7).answer == .accepted(from: Offset(20)))
    // It led epoch 4 meanwhile, alone: what it wrote in it goes.
    #expect(
      leader.open(from: 3, end: 25, lastEpoch: 4, epoch: 7).answer
        == .diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(20))))
  }

  @Test func `with too small an ISR new appends are refused, and appended ones may yet commit`()
    throws
  {
    var leader = leader(isr: [1, 2])
    leader.open(from: 2, end: 0)
    leader.append(1, wait: .seconds(1))
    leader.append(1, wait: .seconds(60))
    leader.sync()
    leader.handle(.assigned(assignment(leader: 1, partitionEpoch: 2, isr: [1])))
    let refused = leader.append(1)
    #expect(refused.outcomes[3] == .refused(.notEnoughReplicas(inSync: 1, minimum: 2)))
    #expect(
      leader.pass(.seconds(2)).outcomes == [
        1: .refused(.notEnoughReplicasAfterAppend(inSync: 1, minimum: 2))
      ])
    leader.position(of: 2, end: 2)
    let effects = leader.handle(
      .assigned(assignment(leader: 1, partitionEpoch: 3, isr: [1, 2])))
    // One move of the watermark is both the answer and what readers see.
    #expect(effects.highWatermark == Offset(2) && effects.outcomes == [2: .at(1, 2)])
  }

  @Test func `no single change of the image needs to be seen`() throws {
    // Away, it was taken out, another led twice, and it was added again.
    var returned = Subject(1, log: try log([(1, 0)], end: 20, highWatermark: 20))
    returned.handle(.assigned(assignment(leader: 1, epoch: 2)))
    returned.sync()
    returned.append(3)
    returned.sync()
    let effects = returned.handle(
      .assigned(assignment(leader: 3, epoch: 6, partitionEpoch: 14, isr: [2, 3])))
    #expect(effects.outcomes == [1: .refused(.outcomeUnknown)])
    #expect(effects.open?.lastEpoch == LeaderEpoch(2) && effects.open?.end == Offset(23))
    let late = returned.handle(
      .assigned(assignment(leader: 1, epoch: 2, partitionEpoch: 3, isr: [1, 2, 3])))
    #expect(late.isEmpty, "an image from before")
  }

  @Test func `a member that flaps waits twice as long each time`() throws {
    var leader = leader(isr: [1, 2])
    var partitionEpoch: Int64 = 1
    var waits: [Int] = []
    leader.open(from: 2, end: 0)
    leader.open(from: 3, end: 0)
    for _ in 0..<4 {
      partitionEpoch += 1
      leader.handle(
        .assigned(assignment(leader: 1, partitionEpoch: partitionEpoch, isr: [1, 2, 3])))
      partitionEpoch += 1
      leader.handle(.assigned(assignment(leader: 1, partitionEpoch: partitionEpoch, isr: [1, 2])))
      var seconds = 0
      while leader.pass(.seconds(1)).proposal == nil, seconds < 100 { seconds += 1 }
      waits.append(seconds + 1)
      partitionEpoch += 1
      leader.handle(.assigned(assignment(leader: 1, partitionEpoch: partitionEpoch, isr: [1, 2])))
    }
    #expect(waits == [1, 2, 4, 8])
  }

  // MARK: - Two logs

  /// A log as records: the epoch each was written in, and which it was of that epoch.
  private struct History: Equatable {
    var records: [Record] = []
    /// Every epoch the log knows, with its start; also those without records.
    var epochs: [(epoch: Int64, start: Int64)] = []

    struct Record: Equatable {
      var epoch: Int64
      var offset: Int
    }

    static func == (a: Self, b: Self) -> Bool { a.records == b.records }

    mutating func lead(_ epoch: Int64, _ count: Int) {
      self.epochs.append((epoch, Int64(self.records.count)))
      for _ in 0..<count { self.records.append(Record(epoch: epoch, offset: self.records.count)) }
    }

    mutating func take(_ records: ArraySlice<Record>) {
      for record in records {
        if self.epochs.last?.epoch != record.epoch {
          self.epochs.append((record.epoch, Int64(record.offset)))
        }
        self.records.append(record)
      }
    }

    mutating func cut(to end: Int, epochs: [EpochStart]) {
      self.records.removeSubrange(end...)
      self.epochs = epochs.map { ($0.epoch.rawValue, $0.start.rawValue) }
    }

    func replicaLog() throws -> ReplicaLog {
      try log(self.epochs.map { ($0.epoch, $0.start) }, end: Int64(self.records.count))
    }

    func common(with other: History) -> Int {
      zip(self.records, other.records).prefix { $0 == $1 }.count
    }
  }

  /// KIP-279: leaders come and go faster than anybody follows. Whoever then follows whom, the follower keeps exactly what both have.
  @Test(arguments: 1...150)
  func `two logs that parted anywhere agree after the cuts, and nothing both had is cut`(
    seed: UInt64
  ) throws {
    var random = Random(seed)
    var logs = [History(), History(), History()]
    for epoch in 1...Int64(12) {
      let leader = random.below(3)
      logs[leader].lead(epoch, random.below(4))
      for follower in 0..<3 where follower != leader && random.below(3) == 0 {
        let common = logs[follower].common(with: logs[leader])
        try Self.follow(&logs[follower], logs[leader], epoch)
        #expect(logs[follower].records.count == common, "seed \(seed), epoch \(epoch)")
        #expect(logs[follower].common(with: logs[leader]) == common)
        // It gets some of the rest before the next election.
        let rest = logs[leader].records.count - common
        logs[follower].take(logs[leader].records[common..<(common + random.below(rest + 1))])
      }
    }
  }

  /// The leader of an unclean election holds what was uploaded, or it goes on behind that: one record tells.
  @Test(arguments: 1...50)
  func `two logs agree below an offset where the record before it is of one epoch in both`(
    seed: UInt64
  ) throws {
    var random = Random(seed)
    var logs = [History(), History(), History()]
    for epoch in 1...Int64(12) {
      let leader = random.below(3)
      logs[leader].lead(epoch, random.below(4))
      let follower = (leader + 1 + random.below(2)) % 3
      try Self.follow(&logs[follower], logs[leader], epoch)
      let common = logs[follower].records.count
      let rest = logs[leader].records.count - common
      logs[follower].take(logs[leader].records[common..<(common + random.below(rest + 1))])
      for uploaded in logs {
        for log in logs {
          for end in uploaded.records.indices.map({ $0 + 1 }) {
            let last = LeaderEpoch(uploaded.records[end - 1].epoch)
            let agrees = try log.replicaLog().continues(
              uploadedBelow: Offset(Int64(end)), lastEpoch: last)
            // Who ends below says nothing of it.
            #expect(agrees == (end > log.records.count || log.common(with: uploaded) >= end))
          }
        }
      }
    }
  }

  /// Has the one follow the other, by the rules of both, until it is accepted.
  private static func follow(_ follower: inout History, _ leader: History, _ epoch: Int64) throws {
    // The leader's log already holds its epoch's start: the rules begin it.
    var before = leader
    before.cut(
      to: Int(leader.epochs.last!.start),
      epochs: leader.epochs.dropLast().map {
        EpochStart(epoch: LeaderEpoch($0.epoch), start: Offset($0.start))
      })
    var leading = Subject(1, log: try before.replicaLog())
    leading.handle(.assigned(assignment(leader: 1, epoch: epoch)))
    leading.sync()
    let own = leader.records.count - before.records.count
    if own > 0 {
      leading.append(Int64(own))
      leading.sync()
    }
    var following = Subject(2, log: try follower.replicaLog())
    var effects = following.handle(.assigned(assignment(leader: 1, epoch: epoch)))
    for _ in 0..<50 {
      for case .truncate(_, let end, let epochs) in effects {
        follower.cut(to: Int(end.rawValue), epochs: epochs)
        effects += following.sync()
      }
      guard let request = effects.compactMap(\.openRequest).last else {
        throw MemQError(.internalError, "the follower asks nothing")
      }
      let answers = leading.handle(.leader(.opened(request)))
      guard case .answer(let answer) = answers.first(where: \.isAnswer) else {
        throw MemQError(.internalError, "the leader says nothing")
      }
      effects = following.handle(.follower(.answered(answer)))
      if case .accepted = answer.result { return }
    }
    throw MemQError(.internalError, "they never agree")
  }

  private func accepted(
    _ from: Offset, number: Int64, epoch: Int64
  ) -> PartitionReplica.Event {
    .follower(
      .answered(
        OpenAnswer(
          follower: replica(1), leaderEpoch: LeaderEpoch(epoch), number: OpenNumber(number),
          result: .accepted(from: from))))
  }

  private func push(
    _ base: Int64, _ end: Int64, number: Int64, epoch: Int64, highWatermark: Int64
  ) -> PartitionReplica.Event {
    .follower(
      .pushed(
        Push(
          leaderEpoch: LeaderEpoch(epoch), number: OpenNumber(number),
          batch: BatchSummary(
            baseOffset: Offset(base), endOffset: Offset(end), leaderEpoch: LeaderEpoch(epoch)),
          highWatermark: Offset(highWatermark)), token: 1))
  }
}

private struct Random {
  private var state: UInt64
  init(_ seed: UInt64) { self.state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

  mutating func below(_ bound: Int) -> Int {
    self.state ^= self.state << 13
    self.state ^= self.state >> 7
    self.state ^= self.state << 17
    return Int(self.state >> 11) % bound
  }
}

extension ReplicationEffect {
  fileprivate var openRequest: OpenRequest? {
    if case .open(let request) = self { request } else { nil }
  }
  fileprivate var isAnswer: Bool { if case .answer = self { true } else { false } }
}
