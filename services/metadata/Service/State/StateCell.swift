// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQStore
import Synchronization

/// The metadata held in memory. One task writes it, in the order of the store's revisions; anybody reads it.
final class StateCell: Sendable {
  private struct Contents {
    var state: MetadataState
    /// The store's revision that the state has reached.
    var applied = Revision.zero
    var waiters: [(id: Int, revision: Revision, continuation: CheckedContinuation<Void, Never>)] =
      []
    var nextWaiter = 0
    /// Nobody applies any more.
    var isClosed = false
  }

  private let contents: Mutex<Contents>

  init(limits: MetadataLimits) {
    self.contents = Mutex(Contents(state: MetadataState(limits: limits)))
  }

  /// Asks the state. `body` must not block.
  func read<R, E: Error>(_ body: (MetadataState) throws(E) -> R) throws(E) -> R {
    // A result, because a lock's body and this one differ in what they throw.
    let result: Result<R, E> = self.contents.withLock { contents in
      do throws(E) {
        return .success(try body(contents.state))
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

  /// Takes in changes and wakes who waits for them.
  ///
  /// - Throws: `.corruptMessage`.
  func apply(_ batch: WatchBatch) throws(MemQError) -> ImageDelta? {
    let result: Result<(ImageDelta?, [CheckedContinuation<Void, Never>]), MemQError> =
      self.contents.withLock { contents in
        do throws(MemQError) {
          let delta = batch.changes.isEmpty ? nil : try contents.state.apply(batch.changes)
          contents.applied = max(contents.applied, batch.through)
          return .success((delta, Self.due(&contents)))
        } catch {
          return .failure(error)
        }
      }
    let (delta, due) = try result.get()
    for waiter in due { waiter.resume() }
    return delta
  }

  /// Begins anew from all entries of a reading at `revision`. By the task that applies.
  ///
  /// - Throws: `.corruptMessage`; what was known stands.
  func reload(_ entries: [StoredEntry], at revision: Revision) throws(MemQError) {
    let state = try MetadataState.loaded(entries, at: revision, instead: self.read { $0 })
    let due = self.contents.withLock { contents in
      contents.state = state
      contents.applied = max(contents.applied, revision)
      return Self.due(&contents)
    }
    for waiter in due { waiter.resume() }
  }

  private static func due(_ contents: inout Contents) -> [CheckedContinuation<Void, Never>] {
    let applied = contents.applied
    let due = contents.waiters.filter { $0.revision <= applied }.map(\.continuation)
    if !due.isEmpty { contents.waiters.removeAll { $0.revision <= applied } }
    return due
  }

  /// Returns once everything up to `revision` is applied, or nobody applies any more; after `limit` in any case.
  func applied(_ revision: Revision, atMost limit: Duration? = nil) async {
    await withCheckedContinuation { continuation in
      let id: Int? = self.contents.withLock { contents in
        if contents.applied >= revision || contents.isClosed { return nil }
        contents.nextWaiter += 1
        contents.waiters.append((contents.nextWaiter, revision, continuation))
        return contents.nextWaiter
      }
      guard let id else { return continuation.resume() }
      guard let limit else { return }
      Task {
        try? await Task.sleep(for: limit)
        self.giveUp(id)
      }
    }
  }

  private func giveUp(_ id: Int) {
    let waiter = self.contents.withLock { contents in
      contents.waiters.firstIndex { $0.id == id }.map { contents.waiters.remove(at: $0) }
    }
    waiter?.continuation.resume()
  }

  func close() {
    let waiters = self.contents.withLock { contents in
      contents.isClosed = true
      defer { contents.waiters = [] }
      return contents.waiters.map(\.continuation)
    }
    for waiter in waiters { waiter.resume() }
  }
}
