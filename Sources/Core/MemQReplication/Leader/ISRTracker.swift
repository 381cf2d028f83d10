// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// The committed ISR, and the changes proposed on top of it.
///
///     state            event                          state            maximal ISR
///     settled          propose                        in flight        committed ∪ proposed
///     in flight        refused, nothing in doubt      settled          committed
///     in flight        refused, earlier one in doubt  in doubt         unchanged
///     in flight        no answer in time              in doubt         unchanged
///     in doubt         propose (same base)            in flight        grows by what is proposed
///     any              a higher partition epoch       settled          committed
///
/// A proposal is a compare-and-set on the partition epoch, so a higher epoch voids all proposals made on
/// the one before, answered or not. One in doubt is resolved by proposing again on the same base, the
/// committed set itself if nothing else is wanted: whichever comes first voids the rest.
package struct ISRTracker: Sendable {
  private(set) var committed: [ReplicaID]
  private(set) var partitionEpoch: PartitionEpoch
  /// All that were proposed on this base and may yet be committed.
  private(set) var proposed: [ReplicaID] = []
  private var inFlight: (number: Int64, since: MonotonicInstant)?
  private var isInDoubt = false
  private var pauseUntil: MonotonicInstant
  private var lastNumber: Int64 = 0

  init(_ committed: [ReplicaID], _ epoch: PartitionEpoch, at now: MonotonicInstant) {
    self.committed = committed
    self.partitionEpoch = epoch
    self.pauseUntil = now
  }

  var needsBarrier: Bool { self.isInDoubt }

  /// The table's states.
  package enum Standing: Hashable, Sendable {
    case settled, inFlight, inDoubt
  }

  package var standing: Standing {
    self.inFlight != nil ? .inFlight : self.isInDoubt ? .inDoubt : .settled
  }

  func mayPropose(at now: MonotonicInstant) -> Bool {
    self.inFlight == nil && now >= self.pauseUntil
  }

  /// Both the committed members and those that a proposal may have made members.
  func isMaximal(_ replica: ReplicaID) -> Bool {
    self.committed.contains(replica) || self.proposed.contains(replica)
  }

  mutating func propose(_ set: [ReplicaID], at now: MonotonicInstant) -> Int64 {
    self.lastNumber += 1
    self.inFlight = (self.lastNumber, now)
    for replica in set where !self.proposed.contains(replica) { self.proposed.append(replica) }
    return self.lastNumber
  }

  mutating func refused(_ number: Int64, at now: MonotonicInstant, pause: Duration) {
    guard self.inFlight?.number == number else { return }
    self.inFlight = nil
    self.pauseUntil = now + pause
    if !self.isInDoubt { self.proposed = [] }
  }

  mutating func unanswered(_ number: Int64, at now: MonotonicInstant, pause: Duration) {
    guard self.inFlight?.number == number else { return }
    self.inFlight = nil
    self.isInDoubt = true
    self.pauseUntil = now + pause
  }

  mutating func expire(at now: MonotonicInstant, _ configuration: ReplicationConfiguration) {
    guard let inFlight, now - inFlight.since >= configuration.proposalTimeout else { return }
    self.unanswered(inFlight.number, at: now, pause: configuration.proposalPause)
  }

  /// False when `epoch` is not news.
  mutating func commit(
    _ isr: [ReplicaID], _ epoch: PartitionEpoch, evenOld: Bool = false
  ) -> Bool {
    guard epoch > self.partitionEpoch || evenOld && epoch != self.partitionEpoch else {
      return false
    }
    self.committed = isr
    self.partitionEpoch = epoch
    self.proposed = []
    self.inFlight = nil
    self.isInDoubt = false
    return true
  }
}
