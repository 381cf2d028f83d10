// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQReplication

/// One run: its faults and how long they last. Everything else follows from the seed.
public struct SimulationOptions: Sendable {
  /// A safety rule switched off, to prove that its loss is noticed.
  public enum Mutation: String, CaseIterable, Sendable {
    case none
    case ackBeforeSync = "ack-before-sync"
    case leaderAloneCommits = "leader-alone-commits"
    case truncateToHighWatermark = "truncate-to-high-watermark"
    case skipEpochCheck = "skip-epoch-check"
    case forgetProposedISR = "forget-proposed-isr"
    case skipSequenceCheck = "skip-sequence-check"

    var weaknesses: Weaknesses {
      switch self {
      case .none: []
      case .ackBeforeSync: .ackBeforeSync
      case .leaderAloneCommits: .leaderAloneCommits
      case .truncateToHighWatermark: .truncateToHighWatermark
      case .skipEpochCheck: .skipEpochCheck
      case .forgetProposedISR: .forgetProposedISR
      case .skipSequenceCheck: .skipSequenceCheck
      }
    }
  }

  public var mutation = Mutation.none
  public var keepsTrace = false
  /// Virtual seconds under faults.
  public var faultSeconds = 20
  /// Virtual seconds after healing within which everything must be in order again.
  public var healSeconds = 40

  public init() {}
}

/// Which rule broke, and where.
public struct Violation: Error, Hashable, Sendable, CustomStringConvertible {
  public var seed: UInt64
  public var rule: String
  public var detail: String
  public var virtualMicroseconds: Int64
  public var description: String { "seed \(self.seed): \(self.rule): \(self.detail)" }
}

/// What a run that broke no rule did.
public struct SimulationReport: Sendable {
  public var seed: UInt64
  public var events: Int
  public var committedRecords: Int
  public var acknowledgedBatches: Int
  public var elections: Int
  public var crashes: Int
  public var trace: Trace
}
