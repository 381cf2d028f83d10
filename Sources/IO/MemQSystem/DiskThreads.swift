// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CMemQSystem
import Glibc
public import MemQModel

/// A lock with a condition: state that threads wait on. For blocking threads only, never the cooperative pool.
public final class Monitor<State>: @unchecked Sendable {
  private var state: State
  private let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private let condition: UnsafeMutablePointer<pthread_cond_t>

  public init(_ state: sending State) {
    self.state = state
    self.mutex = .allocate(capacity: 1)
    self.condition = .allocate(capacity: 1)
    self.mutex.initialize(to: pthread_mutex_t())
    self.condition.initialize(to: pthread_cond_t())
    pthread_mutex_init(self.mutex, nil)
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(self.condition, &attributes)
    pthread_condattr_destroy(&attributes)
  }

  deinit {
    pthread_cond_destroy(self.condition)
    pthread_mutex_destroy(self.mutex)
    self.condition.deallocate()
    self.mutex.deallocate()
  }

  public func withLock<R, E: Error>(_ body: (inout State) throws(E) -> R) throws(E) -> R {
    pthread_mutex_lock(self.mutex)
    defer { pthread_mutex_unlock(self.mutex) }
    return try body(&self.state)
  }

  /// What `await(_:)`'s body asks for.
  public enum Step<R> {
    case done(R)
    /// Look again after the next signal, or at this time (`SystemClock.monotonic`).
    case wait(until: MonotonicInstant?)
  }

  /// Runs `body` under the lock until it is done, asleep in between.
  public func await<R>(_ body: (inout State) -> Step<R>) -> R {
    pthread_mutex_lock(self.mutex)
    defer { pthread_mutex_unlock(self.mutex) }
    while true {
      switch body(&self.state) {
      case .done(let result):
        return result
      case .wait(nil):
        pthread_cond_wait(self.condition, self.mutex)
      case .wait(let time?):
        var deadline = timespec()
        deadline.tv_sec = Int(time.nanoseconds / 1_000_000_000)
        deadline.tv_nsec = Int(time.nanoseconds % 1_000_000_000)
        pthread_cond_timedwait(self.condition, self.mutex, &deadline)
      }
    }
  }

  /// Wakes one waiting thread.
  public func signal() { pthread_cond_signal(self.condition) }

  /// Wakes all waiting threads.
  public func broadcast() { pthread_cond_broadcast(self.condition) }
}

/// A thread of our own, outside the cooperative pool.
public struct OwnThread: @unchecked Sendable {
  private let handle: pthread_t

  /// - Parameter name: at most 15 bytes are shown by the system.
  public init(name: String, _ body: @escaping @Sendable () -> Void) {
    final class Box {
      let body: @Sendable () -> Void
      init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var handle = pthread_t()
    let box = Unmanaged.passRetained(Box(body))
    let result = pthread_create(
      &handle, nil,
      { context in
        Unmanaged<Box>.fromOpaque(context!).takeRetainedValue().body()
        return nil
      }, box.toOpaque())
    precondition(result == 0, "the system gives no thread (errno \(result))")
    memq_name_thread(UInt64(handle), String(name.prefix(15)))
    self.handle = handle
  }

  /// Makes the calling thread give way to others, on the processors and at the disk.
  public static func giveWay(niceness: Int32) { memq_yield_thread(niceness) }

  /// Waits for its end. Not from itself.
  public func join() { pthread_join(self.handle, nil) }
}

/// A few threads for blocking calls, with one bounded queue. Also a task executor:
/// `withTaskExecutorPreference(threads) { … }` runs a task's own code there.
public final class DiskThreads: TaskExecutor {
  private struct State {
    var jobs: [@Sendable () -> Void] = []
    var head = 0
    var isStopped = false

    mutating func next() -> (@Sendable () -> Void)? {
      guard self.head < self.jobs.count else { return nil }
      defer {
        self.head += 1
        if self.head == self.jobs.count {
          self.jobs.removeAll(keepingCapacity: true)
          self.head = 0
        }
      }
      return self.jobs[self.head]
    }
  }

  private let monitor = Monitor(State())
  private let threads: Monitor<[OwnThread]>
  private let name: String
  private let queueMax: Int

  /// - Parameters:
  ///   - count: threads; each runs one blocking call at a time.
  ///   - queueMax: calls that may wait; `submit` refuses more.
  public init(name: String, count: Int, queueMax: Int = 4_096) {
    self.name = name
    self.queueMax = queueMax
    self.threads = Monitor([])
    let monitor = self.monitor
    let started = (0..<count).map { index in
      OwnThread(name: "\(name)-\(index)") { Self.loop(monitor) }
    }
    self.threads.withLock { $0 = started }
  }

  private static func loop(_ monitor: Monitor<State>) {
    while true {
      let job: (@Sendable () -> Void)? = monitor.await { state in
        if let job = state.next() { return .done(job) }
        return state.isStopped ? .done(nil) : .wait(until: nil)
      }
      guard let job else { return }
      job()
    }
  }

  /// Runs `job` on one of the threads.
  ///
  /// - Returns: false when the queue is full or the threads were stopped; the job will not run.
  public func submit(_ job: @escaping @Sendable () -> Void) -> Bool {
    let taken = self.monitor.withLock { state in
      guard !state.isStopped, state.jobs.count - state.head < self.queueMax else { return false }
      state.jobs.append(job)
      return true
    }
    if taken { self.monitor.signal() }
    return taken
  }

  /// Runs a blocking call and waits for it without blocking the caller's thread.
  ///
  /// - Throws: what `body` throws; `.resourceExhausted` when too many calls wait.
  public func run<R: Sendable>(
    _ body: @escaping @Sendable () throws(MemQError) -> R
  ) async throws(MemQError) -> R {
    let result: Result<R, MemQError> = await withCheckedContinuation { continuation in
      let taken = self.submit {
        continuation.resume(returning: Result { () throws(MemQError) in try body() })
      }
      guard !taken else { return }
      continuation.resume(
        returning: .failure(
          MemQError(
            .resourceExhausted, "too many calls wait for the disk", subject: self.name,
            limit: Int64(self.queueMax))))
    }
    return try result.get()
  }

  /// Tasks that prefer this executor; never refused, since a task must go on.
  public func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    self.monitor.withLock { state in
      state.jobs.append { job.runSynchronously(on: self.asUnownedTaskExecutor()) }
    }
    self.monitor.signal()
  }

  /// Ends the threads after what waits has run. Not from one of them.
  public func stop() {
    self.monitor.withLock { $0.isStopped = true }
    self.monitor.broadcast()
    let threads = self.threads.withLock { threads in
      defer { threads = [] }
      return threads
    }
    for thread in threads { thread.join() }
  }

  deinit {
    self.monitor.withLock { $0.isStopped = true }
    self.monitor.broadcast()
  }
}
