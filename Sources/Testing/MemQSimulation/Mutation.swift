// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQMetadata
import MemQReplication

/// A safety rule switched off, in the core that owns it.
public struct Mutation: Sendable, Hashable {
  /// What `--mutation` takes.
  public let name: String
  /// The rule that is off.
  public let rule: String
  let replication: Weaknesses
  let metadata: MetadataWeaknesses
  let log: LogMutations
  let skipsSyncs: Bool
  /// Metadata's writes compare nothing.
  let skipsConditions: Bool
  /// Metadata's writes don't depend on the controller's lease.
  let skipsLease: Bool
  /// A damaged replica is filled anew while others still count on it.
  let refillsTrusted: Bool
  /// What is not committed goes to the object tier, too.
  let uploadsUncommitted: Bool
  /// A write or sync that failed counts as done.
  let countsFailedWrites: Bool
  /// Who is elected goes on with what it holds below the uploaded offset, whatever that is.
  let leadsAnotherHistory: Bool

  private init(
    _ name: String, _ rule: String, replication: Weaknesses = [],
    metadata: MetadataWeaknesses = [], log: LogMutations = [], skipsSyncs: Bool = false,
    skipsConditions: Bool = false, skipsLease: Bool = false, refillsTrusted: Bool = false,
    uploadsUncommitted: Bool = false, countsFailedWrites: Bool = false,
    leadsAnotherHistory: Bool = false
  ) {
    self.leadsAnotherHistory = leadsAnotherHistory
    self.refillsTrusted = refillsTrusted
    self.uploadsUncommitted = uploadsUncommitted
    self.countsFailedWrites = countsFailedWrites
    self.metadata = metadata
    self.skipsConditions = skipsConditions
    self.skipsLease = skipsLease
    self.name = name
    self.rule = rule
    self.replication = replication
    self.log = log
    self.skipsSyncs = skipsSyncs
  }

  public static func == (a: Mutation, b: Mutation) -> Bool { a.name == b.name }
  public func hash(into hasher: inout Hasher) { hasher.combine(self.name) }

  public static func named(_ name: String) -> Mutation? { Self.all.first { $0.name == name } }

  public static let all: [Mutation] = [
    Mutation(
      "ack-before-sync", "a position counts only once it is durable", replication: .ackBeforeSync),
    Mutation(
      "leader-alone-commits", "the high watermark waits for every in-sync replica",
      replication: .leaderAloneCommits),
    Mutation(
      "forget-proposed-isr", "the high watermark waits for the maximal ISR",
      replication: .forgetProposedISR),
    Mutation(
      "pass-unopened", "an in-sync replica not heard of in this epoch holds the high watermark",
      replication: .passUnopened),
    Mutation(
      "ignore-min-isr", "nothing commits below min.insync.replicas", replication: .ignoreMinISR),
    Mutation(
      "join-early", "a replica joins the ISR past the high watermark and the epoch's start",
      replication: .joinEarly),
    Mutation(
      "take-old-isr", "an ISR counts only with a higher partition epoch", replication: .takeOldISR),
    Mutation(
      "truncate-to-high-watermark", "nothing is cut at a local high watermark",
      replication: .truncateToHighWatermark),
    Mutation(
      "compare-ends-only", "logs are compared by leader epoch", replication: .compareEndsOnly),
    Mutation(
      "ignore-epochs",
      "opens, positions and pushes count only with the leader epoch, node epoch and open number of now",
      replication: [.takeStaleOpens, .countStalePositions, .takeStalePushes]),
    Mutation(
      "open-before-durable", "writes and cuts are durable before a follower opens",
      replication: .openBeforeDurable),
    Mutation(
      "answer-before-commit", "acks=all is answered when the high watermark passes",
      replication: .answerBeforeCommit),
    Mutation(
      "answer-duplicates-at-once", "a duplicate is answered once what it repeats is committed",
      replication: .answerDuplicatesAtOnce),
    Mutation(
      "skip-sequence-check", "an idempotent batch is appended once", replication: .skipSequenceCheck
    ),
    Mutation(
      "keep-producers-on-cut", "a cut rebuilds the memory of producers",
      replication: .keepProducersOnCut),
    Mutation(
      "ignore-member-epochs", "metadata takes members of an ISR only in their present life",
      metadata: .ignoreMemberEpochs),
    Mutation(
      "join-unconditionally", "a new member's node must not change between check and write",
      metadata: .joinUnconditionally),
    Mutation(
      "skip-fencing", "a node's life ends before its next begins", metadata: .skipFencing),
    Mutation(
      "keep-eligible", "the ELR is empty once the ISR alone may commit", metadata: .keepEligible),
    Mutation(
      "elect-any-replica", "only in-sync and eligible replicas are elected",
      metadata: .electAnyReplica),
    Mutation(
      "elect-first-answer",
      "of replicas that all restarted uncleanly the one whose log goes furthest is elected",
      metadata: .electFirstAnswer),
    Mutation(
      "keep-leader-epoch", "each election raises the leader epoch", metadata: .keepLeaderEpoch),
    Mutation(
      "skip-conditions", "metadata writes by compare-and-set", skipsConditions: true),
    Mutation(
      "cut-uploaded", "what is uploaded or deleted is final: no replica cuts there",
      replication: .cutUploaded),
    Mutation(
      "join-without-history",
      "a replica that begins above 0 knows the epochs and producers below before it counts",
      replication: .joinWithoutHistory),
    Mutation(
      "upload-uncommitted", "only what is committed goes to the object tier",
      uploadsUncommitted: true),
    Mutation(
      "lead-another-history",
      "a leader elected uncleanly holds what was uploaded, or goes on behind that",
      leadsAnotherHistory: true),
    Mutation(
      "refill-trusted", "a damaged replica is filled anew once nobody counts on what it holds",
      refillsTrusted: true),
    Mutation(
      "count-failed-writes", "a write or sync that failed makes nothing durable",
      countsFailedWrites: true),
    Mutation("skip-syncs", "a volume's write is durable after its sync", skipsSyncs: true),
    Mutation(
      "cut-without-sealing", "after a crash the tail is sealed at the cut",
      log: .cutsWithoutSealing),
  ]
}
