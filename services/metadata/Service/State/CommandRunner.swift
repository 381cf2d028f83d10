// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQStore
import MemQSystem

/// Runs commands: asks the core for a plan, commits it, and answers when it is durable and, where the image is concerned, applied
/// here, so that who was answered sees it. A conflict means that somebody else was faster: the core is asked again.
struct CommandRunner: Sendable {
  /// Each round somebody got through; so many lost ones in a row mean that something is wrong.
  private static let attemptsMax = 64
  /// How long a change that others made may take to get here; each attempt waits longer.
  private static let patience: Duration = .milliseconds(10)

  let cell: StateCell
  let store: any MetadataStore
  let authority: Authority
  let clock: any MemQClock
  let metrics: MetadataMetrics

  /// What a command answered, and the revision of its last transaction; `.zero` when there was nothing to write.
  struct Done<Outcome: Sendable>: Sendable {
    var outcome: Outcome
    var revision: Revision
  }

  /// A command over the state in memory.
  @discardableResult
  func run<Outcome>(
    _ name: String, _ plan: (MetadataState) throws(MemQError) -> Plan<Outcome>
  ) async throws(MemQError) -> Outcome {
    try await self.run(name, reading: { (_: Int) throws(MemQError) in }) {
      (state: MetadataState, _: Void) throws(MemQError) in try plan(state)
    }.outcome
  }

  /// A command that needs entries of the store, too.
  ///
  /// - Parameter reading: gets them; called before each attempt with its number, from 0.
  func run<Reading: Sendable, Outcome>(
    _ name: String, reading: (Int) async throws(MemQError) -> Reading,
    _ plan: (MetadataState, Reading) throws(MemQError) -> Plan<Outcome>
  ) async throws(MemQError) -> Done<Outcome> {
    let began = self.clock.monotonic
    defer { self.metrics.command(name, took: self.clock.monotonic - began) }
    for attempt in 0..<Self.attemptsMax {
      // Before anything is read: what was decided in an earlier term of this instance must not be written in a later one.
      let fence = try self.authority.fence()
      let entries = try await reading(attempt)
      let plan = try self.cell.read { state throws(MemQError) in try plan(state, entries) }
      guard !plan.transactions.isEmpty else { return Done(outcome: plan.outcome, revision: .zero) }
      let verdict = try await self.commit(plan.transactions, fence, attempt)
      switch verdict {
      case .committed(let revision): return Done(outcome: plan.outcome, revision: revision)
      case .conflict: self.metrics.conflicts.increment()
      case .skipped: preconditionFailure("the last verdict that counts is not a skipped one")
      }
    }
    throw MemQError(
      .revisionConflict, "others changed the same thing all the time", subject: name,
      limit: Int64(Self.attemptsMax))
  }

  /// The verdict that decides: the first conflict, else the last commit.
  private func commit(
    _ transactions: [Transaction], _ fence: Condition?, _ attempt: Int
  ) async throws(MemQError) -> CommitVerdict {
    guard try self.authority.fence() == fence else { throw Authority.notController }
    let verdicts = try await self.store.commit(
      fence.map { fence in transactions.map { $0.requiring(fence) } } ?? transactions)
    var deciding = verdicts[0]
    for (transaction, verdict) in zip(transactions, verdicts) {
      switch verdict {
      case .committed(let revision):
        deciding = verdict
        if transaction.writesMemory { await self.cell.applied(revision) }
      case .conflict(let revision):
        // Somebody's change of what we hold in memory may be on its way here. Not every store tells how far it is when nothing came.
        await self.cell.applied(revision, atMost: Self.patience * (attempt + 1))
        if attempt > 0, let fence { try await self.check(fence) }
        return verdict
      case .skipped: return deciding
      }
    }
    return deciding
  }

  /// A write that conflicts again and again may have lost the right to be made.
  private func check(_ fence: Condition) async throws(MemQError) {
    guard case .revision(let key, let revision) = fence else { return }
    guard try await self.store.get([key])[0]?.revision != revision else { return }
    self.authority.stepDown(from: fence)
    self.authority.changed.raise()
    throw Authority.notController
  }
}

extension Transaction {
  fileprivate func requiring(_ condition: Condition) -> Transaction {
    var fenced = self
    fenced.require(condition)
    return fenced
  }

  /// Whether it writes keys that are held in memory.
  fileprivate var writesMemory: Bool { self.operations.contains { $0.key.hasPrefix(.memory) } }
}
