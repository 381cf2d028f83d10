// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// The bytes that one fetch may still send, shared by its concurrent reads. The first read may go over it: a fetch gives
/// at least one batch.
final class FetchBudget: Sendable {
  private struct State {
    var left: Int
    var sent = 0
  }

  private let state: Mutex<State>
  let share: Int

  /// - Parameter reads: partitions that share it.
  init(bytes: Int, reads: Int) {
    self.state = Mutex(State(left: bytes))
    self.share = max(bytes / max(reads, 1), min(bytes, 64 << 10))
  }

  var sent: Int { self.state.withLock { $0.sent } }

  /// Sets aside up to a share for one read; nil: nothing is left.
  func reserve() -> Int? {
    self.state.withLock { state in
      guard state.left > 0 else { return nil }
      let part = min(self.share, state.left)
      state.left -= part
      return part
    }
  }

  /// Takes `bytes` for a message, out of `reserved` first. False: it must not be sent.
  func spend(_ bytes: Int, reserved: inout Int) -> Bool {
    self.state.withLock { state in
      let beyond = max(0, bytes - reserved)
      guard beyond <= state.left || state.sent == 0 else { return false }
      reserved = max(0, reserved - bytes)
      state.left -= beyond
      state.sent += bytes
      return true
    }
  }

  /// Gives back what a read did not need.
  func giveBack(_ bytes: Int) {
    self.state.withLock { $0.left += bytes }
  }
}
