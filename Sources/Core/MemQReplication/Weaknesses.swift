// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Safety rules the simulator switches off, one by one, to prove that its checks notice. Nothing outside
/// this package can set them.
package struct Weaknesses: OptionSet, Hashable, Sendable {
  package let rawValue: Int
  package init(rawValue: Int) { self.rawValue = rawValue }

  /// Positions count before they are durable.
  package static let ackBeforeSync = Weaknesses(rawValue: 1)
  /// The high watermark ignores the other in-sync replicas.
  package static let leaderAloneCommits = Weaknesses(rawValue: 2)
  /// A new follower cuts its log at its own high watermark and asks nobody (the fault KIP-101 repaired).
  package static let truncateToHighWatermark = Weaknesses(rawValue: 4)
  /// Epochs of opens and answers are not compared.
  package static let skipEpochCheck = Weaknesses(rawValue: 8)
  /// An open ISR proposal doesn't widen the set the high watermark waits for.
  package static let forgetProposedISR = Weaknesses(rawValue: 16)
  /// The producers' sequences are not compared.
  package static let skipSequenceCheck = Weaknesses(rawValue: 32)
}
