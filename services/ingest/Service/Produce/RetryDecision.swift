// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What to do after an append failed: again, and when, or not at all. A rule; it keeps nothing.
struct RetryDecision: Equatable {
  enum Step: Equatable {
    case again(after: Duration)
    case giveUp
  }

  /// The first wait; each further one doubles up to `waitMax`. Short, because most refusals are a leader that moved,
  /// and the image tells within milliseconds.
  static let waitFirst: Duration = .milliseconds(5)
  /// 200 ms: a dead leader is replaced after 1.5 s, and ten thousand waiting requests must not hammer the next one.
  static let waitMax: Duration = .milliseconds(200)

  /// - Parameters:
  ///   - attempts: appends tried so far, at least 1.
  ///   - isIdempotent: a repetition can't append twice.
  ///   - hasFailedPredecessor: an earlier batch of the same producer still waits to be sent again.
  ///   - jitter: 0..<1, spreads what failed together.
  static func step(
    after error: MemQError, attempts: Int, now: MonotonicInstant, deadline: MonotonicInstant,
    isIdempotent: Bool, hasFailedPredecessor: Bool, jitter: Double
  ) -> Step {
    guard Self.isWorthAnother(error.code, isIdempotent, hasFailedPredecessor) else {
      return .giveUp
    }
    let wait = Self.wait(attempts: attempts, jitter: jitter)
    return now + wait < deadline ? .again(after: wait) : .giveUp
  }

  static func wait(attempts: Int, jitter: Double) -> Duration {
    let factor = Int64(1) << Int64(min(max(attempts, 1) - 1, 10))
    let full = min(Self.waitFirst.nanoseconds * factor, Self.waitMax.nanoseconds)
    return .nanoseconds(full / 2 + Int64(Double(full / 2) * jitter))
  }

  private static func isWorthAnother(
    _ code: ErrorCode, _ isIdempotent: Bool, _ hasFailedPredecessor: Bool
  ) -> Bool {
    switch code {
    case .notLeader, .leaderNotAvailable, .fencedLeaderEpoch, .unknownLeaderEpoch, .unavailable,
      .shuttingDown, .notEnoughReplicas, .volumeFailed, .resourceExhausted, .nodeUnknown,
      .staleNodeEpoch, .staleImage, .partitionNotFound, .volumeFull:
      return true
    case _ where code.leavesOutcomeOpen:
      // It may have been appended: only who can't append twice may ask again.
      return isIdempotent
    case .outOfOrderSequence, .unknownProducer:
      return isIdempotent && hasFailedPredecessor
    default: return false
    }
  }
}
