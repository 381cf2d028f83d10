// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What a member has of its group's partitions, and who waits for what about them. Belongs to its consumer.
struct GroupAssignment {
  struct Held {
    /// Tells apart what came, went and came again.
    var grant: Int
    /// Where it began; nil: that is still asked for.
    var begin: Offset?
    /// Fetches of lower numbers know nothing of this grant.
    var firstFetch: Int
    /// It is being given back.
    var isLeaving = false
  }

  private(set) var held: SortedMap<PartitionIndex, Held> = [:]
  /// The group has more for this member, or the member none yet.
  var isWaiting: Bool
  /// Rises with each change of what is held, and with each epoch.
  private(set) var version = 1
  /// What the group was told. Nothing, first: it may know of more than this member got from a join.
  var reportedVersion = 0
  private var grants = 0
  /// Ends the heartbeat or pause under way.
  private var interrupt: (@Sendable () -> Void)?
  private(set) var wasNudged = false
  private var markWaiters: [CheckedContinuation<Void, Never>] = []
  var isCommitting = false
  var commitWaiters: [CheckedContinuation<Void, Never>] = []

  init() { self.isWaiting = false }

  init(_ positions: SortedMap<PartitionIndex, Offset>, isWaiting: Bool) {
    self.isWaiting = isWaiting
    for (partition, offset) in positions {
      self.held[partition] = Held(grant: 0, begin: offset, firstFetch: 0)
    }
  }

  /// Nothing comes, goes or is still asked for.
  var isSettled: Bool {
    !self.isWaiting && self.held.values.allSatisfy { $0.begin != nil && !$0.isLeaving }
  }

  /// Where a partition began that is read, or was until now; nil: it is not this member's.
  func begin(_ partition: PartitionIndex) -> Offset? { self.held[partition]?.begin }

  /// The first fetch that may bring something of it. Zero without a group.
  func began(_ partition: PartitionIndex) -> Int { self.held[partition]?.firstFetch ?? 0 }

  func isHeld(_ partition: PartitionIndex, by grant: Int) -> Bool {
    self.held[partition].map { $0.grant == grant && !$0.isLeaving } ?? false
  }

  // MARK: Coming and going

  /// - Returns: the number of this grant.
  mutating func take(_ partitions: [PartitionIndex]) -> Int {
    self.grants += 1
    self.version += 1
    for partition in partitions {
      self.held[partition] = Held(grant: self.grants, begin: nil, firstFetch: .max)
    }
    return self.grants
  }

  mutating func begin(_ partition: PartitionIndex, at offset: Offset, firstFetch: Int) {
    self.held[partition]?.begin = offset
    self.held[partition]?.firstFetch = firstFetch
  }

  /// It goes on below where it began.
  mutating func goBack(_ partition: PartitionIndex, to offset: Offset) {
    guard let begin = self.held[partition]?.begin, begin > offset else { return }
    self.held[partition]?.begin = offset
  }

  mutating func leave(_ partitions: [PartitionIndex]) {
    for partition in partitions { self.held[partition]?.isLeaving = true }
  }

  mutating func drop(_ partition: PartitionIndex) {
    self.held[partition] = nil
    self.version += 1
  }

  /// The group has another epoch for this member: it waits for a word of what is read, even when that has not changed. A partition may
  /// have been given and taken between two heartbeats.
  mutating func epochChanged() { self.version += 1 }

  // MARK: Waiting

  mutating func beginsWaiting(_ interrupt: @escaping @Sendable () -> Void) {
    self.interrupt = interrupt
  }

  mutating func endsWaiting() { self.interrupt = nil }

  /// A new turn: what has happened until now is part of it.
  mutating func beginTurn() { self.wasNudged = false }

  /// There is something to tell the group.
  mutating func nudge() {
    self.wasNudged = true
    self.interrupt?()
  }

  mutating func waitForMark(_ waiter: CheckedContinuation<Void, Never>) {
    self.markWaiters.append(waiter)
  }

  /// Something was marked as consumed, or time is over.
  mutating func marked() {
    let waiters = self.markWaiters
    self.markWaiters = []
    for waiter in waiters { waiter.resume() }
  }

  mutating func end() {
    self.nudge()
    self.marked()
  }
}
