// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Synchronization

/// Where a partition's log lies, as its leader said last.
struct LogMarks: Equatable {
  /// First offset that exists.
  var logStart: Offset
  /// First offset on the leader's SSD.
  var localStart: Offset
  var highWatermark: Offset
}

/// Remembers marks, so that a reader of old records need not ask the leader first each time. A wrong mark costs a
/// detour, never a wrong record: reads from objects and from leaders both check the offset.
final class PartitionMarks: Sendable {
  /// 40 bytes each; forgotten all at once beyond.
  private static let partitionsMax = 100_000

  private let marks = Mutex<[TopicPartition: LogMarks]>([:])

  subscript(partition: TopicPartition) -> LogMarks? {
    self.marks.withLock { $0[partition] }
  }

  func note(_ partition: TopicPartition, _ new: LogMarks) {
    self.marks.withLock {
      if $0.count >= Self.partitionsMax, $0[partition] == nil { $0.removeAll() }
      $0[partition] = new
    }
  }
}

/// Where an offset must be read from.
enum ReadPlace: Equatable {
  case leader
  case objects
  /// Nowhere: the nearest offset that can be read.
  case outOfRange(nearest: Offset)

  /// Decides by marks that the leader has just given.
  static func of(_ offset: Offset, _ marks: LogMarks) -> ReadPlace {
    if offset < marks.logStart { return .outOfRange(nearest: marks.logStart) }
    if offset > marks.highWatermark { return .outOfRange(nearest: marks.highWatermark) }
    return offset < marks.localStart ? .objects : .leader
  }
}
