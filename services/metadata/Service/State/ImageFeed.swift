// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRuntime
import Synchronization

/// The image's latest changes, for those who watch it. The bounded ring is every watcher's backlog: a slow one falls off its end
/// and gets the whole image again.
final class ImageFeed: Sendable {
  private struct State {
    var updates: Deque<Memq_V1_ImageUpdate> = []
    /// Nodes, topics and partitions in the ring.
    var itemCount = 0
    /// Changes up to here are not in the ring.
    var floor: Revision
    var latest: Revision
    var waiters: [Int: CheckedContinuation<Void, Never>] = [:]
    var nextWaiter = 0
    var isClosed = false
  }

  /// Changes kept: some seconds of a busy cluster, a reconnect's worth.
  private static let updatesMax = 1_024
  /// Of all changes kept. A node with tens of thousands of replicas changes them all; a watcher that is so far behind is better off with
  /// the whole image, and the ring holds no more than a fraction of one.
  static let itemsMax = 16_384

  private let cell: StateCell
  private let state: Mutex<State>

  init(cell: StateCell, at revision: Revision) {
    self.cell = cell
    self.state = Mutex(State(floor: revision, latest: Self.revision(in: cell)))
  }

  /// The newest revision told, which every watcher's image reaches: not that of a reading, which may be above its entries'.
  var latest: Revision { self.state.withLock { $0.latest } }

  func append(_ delta: ImageDelta, of image: ClusterImage) {
    let update = delta.wire(of: image)
    self.change { state in
      state.updates.append(update)
      state.itemCount += update.itemCount
      state.latest = delta.revision
      while state.updates.count > Self.updatesMax
        || state.itemCount > Self.itemsMax && state.updates.count > 1
      {
        let first = state.updates.removeFirst()
        state.itemCount -= first.itemCount
        state.floor = Revision(first.revision)
      }
    }
  }

  /// The image was loaded anew by a reading at `revision`: what watchers have does not lead there.
  func reset(to revision: Revision) {
    let latest = Self.revision(in: self.cell)
    self.change { state in
      state.updates = []
      state.itemCount = 0
      state.floor = revision
      state.latest = latest
    }
  }

  private static func revision(in cell: StateCell) -> Revision { cell.read { $0.revision } }

  func close() { self.change { $0.isClosed = true } }

  private func change(_ body: (inout State) -> Void) {
    let waiters = self.state.withLock { state in
      body(&state)
      defer { state.waiters = [:] }
      return state.waiters.values.map { $0 }
    }
    for waiter in waiters { waiter.resume() }
  }

  /// What a watcher gets.
  enum Next {
    case change(Memq_V1_ImageUpdate)
    /// What comes `after` it follows.
    case whole(ClusterImage, after: Revision)
  }

  /// What a watcher at `revision` gets next; nil revision: the whole image. Waits until there is something.
  ///
  /// - Throws: `.shuttingDown`, `.cancelled`.
  func next(after revision: Revision?) async throws(MemQError) -> Next {
    while true {
      guard !Task.isCancelled else { throw MemQError(.cancelled, "the watch was cancelled") }
      guard let revision else { return try self.full() }
      switch self.lookUp(after: revision) {
      case .update(let update): return .change(update)
      case .gone: return try self.full()
      case .nothing: await self.wait(after: revision)
      case .closed: throw MemQError(.shuttingDown, "this metadata instance shuts down")
      }
    }
  }

  private enum Found {
    case update(Memq_V1_ImageUpdate)
    case gone, nothing, closed
  }

  private func lookUp(after revision: Revision) -> Found {
    self.state.withLock { state in
      if state.isClosed { return .closed }
      // Ahead of us: told by a store that was since restored.
      if revision < state.floor { return .gone }
      var low = 0
      var high = state.updates.count
      while low < high {
        let middle = (low + high) / 2
        if state.updates[middle].revision <= revision.rawValue {
          low = middle + 1
        } else {
          high = middle
        }
      }
      return low < state.updates.count ? .update(state.updates[low]) : .nothing
    }
  }

  private func full() throws(MemQError) -> Next {
    // First the floor: an image that is newer than it only makes the watcher ask again.
    let floor = self.state.withLock { $0.floor }
    guard let image = self.cell.read({ $0.image }) else {
      throw MemQError(.unavailable, "metadata is not loaded yet")
    }
    // A reading's revision is above its entries' where what changed last was deleted, or is no part of the image.
    return .whole(image, after: max(image.revision, floor))
  }

  private func wait(after revision: Revision) async {
    let id = self.state.withLock { state in
      state.nextWaiter += 1
      return state.nextWaiter
    }
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = self.state.withLock { state in
          if state.latest > revision || state.floor > revision || state.isClosed || Task.isCancelled
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

extension Memq_V1_ImageUpdate {
  fileprivate var itemCount: Int {
    self.nodes.count + self.topics.count + self.partitions.count + self.uploadGroups.count
  }
}

extension ImageDelta {
  func wire(of image: ClusterImage) -> Memq_V1_ImageUpdate {
    var update = Memq_V1_ImageUpdate()
    update.revision = self.revision.rawValue
    update.clusterID = image.clusterID.wire
    update.incarnation = image.incarnation.rawValue
    update.incarnationID = image.incarnationID.wire
    update.controllerAddress = image.controllerAddress
    update.nodes = self.nodes.map(\.wire)
    update.deletedNodeIds = self.deletedNodes.map(\.rawValue)
    update.topics = self.topics.map(\.wire)
    update.deletedTopicIds = self.deletedTopics.map(\.wire)
    update.partitions = self.partitions.map(\.wire)
    update.uploadGroups = self.uploadGroups.map(\.wire)
    return update
  }
}
