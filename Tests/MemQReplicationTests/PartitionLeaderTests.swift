// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import Testing

@Suite struct PartitionLeaderTests {
  /// Leads in epoch 1 with an open stream from 2 and 3.
  func leader(minISR: Int = 2, configuration: ReplicationConfiguration = .init()) -> Subject {
    var subject = Subject(1, configuration: configuration)
    subject.handle(.assigned(assignment(leader: 1, minISR: minISR)))
    subject.sync()
    subject.open(from: 2, end: 0)
    subject.open(from: 3, end: 0)
    return subject
  }

  @Test func `the high watermark is the lowest durable position of the in-sync replicas`() {
    var leader = leader()
    #expect(leader.append(10).outcomes.isEmpty)
    #expect(leader.position(of: 2, end: 10).highWatermark == nil)
    #expect(leader.position(of: 3, end: 4).highWatermark == nil, "the leader isn't durable yet")
    #expect(leader.sync().highWatermark == Offset(4))
    let effects = leader.position(of: 3, end: 10)
    #expect(effects.highWatermark == Offset(10))
    #expect(effects.outcomes == [1: .at(0, 10)])
  }

  @Test func `acks tell when to answer`() {
    var leader = leader()
    #expect(leader.append(1, acks: .none).outcomes == [1: .at(0, 1)])
    #expect(leader.append(1, acks: .leader).outcomes.isEmpty)
    #expect(leader.append(1, acks: .all).outcomes.isEmpty)
    #expect(leader.sync().outcomes == [2: .at(1, 2)])
    leader.position(of: 2, end: 3)
    #expect(leader.position(of: 3, end: 3).outcomes == [3: .at(2, 3)])
  }

  @Test func `one replica alone commits what is durable`() {
    var leader = Subject(1)
    leader.handle(.assigned(assignment(leader: 1, isr: [1], replicas: [1], minISR: 1)))
    leader.append(5)
    let effects = leader.sync()
    #expect(effects.highWatermark == Offset(5))
    #expect(effects.outcomes == [1: .at(0, 5)])
  }

