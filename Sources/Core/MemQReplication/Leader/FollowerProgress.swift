// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What a leader knows of one other replica.
///
///     state      event                  state
///     unknown    open accepted          pushed to, confirmed in this epoch at its stated end
///     pushed to  position               pushed to, higher
///     pushed to  closed, new node life  unknown: holds the high watermark back while in sync
struct FollowerProgress: Sendable {
  var member: ReplicaMember
  /// The open whose positions count; nil: none.
  var open: OpenNumber?
  var highestOpen = OpenNumber.zero
  /// Durable there below this, by the current open.
  var position = Offset.zero
  /// The last time it was known to hold all the leader held.
  var caughtUpAt: MonotonicInstant
  /// Its last position, and the leader's end and the time then: reaching that end later proves that it
  /// was caught up at that time.
  private var endThen: Offset
  private var timeThen: MonotonicInstant
  /// Times it left the ISR in this leadership.
  private var departures = 0
  private(set) var mayRejoinAt: MonotonicInstant
  /// It asked for the log's history and has not yet said by a position that it holds it: until then it may not join the ISR.
  private(set) var awaitsHistory = false
  /// It opened below the high watermark while in sync: its disk lost what it had promised.
  var lostCommitted = false

  init(_ member: ReplicaMember, end: Offset, at now: MonotonicInstant) {
    self.member = member
    self.caughtUpAt = now
    self.endThen = end
    self.timeThen = now
    self.mayRejoinAt = now
  }

  mutating func opened(
    _ number: OpenNumber, at position: Offset, leaderEnd: Offset, needsHistory: Bool,
    now: MonotonicInstant
  ) {
    self.open = number
    self.awaitsHistory = needsHistory
    self.position = position
    self.endThen = leaderEnd
    self.timeThen = now
    if position >= leaderEnd { self.caughtUpAt = now }
  }

  mutating func advanced(to position: Offset, leaderEnd: Offset, now: MonotonicInstant) {
    self.position = Swift.max(self.position, position)
    self.awaitsHistory = false
    if self.position >= leaderEnd {
      self.caughtUpAt = now
    } else if self.position >= self.endThen {
      self.caughtUpAt = Swift.max(self.caughtUpAt, self.timeThen)
    }
    if self.position >= self.endThen {
      self.endThen = leaderEnd
      self.timeThen = now
    }
  }

  mutating func closed() { self.open = nil }

  mutating func left(at now: MonotonicInstant, _ configuration: ReplicationConfiguration) {
    let doublings = Swift.min(self.departures, 16)
    let delay = Swift.min(
      configuration.rejoinDelay * (1 << doublings), configuration.rejoinDelayMax)
    self.departures += 1
    self.mayRejoinAt = now + delay
    self.lostCommitted = false
  }
}
