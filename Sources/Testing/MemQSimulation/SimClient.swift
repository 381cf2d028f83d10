// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// A producer: one batch at a time, sent again until it is answered. Between its own batches some producers send what must
/// be refused.
struct SimClient {
  struct Pending {
    var values: [UInt64]
    var attempt: Int
  }

  /// A batch that no leader may append.
  enum Probe: Hashable {
    /// Sequences left out.
    case gap
    /// A producer nobody knows, not from sequence 0.
    case stranger
    /// The producer's epoch before this one.
    case zombie
  }

  let number: Int
  let partition: Int
  let isIdempotent: Bool
  let acks: Acks
  /// Longest pause between batches, nanoseconds.
  let pauseMax: Int
  var random: Randomness
  var nextSequence: UInt64 = 0
  var epoch: Int16 = 0
  /// The value that sequence 0 of this epoch stands for.
  var epochBase: UInt64 = 0
  var pending: Pending?
  var probe: (kind: Probe, attempt: Int)?
  var leader: Int?
  /// The highest epoch it was told of; it never goes back.
  var leaderEpoch = LeaderEpoch.none
  var attempts = 0
  var acknowledged = 0
  var isStopped = false

  var producerID: ProducerID {
    self.isIdempotent ? ProducerID(Int64(self.number + 1)) : .none
  }

  mutating func newValues(_ count: Int) -> [UInt64] {
    defer { self.nextSequence += UInt64(count) }
    let producer = UInt64(self.number + 1) << 32 | (self.isIdempotent ? 0 : Shadow.mayRepeat)
    return (0..<UInt64(count)).map { producer | (self.nextSequence + $0) }
  }

  /// A value's sequence in this epoch.
  func sequence(of value: UInt64) -> Int64 {
    Int64(value & 0xFFFF_FFFF) - Int64(self.epochBase)
  }

  /// A new life of the producer that begins with a value it has sent.
  mutating func raiseEpoch(from value: UInt64) {
    self.epoch += 1
    self.epochBase = value & 0xFFFF_FFFF
  }

  /// A new life of the producer: sequences begin anew.
  mutating func raiseEpoch() {
    self.epoch += 1
    self.epochBase = self.nextSequence
  }
}