  @Test func `too small an ISR refuses acks all and freezes the high watermark`() {
    var leader = leader()
    leader.append(1, wait: .seconds(20))
    leader.sync()
    leader.handle(.assigned(assignment(leader: 1, partitionEpoch: 2, isr: [1])))
    #expect(leader.core.highWatermark == .zero)
    #expect(
      leader.append(1).outcomes == [2: .refused(.notEnoughReplicas(inSync: 1, minimum: 2))])
    #expect(
      leader.pass(.seconds(21)).outcomes
        == [1: .refused(.notEnoughReplicasAfterAppend(inSync: 1, minimum: 2))])
  }

  @Test
  func `a lagging member is proposed out and still holds the watermark until that is committed`()
    throws
  {
    var leader = leader()
    leader.append(5)
    leader.sync()
    leader.position(of: 2, end: 5)
    let proposal = try #require(leader.pass(.seconds(11)).proposal)
    #expect(proposal.isr.map(\.id) == [replica(1), replica(2)])
    #expect(proposal.base == PartitionEpoch(1))
    #expect(leader.core.highWatermark == .zero)
    let answer = ISRAnswer.accepted(
      PartitionEpoch(2), isr: [replica(1), replica(2)], minISR: 2)
    let effects = leader.handle(.leader(.proposalAnswered(proposal, answer)))
    #expect(effects.highWatermark == Offset(5))
    #expect(effects.outcomes == [1: .at(0, 5)])
  }

  @Test func `a member proposed in holds the watermark before it is committed`() throws {
    var leader = Subject(1)
    leader.handle(.assigned(assignment(leader: 1, isr: [1, 2])))
    leader.sync()
    leader.open(from: 2, end: 0)
    let proposal = try #require(leader.open(from: 3, end: 0).proposal)
    #expect(proposal.isr.map(\.id) == [replica(1), replica(2), replica(3)])
    leader.append(5)
    leader.sync()
    #expect(leader.position(of: 2, end: 5).highWatermark == nil)
    // No answer: the proposal may still be applied, so it stays in the maximal ISR.
    #expect(leader.handle(.leader(.proposalAnswered(proposal, .unknown))).highWatermark == nil)
    // Metadata moved on without it: now it is sure to be void.
    let effects = leader.handle(
      .assigned(assignment(leader: 1, partitionEpoch: 2, isr: [1, 2])))
    #expect(effects.highWatermark == Offset(5))
  }

  @Test func `a refusal rolls back only what no earlier attempt may have done`() throws {
    var leader = Subject(1)
    leader.handle(.assigned(assignment(leader: 1, isr: [1, 2])))
    leader.sync()
    leader.open(from: 2, end: 0)
    let first = try #require(leader.open(from: 3, end: 0).proposal)
    leader.append(5)
    leader.sync()
    leader.position(of: 2, end: 5)
    leader.handle(.leader(.proposalAnswered(first, .unknown)))
    leader.handle(.leader(.closed(replica(3), OpenNumber(1))))
    let barrier = try #require(leader.pass(.seconds(1)).proposal)
    leader.handle(.leader(.proposalAnswered(barrier, .refused)))
    #expect(leader.core.highWatermark == .zero, "the first may still be applied")
    let again = try #require(leader.pass(.seconds(1)).proposal)
    let answer = ISRAnswer.accepted(
      PartitionEpoch(2), isr: [replica(1), replica(2)], minISR: 2)
    leader.handle(.leader(.proposalAnswered(again, answer)))
    #expect(leader.core.highWatermark == Offset(5))
  }

  @Test func `a follower is compared by epochs, not by offsets`() throws {
    var leader = Subject(1, log: try log([(1, 0), (3, 10)], end: 20))
    leader.handle(.assigned(assignment(leader: 1, epoch: 5)))
    leader.sync()
    #expect(
      leader.open(from: 2, end: 15, lastEpoch: 2, epoch: 5).answer
        == .diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(10))))
    #expect(
      leader.open(from: 2, 2, end: 10, lastEpoch: 1, epoch: 5).answer == .accepted(from: Offset(10))
    )
    #expect(
      leader.open(from: 3, end: 25, lastEpoch: 3, epoch: 5).answer
        == .diverged(EpochEnd(epoch: LeaderEpoch(3), end: Offset(20))))
  }

  @Test func `opens and positions of other epochs, lives and numbers do not count`() {
    var leader = leader()
    leader.append(5)
    leader.sync()
    #expect(
      leader.open(from: 2, 9, end: 0, epoch: 2).answer
        == .rejected(.unknownLeaderEpoch(current: LeaderEpoch(1))))
    #expect(
      leader.open(from: 2, 9, end: 0, epoch: 0).answer
        == .rejected(.fencedLeaderEpoch(current: LeaderEpoch(1))))
    #expect(
      leader.open(from: 2, 9, end: 0, life: 2).answer
        == .rejected(.unknownNodeEpoch(current: NodeEpoch(1))))
    #expect(leader.open(from: 4, end: 0).answer == .rejected(.notAReplica))
    leader.position(of: 3, end: 5)
    leader.position(of: 2, 2, end: 5)
    leader.position(of: 2, end: 5, epoch: 0)
    leader.position(of: 2, end: 5, life: 2)
    leader.position(of: 2, end: 6)
    #expect(leader.core.highWatermark == .zero)
    leader.position(of: 2, end: 5)
    #expect(leader.core.highWatermark == Offset(5))
  }

  @Test func `nothing leaves a leader whose epoch isn't durable`() {
    var leader = Subject(1)
    leader.handle(.assigned(assignment(leader: 1)))
    #expect(leader.open(from: 2, end: 0).answer == .rejected(.notReady))
  }

  @Test func `an epoch that the log already holds is not led again`() throws {
    var replica = Subject(1, log: try log([(4, 0)], end: 3))
    #expect(
      replica.handle(.assigned(assignment(leader: 1, epoch: 4))) == [
        .refuseLeadership(LeaderEpoch(4))
      ])
    #expect(replica.append(1).outcomes == [1: .refused(.notLeader)])
  }

  @Test func `a new leader answers for the end of the log once it reached its epoch's start`()
    throws
  {
    var leader = Subject(1, log: try log([(1, 0)], end: 8, highWatermark: 3))
    leader.handle(.assigned(assignment(leader: 1, epoch: 2, isr: [1, 2])))
    leader.sync()
    #expect(leader.core.leader?.isHighWatermarkCurrent == false)
    leader.open(from: 2, end: 8, lastEpoch: 1, epoch: 2)
    #expect(leader.core.highWatermark == Offset(8))
    #expect(leader.core.leader?.isHighWatermarkCurrent == true)
  }

  @Test func `a log that ends where its leader's begins now agrees with it`() throws {
    var leader = Subject(1, log: try log([(1, 0)], end: 8, highWatermark: 8))
    leader.handle(.assigned(assignment(leader: 1, epoch: 3, isr: [1, 2])))
    leader.sync()
    leader.handle(.logStartMoved(Offset(8)))
    #expect(
      leader.open(from: 2, end: 8, lastEpoch: 1, epoch: 3).answer == .accepted(from: Offset(8)))
    let ahead = leader.open(from: 2, 2, end: 9, lastEpoch: 2, epoch: 3).answer
    #expect(ahead == .diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(8))))
  }

  @Test func `a member that asks what came before its log is proposed out at once`() throws {
    var leader = Subject(1, log: try log([(1, 0)], end: 8, highWatermark: 8))
    leader.handle(.assigned(assignment(leader: 1, epoch: 2, isr: [1, 2, 3])))
    leader.sync()
    leader.handle(.logStartMoved(Offset(8)))
    let effects = leader.handle(
      .leader(
        .opened(
          OpenRequest(
            follower: member(2), leaderEpoch: LeaderEpoch(2), number: OpenNumber(1), end: Offset(8),
            lastEpoch: .none, needsHistory: true))))
    #expect(try #require(effects.proposal).isr.map(\.id) == [replica(1), replica(3)])
  }

  @Test func `a member that opens below the watermark is proposed out at once`() throws {
    var leader = leader()
    leader.append(5)
    leader.sync()
    leader.position(of: 2, end: 5)
    leader.position(of: 3, end: 5)
    let proposal = try #require(leader.open(from: 3, 2, end: 0).proposal)
    #expect(proposal.isr.map(\.id) == [replica(1), replica(2)])
  }

  @Test func `replies that wait are told that the outcome is open when the leader resigns`() {
    var leader = leader()
    leader.append(5)
    let effects = leader.handle(.assigned(assignment(leader: 2, epoch: 2)))
    #expect(effects.outcomes == [1: .refused(.outcomeUnknown)])
    #expect(leader.core.follower != nil)
  }

  @Test func `a duplicate and a straddle are told only when what they rest on is committed`() {
    var leader = leader()
    leader.append(10, producer: 7, sequence: 0)
    #expect(leader.append(10, producer: 7, sequence: 0).outcomes.isEmpty)
    #expect(leader.append(10, producer: 7, sequence: 5).outcomes.isEmpty)
    leader.sync()
    leader.position(of: 2, end: 10)
    #expect(
      leader.position(of: 3, end: 10).outcomes == [
        1: .at(0, 10), 2: .duplicate(base: .zero), 3: .refused(.sequenceStraddles(last: 9)),
      ])
    #expect(leader.core.log.end == Offset(10))
  }
}
