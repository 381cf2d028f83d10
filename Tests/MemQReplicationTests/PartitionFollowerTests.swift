// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import Testing

@Suite struct PartitionFollowerTests {
  func answer(
    _ result: OpenAnswer.Result, number: Int64, epoch: Int64
  )
    -> PartitionReplica.Event
  {
    .follower(
      .answered(
        OpenAnswer(
          follower: replica(1), leaderEpoch: LeaderEpoch(epoch), number: OpenNumber(number),
          result: result)))
  }

  func push(
    _ base: Int64, _ end: Int64, number: Int64 = 1, epoch: Int64 = 1, batchEpoch: Int64? = nil,
    highWatermark: Int64 = 0
  ) -> PartitionReplica.Event {
    .follower(
      .pushed(
        Push(
          leaderEpoch: LeaderEpoch(epoch), number: OpenNumber(number),
          batch: BatchSummary(
            baseOffset: Offset(base), endOffset: Offset(end),
            leaderEpoch: LeaderEpoch(batchEpoch ?? epoch)),
          highWatermark: Offset(highWatermark)), token: 1))
  }

  func following() -> Subject {
    var follower = Subject(1)
    follower.handle(.assigned(assignment(leader: 2)))
    follower.handle(answer(.accepted(from: .zero), number: 1, epoch: 1))
    return follower
  }

  @Test func `it reports a position once it is durable`() throws {
    var follower = self.following()
    let effects = follower.handle(push(0, 5, highWatermark: 3))
    #expect(effects.highWatermark == Offset(3))
    #expect(!effects.contains { if case .position = $0 { true } else { false } })
    guard case .position(let position) = try #require(follower.sync().first) else {
      Issue.record("no position")
      return
    }
    #expect(position.durableEnd == Offset(5))
  }

  @Test func `elected uncleanly, it tells of nothing that is not durable here`() {
    var follower = self.following()
    follower.handle(push(0, 5, highWatermark: 5))
    follower.sync()
    follower.handle(push(5, 9, highWatermark: 9))
    #expect(follower.core.highWatermark == Offset(9))
    follower.handle(
      .assigned(assignment(leader: 1, epoch: 2, partitionEpoch: 2, isr: [1], minISR: 1)))
    #expect(follower.core.highWatermark == Offset(5))
    #expect(follower.sync().highWatermark == Offset(9))
  }

  @Test func `pushes of another open, another epoch or twice are dropped`() {
    var follower = self.following()
    follower.handle(push(0, 5))
    #expect(follower.handle(push(0, 5)).isEmpty)
    #expect(follower.handle(push(5, 6, number: 2)).isEmpty)
    #expect(follower.handle(push(5, 6, epoch: 2)).isEmpty)
    #expect(follower.core.log.end == Offset(5))
  }

  @Test func `a gap opens again with the next number once all is durable`() throws {
    var follower = self.following()
    follower.handle(push(0, 5))
    #expect(follower.handle(push(7, 9)).isEmpty, "the open states only what is durable")
    let request = try #require(follower.sync().open)
    #expect(request.number == OpenNumber(2))
    #expect(request.end == Offset(5))
    #expect(request.lastEpoch == LeaderEpoch(1))
  }

  /// Two quick elections with no epoch in common: one answer isn't enough (KIP-279).
  @Test func `divergence is cut epoch by epoch`() throws {
    var follower = Subject(1, log: try log([(1, 0), (3, 10), (5, 20)], end: 30))
    #expect(follower.handle(.assigned(assignment(leader: 2, epoch: 7))).open?.end == Offset(30))
    // The leader has epochs 1, 4 and 6: the largest not above 5 is 4, and here that is 3.
    var effects = follower.handle(
      answer(.diverged(EpochEnd(epoch: LeaderEpoch(4), end: Offset(25))), number: 1, epoch: 7))
    #expect(effects.cut == Offset(20))
    #expect(effects.open == nil, "the cut must be durable first")
    #expect(follower.sync().open?.lastEpoch == LeaderEpoch(3))
    effects = follower.handle(
      answer(.diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(8))), number: 2, epoch: 7))
    #expect(effects.cut == Offset(8))
    #expect(follower.sync().open?.lastEpoch == LeaderEpoch(1))
    follower.handle(answer(.accepted(from: Offset(8)), number: 3, epoch: 7))
    follower.handle(push(8, 9, number: 3, epoch: 7, batchEpoch: 4))
    #expect(follower.core.log.epochs.entries.map(\.epoch.rawValue) == [1, 4])
  }

  @Test func `a log with nothing in common is cut to its start`() throws {
    var follower = Subject(1, log: try log([(2, 0)], end: 5))
    follower.handle(.assigned(assignment(leader: 2, epoch: 3)))
    let effects = follower.handle(
      answer(.diverged(EpochEnd(epoch: .none, end: .zero)), number: 1, epoch: 3))
    #expect(effects.cut == .zero)
    #expect(follower.sync().open?.lastEpoch == LeaderEpoch.none)
  }

  @Test func `no cut reaches below the uploaded offset`() throws {
    var follower = Subject(1, log: try log([(1, 0)], end: 10))
    follower.handle(.uploadedOffsetMoved(Offset(8)))
    follower.handle(.assigned(assignment(leader: 2, epoch: 3)))
    let effects = follower.handle(
      answer(.diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(5))), number: 1, epoch: 3))
    #expect(effects == [.startAfresh(at: Offset(8))])
  }

  @Test func `no cut reaches below the log start`() throws {
    var follower = Subject(1, log: try log([(1, 0)], end: 10))
    follower.handle(.logStartMoved(Offset(8)))
    follower.handle(.assigned(assignment(leader: 2, epoch: 3)))
    let effects = follower.handle(
      answer(.diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(5))), number: 1, epoch: 3))
    #expect(effects == [.startAfresh(at: Offset(8))])
  }

  @Test func `writes filed before a cut don't count beyond it`() throws {
    var follower = self.following()
    follower.handle(push(0, 5))
    let writeOfPush = follower.lastWrite
    follower.handle(.assigned(assignment(leader: 3, epoch: 2)))
    #expect(follower.sync().open?.end == Offset(5))
    let cut = follower.handle(
      answer(.diverged(EpochEnd(epoch: LeaderEpoch(1), end: Offset(2))), number: 2, epoch: 2))
    #expect(cut.cut == Offset(2))
    follower.handle(.durable(through: writeOfPush))
    #expect(follower.core.log.durableEnd == Offset(2))
  }

  @Test func `silence opens again`() {
    var follower = self.following()
    #expect(follower.pass(.seconds(4)).open?.number == OpenNumber(2))
  }
}
