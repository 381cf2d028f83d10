// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Answers that wait until the log is safe up to an offset, in log order.
struct ReplyQueue: Sendable {
  struct Waiting: Sendable {
    var token: UInt64
    /// The answer may be given once all below this is safe.
    var end: Offset
    var outcome: AppendOutcome
    var deadline: MonotonicInstant
  }

  private var waiting: [Waiting] = []
  private var head = 0
  private var earliestDeadline = MonotonicInstant(nanoseconds: .max)

  var count: Int { self.waiting.count - self.head }

  /// - Parameter outcome: what to say once all below `end` is safe.
  mutating func add(
    _ token: UInt64, after end: Offset, _ outcome: AppendOutcome, deadline: MonotonicInstant
  ) {
    // Answers leave in order; one that needs less than its forerunner waits with it.
    let end = self.count == 0 ? end : Swift.max(end, self.waiting[self.waiting.count - 1].end)
    self.waiting.append(Waiting(token: token, end: end, outcome: outcome, deadline: deadline))
    self.earliestDeadline = Swift.min(self.earliestDeadline, deadline)
  }

  mutating func release(through end: Offset, into effects: inout [ReplicationEffect]) {
    while self.head < self.waiting.count, self.waiting[self.head].end <= end {
      let next = self.waiting[self.head]
      effects.append(.reply(token: next.token, next.outcome))
      self.head += 1
    }
    self.compact()
  }

  /// Answers those whose deadline has come with what `late` makes of them.
  mutating func expire(
    at now: MonotonicInstant, into effects: inout [ReplicationEffect],
    late: (AppendOutcome) -> AppendRefusal
  ) {
    guard self.count > 0, self.earliestDeadline <= now else { return }
    var kept: [Waiting] = []
    self.earliestDeadline = MonotonicInstant(nanoseconds: .max)
    for next in self.waiting[self.head...] {
      if next.deadline <= now {
        effects.append(.reply(token: next.token, .refused(late(next.outcome))))
      } else {
        kept.append(next)
        self.earliestDeadline = Swift.min(self.earliestDeadline, next.deadline)
      }
    }
    self.waiting = kept
    self.head = 0
  }

  mutating func failAll(
    into effects: inout [ReplicationEffect], because why: (AppendOutcome) -> AppendRefusal
  ) {
    for next in self.waiting[self.head...] {
      effects.append(.reply(token: next.token, .refused(why(next.outcome))))
    }
    self.waiting = []
    self.head = 0
  }

  private mutating func compact() {
    guard self.head == self.waiting.count || self.head > 1_024 else { return }
    self.waiting.removeFirst(self.head)
    self.head = 0
  }
}
