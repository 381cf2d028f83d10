// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What a replica's rules ask its owner to do. Effects are carried out in the order given.
///
/// Every effect with a `WriteNumber` is a write to the replica's volume, which keeps their order; once
/// it is durable the owner reports `.durable(through:)` with that number.
public enum ReplicationEffect: Hashable, Sendable {
  // The log
  case startEpoch(WriteNumber, EpochStart)
  /// Stamp base offset and leader epoch onto the bytes behind `token`, and append them.
  case write(WriteNumber, BatchSummary, token: UInt64)
  /// Cut the log's end; `epochs` are those that remain.
  case truncate(WriteNumber, to: Offset, epochs: [EpochStart])
  /// The committed prefix as this replica knows it. On a follower it may go back.
  case highWatermark(Offset)
  /// Keep for restarts; `at` is the exclusive end of what it covers.
  case producerSnapshot([UInt8], at: Offset)

  // Producers
  case reply(token: UInt64, AppendOutcome)

  // Other replicas
  case answer(OpenAnswer)
  /// Drop what was being sent to this follower: its open ended.
  case stopPushing(ReplicaID)
  case open(OpenRequest)
  case position(FollowerPosition)
  /// The follower's volume has to be filled anew from this offset on.
  case startAfresh(at: Offset)

  // Metadata
  case propose(ISRProposal)
  /// The log already holds this leader epoch from an earlier life: another election is needed.
  case refuseLeadership(LeaderEpoch)
}
