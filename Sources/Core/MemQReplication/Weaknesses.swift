// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Safety rules the simulator switches off, one by one, to prove that its checks notice. Nothing outside
/// this package can set them.
package struct Weaknesses: OptionSet, Hashable, Sendable {
  package let rawValue: Int
  package init(rawValue: Int) { self.rawValue = rawValue }

  /// Positions count before they are durable.
  package static let ackBeforeSync = Weaknesses(rawValue: 1 << 0)
  /// The high watermark ignores the other in-sync replicas.
  package static let leaderAloneCommits = Weaknesses(rawValue: 1 << 1)
  /// A new follower cuts its log at its own high watermark and asks nobody (the fault KIP-101 repaired).
  package static let truncateToHighWatermark = Weaknesses(rawValue: 1 << 2)
  /// Opens of another leader epoch, and those that arrive late, are taken up.
  package static let takeStaleOpens = Weaknesses(rawValue: 1 << 3)
  /// An open ISR proposal doesn't widen the set the high watermark waits for.
  package static let forgetProposedISR = Weaknesses(rawValue: 1 << 4)
  /// The producers' sequences are not compared.
  package static let skipSequenceCheck = Weaknesses(rawValue: 1 << 5)
  /// A position counts whatever open, leader epoch and node epoch it names.
  package static let countStalePositions = Weaknesses(rawValue: 1 << 6)
  /// A push is taken whatever open and leader epoch it names.
  package static let takeStalePushes = Weaknesses(rawValue: 1 << 7)
  /// The logs are taken to agree where the follower's is not the longer one.
  package static let compareEndsOnly = Weaknesses(rawValue: 1 << 8)
  /// The committed ISR may be smaller than `min.insync.replicas`.
  package static let ignoreMinISR = Weaknesses(rawValue: 1 << 9)
  /// A follower is proposed for the ISR wherever its log ends.
  package static let joinEarly = Weaknesses(rawValue: 1 << 10)
  /// In-sync replicas not heard of in this leader epoch don't hold the high watermark.
  package static let passUnopened = Weaknesses(rawValue: 1 << 11)
  /// A follower opens with writes or a cut on their way to the disk.
  package static let openBeforeDurable = Weaknesses(rawValue: 1 << 12)
  /// acks=all is answered once the batch is durable on the leader.
  package static let answerBeforeCommit = Weaknesses(rawValue: 1 << 13)
  /// Duplicates, and refusals by sequence, are answered before what they rest on is committed.
  package static let answerDuplicatesAtOnce = Weaknesses(rawValue: 1 << 14)
  /// A cut leaves the memory of producers as it was.
  package static let keepProducersOnCut = Weaknesses(rawValue: 1 << 15)
  /// An ISR of an older partition epoch is taken over.
  package static let takeOldISR = Weaknesses(rawValue: 1 << 16)
  /// A follower cuts below what is uploaded or deleted.
  package static let cutUploaded = Weaknesses(rawValue: 1 << 17)
  /// A replica that begins above 0 does without what came before.
  package static let joinWithoutHistory = Weaknesses(rawValue: 1 << 18)
}
