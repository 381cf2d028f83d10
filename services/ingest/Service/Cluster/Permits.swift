// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import Synchronization

/// A bounded number of things at a time; the others wait their turn, up to a bounded number of waiters.
final class Permits: Sendable {
  private typealias Waiter = UnsafeContinuation<Void, Never>

  private struct State {
    var free: Int
    var waiters = Deque<Waiter>()
  }

  private let state: Mutex<State>
  private let waitersMax: Int
  private let what: String

  /// - Parameter what: for the error when even the queue is full: "scans".
  init(_ count: Int, waitersMax: Int, what: String) {
    self.state = Mutex(State(free: count))
    self.waitersMax = waitersMax
    self.what = what
  }

  /// Runs `body` while holding one permit.
  ///
  /// - Throws: `.resourceExhausted` when too many wait already, and what `body` throws.
  func with<R>(_ body: () async throws(MemQError) -> R) async throws(MemQError) -> R {
    try await self.take()
    defer { self.give() }
    return try await body()
  }

  private func take() async throws(MemQError) {
    enum Entry { case granted, waits, refused(Int) }
    var refused: Int?
    await withUnsafeContinuation { (continuation: Waiter) in
      let entry: Entry = self.state.withLock { state in
        if state.free > 0 {
          state.free -= 1
          return .granted
        }
        guard state.waiters.count < self.waitersMax else { return .refused(state.waiters.count) }
        state.waiters.append(continuation)
        return .waits
      }
      switch entry {
      case .granted: continuation.resume()
      case .waits: break
      case .refused(let count):
        refused = count
        continuation.resume()
      }
    }
    if let refused {
      throw MemQError(
        .resourceExhausted, "too many \(self.what) wait", limit: Int64(self.waitersMax),
        actual: Int64(refused))
    }
  }

  private func give() {
    let next: Waiter? = self.state.withLock { state in
      if let waiter = state.waiters.popFirst() { return waiter }
      state.free += 1
      return nil
    }
    next?.resume()
  }
}
