// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Lets so many requests run at a time; the others wait in order, so many at most.
actor RequestGate {
  private let runningMax: Int
  private let waitingMax: Int
  private var running = 0
  private var waiters: [CheckedContinuation<Void, Never>] = []

  init(runningMax: Int, waitingMax: Int) {
    self.runningMax = runningMax
    self.waitingMax = waitingMax
  }

  func enter() async throws(MemQError) {
    if self.running < self.runningMax {
      self.running += 1
      return
    }
    guard self.waiters.count < self.waitingMax else {
      throw MemQError(
        .resourceExhausted, "too many reads of objects wait", limit: Int64(self.waitingMax),
        actual: Int64(self.waiters.count) + 1)
    }
    await withCheckedContinuation { self.waiters.append($0) }
  }

  /// Passes the place on to the first who waits.
  func leave() {
    if self.waiters.isEmpty {
      self.running -= 1
    } else {
      self.waiters.removeFirst().resume()
    }
  }
}
