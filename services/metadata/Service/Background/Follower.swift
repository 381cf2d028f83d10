// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQStore
import Synchronization

/// Why the instance is of no use any more; nil: it is fine.
final class Health: Sendable {
  private let reason = Mutex<MemQError?>(nil)
  private let onFailure: @Sendable (MemQError) -> Void

  init(onFailure: @escaping @Sendable (MemQError) -> Void) { self.onFailure = onFailure }

  var problem: MemQError? { self.reason.withLock { $0 } }

  func broke(_ error: MemQError) {
    self.reason.withLock { $0 = $0 ?? error }
    self.onFailure(error)
  }
}

/// The one task that writes the state in memory: applies what the store tells, in order, and feeds those who watch the image.
struct Follower: Sendable {
  /// Between attempts to load the state; each has the store's own retries behind it.
  private static let reloadPause: Duration = .milliseconds(200)

  let cell: StateCell
  let feed: ImageFeed
  let store: any MetadataStore
  let metrics: MetadataMetrics
  let health: Health
  let authority: Authority
  let logger: Logger

  func run(_ first: any StoreWatch) async {
    var watch = first
    while !Task.isCancelled {
      do {
        try await self.follow(watch)
      } catch {
        guard !Task.isCancelled else { return }
        switch error.code {
        case .cancelled: return
        case .revisionCompacted:
          self.logger.warning("The history of the store was cut; the state is loaded anew")
          guard let next = await self.reload() else { return }
          watch = next
        default:
          self.end(error)
          return
        }
      }
    }
  }

  private func follow(_ watch: any StoreWatch) async throws(MemQError) {
    while true {
      let batch = try await watch.next()
      let delta = try self.cell.apply(batch)
      if batch.changes.contains(where: { $0.key == .controller }) { self.authority.changed.raise() }
      guard let delta, !delta.isEmpty,
        let image = self.cell.read({ $0.image })
      else { continue }
      self.feed.append(delta, of: image)
      self.metrics.imageRevision.record(delta.revision.rawValue)
    }
  }

  /// Nil: it is over. A store that is away is waited for, as a watch waits.
  private func reload() async -> (any StoreWatch)? {
    while true {
      do throws(MemQError) {
        let revision = try await MetadataInstance.load(self.store, into: self.cell)
        self.feed.reset(to: revision)
        self.authority.changed.raise()
        return try self.store.watch(KeyRange(prefix: .memory), after: revision)
      } catch {
        guard !Task.isCancelled else { return nil }
        guard error.isRetriable else {
          self.end(error)
          return nil
        }
        self.logger.warning(
          "The state could not be loaded; it is tried again", metadata: ["error": "\(error)"])
      }
      try? await Task.sleep(for: Self.reloadPause)
    }
  }

  /// What is in memory stays as it is for ever: nothing may be decided by it any more.
  private func end(_ error: MemQError) {
    self.health.broke(error)
    self.authority.retire()
    self.cell.close()
    self.feed.close()
    self.logger.error("Metadata can't follow its store", metadata: ["error": "\(error)"])
  }
}
