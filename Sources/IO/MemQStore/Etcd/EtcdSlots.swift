// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import Synchronization

/// One of the keys that tell what became of a transaction.
///
/// Each transaction compares its slot's revision and writes the slot. When its outcome is unknown, a write to the slot under the same
/// condition settles it: if that succeeds, the transaction has not happened and never can, even if it is still on its way; if not, the
/// slot's value says whether it was this transaction that came first.
struct EtcdSlot: Sendable {
  let number: Int
  /// When the slot was last written, as far as this store knows; an earlier life of the same instance may have used it.
  var revision: Int64 = 0
}

/// The slots that are free, for so many transactions at once. Who comes when none is waits in line.
final class EtcdSlots: Sendable {
  private struct State {
    var free: [EtcdSlot]
    var waiting: Deque<CheckedContinuation<EtcdSlot?, Never>> = []
    var used = 0
    var isClosed = false
    /// Waits for the last transaction's end.
    var closer: CheckedContinuation<Void, Never>?
  }

  private let waitingMax: Int
  private let state: Mutex<State>

  init(count: Int, waitingMax: Int) {
    self.waitingMax = waitingMax
    self.state = Mutex(State(free: (0..<count).reversed().map { EtcdSlot(number: $0) }))
  }

  /// - Throws: `.resourceExhausted` when too many wait; `.unavailable` when the store is closed.
  func take() async throws(MemQError) -> EtcdSlot {
    var isFull = false
    let slot: EtcdSlot? = await withCheckedContinuation { continuation in
      let (now, isDecided): (EtcdSlot?, Bool) = self.state.withLock { state in
        guard !state.isClosed else { return (nil, true) }
        if let slot = state.free.popLast() {
          state.used += 1
          return (slot, true)
        }
        guard state.waiting.count < self.waitingMax else {
          isFull = true
          return (nil, true)
        }
        state.waiting.append(continuation)
        return (nil, false)
      }
      if isDecided { continuation.resume(returning: now) }
    }
    if let slot { return slot }
    guard isFull else { throw EtcdClient.closed }
    throw MemQError(
      .resourceExhausted, "too many transactions wait for the metadata store",
      limit: Int64(self.waitingMax), actual: Int64(self.waitingMax) + 1)
  }

  func give(_ slot: EtcdSlot) {
    let (next, closer) = self.state.withLock { state in
      if let next = state.waiting.popFirst() {
        return (next as CheckedContinuation?, nil as CheckedContinuation<Void, Never>?)
      }
      state.free.append(slot)
      state.used -= 1
      guard state.used == 0 else { return (nil, nil) }
      return (nil, state.closer.take())
    }
    next?.resume(returning: slot)
    closer?.resume()
  }

  /// Nobody gets a slot any more; returns when all are back.
  func close() async {
    let waiting = self.state.withLock { state in
      state.isClosed = true
      defer { state.waiting = [] }
      return state.waiting
    }
    for waiter in waiting { waiter.resume(returning: nil) }
    await withCheckedContinuation { continuation in
      let isOver = self.state.withLock { state in
        if state.used == 0 || state.closer != nil { return true }
        state.closer = continuation
        return false
      }
      if isOver { continuation.resume() }
    }
  }
}
