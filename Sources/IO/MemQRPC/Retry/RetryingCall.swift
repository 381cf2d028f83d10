// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// A client call of one request that may take several attempts, each a call of its own. Its caller sees one call.
///
/// Everything but `start` runs on `driver.loop`; an attempt may run on another loop, as each may go to another server.
final class RetryingCall: CallCore, @unchecked Sendable {
  private let channel: any RPCChannel
  private let method: RPCMethod
  private var options: RPCCallOptions
  private let request: RPCMessage
  private let budget: RetryBudget
  private var plan: RetryPlan
  private var handler: (any RPCClientHandler)?
  private var attempt: RPCClientCall?
  private var waiting: Scheduled<Void>?
  private var isOver = false
  /// Over several servers: how many may still be asked because one could not be reached.
  private var moves: Int
  /// Over several servers: where the call waits as long as none can be reached; nil: it does not.
  private let waiters: ReadyWaiters?
  private var hasWaited = false

  private init(
    _ method: RPCMethod, _ options: RPCCallOptions, _ policy: RPCRetryPolicy, _ request: RPCMessage,
    on channel: any RPCChannel, driver: LoopDriver, budget: RetryBudget, moves: Int,
    waiters: ReadyWaiters?
  ) {
    self.channel = channel
    self.method = method
    self.options = options
    self.options.retry = nil
    self.options.isAttempt = true
    self.moves = moves
    self.waiters = options.waitForReady ? waiters : nil
    // One member must not keep a call that others could take.
    if self.waiters != nil { self.options.waitForReady = false }
    self.request = request
    self.budget = budget
    self.plan = RetryPlan(policy, deadline: options.timeout.map { .after($0) })
    super.init(driver: driver)
  }

  /// Only a request that is known, and not too much to keep, can be sent again.
  static func covers(_ request: RPCMessage?, _ policy: RPCRetryPolicy) -> Bool {
    guard let request, policy.attemptsMax > 1 else { return false }
    return request.byteCount <= RPCLimits.retriedRequestBytesMax
  }

  static func start(
    _ method: RPCMethod, _ options: RPCCallOptions, _ policy: RPCRetryPolicy, _ request: RPCMessage,
    on channel: any RPCChannel, driver: LoopDriver, budget: RetryBudget, moves: Int = 0,
    waiters: ReadyWaiters? = nil,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let core = RetryingCall(
      method, options, policy, request, on: channel, driver: driver, budget: budget, moves: moves,
      waiters: waiters)
    let call = RPCClientCall(core: core)
    core.handler = make(call)
    core.onLoop { core.begin(counts: true) }
    return call
  }

  // MARK: Attempts

  /// - Parameter counts: false: nothing was sent of the one before.
  private func begin(counts: Bool) {
    guard !self.isOver else { return }
    if let deadline = self.plan.deadline {
      // It may have waited for a server until now. The first is inside `start`, where no handler may be called, and ends by itself.
      guard deadline > .now() || self.plan.attempts == 0 else {
        return self.finish(.deadlineExceeded, RPCMetadata())
      }
      self.options.timeout = .nanoseconds((deadline - .now()).nanoseconds)
    }
    if counts { self.plan.begin() }
    self.options.previousAttempts = self.plan.attempts - 1
    self.attempt = self.channel.start(self.method, self.options, request: self.request) { call in
      Attempt(of: self, call)
    }
  }

  fileprivate func receivedHeaders(_ metadata: RPCMetadata) {
    guard !self.isOver else { return }
    self.handler?.receivedHeaders(metadata)
  }

  fileprivate func received(_ message: RPCMessage) {
    guard !self.isOver else { return }
    self.handler?.received(message)
  }

  /// What an attempt moved, and how it was over: of all of them, and the last.
  fileprivate func add(_ counts: RPCCallCounts, _ end: RPCCallEnd) {
    guard !self.isOver else { return }
    self.counts.add(counts)
    self.end = end
  }

