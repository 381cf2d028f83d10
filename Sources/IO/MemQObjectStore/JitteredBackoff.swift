// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
public import MemQSystem

/// Waits that double from `first` to `max`, each drawn from its upper half: retries of many callers spread out.
public struct JitteredBackoff: Sendable {
  private let first: Duration
  private let max: Duration
  private let entropy: any Entropy
  private var attempts = 0

  public init(
    first: Duration = .milliseconds(50), max: Duration = .seconds(10),
    entropy: any Entropy = SystemEntropy()
  ) {
    self.first = first
    self.max = max
    self.entropy = entropy
  }

  /// How long to wait before the next attempt.
  public mutating func next() -> Duration {
    let doubled = self.first.nanoseconds << Int64(min(self.attempts, 20))
    let bound = min(Swift.max(doubled, self.first.nanoseconds), self.max.nanoseconds)
    self.attempts += 1
    let half = UInt64(bound / 2)
    return .nanoseconds(Int64(half + self.entropy.next() % (half + 1)))
  }

  /// After a success: the next wait is a short one again.
  public mutating func reset() { self.attempts = 0 }
}
