// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A task that runs unary handlers, one after the other: to make a task for each call would cost as much as the rest of the call.
///
/// Bound to its driver's loop. A task is never used again once it was cancelled, so a handler sees its own call's cancellation only.
final class HandlerTask: @unchecked Sendable {
  private let driver: LoopDriver
  private var task: Task<Void, Never>?
  @exclusivity(unchecked) private var handler: AsyncUnaryHandler?
  /// Set while it waits for a handler.
  @exclusivity(unchecked) private var waiter: UnsafeContinuation<Void, Never>?

  private init(driver: LoopDriver) {
    self.driver = driver
  }

  /// Runs the handler in a waiting task, or a new one.
  static func run(_ handler: AsyncUnaryHandler, on driver: LoopDriver) -> HandlerTask {
    if let waiting = driver.handlerTasks.take() {
      waiting.resume(with: handler)
      return waiting
    }
    let made = HandlerTask(driver: driver)
    made.handler = handler
    made.task = Task(executorPreference: driver) { await made.run() }
    return made
  }

  /// The call of the handler it runs is over.
  func cancel() {
    self.task?.cancel()
  }

  /// Nil: it is not needed any more.
  func resume(with handler: AsyncUnaryHandler?) {
    self.handler = handler
    self.waiter.take()?.resume()
  }

  private func run() async {
    while let handler = self.handler.take() {
      await RPCScope.$call.withValue(handler.call) { await handler.run() }
      guard !Task.isCancelled, self.driver.handlerTasks.hasRoom else { break }
      await withUnsafeContinuation { continuation in
        self.waiter = continuation
        self.driver.keep(self)
      }
    }
    self.task = nil
  }
}

/// A loop's handler tasks without a handler; the one used last is taken first.
struct HandlerTasks {
  /// So many calls at once need no new task; each that waits holds about 2 KiB.
  static let waitingMax = 128

  private var waiting: [HandlerTask] = []
  /// The fewest that waited since the last trim: so many were not needed.
  private var idle = 0

  var hasRoom: Bool { self.waiting.count < Self.waitingMax }
  var isEmpty: Bool { self.waiting.isEmpty }

  mutating func add(_ task: HandlerTask) {
    self.waiting.append(task)
  }

  mutating func take() -> HandlerTask? {
    let task = self.waiting.popLast()
    self.idle = min(self.idle, self.waiting.count)
    return task
  }

  /// Takes out those that were not needed since the last time, which are the longest waiting.
  mutating func trim() -> [HandlerTask] {
    let unneeded = Array(self.waiting.prefix(self.idle))
    self.waiting.removeFirst(unneeded.count)
    self.idle = self.waiting.count
    return unneeded
  }

  mutating func removeAll() -> [HandlerTask] {
    defer { self.waiting = [] }
    return self.waiting
  }
}
