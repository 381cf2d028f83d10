// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import Synchronization

/// The latest cluster image, for those who read it, wait for it, or want to be told of it.
///
/// Slow observers miss intermediate images, never the latest: nothing queues up.
final class ImageCell: Sendable {
  typealias Observer = @Sendable (ClusterImage) -> Void

  private struct State {
    var image: ClusterImage?
    /// Counts the images set.
    var version = 0
    var observers: [(body: Observer, seen: Int)] = []
    var waiters: [Int: CheckedContinuation<Void, Never>] = [:]
    var nextWaiter = 0
    /// Wakes the task that calls the observers.
    var signal: AsyncStream<Void>.Continuation?
  }

  private let state = Mutex(State())

  var image: ClusterImage? { self.state.withLock { $0.image } }

  func set(_ image: ClusterImage) {
    let (waiters, signal) = self.state.withLock { state in
      state.image = image
      state.version += 1
      defer { state.waiters = [:] }
      return (state.waiters.values.map { $0 }, state.signal)
    }
    for waiter in waiters { waiter.resume() }
    signal?.yield()
  }

  func observe(_ body: @escaping Observer) {
    self.state.withLock { state in
      state.observers.append((body, 0))
      return state.signal
    }?.yield()
  }

  /// Tells the observers, until cancelled. The one task that calls them.
  func deliver() async {
    let (changes, signal) = AsyncStream.makeStream(
      of: Void.self, bufferingPolicy: .bufferingNewest(1))
    self.state.withLock { $0.signal = signal }
    signal.yield()
    for await _ in changes {
      while let (image, observers) = self.due() {
        for observer in observers { observer(image) }
      }
    }
  }

  /// The latest image and the observers that have not seen it; marks it as seen.
  private func due() -> (ClusterImage, [Observer])? {
    self.state.withLock { state in
      guard let image = state.image else { return nil }
      var due: [Observer] = []
      for index in state.observers.indices where state.observers[index].seen < state.version {
        state.observers[index].seen = state.version
        due.append(state.observers[index].body)
      }
      return due.isEmpty ? nil : (image, due)
    }
  }

  /// Waits until an image satisfies `condition`. Throws `.deadlineExceeded` or `.cancelled`.
  func wait(
    timeout: Duration, _ condition: @Sendable (ClusterImage) -> Bool
  ) async throws(MemQError) -> ClusterImage {
    let deadline = ContinuousClock.now + timeout
    while true {
      let (image, version) = self.state.withLock { ($0.image, $0.version) }
      if let image, condition(image) { return image }
      guard !Task.isCancelled else {
        throw MemQError(.cancelled, "waiting for the cluster image was cancelled")
      }
      guard ContinuousClock.now < deadline else {
        throw MemQError(
          .deadlineExceeded, "the cluster did not get there in time (limit and actual in ms)",
          limit: timeout.milliseconds, actual: timeout.milliseconds)
      }
      await self.change(after: version, until: deadline)
    }
  }

  /// Returns when an image newer than `version` is there, at the deadline, or when cancelled.
  private func change(after version: Int, until deadline: ContinuousClock.Instant) async {
    let id = self.state.withLock { state in
      state.nextWaiter += 1
      return state.nextWaiter
    }
    let timer = Task {
      try? await Task.sleep(until: deadline, clock: .continuous)
      self.wake(id)
    }
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = self.state.withLock { state in
          if state.version != version || ContinuousClock.now >= deadline || Task.isCancelled {
            return true
          }
          state.waiters[id] = continuation
          return false
        }
        if isOver { continuation.resume() }
      }
    } onCancel: {
      self.wake(id)
    }
    timer.cancel()
  }

  private func wake(_ id: Int) {
    self.state.withLock { $0.waiters.removeValue(forKey: id) }?.resume()
  }
}
