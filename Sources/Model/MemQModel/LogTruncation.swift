// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A reader has read records that the log does not have (any more): where the two histories part. Source: KIP-320.
public struct LogTruncation: Hashable, Sendable {
  /// The largest leader epoch of the log not above the reader's last; `.none` when all are above.
  public var epoch: LeaderEpoch
  /// Where that epoch ends in the log: up to there at most the two agree.
  public var end: Offset
  /// Where a reader goes on that knows nothing but its last epoch. It is `end`, unless that is not below the reader's offset: then the log
  /// has other records all the way, nothing tells from where on, and it is the epoch's start: rather read twice than passed over.
  public var resume: Offset
  /// The epoch of the record before `resume`; nil: not known.
  public var resumeEpoch: LeaderEpoch?

  public init(epoch: LeaderEpoch, end: Offset, resume: Offset, resumeEpoch: LeaderEpoch?) {
    self.epoch = epoch
    self.end = end
    self.resume = resume
    self.resumeEpoch = resumeEpoch
  }

  /// What the reader is told.
  ///
  /// - Parameter offset: the reader's.
  public func error(_ subject: String, at offset: Offset) -> MemQError {
    MemQError(
      .logTruncated,
      "the log lost records below this offset that were read: from the limit on it has another history",
      subject: subject, limit: self.resume.rawValue, actual: offset.rawValue)
  }
}
