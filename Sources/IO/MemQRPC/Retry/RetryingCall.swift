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

  private init(
    _ method: RPCMethod, _ options: RPCCallOptions, _ policy: RPCRetryPolicy, _ request: RPCMessage,
    on channel: any RPCChannel, driver: LoopDriver, budget: RetryBudget
  ) {
    self.channel = channel
    self.method = method
    self.options = options
    self.options.retry = nil
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
    on channel: any RPCChannel, driver: LoopDriver, budget: RetryBudget,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    let core = RetryingCall(
      method, options, policy, request, on: channel, driver: driver, budget: budget)
    let call = RPCClientCall(core: core)
    core.handler = make(call)
    core.onLoop { core.begin() }
    return call
  }

  // MARK: Attempts

  private func begin() {
    guard !self.isOver else { return }
    if let deadline = self.plan.deadline {
      self.options.timeout = .nanoseconds((deadline - .now()).nanoseconds)
    }
    self.options.previousAttempts = self.plan.attempts
    self.plan.begin()
    self.attempt = self.channel.start(self.method, self.options, request: self.request) { call in
      Attempt(of: self, call)
    }
  }

  fileprivate func received(_ message: RPCMessage) {
    guard !self.isOver else { return }
    self.handler?.received(message)
  }

  fileprivate func ended(_ status: RPCStatus, _ trailers: RPCMetadata, hasResponse: Bool) {
    guard !self.isOver else { return }
    if status.isOK {
      self.budget.succeeded()
    } else {
      let allows = self.plan.drains(status) ? self.budget.failed() : true
      let decision = self.plan.failed(
        status, hasResponse: hasResponse, budgetAllows: allows, now: .now(),
        random: .random(in: 0...1))
      if case .again(let at) = decision {
        self.attempt = nil
        self.waiting = self.driver.loop.scheduleTask(deadline: at) { self.begin() }
        return
      }
    }
    self.finish(status, trailers)
  }

  private func finish(_ status: RPCStatus, _ trailers: RPCMetadata) {
    self.isOver = true
    self.attempt = nil
    self.waiting = nil
    self.handler.take()?.ended(status, trailers: trailers)
  }

  // MARK: The caller's side

  override func enqueue(_ message: RPCMessage) -> Bool { false }
  override func halfClose() {}
  override func callWritableSoon() {}
  override var queuedBytes: Int { self.attempt?.core.queuedBytes ?? 0 }

  override func consume(_ bytes: Int) {
    self.attempt?.consumed(bytes)
  }

  /// The handler hears of it in a later turn: this may be called from inside it.
  override func abort(_ status: RPCStatus) {
    guard !self.isOver else { return }
    self.isOver = true
    self.waiting?.cancel()
    self.waiting = nil
    self.attempt.take()?.cancel()
    self.driver.loop.execute { self.finish(status, RPCMetadata()) }
  }
}

/// The handler of one attempt.
private final class Attempt: RPCClientHandler, @unchecked Sendable {
  private let whole: RetryingCall
  private let call: RPCClientCall
  /// A message came: then there was a response whatever else is known.
  private var hasMessage = false

  init(of whole: RetryingCall, _ call: RPCClientCall) {
    self.whole = whole
    self.call = call
  }

  func received(_ message: RPCMessage) {
    self.hasMessage = true
    let whole = self.whole
    whole.onLoop { whole.received(message) }
  }

  func writable() {}

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    let whole = self.whole
    let hasResponse = self.hasMessage || self.call.core.hasResponse
    whole.onLoop { whole.ended(status, trailers, hasResponse: hasResponse) }
  }
}
