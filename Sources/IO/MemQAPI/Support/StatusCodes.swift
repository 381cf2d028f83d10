// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRPC

extension ErrorCode {
  /// The class gRPC gives the reason: what a client that knows nothing of MemQ acts on.
  var rpcCode: RPCCode {
    switch self {
    case .internalError: .internal
    case .cancelled: .cancelled
    case .deadlineExceeded: .deadlineExceeded
    case .outcomeUnknown: .unknown
    case .unimplemented, .feature, .topicCombinationRefused: .unimplemented

    case .unavailable, .shuttingDown, .leaderNotAvailable, .notLeader, .notEnoughReplicas,
      .notEnoughReplicasAfterAppend, .volumeFailed, .objectStoreUnavailable, .scanHeld, .staleImage:
      .unavailable

    case .resourceExhausted, .messageTooLarge, .recordBatchTooLarge, .volumeFull, .limitReached,
      .partitionQuotaExceeded, .transactionTooLarge, .fileTooLarge:
      .resourceExhausted

    case .invalidArgument, .corruptMessage, .configurationInvalid, .topicNameInvalid,
      .partitionCountInvalid, .replicationFactorInvalid, .topicSettingUnknown,
      .topicSettingInvalid, .recordBatchInvalid, .groupNameInvalid, .fileNameInvalid,
      .rulesInvalid, .fileIncomplete:
      .invalidArgument

    case .topicNotFound, .partitionNotFound, .topicDeleted, .groupNotFound, .fileNotFound,
      .uploadNotFound, .objectNotFound, .quarantineEntryNotFound, .planNotFound, .nodeUnknown,
      .offsetMissing, .unknownProducer, .reassignmentNotFound:
      .notFound

    case .topicExists, .duplicateSequence: .alreadyExists
    case .offsetOutOfRange, .rangeInvalid, .logTruncated: .outOfRange
    case .infected, .notScanned: .permissionDenied

    case .recordBatchChecksumMismatch, .logCorrupt, .objectCorrupt, .digestMismatch,
      .chunkChecksumMismatch:
      .dataLoss

    case .fencedLeaderEpoch, .unknownLeaderEpoch, .staleNodeEpoch, .producerFenced, .nodeFenced,
      .leaseLost, .revisionConflict, .revisionCompacted, .groupMemberFenced, .groupMemberUnknown,
      .partitionNotAssigned, .staleMemberEpoch, .uploadInProgress,
      .uploadOffsetMismatch, .planRunning, .outOfOrderSequence, .sequenceStraddles,
      .reassignmentInProgress:
      .aborted

    case .dataFolderInUse, .wrongCluster, .addressInUse, .groupNotEmpty, .objectBarred,
      .uploadAbandoned:
      .failedPrecondition
    }
  }
}

extension RPCCode {
  /// The reason for a status that names none.
  var errorCode: ErrorCode {
    switch self {
    case .ok, .unknown, .internal: .internalError
    case .cancelled: .cancelled
    case .deadlineExceeded: .deadlineExceeded
    case .resourceExhausted: .resourceExhausted
    case .unimplemented: .unimplemented
    case .unavailable: .unavailable
    case .dataLoss: .corruptMessage
    case .invalidArgument, .notFound, .alreadyExists, .permissionDenied, .failedPrecondition,
      .aborted, .outOfRange, .unauthenticated:
      .invalidArgument
    }
  }
}
