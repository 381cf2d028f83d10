// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords

/// Chooses a partition where the producer did not: by the first record's key as Kafka's default partitioner, else in turn.
struct Partitioner {
  private var turn: UInt32

  /// - Parameter turn: where to begin; different per stream, so that streams don't all begin at partition 0.
  init(turn: UInt32) { self.turn = turn }

  /// - Parameters:
  ///   - wanted: the request's partition; −1: choose.
  ///   - key: the first record's key; nil: none.
  /// - Throws: `.partitionNotFound`, `.invalidArgument` for a number below −1.
  mutating func choose(
    wanted: Int32, key: (some Collection<UInt8>)?, among count: Int, topic: String
  ) throws(MemQError) -> PartitionIndex {
    guard wanted < 0 else {
      guard wanted < count else {
        throw MemQError(
          .partitionNotFound, "the topic has fewer partitions", subject: "\(topic)/\(wanted)",
          limit: Int64(count) - 1, actual: Int64(wanted))
      }
      return PartitionIndex(wanted)
    }
    guard wanted == -1 else {
      throw MemQError(
        .invalidArgument, "a partition is 0 or more, or -1 to let the server choose",
        subject: topic, limit: -1, actual: Int64(wanted))
    }
    if let key { return Array(key).withUnsafeBytes { KeyHash.partition(of: $0, among: count) } }
    self.turn &+= 1
    return PartitionIndex(Int32(Int(self.turn) % count))
  }
}
