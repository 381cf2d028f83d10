// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication
import MemQStorage
import Synchronization

/// A leader's positions at one instant.
struct PartitionView: Sendable {
  let name: String
  let volume: Volume
  let highWatermark: Offset
  let isHighWatermarkCurrent: Bool
  let logStart: Offset
  let localStart: Offset
  let logEnd: Offset
  let leaderEpoch: LeaderEpoch
  let epochs: EpochCache
  /// The reader who asked has read what this log does not have.
  var truncation: LogTruncation?

  /// An offset that can be read here, or will be.
  ///
  /// - Throws: `.offsetOutOfRange` with the bound that was passed as its limit.
  func check(_ offset: Offset, _ subject: String) throws(MemQError) {
    if offset < self.logStart {
      throw MemQError(
        .offsetOutOfRange, "the offset is below the log's start: its record was deleted",
        subject: subject, limit: self.logStart.rawValue, actual: offset.rawValue)
    }
    if offset < self.localStart {
      throw MemQError(
        .offsetOutOfRange, "the offset is no longer on the SSD: read it from the object tier",
        subject: subject, limit: self.localStart.rawValue, actual: offset.rawValue)
    }
    // Between the watermark and the end a reader waits: a new leader's watermark may be behind.
    if offset > self.logEnd {
      throw MemQError(
        .offsetOutOfRange, "the offset is beyond the log's end", subject: subject,
        limit: self.logEnd.rawValue, actual: offset.rawValue)
    }
  }
}

/// Somebody who waits for records at or above an offset to be committed.
final class PartitionReader: Sendable {
  let id: UInt64
  let offset: Offset
  let leaderEpoch: LeaderEpoch?
  /// Of the record before its offset, as it read it; nil: not checked.
  let lastEpoch: LeaderEpoch?
  let deadline: MonotonicInstant
  private let continuation: Mutex<CheckedContinuation<Result<PartitionView, MemQError>, Never>?>

  init(
    id: UInt64, offset: Offset, leaderEpoch: LeaderEpoch?, lastEpoch: LeaderEpoch?,
    deadline: MonotonicInstant,
    _ continuation: CheckedContinuation<Result<PartitionView, MemQError>, Never>
  ) {
    self.id = id
    self.offset = offset
    self.leaderEpoch = leaderEpoch
    self.lastEpoch = lastEpoch
    self.deadline = deadline
    self.continuation = Mutex(continuation)
  }

  func resume(_ result: Result<PartitionView, MemQError>) {
    let continuation = self.continuation.withLock { waiting in
      defer { waiting = nil }
      return waiting
    }
    continuation?.resume(returning: result)
  }
}
