// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQScreening
import Synchronization

/// Owns the admission of scans: who asks waits here for a place.
final class ScanDesk: Sendable {
  /// What became of the request for a place.
  enum Admitted<Value: Sendable>: Sendable {
    case done(Value)
    /// It never fits the scratch disk, or memory.
    case tooLarge
  }

  private typealias Waiter = CheckedContinuation<Result<Void, MemQError>, Never>

  private struct State {
    var admission: ScanAdmission
    var waiting: [ScanAdmission.ScanID: Waiter] = [:]
    var next: ScanAdmission.ScanID = 1
  }

  private let state: Mutex<State>

  init(_ configuration: ScanAdmission.Configuration) {
    self.state = Mutex(State(admission: ScanAdmission(configuration: configuration)))
  }

  var counts: (running: Int, waiting: Int, scratchBytes: Int64) {
    self.state.withLock {
      ($0.admission.runningCount, $0.admission.waitingCount, $0.admission.scratchBytes)
    }
  }

  /// Runs `body` once there is a place for it.
  ///
  /// - Throws: `.resourceExhausted` (queue, scratch disk or memory), `.cancelled`, what `body` throws.
  func with<Value: Sendable>(
    scratchBytes: Int64 = 0, memoryBytes: Int64 = 0, _ body: () async throws(MemQError) -> Value
  ) async throws(MemQError) -> Admitted<Value> {
    let (id, answer) = self.state.withLock { state in
      let id = state.next
      state.next += 1
      return (
        id, state.admission.request(id, scratchBytes: scratchBytes, memoryBytes: memoryBytes)
      )
    }
    switch answer {
    case .start: break
    case .wait: try await self.wait(id)
    case .tooLarge: return .tooLarge
    case .refuse(let error): throw error
    }
    defer { self.end(id) }
    return .done(try await body())
  }

  /// Until `end` of another one names it.
  private func wait(_ id: ScanAdmission.ScanID) async throws(MemQError) {
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { (waiter: Waiter) in
        let hasStarted = self.state.withLock { state in
          guard state.admission.isWaiting(id) else { return true }
          state.waiting[id] = waiter
          return false
        }
        if hasStarted {
          waiter.resume(returning: .success(()))
        } else if Task.isCancelled {
          // The cancellation came before there was anybody to wake.
          self.giveUp(id)
        }
      }
    } onCancel: {
      self.giveUp(id)
    }
    try result.get()
  }

  private func giveUp(_ id: ScanAdmission.ScanID) {
    guard let waiter = self.state.withLock({ $0.waiting.removeValue(forKey: id) }) else { return }
    self.end(id)
    waiter.resume(returning: .failure(MemQError(.cancelled, "the caller gave up")))
  }

  private func end(_ id: ScanAdmission.ScanID) {
    // One that was started before its continuation came finds itself no longer waiting.
    let started = self.state.withLock { state in
      state.admission.end(id).compactMap { state.waiting.removeValue(forKey: $0) }
    }
    for waiter in started { waiter.resume(returning: .success(())) }
  }
}
