// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import Testing

/// Whether a reader has read what a log does not have, KIP-320.
@Suite struct ReaderTruncationTests {
  private func log(_ starts: (Int64, Int64)...) throws -> EpochCache {
    try EpochCache(starts.map { EpochStart(epoch: LeaderEpoch($0.0), start: Offset($0.1)) })
  }

  private func truncation(
    _ log: EpochCache, at offset: Int64, epoch: Int64, start: Int64 = 0, end: Int64
  ) -> LogTruncation? {
    log.truncation(
      forReaderAt: Offset(offset), lastEpoch: LeaderEpoch(epoch), logStart: Offset(start),
      logEnd: Offset(end))
  }

  @Test func `who read what the log has is told nothing, wherever it stands`() throws {
    let log = try self.log((1, 0), (3, 10), (4, 10), (6, 20))
    for offset in 1...30 as ClosedRange<Int64> {
      let epoch = try #require(log.epoch(before: Offset(offset)))
      #expect(self.truncation(log, at: offset, epoch: epoch.rawValue, end: 30) == nil)
    }
    #expect(log.epoch(before: .zero) == nil)
    #expect(self.truncation(log, at: 0, epoch: 5, end: 30) == nil, "nothing was read")
  }

  @Test func `an epoch that ended below the reader's offset parts them at its end`() throws {
    let log = try self.log((1, 0), (2, 10), (5, 20))
    let found = try #require(self.truncation(log, at: 25, epoch: 2, end: 40))
    #expect(
      found
        == LogTruncation(
          epoch: LeaderEpoch(2), end: Offset(20), resume: Offset(20), resumeEpoch: LeaderEpoch(2)))
    // The last epoch ends with the log.
    #expect(self.truncation(log, at: 41, epoch: 5, end: 40)?.resume == Offset(40))
  }

  @Test func `an epoch that the log does not have parts them at the end of the one below it`()
    throws
  {
    let log = try self.log((1, 0), (2, 10), (5, 20))
    let found = try #require(self.truncation(log, at: 25, epoch: 4, end: 40))
    #expect(found.epoch == LeaderEpoch(2) && found.end == Offset(20) && found.resume == Offset(20))
    // The log goes on in that one beyond the reader: from where on it has other records nothing tells.
    let beyond = try #require(self.truncation(log, at: 15, epoch: 3, end: 40))
    #expect(beyond.end == Offset(20) && beyond.resume == Offset(10))
    #expect(beyond.resumeEpoch == LeaderEpoch(1))
  }

  @Test func `what lies below the log's first epoch is not compared, what lies above begins there`()
    throws
  {
    var log = try self.log((1, 0), (2, 10), (5, 20))
    log.trim(to: Offset(15))
    #expect(self.truncation(log, at: 15, epoch: 1, start: 15, end: 40) == nil)
    #expect(self.truncation(log, at: 16, epoch: 2, start: 15, end: 40) == nil)
    let found = try #require(self.truncation(log, at: 16, epoch: 1, start: 15, end: 40))
    #expect(found.epoch == .none && found.resume == Offset(15) && found.resumeEpoch == nil)
    #expect(self.truncation(EpochCache(), at: 9, epoch: 1, end: 40) == nil)
    // Nobody goes on below the log's start.
    let cut = try self.log((1, 0), (9, 10))
    #expect(self.truncation(cut, at: 30, epoch: 3, start: 12, end: 40)?.resume == Offset(12))
  }
}
