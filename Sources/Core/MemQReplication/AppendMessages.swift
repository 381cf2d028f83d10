// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A producer's batch, as the leader needs to know it to decide. Its bytes were validated before.
public struct AppendRequest: Hashable, Sendable {
  /// Chosen by the caller; comes back with `.write` and `.reply`.
  public var token: UInt64
  public var recordCount: Int64
  public var producerID: ProducerID
  public var producerEpoch: ProducerEpoch
  public var baseSequence: Int32
  public var maxTimestamp: Timestamp
  /// The leader's wall clock now.
  public var appendTime: Timestamp
  public var acks: Acks
  /// The epoch the sender believes in; nil: any.
  public var leaderEpoch: LeaderEpoch?
  /// When the sender stops waiting.
  public var deadline: MonotonicInstant

  public init(
    token: UInt64, recordCount: Int64, producerID: ProducerID = .none,
    producerEpoch: ProducerEpoch = .none, baseSequence: Int32 = -1,
    maxTimestamp: Timestamp = .none, appendTime: Timestamp, acks: Acks,
    leaderEpoch: LeaderEpoch? = nil, deadline: MonotonicInstant
  ) {
    precondition(recordCount > 0, "a batch holds at least one record")
    self.token = token
    self.recordCount = recordCount
    self.producerID = producerID
    self.producerEpoch = producerEpoch
    self.baseSequence = baseSequence
    self.maxTimestamp = maxTimestamp
    self.appendTime = appendTime
    self.acks = acks
    self.leaderEpoch = leaderEpoch
    self.deadline = deadline
  }
}

/// What became of one append.
public enum AppendOutcome: Hashable, Sendable {
  case appended(base: Offset, end: Offset, at: Timestamp)
  /// The producer had sent it before. The offset is nil when the batch is older than those kept.
  case duplicate(base: Offset?)
  case refused(AppendRefusal)
}

/// Why an append was refused. Nothing was appended, except where said.
public enum AppendRefusal: Hashable, Sendable {
  case notLeader
  case fencedLeaderEpoch(current: LeaderEpoch)
  case unknownLeaderEpoch(current: LeaderEpoch)
  case notEnoughReplicas(inSync: Int, minimum: Int)
  /// Appended, and may yet be committed; the ISR is too small to say so within the deadline.
  case notEnoughReplicasAfterAppend(inSync: Int, minimum: Int)
  /// Appended, and may yet be committed or lost: the deadline passed or the leadership ended.
  case outcomeUnknown
  /// Too much waits already in this partition.
  case overloaded(limit: Int)
  /// The range begins at or below the producer's last sequence and ends above: cut after it, resend.
  case sequenceStraddles(last: Int32)
  case outOfOrderSequence(last: Int32)
  case producerFenced(current: ProducerEpoch)
  /// The partition remembers nothing of this producer, and its sequence isn't 0.
  case unknownProducer
  /// A file's record must be one batch that begins at sequence 0.
  case fileSequenceInvalid
}
