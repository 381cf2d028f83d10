// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What a partition's memory of a producer says about a batch of sequences.
///
/// Verdicts other than `.fresh` rest on batches that may not be durable yet: nobody may be told before
/// the log is safe up to `restsOn`.
public enum SequenceVerdict: Hashable, Sendable {
  /// The next sequence, or a producer's first.
  case fresh
  /// Wholly at or below the last sequence. The offset is nil for a batch older than those kept.
  case duplicate(base: Offset?, restsOn: Offset)
  /// Begins at or below the last sequence and ends above it.
  case straddles(last: Int32, restsOn: Offset)
  /// A gap before it, or a new producer epoch that doesn't begin at 0.
  case outOfOrder(last: Int32, restsOn: Offset)
  case fenced(current: ProducerEpoch, restsOn: Offset)
  /// Nothing is known of the producer, and its sequence isn't 0.
  case unknownProducer
  /// A file's producer must send one batch from sequence 0.
  case fileSequenceInvalid
  case filesFull(limit: Int)
}

/// Sequence arithmetic: sequences count records from 0 and wrap from Int32.max to 0.
enum Sequence {
  /// The sequence `distance` records after `sequence`.
  static func advance(_ sequence: Int32, by distance: Int64) -> Int32 {
    Int32((Int64(sequence) + distance) % Self.modulus)
  }

  /// How far `sequence` lies at or before `next` (negative: beyond it), in the nearer half of the circle.
  static func distance(from sequence: Int32, to next: Int32) -> Int64 {
    let behind = (Int64(next) - Int64(sequence) + Self.modulus) % Self.modulus
    return behind < Self.modulus / 2 ? behind : behind - Self.modulus
  }

  private static let modulus = Int64(Int32.max) + 1
}
