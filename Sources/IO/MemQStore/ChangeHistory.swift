// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQMetadata
import MemQModel
import Synchronization

/// The recent changes of a store in this process, and who waits for more. Its bounded ring is the backlog of every watch: a slow
/// one falls off its end and reads anew.
final class ChangeHistory: Sendable {
  private struct State {
    var changes: Deque<StoreChange> = []
    var byteCount = 0
    /// Changes up to here are gone.
    var compacted: Revision
    /// Changes up to here have been told.
    var latest: Revision
    var waiters: [Int: CheckedContinuation<Void, Never>] = [:]
    var nextWaiter = 0
    var isClosed = false
  }

  private let changesMax: Int
  private let bytesMax: Int
  private let state: Mutex<State>

  init(
    from revision: Revision, changesMax: Int = StoreLimits.historyChangesMax,
    bytesMax: Int = StoreLimits.historyBytesMax
  ) {
    self.changesMax = changesMax
    self.bytesMax = bytesMax
    self.state = Mutex(State(compacted: revision, latest: revision))
  }

  var latest: Revision { self.state.withLock { $0.latest } }

  /// Adds the changes of whole transactions, in order, that end at `revision`.
  func append(_ changes: [StoreChange], through revision: Revision) {
    let waiters = self.state.withLock { state in
      for change in changes {
        state.changes.append(change)
        state.byteCount += Self.byteCount(change)
      }
      state.latest = revision
      while state.changes.count > self.changesMax || state.byteCount > self.bytesMax {
        Self.dropFirstRevision(&state)
      }
      return Self.takeWaiters(&state)
    }
    for waiter in waiters { waiter.resume() }
  }

  private static func byteCount(_ change: StoreChange) -> Int {
    change.key.bytes.count + (change.value?.count ?? 0) + 64
  }

  /// Whole revisions only: a watch never sees half a transaction.
  private static func dropFirstRevision(_ state: inout State) {
    guard let revision = state.changes.first?.revision else { return }
    while let change = state.changes.first, change.revision == revision {
      state.byteCount -= Self.byteCount(change)
      state.changes.removeFirst()
    }
    state.compacted = revision
  }

  private static func takeWaiters(_ state: inout State) -> [CheckedContinuation<Void, Never>] {
    defer { state.waiters = [:] }
    return state.waiters.values.map { $0 }
  }

  func compact(through revision: Revision) {
    let waiters = self.state.withLock { state in
      let revision = min(revision, state.latest)
      while let first = state.changes.first?.revision, first <= revision {
        Self.dropFirstRevision(&state)
      }
      state.compacted = max(state.compacted, revision)
      return Self.takeWaiters(&state)
    }
    for waiter in waiters { waiter.resume() }
  }

  func close() {
    let waiters = self.state.withLock { state in
      state.isClosed = true
      return Self.takeWaiters(&state)
    }
    for waiter in waiters { waiter.resume() }
  }

  // MARK: Watches

  func watch(_ range: KeyRange, after revision: Revision) throws(MemQError) -> any StoreWatch {
    let compacted = self.state.withLock { $0.compacted }
    guard revision >= compacted else { throw Self.gone(revision, compacted) }
    return HistoryWatch(history: self, range: range, after: revision)
  }

  private static func gone(_ revision: Revision, _ compacted: Revision) -> MemQError {
    MemQError(
      .revisionCompacted, "the history after that revision is gone; read, then watch from there",
      limit: compacted.rawValue, actual: revision.rawValue)
  }

  fileprivate func read(
    _ range: KeyRange, after revision: Revision, max count: Int
  ) throws(MemQError) -> WatchBatch {
    let outcome: Result<WatchBatch, MemQError> = self.state.withLock { state in
      guard revision >= state.compacted else {
        return .failure(Self.gone(revision, state.compacted))
      }
      if state.isClosed, revision >= state.latest {
        return .failure(MemQError(.unavailable, "the store is closed"))
      }
      var found: [StoreChange] = []
      var through = state.latest
      var index = Self.index(after: revision, in: state.changes)
      while index < state.changes.count {
        let change = state.changes[index]
        if found.count >= count, change.revision > found[found.count - 1].revision {
          through = found[found.count - 1].revision
          break
        }
        if range.contains(change.key) { found.append(change) }
        index += 1
      }
      return .success(WatchBatch(changes: found, through: through))
    }
    return try outcome.get()
  }

  /// Index of the first change after a revision.
  private static func index(after revision: Revision, in changes: Deque<StoreChange>) -> Int {
    var low = 0
    var high = changes.count
    while low < high {
      let middle = (low + high) / 2
      if changes[middle].revision <= revision { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Returns once there is something after `revision`, the history was cut or closed, or the task is cancelled.
  fileprivate func wait(after revision: Revision) async {
    let id = self.state.withLock { state in
      state.nextWaiter += 1
      return state.nextWaiter
    }
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = self.state.withLock { state in
          if state.latest > revision || state.compacted > revision || state.isClosed
            || Task.isCancelled
          {
            return true
          }
          state.waiters[id] = continuation
          return false
        }
        if isOver { continuation.resume() }
      }
    } onCancel: {
      self.state.withLock { $0.waiters.removeValue(forKey: id) }?.resume()
    }
  }
}

private final class HistoryWatch: StoreWatch {
  /// Changes handed out at once, unless a transaction is larger.
  private static let changesMax = 1_024

  private let history: ChangeHistory
  private let range: KeyRange
  private let position: Mutex<Revision>

  init(history: ChangeHistory, range: KeyRange, after revision: Revision) {
    self.history = history
    self.range = range
    self.position = Mutex(revision)
  }

  func next() async throws(MemQError) -> WatchBatch {
    while true {
      guard !Task.isCancelled else { throw MemQError(.cancelled, "the watch was cancelled") }
      let position = self.position.withLock { $0 }
      let batch = try self.history.read(self.range, after: position, max: Self.changesMax)
      if batch.through > position {
        self.position.withLock { $0 = batch.through }
        return batch
      }
      await self.history.wait(after: position)
    }
  }
}
