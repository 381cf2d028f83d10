// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// A producer: one batch at a time, sent again until it is answered.
struct SimClient {
  struct Pending {
    var values: [UInt64]
    var attempt: Int
  }

  let number: Int
  let partition: Int
  let isIdempotent: Bool
  let acks: Acks
  var nextSequence: UInt64 = 0
  var pending: Pending?
  var leader: Int?
  /// The highest epoch it was told of; it never goes back.
  var leaderEpoch = LeaderEpoch.none
  var attempts = 0
  var acknowledged = 0
  var isStopped = false
  /// Longest pause between batches, nanoseconds.
  var pauseMax: Int

  var producerID: ProducerID {
    self.isIdempotent ? ProducerID(Int64(self.number + 1)) : .none
  }

  mutating func newValues(_ count: Int) -> [UInt64] {
    defer { self.nextSequence += UInt64(count) }
    let producer = UInt64(self.number + 1) << 32 | (self.isIdempotent ? 0 : Shadow.mayRepeat)
    return (0..<UInt64(count)).map { producer | (self.nextSequence + $0) }
  }
}
