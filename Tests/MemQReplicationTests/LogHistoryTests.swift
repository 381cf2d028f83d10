// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import Testing

/// Replicas that begin above 0: what lies below is in the object tier, and known to the leader only.
@Suite struct LogHistoryTests {
  /// A leader with two records of producer 7, and two of nobody.
  func leading() -> Subject {
    var leader = Subject(1)
    leader.handle(.assigned(assignment(leader: 1)))
    leader.sync()
    leader.append(2, acks: .leader, producer: 7, sequence: 0)
    leader.append(2, acks: .leader)
    leader.sync()
    return leader
  }

  func follower(emptyAt start: Int64) -> Subject {
    Subject(2, log: ReplicaLog(emptyAt: Offset(start), limits: ProducerLimits()))
  }

  /// The leader's answer to the follower's open.
  func answer(_ leader: inout Subject, _ request: OpenRequest) throws -> OpenAnswer {
    for case .answer(let answer) in leader.handle(.leader(.opened(request))) { return answer }
    throw MemQError(.internalError, "no answer")
  }

  @Test
  func
    `a replica that begins above 0 learns what came before, and knows a repeated batch when it leads`()
    throws
  {
    var leader = self.leading()
    var follower = self.follower(emptyAt: 2)
    let request = try #require(follower.handle(.assigned(assignment(leader: 1))).open)
    #expect(request.needsHistory)
    let answer = try self.answer(&leader, request)
    #expect(answer.result == .accepted(from: Offset(2)))
    let effects = follower.handle(.follower(.answered(answer)))
    #expect(effects.cut == Offset(2), "the epochs are written to the volume")
    #expect(
      effects.contains { if case .producerSnapshot(_, at: Offset(2)) = $0 { true } else { false } })
    follower.sync()
    #expect(follower.core.log.epochs.lastEpoch == LeaderEpoch(1))
    follower.handle(.assigned(assignment(leader: 2, epoch: 2, isr: [2], replicas: [2], minISR: 1)))
    follower.sync()
    let outcomes = follower.append(2, acks: .leader, producer: 7, sequence: 0).outcomes
    #expect(outcomes[1] == .duplicate(base: .zero))
  }

  @Test func `a replica that has the leader's history doesn't ask for it again`() throws {
    var leader = self.leading()
    var follower = self.follower(emptyAt: 2)
    let request = try #require(follower.handle(.assigned(assignment(leader: 1))).open)
    follower.handle(.follower(.answered(try self.answer(&leader, request))))
    follower.sync()
    follower.handle(.follower(.disconnected))
    let again = try #require(follower.pass(.seconds(1)).open)
    #expect(!again.needsHistory)
    #expect(again.lastEpoch == LeaderEpoch(1))
  }

  @Test func `without the history that it asked for a replica asks again`() throws {
    var leader = self.leading()
    var follower = self.follower(emptyAt: 2)
    let request = try #require(follower.handle(.assigned(assignment(leader: 1))).open)
    var answer = try self.answer(&leader, request)
    answer.history = nil
    follower.handle(.follower(.answered(answer)))
    #expect(follower.core.follower?.phase == .waiting)
    #expect(try #require(follower.pass(.seconds(1)).open).needsHistory)
  }

  @Test func `a history that ends below the replica's own end is not taken over`() throws {
    var leader = self.leading()
    var follower = self.follower(emptyAt: 2)
    let request = try #require(follower.handle(.assigned(assignment(leader: 1))).open)
    var answer = try self.answer(&leader, request)
    answer.history?.producersEnd = Offset(1)
    #expect(follower.handle(.follower(.answered(answer))).cut == nil)
    #expect(follower.core.follower?.phase == .waiting)
  }

  @Test
  func `a replica joins the ISR once it said that it holds the history, and says so once it does`()
    throws
  {
    var leader = Subject(1)
    let alone = assignment(leader: 1, isr: [1], replicas: [1, 2], minISR: 1)
    leader.handle(.assigned(alone))
    leader.sync()
    leader.append(2, acks: .leader, producer: 7, sequence: 0)
    leader.sync()
    var follower = self.follower(emptyAt: 2)
    let request = try #require(follower.handle(.assigned(alone)).open)
    let opened = leader.handle(.leader(.opened(request)))
    #expect(opened.proposal == nil, "it holds all records, but knows no producer yet")
    var answer: OpenAnswer?
    for case .answer(let found) in opened { answer = found }
    let adopted = follower.handle(.follower(.answered(try #require(answer))))
    func position(_ effects: [ReplicationEffect]) -> FollowerPosition? {
      for case .position(let position) in effects { return position }
      return nil
    }
    let heartbeat = Heartbeat(
      leaderEpoch: LeaderEpoch(1), number: request.number, highWatermark: Offset(2),
      pushedThrough: Offset(2))
    #expect(position(adopted + follower.handle(.follower(.heartbeat(heartbeat)))) == nil)
    let said = try #require(position(follower.sync()))
    #expect(leader.handle(.leader(.positioned(said))).proposal != nil)
  }

  @Test func `a replica without the history makes no snapshot of the little it knows`() throws {
    var leader = self.leading()
    var follower = self.follower(emptyAt: 2)
    let request = try #require(follower.handle(.assigned(assignment(leader: 1))).open)
    func isSnapshot(_ effect: ReplicationEffect) -> Bool {
      if case .producerSnapshot = effect { true } else { false }
    }
    #expect(!follower.handle(.snapshotWanted).contains(where: isSnapshot))
    follower.handle(.follower(.answered(try self.answer(&leader, request))))
    #expect(follower.handle(.snapshotWanted).contains(where: isSnapshot))
  }

  @Test func `the lag of followers counts those that are pushed to`() {
    var leader = self.leading()
    #expect(leader.core.leader?.followerLagMax == 0)
    leader.open(from: 2, end: 0)
    #expect(leader.core.leader?.followerLagMax == 4)
    leader.position(of: 2, end: 3)
    #expect(leader.core.leader?.followerLagMax == 1)
  }
}
