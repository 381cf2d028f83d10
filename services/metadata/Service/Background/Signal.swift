// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// Wakes one task that waits; a signal that comes before the wait is not lost.
final class Signal: Sendable {
  private struct State {
    var isRaised = false
    var waiter: CheckedContinuation<Void, Never>?
  }

  private let state = Mutex(State())

  func raise() {
    self.state.withLock { state in
      state.isRaised = true
      defer { state.waiter = nil }
      return state.waiter
    }?.resume()
  }

  /// Returns when raised, after `limit`, or when cancelled.
  func wait(atMost limit: Duration) async {
    let timer = Task {
      try await Task.sleep(for: limit)
      self.raise()
    }
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = self.state.withLock { state in
          if state.isRaised || Task.isCancelled { return true }
          state.waiter = continuation
          return false
        }
        if isOver { continuation.resume() }
      }
    } onCancel: {
      self.raise()
    }
    timer.cancel()
    self.state.withLock { $0.isRaised = false }
  }
}
