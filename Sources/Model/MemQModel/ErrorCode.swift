// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The numbered list of reasons, the same as memq.v1.ErrorCode. Numbers are never reused.
public enum ErrorCode: Int32, Sendable, CaseIterable {
  // General: 1–99
  case internalError = 1
  case invalidArgument = 2
  case unavailable = 3
  case deadlineExceeded = 4
  case cancelled = 5
  case resourceExhausted = 6
  case unimplemented = 7
  case corruptMessage = 8
  case messageTooLarge = 9
  case shuttingDown = 10
  case outcomeUnknown = 11
  case configurationInvalid = 12
  case dataFolderInUse = 13
  case wrongCluster = 14
  case addressInUse = 15
  case feature = 16

  // Topics and partitions: 100–199
  case topicNotFound = 100
  case topicExists = 101
  case topicNameInvalid = 102
  case partitionNotFound = 103
  case partitionCountInvalid = 104
  case replicationFactorInvalid = 105
  case topicSettingUnknown = 106
  case topicSettingInvalid = 107
  case topicCombinationRefused = 108
  case topicDeleted = 109

  // The log and replication: 200–299
  case notLeader = 200
  case leaderNotAvailable = 201
  case fencedLeaderEpoch = 202
  case unknownLeaderEpoch = 203
  case staleNodeEpoch = 204
  case notEnoughReplicas = 205
  case notEnoughReplicasAfterAppend = 206
  case offsetOutOfRange = 207
  case recordBatchTooLarge = 208
  case recordBatchInvalid = 209
  case recordBatchChecksumMismatch = 210
  case duplicateSequence = 211
  case outOfOrderSequence = 212
  case sequenceStraddles = 213
  case producerFenced = 214
  case unknownProducer = 215
  case volumeFailed = 216
  case volumeFull = 217
  case logCorrupt = 218
  case partitionQuotaExceeded = 219
  case logTruncated = 220

  // Metadata: 300–399
  case revisionConflict = 300
  case nodeUnknown = 301
  case nodeFenced = 302
  case leaseLost = 303
  case transactionTooLarge = 304
  case revisionCompacted = 305
  case staleImage = 306
  case limitReached = 307
  case reassignmentInProgress = 308
  case reassignmentNotFound = 309

  // Groups: 400–499
  case groupNotFound = 400
  case groupMemberFenced = 401
  case groupNotEmpty = 402
  case groupNameInvalid = 403
  case offsetMissing = 404
  case staleMemberEpoch = 405
  case partitionNotAssigned = 406
  case groupMemberUnknown = 407

  // Files and objects: 500–599
  case fileNotFound = 500
  case fileNameInvalid = 501
  case fileTooLarge = 502
  case uploadNotFound = 503
  case uploadOffsetMismatch = 504
  case uploadInProgress = 505
  case digestMismatch = 506
  case fileIncomplete = 507
  case rangeInvalid = 508
  case objectNotFound = 509
  case objectCorrupt = 510
  case objectBarred = 511
  case chunkChecksumMismatch = 512
  case objectStoreUnavailable = 513
  case uploadAbandoned = 514

  // Scanning: 600–699
  case infected = 600
  case notScanned = 601
  case scanHeld = 602
  case quarantineEntryNotFound = 603
  case rulesInvalid = 604

  // Rebalancing: 700–799
  case planNotFound = 700
  case planRunning = 701

  /// Whether the same request may succeed later without being changed.
  public var isRetriable: Bool {
    switch self {
    case .unavailable, .deadlineExceeded, .resourceExhausted, .shuttingDown, .outcomeUnknown,
      .notLeader, .leaderNotAvailable, .fencedLeaderEpoch, .unknownLeaderEpoch, .staleNodeEpoch,
      .notEnoughReplicas, .notEnoughReplicasAfterAppend, .volumeFull, .volumeFailed,
      .revisionConflict, .leaseLost, .staleImage, .uploadInProgress, .objectStoreUnavailable,
      .scanHeld, .partitionQuotaExceeded, .revisionCompacted, .planRunning, .staleMemberEpoch,
      .reassignmentInProgress:
      true
    case .internalError, .invalidArgument, .cancelled, .unimplemented, .corruptMessage,
      .messageTooLarge, .configurationInvalid, .dataFolderInUse, .wrongCluster, .addressInUse,
      .feature, .topicNotFound, .topicExists, .topicNameInvalid, .partitionNotFound,
      .partitionCountInvalid, .replicationFactorInvalid, .topicSettingUnknown,
      .topicSettingInvalid, .topicCombinationRefused, .topicDeleted, .offsetOutOfRange,
      .recordBatchTooLarge, .recordBatchInvalid, .recordBatchChecksumMismatch, .duplicateSequence,
      .outOfOrderSequence, .sequenceStraddles, .producerFenced, .unknownProducer, .logCorrupt,
      .logTruncated,
      .nodeUnknown, .nodeFenced, .transactionTooLarge, .limitReached, .groupNotFound,
      .groupMemberFenced, .groupMemberUnknown, .partitionNotAssigned, .groupNotEmpty,
      .groupNameInvalid, .offsetMissing, .fileNotFound,
      .fileNameInvalid, .fileTooLarge, .uploadNotFound, .uploadOffsetMismatch, .digestMismatch,
      .fileIncomplete, .rangeInvalid, .objectNotFound, .objectCorrupt, .objectBarred,
      .chunkChecksumMismatch, .uploadAbandoned, .infected, .notScanned, .quarantineEntryNotFound,
      .rulesInvalid, .planNotFound, .reassignmentNotFound:
      false
    }
  }

  /// Whether an append that failed so may stand in the log all the same. Every other code says that it does not.
  public var leavesOutcomeOpen: Bool {
    switch self {
    case .outcomeUnknown, .notEnoughReplicasAfterAppend, .deadlineExceeded, .cancelled: true
    default: false
    }
  }

  /// The reason in the wire's spelling: `TOPIC_NOT_FOUND`.
  public var name: String {
    var text = ""
    for character in String(describing: self) {
      if character.isUppercase { text.append("_") }
      text.append(contentsOf: character.uppercased())
    }
    return text
  }
}

/// Why something was refused or failed: what, where, the limit and the actual value, and whether to retry.
public struct MemQError: Error, Hashable, Sendable, CustomStringConvertible {
  public var code: ErrorCode
  /// One sentence for a person: what happened and, where it helps, the next step.
  public var message: String
  /// The thing concerned, as a person names it: a topic, `topic/partition`, a file, a path, a key.
  public var subject: String
  /// The limit that was passed, in the unit the message names; nil when there is none.
  public var limit: Int64?
  /// The value that passed it.
  public var actual: Int64?
  /// Whether the same request may succeed later; `code.isRetriable` unless the thrower knows better.
  public var isRetriable: Bool

  public init(
    _ code: ErrorCode, _ message: String, subject: String = "", limit: Int64? = nil,
    actual: Int64? = nil, isRetriable: Bool? = nil
  ) {
    self.code = code
    self.message = message
    self.subject = subject
    self.limit = limit
    self.actual = actual
    self.isRetriable = isRetriable ?? code.isRetriable
  }

  public var description: String {
    var text = self.subject.isEmpty ? self.message : "\(self.subject): \(self.message)"
    if let limit = self.limit, let actual = self.actual {
      text += " (limit \(limit), actual \(actual))"
    } else if let limit = self.limit {
      text += " (limit \(limit))"
    } else if let actual = self.actual {
      text += " (actual \(actual))"
    }
    return "\(text) [\(self.code.name)\(self.isRetriable ? ", may be retried" : "")]"
  }
}
