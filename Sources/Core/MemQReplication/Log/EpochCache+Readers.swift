// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension EpochCache {
  /// Whether a reader that goes on at `offset`, and that read the record before it in epoch `lastEpoch`, has read what this log does not have:
  /// nil when they agree, or when the log knows nothing of that record's epoch.
  ///
  /// A log that holds a record of `lastEpoch` at or above the reader's last one holds all that the reader read (an epoch has one leader).
  /// So they part when the epoch is not among the log's, or ends below the reader's offset. What lies at or below the first epoch's start is
  /// not compared: it was deleted, or it is in the object tier alone. Source: KIP-320, KIP-279.
  ///
  /// - Parameters:
  ///   - logStart: the first offset that exists; nobody goes on below it.
  /// - Precondition: `lastEpoch` is not above the leader's: a leader that is behind must not judge.
  public func truncation(
    forReaderAt offset: Offset, lastEpoch: LeaderEpoch, logStart: Offset, logEnd: Offset
  ) -> LogTruncation? {
    guard let first = self.entries.first, offset > first.start else { return nil }
    guard let known = self.end(of: lastEpoch, logEnd: logEnd) else {
      let resume = max(first.start, logStart)
      return LogTruncation(epoch: .none, end: resume, resume: resume, resumeEpoch: nil)
    }
    if known.epoch == lastEpoch, known.end >= offset { return nil }
    let isBelow = known.end < offset
    let resume = max(isBelow ? known.end : self.start(of: known.epoch), logStart)
    return LogTruncation(
      epoch: known.epoch, end: known.end, resume: resume, resumeEpoch: self.epoch(before: resume))
  }

  /// The epoch of the record before `offset`; nil where the log does not know it.
  public func epoch(before offset: Offset) -> LeaderEpoch? {
    guard offset > .zero, let entry = self.entries.last(where: { $0.start < offset }) else {
      return nil
    }
    return entry.epoch
  }

  private func start(of epoch: LeaderEpoch) -> Offset {
    self.entries.first { $0.epoch == epoch }?.start ?? .zero
  }
}
