// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// A value that several may set and one waits for: the first one counts.
final class FirstOf<Value: Sendable>: Sendable {
  private enum State {
    case empty
    case waited(UnsafeContinuation<Value, Never>)
    case set(Value)
  }

  private let state = Mutex(State.empty)

  init() {}

  func set(_ value: Value) {
    let waiter = self.state.withLock { state -> UnsafeContinuation<Value, Never>? in
      switch state {
      case .empty:
        state = .set(value)
        return nil
      case .waited(let waiter):
        state = .set(value)
        return waiter
      case .set: return nil
      }
    }
    waiter?.resume(returning: value)
  }

  /// - Precondition: called once.
  func get() async -> Value {
    await withUnsafeContinuation { continuation in
      let value = self.state.withLock { state -> Value? in
        if case .set(let value) = state { return value }
        state = .waited(continuation)
        return nil
      }
      if let value { continuation.resume(returning: value) }
    }
  }
}
