// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

extension AppendRefusal {
  /// The refusal as people and programs read it. `limit` of a sequence error is the producer's last sequence.
  func error(_ subject: String) -> MemQError {
    func make(
      _ code: ErrorCode, _ text: String, limit: Int64? = nil, actual: Int64? = nil
    ) -> MemQError {
      MemQError(code, text, subject: subject, limit: limit, actual: actual)
    }
    switch self {
    case .notLeader: return make(.notLeader, "this node doesn't lead the partition")
    case .fencedLeaderEpoch(let current):
      return make(
        .fencedLeaderEpoch, "the request names an older leader epoch", limit: current.rawValue)
    case .unknownLeaderEpoch(let current):
      return make(
        .unknownLeaderEpoch, "the request names a leader epoch this node doesn't know yet",
        limit: current.rawValue)
    case .notEnoughReplicas(let inSync, let minimum):
      return make(
        .notEnoughReplicas, "fewer replicas are in sync than min.insync.replicas asks for",
        limit: Int64(minimum), actual: Int64(inSync))
    case .notEnoughReplicasAfterAppend(let inSync, let minimum):
      return make(
        .notEnoughReplicasAfterAppend, "appended, but too few replicas are in sync to commit it",
        limit: Int64(minimum), actual: Int64(inSync))
    case .outcomeUnknown:
      return make(.outcomeUnknown, "the append was not confirmed in time: it may be in the log")
    case .overloaded(let limit):
      return make(
        .resourceExhausted, "too many appends of this partition wait", limit: Int64(limit))
    case .sequenceStraddles(let last):
      return make(
        .sequenceStraddles, "the batch begins in the log already: send what follows the limit",
        limit: Int64(last))
    case .outOfOrderSequence(let last):
      return make(
        .outOfOrderSequence, "the batch doesn't follow the producer's last sequence",
        limit: Int64(last))
    case .producerFenced(let current):
      return make(
        .producerFenced, "a newer instance of this producer writes", limit: Int64(current.rawValue))
    case .unknownProducer:
      return make(
        .unknownProducer,
        "nothing is known of this producer here: it may have expired; ask for a new producer id")
    case .fileSequenceInvalid:
      return make(.recordBatchInvalid, "a file's record begins at sequence 0")
    }
  }
}
