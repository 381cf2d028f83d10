// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQScreening
import Synchronization

/// Owns the admission of scans: who asks waits here for a place.
final class ScanDesk: Sendable {
  private struct State {
    var admission: ScanAdmission
    var waiting: [ScanAdmission.ScanID: CheckedContinuation<Result<Void, MemQError>, Never>] = [:]
    var next: ScanAdmission.ScanID = 1
  }

  private let state: Mutex<State>

  init(_ limits: ScanAdmission.Limits) {
    self.state = Mutex(State(admission: ScanAdmission(limits)))
  }

  var counts: (running: Int, waiting: Int, scratchBytes: Int64) {
    self.state.withLock {
      ($0.admission.runningCount, $0.admission.waitingCount, $0.admission.scratchBytes)
    }
  }

  /// Runs `body` once there is a place for it.
  ///
  /// - Throws: `.resourceExhausted` (queue or scratch disk), `.cancelled`, what `body` throws.
  func with<Value: Sendable>(
    scratchBytes: Int64, _ body: () async throws(MemQError) -> Value
  ) async throws(MemQError) -> Value {
    let id = self.state.withLock { state in
      defer { state.next += 1 }
      return state.next
    }
    let admitted = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        self.decide(.arrived(id, scratchBytes: scratchBytes)) { state in
          state.waiting[id] = continuation
        }
        // A cancellation that came before the arrival found nobody waiting.
        if Task.isCancelled { self.giveUp(id) }
      }
    } onCancel: {
      self.giveUp(id)
    }
    try admitted.get()
    defer { self.decide(.finished(id)) }
    return try await body()
  }

  private func giveUp(_ id: ScanAdmission.ScanID) {
    let waiter = self.state.withLock { $0.waiting.removeValue(forKey: id) }
    guard let waiter else { return }
    self.decide(.abandoned(id))
    waiter.resume(returning: .failure(MemQError(.cancelled, "the caller gave up")))
  }

  private func decide(
    _ event: ScanAdmission.Event, before: (inout sending State) -> Void = { _ in }
  ) {
    typealias Answer = (CheckedContinuation<Result<Void, MemQError>, Never>, Result<Void, MemQError>)
    let answers = self.state.withLock { state -> [Answer] in
      before(&state)
      var effects: [ScanAdmission.Effect] = []
      state.admission.handle(event, into: &effects)
      var answers: [Answer] = []
      for effect in effects {
        switch effect {
        case .start(let id):
          // Somebody who gave up in the same moment has no continuation any more; `giveUp` follows with `.abandoned`.
          if let waiter = state.waiting.removeValue(forKey: id) {
            answers.append((waiter, .success(())))
          } else {
            state.admission.handle(.finished(id), into: &effects)
          }
        case .refuse(let id, let error):
          if let waiter = state.waiting.removeValue(forKey: id) {
            answers.append((waiter, .failure(error)))
          }
        }
      }
      return answers
    }
    for (waiter, result) in answers { waiter.resume(returning: result) }
  }
}
