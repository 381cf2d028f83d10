// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Decides for one call whether another attempt follows. Pure: what happened, the time and a random number in, the decision out.
struct RetryPlan: Sendable {
  enum Decision: Equatable {
    case giveUp
    case again(at: NIODeadline)
  }

  static let attemptsMax = 5
  /// A call that is to wait longer had better fail: its caller may know something better to do.
  static let pushbackMillisecondsMax = 60_000

  let policy: RPCRetryPolicy
  let deadline: NIODeadline?
  /// Attempts that were begun.
  private(set) var attempts = 0
  /// The next wait, before jitter.
  private var backoff: Int64

  init(_ policy: RPCRetryPolicy, deadline: NIODeadline?) {
    self.policy = policy
    self.deadline = deadline
    self.backoff = policy.backoffInitial.nanosecondsClamped
  }

  mutating func begin() {
    self.attempts += 1
  }

  /// A failure that more attempts might follow counts against the budget, whether one follows or not.
  func drains(_ status: RPCStatus) -> Bool {
    if status.pushback == .never { return true }
    return self.policy.codes.contains(status.code)
      && (self.policy.retriesDetailed || status.details.isEmpty)
  }

  /// An attempt failed.
  ///
  /// - Parameters:
  ///   - hasResponse: something of the response came.
  ///   - random: from 0 to 1, for the jitter.
  mutating func failed(
    _ status: RPCStatus, hasResponse: Bool, budgetAllows: Bool, now: NIODeadline, random: Double
  ) -> Decision {
    guard !hasResponse, budgetAllows, self.drains(status),
      self.attempts < min(self.policy.attemptsMax, Self.attemptsMax)
    else { return .giveUp }
    let wait: Int64
    switch status.pushback {
    case .never: return .giveUp
    case .after(let milliseconds):
      guard milliseconds <= Self.pushbackMillisecondsMax else { return .giveUp }
      // The server sets the pace; from there it begins anew.
      wait = Int64(milliseconds) * 1_000_000
      self.backoff = self.policy.backoffInitial.nanosecondsClamped
    case nil:
      let spread = 1 + self.policy.jitter * (2 * random - 1)
      wait = Int64(Double(self.backoff) * spread)
      self.backoff = Int64(
        min(
          Double(self.backoff) * self.policy.multiplier,
          Double(self.policy.backoffMax.nanosecondsClamped)))
    }
    let at = now + .nanoseconds(max(0, wait))
    if let deadline = self.deadline, at >= deadline { return .giveUp }
    return .again(at: at)
  }
}
