// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@testable import MemQClient

@Suite struct EpochTrailTests {
  private func trail(_ parts: (Int64, Int64, Int64)...) -> EpochTrail {
    var trail = EpochTrail(nil, before: Offset(parts[0].1))
    for (epoch, from, to) in parts {
      trail.note(LeaderEpoch(epoch), from: Offset(from), to: Offset(to))
    }
    return trail
  }

  private func truncation(
    _ epoch: Int64, end: Int64, resume: Int64? = nil, before: Int64? = nil
  ) -> LogTruncation {
    LogTruncation(
      epoch: LeaderEpoch(epoch), end: Offset(end), resume: Offset(resume ?? end),
      resumeEpoch: before.map { LeaderEpoch($0) })
  }

  @Test func `it knows the epoch before every offset that was read, and no other`() {
    let trail = self.trail((1, 5, 10), (1, 10, 12), (4, 12, 20))
    #expect(trail.epoch(before: Offset(5)) == nil)
    #expect(trail.epoch(before: Offset(6)) == LeaderEpoch(1))
    #expect(trail.epoch(before: Offset(12)) == LeaderEpoch(1))
    #expect(trail.epoch(before: Offset(13)) == LeaderEpoch(4))
    #expect(trail.epoch(before: Offset(20)) == LeaderEpoch(4))
    #expect(trail.epoch(before: Offset(21)) == nil)
    let committed = EpochTrail(LeaderEpoch(3), before: Offset(9))
    #expect(committed.epoch(before: Offset(9)) == LeaderEpoch(3))
    #expect(committed.epoch(before: Offset(8)) == nil)
  }

  @Test func `reader and log part where the first of both left their last common epoch`() {
    // The log's epoch ends first.
    var trail = self.trail((1, 0, 10), (2, 10, 20))
    #expect(trail.part(self.truncation(2, end: 15, before: 2), at: Offset(20)) == Offset(15))
    #expect(trail.epoch(before: Offset(15)) == LeaderEpoch(2))
    #expect(trail.epoch(before: Offset(16)) == nil)
    // The reader's does: the log goes on in it, with records that the reader never saw.
    trail = self.trail((1, 0, 10), (2, 10, 15))
    let beyond = self.truncation(1, end: 20, resume: 0)
    #expect(trail.part(beyond, at: Offset(15)) == Offset(10))
    #expect(trail.epoch(before: Offset(10)) == LeaderEpoch(1))
    // Both left it, and between came others.
    trail = self.trail((1, 0, 5), (2, 5, 10), (5, 10, 15))
    #expect(trail.part(self.truncation(1, end: 8), at: Offset(15)) == Offset(5))
  }

  @Test func `a reader that knows only its last epoch goes where the log says, not beyond it`() {
    var trail = EpochTrail(LeaderEpoch(4), before: Offset(15))
    #expect(trail.part(self.truncation(2, end: 8, before: 2), at: Offset(15)) == Offset(8))
    #expect(trail.epoch(before: Offset(8)) == LeaderEpoch(2))
    trail = EpochTrail(LeaderEpoch(4), before: Offset(15))
    let unclear = self.truncation(2, end: 30, resume: 6, before: 1)
    #expect(trail.part(unclear, at: Offset(15)) == Offset(6))
    #expect(trail.epoch(before: Offset(6)) == LeaderEpoch(1))
  }

  @Test func `it keeps the newest epochs, and begins anew when they fall`() {
    var trail = EpochTrail(nil, before: .zero)
    for epoch in 0..<100 as Range<Int64> {
      trail.note(LeaderEpoch(epoch), from: Offset(epoch), to: Offset(epoch + 1))
    }
    #expect(trail.entries.count == 16 && trail.epoch(before: Offset(90)) == LeaderEpoch(89))
    trail.note(LeaderEpoch(3), from: Offset(100), to: Offset(101))
    #expect(trail.entries.count == 1 && trail.epoch(before: Offset(100)) == nil)
  }
}
