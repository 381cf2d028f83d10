// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC

/// One batch on its way to a leader.
struct AppendJob: Sendable {
  let partition: TopicPartition
  let leaderEpoch: LeaderEpoch
  let acks: Memq_V1_Acks
  /// When the sender stops waiting.
  let deadline: MonotonicInstant
  /// One record batch v2.
  let batch: RPCMessage
}

/// What the leader answered.
struct AppendReply: Sendable, Equatable {
  /// Nil: a duplicate whose offset is no longer known, or nobody asked (no acknowledgement).
  var base: Offset?
  var end: Offset?
  var isDuplicate = false
  var appendTime = Timestamp.none
}

typealias AppendResult = Result<AppendReply, MemQError>
