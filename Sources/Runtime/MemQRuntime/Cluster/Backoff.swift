// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQSystem
import Synchronization

/// Waits between attempts: each twice the one before up to the longest, ± 20 %, so that many nodes don't return in step.
public struct Backoff: Sendable {
  private let range: ClosedRange<Duration>
  private var current: Duration
  private let entropy = SystemEntropy()

  public init(_ range: ClosedRange<Duration>) {
    self.range = range
    self.current = range.lowerBound
  }

  public mutating func next() -> Duration {
    let wait = self.current
    self.current = min(wait * 2, self.range.upperBound)
    let spread = Double(self.entropy.next() % 1_000) / 1_000 * 0.4 + 0.8
    return wait * spread
  }

  public mutating func reset() { self.current = self.range.lowerBound }
}

/// When something was heard last; written by one task, read by another.
final class LastHeard: Sendable {
  private let nanoseconds: Atomic<Int64>

  init(_ instant: MonotonicInstant) { self.nanoseconds = Atomic(instant.nanoseconds) }

  func set(_ instant: MonotonicInstant) {
    self.nanoseconds.store(instant.nanoseconds, ordering: .relaxed)
  }
  var instant: MonotonicInstant {
    MonotonicInstant(nanoseconds: self.nanoseconds.load(ordering: .relaxed))
  }
}
