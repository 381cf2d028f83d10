// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQSystem
import Synchronization

/// Whether this instance decides for the cluster, and what its writes must be conditional on.
///
/// The only instance of a store decides always. Of several the one does whose controller key stands in the store, and each of its
/// writes compares that key's revision: what a deposed one has still under way comes to nothing. Besides, it stops by its own clock
/// when it could not renew the lease in time; a process that stood still finds that out before it does anything.
final class Authority: Sendable {
  private enum Role {
    /// Another one may decide.
    case standby
    /// It has the key and puts itself in the picture; writes are allowed, calls are not yet taken.
    case entering(Condition?)
    case deciding(Controller, Condition?)
  }

  private struct State {
    var role = Role.standby
    /// When the lease may have ended; nil: there is none.
    var until: MonotonicInstant?
    /// It decides never again.
    var isRetired = false
  }

  private let clock: any MemQClock
  private let state = Mutex(State())
  /// Raised when the controller's key in memory has changed, or may have.
  let changed = Signal()

  init(clock: any MemQClock) { self.clock = clock }

  // MARK: Asking

  /// What a write must be conditional on; nil: nothing.
  ///
  /// - Throws: `.unavailable` when this instance may not write.
  func fence() throws(MemQError) -> Condition? {
    let (role, isOver) = self.now()
    guard !isOver else { throw Self.suspended }
    switch role {
    case .standby: throw Self.notController
    case .entering(let condition): return condition
    case .deciding(_, let condition): return condition
    }
  }

  /// - Throws: `.unavailable` when this instance does not decide.
  func controller() throws(MemQError) -> Controller {
    let (role, isOver) = self.now()
    guard case .deciding(let controller, _) = role else { throw Self.notController }
    guard !isOver else { throw Self.suspended }
    return controller
  }

  var isStandby: Bool {
    if case .standby = self.now().role { return true }
    return false
  }

  var isRetired: Bool { self.state.withLock { $0.isRetired } }

  /// It has the key, but could not renew its lease in time.
  var isSuspended: Bool { self.now().isOver }

  private func now() -> (role: Role, isOver: Bool) {
    let now = self.clock.monotonic
    return self.state.withLock { state in
      (state.role, state.until.map { now >= $0 } ?? false)
    }
  }

  static let notController = MemQError(
    .unavailable, "this metadata instance is not the controller")
  static let suspended = MemQError(
    .unavailable, "this metadata instance can't reach its store and decides nothing meanwhile")

  // MARK: Changing

  /// The store is this instance's alone.
  func enterAlone() {
    self.state.withLock { state in
      guard !state.isRetired else { return }
      state = State(role: .entering(nil))
    }
  }

  func enter(_ fence: Condition, until: MonotonicInstant) {
    self.state.withLock { state in
      guard !state.isRetired else { return }
      state = State(role: .entering(fence), until: until)
    }
  }

  /// Takes calls from now on.
  func decide(_ controller: Controller) {
    self.state.withLock { state in
      guard case .entering(let fence) = state.role else { return }
      state.role = .deciding(controller, fence)
    }
  }

  func extend(until: MonotonicInstant) {
    self.state.withLock { state in
      if state.until != nil { state.until = until }
    }
  }

  func stepDown() {
    self.state.withLock { $0 = State(isRetired: $0.isRetired) }
  }

  /// Steps down if its right is still this one: it may have lost it and got another meanwhile.
  func stepDown(from fence: Condition) {
    self.state.withLock { state in
      switch state.role {
      case .entering(fence), .deciding(_, fence): state = State(isRetired: state.isRetired)
      case .standby, .entering, .deciding: break
      }
    }
  }

  /// Steps down for good: the instance does not see any more what is so. Whoever holds the lease gives it back.
  func retire() {
    self.state.withLock { $0 = State(isRetired: true) }
    self.changed.raise()
  }
}
