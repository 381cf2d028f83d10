// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import NIOPosix
import Synchronization

/// When a call gives up. Time by the machine's clock: it bounds waits on real disks.
struct Deadline: Sendable {
  let instant: ContinuousClock.Instant

  init(in timeout: Duration) { self.instant = .now + timeout }

  var remaining: Duration { self.instant - .now }
  var hasPassed: Bool { self.remaining <= .zero }
}

/// Own threads for file work that blocks, with a bounded queue and a deadline for each wait.
///
/// A call whose deadline passes while the disk hangs returns; its thread stays with the disk. When all threads do, the
/// queue fills and further calls are refused at once.
final class FileThreads: Sendable {
  /// Jobs that wait or run; more are refused. Bounds memory when the disk hangs.
  static let jobsMax = 1_024

  private let pool: NIOThreadPool
  private let jobs = Mutex(0)
  private let subject: String

  init(count: Int, subject: String) {
    self.pool = NIOThreadPool(numberOfThreads: count)
    self.subject = subject
    self.pool.start()
  }

  func run<T: Sendable>(
    _ deadline: Deadline, _ body: @escaping @Sendable () throws(MemQError) -> T
  ) async throws(MemQError) -> T {
    guard !deadline.hasPassed else { throw self.timedOut }
    guard
      self.jobs.withLock({
        $0 += 1; return $0 <= Self.jobsMax
      })
    else {
      self.jobs.withLock { $0 -= 1 }
      throw MemQError(
        .objectStoreUnavailable, "too many requests wait for the disk", subject: self.subject,
        limit: Int64(Self.jobsMax), actual: Int64(Self.jobsMax) + 1)
    }
    let box = ResultBox<T>()
    let timer = Task {
      try? await Task.sleep(for: deadline.remaining)
      if !Task.isCancelled { box.resolve(.failure(self.timedOut)) }
    }
    defer { timer.cancel() }
    let result = await withCheckedContinuation { continuation in
      box.wait(continuation)
      self.pool.submit { state in
        defer { self.jobs.withLock { $0 -= 1 } }
        guard case .active = state else {
          return box.resolve(.failure(MemQError(.shuttingDown, "the object store is closed")))
        }
        guard !box.isResolved else { return }
        box.resolve(Result { () throws(MemQError) in try body() })
      }
    }
    return try result.get()
  }

  private var timedOut: MemQError {
    MemQError(
      .objectStoreUnavailable, "the object store did not answer in time", subject: self.subject)
  }

  func close() async {
    try? await self.pool.shutdownGracefully()
  }
}

/// The first result counts; a later one is dropped.
private final class ResultBox<T: Sendable>: Sendable {
  private typealias Waiter = CheckedContinuation<Result<T, MemQError>, Never>
  private enum State {
    case fresh
    case waiting(Waiter)
    case early(Result<T, MemQError>)
    case resolved
  }

  private let state = Mutex(State.fresh)

  var isResolved: Bool {
    self.state.withLock {
      switch $0 {
      case .early, .resolved: true
      case .fresh, .waiting: false
      }
    }
  }

  func wait(_ waiter: CheckedContinuation<Result<T, MemQError>, Never>) {
    let early: Result<T, MemQError>? = self.state.withLock {
      guard case .early(let result) = $0 else {
        $0 = .waiting(waiter)
        return nil
      }
      $0 = .resolved
      return result
    }
    if let early { waiter.resume(returning: early) }
  }

  func resolve(_ result: Result<T, MemQError>) {
    let waiter: Waiter? = self.state.withLock {
      switch $0 {
      case .fresh:
        $0 = .early(result)
        return nil
      case .waiting(let waiter):
        $0 = .resolved
        return waiter
      case .early, .resolved: return nil
      }
    }
    waiter?.resume(returning: result)
  }
}
