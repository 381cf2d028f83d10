// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// A value that somebody sets once and others wait for, each no longer than it likes.
final class Outcome<Value: Sendable>: Sendable {
  private typealias Waiter = UnsafeContinuation<Value?, Never>

  private struct State {
    var value: Value?
    var waiters: [Int: Waiter] = [:]
    var next = 0
  }

  private let state = Mutex(State())

  /// The first value counts.
  func set(_ value: Value) {
    let waiters: [Waiter] = self.state.withLock { state in
      guard state.value == nil else { return [] }
      state.value = value
      defer { state.waiters = [:] }
      return Array(state.waiters.values)
    }
    for waiter in waiters { waiter.resume(returning: value) }
  }

  /// Nil when it is not set within `timeout`.
  func wait(_ timeout: Duration) async -> Value? {
    if let value = self.state.withLock({ $0.value }) { return value }
    return await withUnsafeContinuation { (waiter: Waiter) in
      let (value, id): (Value?, Int) = self.state.withLock { state in
        if let value = state.value { return (value, 0) }
        state.next += 1
        state.waiters[state.next] = waiter
        return (nil, state.next)
      }
      if let value { return waiter.resume(returning: value) }
      Task {
        try? await Task.sleep(for: timeout)
        self.giveUp(id)
      }
    }
  }

  private func giveUp(_ id: Int) {
    let waiter = self.state.withLock { $0.waiters.removeValue(forKey: id) }
    waiter?.resume(returning: nil)
  }
}
