// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Jittered waits between attempts: 20 ms at first, twice as long each time up to 500 ms, ± 20 %.
///
/// 500 ms is short against a restart and long against the cost of one attempt.
struct Backoff {
  static let first: Duration = .milliseconds(20)
  static let longest: Duration = .milliseconds(500)

  private var next = Backoff.first

  mutating func reset() { self.next = Self.first }

  /// The wait before the next attempt.
  mutating func step() -> Duration {
    defer { self.next = min(self.next * 2, Self.longest) }
    return self.next * Double.random(in: 0.8...1.2)
  }

  /// Sleeps for the next wait, at most until `deadline`.
  ///
  /// - Throws: `.cancelled` when the task was cancelled.
  mutating func wait(
    until deadline: ContinuousClock.Instant? = nil
  ) async throws(MemQError) {
    var end = ContinuousClock.now + self.step()
    if let deadline { end = min(end, deadline) }
    do {
      try await Task.sleep(until: end, tolerance: .zero)
    } catch {
      throw MemQError(.cancelled, "the call was cancelled")
    }
  }
}