  fileprivate func ended(_ status: RPCStatus, _ trailers: RPCMetadata, hasResponse: Bool) {
    guard !self.isOver else { return }
    if status.isUnsent, !status.isOK, self.moveOn() { return }
    if status.isOK {
      self.budget.succeeded()
    } else {
      let allows = self.plan.drains(status) ? self.budget.failed() : true
      let decision = self.plan.failed(
        status, hasResponse: hasResponse, budgetAllows: allows, now: .now(),
        random: .random(in: 0...1))
      if case .again(let at) = decision {
        self.attempt = nil
        self.waiting = self.driver.loop.scheduleTask(deadline: at) { self.begin(counts: true) }
        return
      }
    }
    self.finish(status, trailers)
  }

  /// False: there is nobody left to ask.
  private func moveOn() -> Bool {
    if self.moves > 0 {
      self.moves -= 1
      self.attempt = nil
      // In a later turn: a channel may say no at once.
      self.driver.loop.execute { self.begin(counts: false) }
      return true
    }
    guard let waiters = self.waiters else { return false }
    self.attempt = nil
    guard waiters.add(self, isNew: !self.hasWaited) else {
      self.finish(
        RPCStatus(.resourceExhausted, "too many calls wait for a server already"), RPCMetadata())
      return true
    }
    self.hasWaited = true
    if let deadline = self.plan.deadline {
      self.waiting = self.driver.loop.scheduleTask(deadline: deadline) {
        guard !self.isOver else { return }
        waiters.remove(self)
        self.finish(.deadlineExceeded, RPCMetadata())
      }
    }
    return true
  }

  /// It may be worth trying again. From any thread.
  func wake() {
    self.driver.loop.execute {
      self.waiting?.cancel()
      self.waiting = nil
      self.begin(counts: false)
    }
  }

  private func finish(_ status: RPCStatus, _ trailers: RPCMetadata) {
    self.isOver = true
    self.attempt = nil
    self.waiting = nil
    if self.hasWaited { self.waiters?.left() }
    self.handler.take()?.ended(status, trailers: trailers)
  }

  // MARK: The caller's side

  override func enqueue(_ message: RPCMessage) -> Bool { false }
  override func halfClose() {}
  override func callWritableSoon() {}
  /// The request is its attempt's affair, which may run on another loop.
  override var queuedBytes: Int { 0 }

  override func consume(_ bytes: Int) {
    self.attempt?.consumed(bytes)
  }

  /// The handler hears of it in a later turn: this may be called from inside it.
  override func abort(_ status: RPCStatus) {
    guard !self.isOver else { return }
    self.isOver = true
    self.end = RPCCallEnd(abortedWith: status)
    self.waiting?.cancel()
    self.waiting = nil
    self.waiters?.remove(self)
    self.attempt.take()?.cancel()
    self.driver.loop.execute { self.finish(status, RPCMetadata()) }
  }
}

/// The handler of one attempt.
private final class Attempt: RPCClientHandler, @unchecked Sendable {
  private let whole: RetryingCall
  private let call: RPCClientCall
  /// Something of a response came: then there is no further attempt, whatever else is known.
  private var hasAnswer = false

  init(of whole: RetryingCall, _ call: RPCClientCall) {
    self.whole = whole
    self.call = call
  }

  func received(_ message: RPCMessage) {
    self.hasAnswer = true
    let whole = self.whole
    whole.onLoop { whole.received(message) }
  }

  func receivedHeaders(_ metadata: RPCMetadata) {
    self.hasAnswer = true
    let whole = self.whole
    whole.onLoop { whole.receivedHeaders(metadata) }
  }

  func writable() {}

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    let whole = self.whole
    let (counts, end) = (self.call.core.counts, self.call.core.end)
    let hasResponse = self.hasAnswer || self.call.core.hasResponse
    whole.onLoop {
      whole.add(counts, end)
      whole.ended(status, trailers, hasResponse: hasResponse)
    }
  }
}
