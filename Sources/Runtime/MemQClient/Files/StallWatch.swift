// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Synchronization

/// Ends a stream when one wait for its peer takes too long: a server that lives but does not move would hold its caller for ever.
final class StallWatch: Sendable {
  private struct State {
    /// When the wait of the moment began.
    var since: ContinuousClock.Instant?
    var hasFired = false
  }

  private let limit: Duration
  private let state = Mutex(State())

  /// - Parameters:
  ///   - stallTimeout: how long one wait may last; nil: half of `resumeTimeout`, so that another stream is tried before the end.
  ///   - resumeTimeout: how long the whole may stand still.
  init(stallTimeout: Duration?, resumeTimeout: Duration) {
    self.limit = max(stallTimeout ?? resumeTimeout / 2, .seconds(1))
  }

  /// Looks on until the task is cancelled; `end` must make `wait`'s body return.
  func run(end: @escaping @Sendable () -> Void) -> Task<Void, any Error> {
    Task {
      var lookedAt = ContinuousClock.now
      while true {
        try await Task.sleep(for: self.limit / 4)
        let now = ContinuousClock.now
        defer { lookedAt = now }
        let isStalled = self.state.withLock { state in
          guard let since = state.since else { return false }
          // Who sleeps so long stood still itself, as a suspended machine does: that says nothing of the peer.
          guard now - lookedAt < self.limit / 2 else {
            state.since = now
            return false
          }
          guard now - since >= self.limit else { return false }
          state.hasFired = true
          return true
        }
        if isStalled { return end() }
      }
    }
  }

  /// - Throws: what `body` throws; `.deadlineExceeded` when it was ended.
  func wait<R>(for body: () async throws(MemQError) -> R) async throws(MemQError) -> R {
    self.state.withLock { $0.since = .now }
    let result: Result<R, MemQError>
    do throws(MemQError) {
      result = .success(try await body())
    } catch {
      result = .failure(error)
    }
    let hasFired = self.state.withLock { state in
      state.since = nil
      return state.hasFired
    }
    if hasFired {
      throw MemQError(.deadlineExceeded, "the server stood still for \(self.limit)")
    }
    return try result.get()
  }
}
