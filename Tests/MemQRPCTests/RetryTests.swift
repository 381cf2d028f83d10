// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import NIOCore
import Synchronization
import Testing

@testable import MemQRPC

@Suite struct RetryPlanTests {
  private static let now = NIODeadline.uptimeNanoseconds(1_000_000_000_000)

  private func policy(_ change: (inout RPCRetryPolicy) -> Void = { _ in }) -> RPCRetryPolicy {
    var policy = RPCRetryPolicy()
    policy.attemptsMax = 5
    policy.backoffInitial = .milliseconds(100)
    policy.backoffMax = .milliseconds(300)
    change(&policy)
    return policy
  }

  /// One failed attempt; the wait in milliseconds, or nil.
  private func fail(
    _ plan: inout RetryPlan, _ status: RPCStatus = RPCStatus(.unavailable),
    hasResponse: Bool = false, budgetAllows: Bool = true, random: Double = 0.5
  ) -> Int64? {
    plan.begin()
    let decision = plan.failed(
      status, hasResponse: hasResponse, budgetAllows: budgetAllows, now: Self.now, random: random)
    guard case .again(let at) = decision else { return nil }
    return (at - Self.now).nanoseconds / 1_000_000
  }

  @Test func `waits grow up to the longest, and attempts end`() {
    var plan = RetryPlan(self.policy(), deadline: nil)
    #expect(self.fail(&plan) == 100)
    #expect(self.fail(&plan) == 200)
    #expect(self.fail(&plan) == 300)
    #expect(self.fail(&plan) == 300)
    #expect(self.fail(&plan) == nil)
    var greedy = RetryPlan(self.policy { $0.attemptsMax = 1000 }, deadline: nil)
    for _ in 1..<RetryPlan.attemptsMax { #expect(self.fail(&greedy) != nil) }
    #expect(self.fail(&greedy) == nil)
  }

  @Test func `waits differ by the jitter`() {
    var low = RetryPlan(self.policy(), deadline: nil)
    var high = RetryPlan(self.policy(), deadline: nil)
    #expect(self.fail(&low, random: 0) == 80)
    #expect(self.fail(&high, random: 1) == 120)
  }

  @Test func `no attempt that cannot start before the deadline`() {
    let after = { (milliseconds: Int64) in Self.now + .milliseconds(milliseconds) }
    var exact = RetryPlan(self.policy(), deadline: after(100))
    #expect(self.fail(&exact) == nil)
    var later = RetryPlan(self.policy(), deadline: after(101))
    #expect(self.fail(&later) == 100)
    #expect(self.fail(&later) == nil)
  }

  @Test func `what may not run twice, or has begun to answer, does not`() {
    func attempt(_ status: RPCStatus, hasResponse: Bool = false, budget: Bool = true) -> Int64? {
      var plan = RetryPlan(self.policy { $0.retriesDetailed = false }, deadline: nil)
      return self.fail(&plan, status, hasResponse: hasResponse, budgetAllows: budget)
    }
    #expect(attempt(RPCStatus(.unavailable)) == 100)
    #expect(attempt(RPCStatus(.internal)) == nil)
    #expect(attempt(RPCStatus(.unavailable, details: [1])) == nil)
    #expect(attempt(RPCStatus(.unavailable), hasResponse: true) == nil)
    #expect(attempt(RPCStatus(.unavailable), budget: false) == nil)
  }

  @Test func `the server may set the pace, or forbid more`() {
    var asked = RPCStatus(.unavailable)
    asked.pushback = .after(milliseconds: 7)
    var plan = RetryPlan(self.policy(), deadline: nil)
    #expect(self.fail(&plan) == 100)
    #expect(self.fail(&plan, asked) == 7)
    #expect(self.fail(&plan) == 100)
    asked.pushback = .after(milliseconds: RetryPlan.pushbackMillisecondsMax + 1)
    var patient = RetryPlan(self.policy(), deadline: nil)
    #expect(self.fail(&patient, asked) == nil)
    asked.pushback = .never
    #expect(self.fail(&plan, asked) == nil)
    #expect(plan.drains(asked))
  }

  @Test func `failures use the budget up, and successes earn it back`() {
    let budget = RetryBudget()
    for _ in 0..<4 { #expect(budget.failed()) }
    #expect(!budget.failed())
    for _ in 0..<20 { _ = budget.failed() }
    for _ in 0..<60 { budget.succeeded() }
    #expect(!budget.failed())
    for _ in 0..<20 { budget.succeeded() }
    #expect(budget.failed())
  }

  @Test(arguments: [
    ("0", RPCPushback.after(milliseconds: 0)), ("250", .after(milliseconds: 250)),
    ("-1", .never), ("soon", .never), ("99999999999", .never), ("", .never),
  ])
  func `pushback is a number that is not negative, or no`(text: String, expected: RPCPushback) {
    #expect(Array(text.utf8).withUnsafeBufferPointer { RPCPushback($0) } == expected)
  }
}

/// Calls that are tried again.
@Suite(.timeLimit(.minutes(5))) struct RetryTests {
  /// What a handler saw of the attempts of a call.
  private final class Attempts: Sendable {
    private let seen = Mutex<[Int]>([])

    /// The number of this attempt, from 1.
    func add(_ context: RPCContext) -> Int {
      self.seen.withLock { seen in
        seen.append(context.previousAttempts)
        return seen.count
      }
    }

    var previous: [Int] { self.seen.withLock { $0 } }
  }

  private func options(_ change: (inout RPCRetryPolicy) -> Void = { _ in }) -> RPCCallOptions {
    var policy = RPCRetryPolicy()
    policy.attemptsMax = 4
    policy.backoffInitial = .milliseconds(1)
    change(&policy)
    var options = RPCCallOptions(timeout: .seconds(60))
    options.retry = policy
    return options
  }

  private func failing(_ times: Int, _ attempts: Attempts, _ status: RPCStatus) -> RPCRouter {
    var router = RPCRouter()
    router.unary(.echo) { request, context in
      if attempts.add(context) <= times { throw status }
      return request
    }
    return router
  }

  @Test(arguments: Transport.allCases)
  func `a failed attempt is followed by another, which says so`(
    transport: Transport
  ) async throws {
    let attempts = Attempts()
    let router = self.failing(2, attempts, RPCStatus(.unavailable, "not yet"))
    try await withBed(transport, router) { bed in
      let answer = try await bed.channel.unary(.echo, RPCMessage("hello"), self.options())
      #expect(answer.text == "hello")
      #expect(attempts.previous == [0, 1, 2])
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a server's pushback reaches the caller and ends the attempts`(
    transport: Transport
  ) async throws {
    let attempts = Attempts()
    var no = RPCStatus(.unavailable, "go away")
    no.pushback = .never
    try await withBed(transport, self.failing(.max, attempts, no)) { bed in
      let end = await status {
        _ = try await bed.channel.unary(.echo, RPCMessage(), self.options())
      }
      #expect(end.code == .unavailable && end.pushback == .never)
      #expect(attempts.previous == [0])
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a server that goes on failing sees few retries`(transport: Transport) async throws {
    let attempts = Attempts()
    let router = self.failing(.max, attempts, RPCStatus(.unavailable))
    try await withBed(transport, router) { bed in
      for _ in 0..<50 {
        let end = await status {
          _ = try await bed.channel.unary(.echo, RPCMessage(), self.options())
        }
        #expect(end.code == .unavailable)
      }
      // All the attempts of the first call: then 5 of 10 tokens are left, and no more are tried.
      #expect(attempts.previous.count == 50 + 3)
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a stream is tried again until its first message`(transport: Transport) async throws {
    let attempts = Attempts()
    var router = RPCRouter()
    router.serverStreaming(.count) { _, context, writer in
      if attempts.add(context) == 1 { throw RPCStatus(.unavailable) }
      try await writer.send(RPCMessage("one"))
      throw RPCStatus(.unavailable, "in the middle")
    }
    try await withBed(transport, router) { bed in
      let reader = try await bed.channel.serverStreaming(.count, RPCMessage(), self.options())
      #expect(try await reader.next()?.text == "one")
      let end = await status { _ = try await reader.next() }
      #expect(end.message == "in the middle")
      #expect(attempts.previous == [0, 1])
    }
  }

  @Test func `headers of a response end the attempts, too`() async throws {
    let connections = Mutex(0)
    let server = try await RawServer.start { _ in
      connections.withLock { $0 += 1 }
      let head = RawPeer.headers([(":status", "200"), ("content-type", "application/grpc")])
      return RawServer.settings + RawPeer.frame(1, flags: 4, stream: 1, head)
        + RawServer.trailers([("grpc-status", "14"), ("grpc-message", "later")])
        + RawServer.goAway
    }
    let channel = RPCNetworkChannel(
      target: server.address, group: TestBed.group, logger: TestBed.quietLogger())
    let end = await status { _ = try await channel.unary(.echo, RPCMessage(), self.options()) }
    #expect(end.message == "later")
    #expect(connections.withLock { $0 } == 1)
    await channel.close(deadline: .zero)
    await server.stop()
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a wait beyond the deadline is not begun`(transport: Transport) async throws {
    let attempts = Attempts()
    let router = self.failing(.max, attempts, RPCStatus(.unavailable, "the first answer"))
    try await withBed(transport, router) { bed in
      var options = self.options { $0.backoffInitial = .seconds(1000) }
      options.timeout = .seconds(500)
      let end = await status { _ = try await bed.channel.unary(.echo, RPCMessage(), options) }
      #expect(end.message == "the first answer")
      #expect(attempts.previous == [0])
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a call that waits for its next attempt can be cancelled`(
    transport: Transport
  ) async throws {
    let failed = Signal<Void>()
    var router = RPCRouter()
    router.unary(.echo) { _, _ in
      failed.fire(())
      throw RPCStatus(.unavailable)
    }
    try await withBed(transport, router) { bed in
      var options = self.options { $0.backoffInitial = .seconds(1000) }
      options.timeout = nil
      let call = Task { [options] in
        try await bed.channel.unary(.echo, RPCMessage(), options)
      }
      await failed.value
      call.cancel()
      #expect(await status { _ = try await call.value }.code == .cancelled)
    }
  }

  @Test func `waiting for a connection is no attempt`() async throws {
    let attempts = Attempts()
    let router = self.failing(1, attempts, RPCStatus(.unavailable))
    let first = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: TestBed.group, logger: TestBed.quietLogger())
    let address = first.localAddress
    await first.shutdown(deadline: .zero)
    let channel = RPCNetworkChannel(
      target: address, group: TestBed.group, logger: TestBed.quietLogger())
    #expect(await status { _ = try await channel.unary(.echo, RPCMessage()) }.code == .unavailable)
    var options = self.options { $0.attemptsMax = 2 }
    options.waitForReady = true
    let call = Task { [options] in
      try await channel.unary(.echo, RPCMessage("patience"), options)
    }
    let second = try await RPCServer.start(
      router: router, on: address, group: TestBed.group, logger: TestBed.quietLogger())
    #expect(try await call.value.text == "patience")
    #expect(attempts.previous == [0, 1])
    await channel.close(deadline: .seconds(1))
    await second.shutdown(deadline: .seconds(1))
  }

  // MARK: Calls the server never saw

  @Test func `a call lives through several servers that send it away unseen`() async throws {
    let server = try await RawServer.start { number in
      number <= 4
        ? RawServer.settings + RawServer.goAway
        : RawServer.settings + RawServer.response([42])
    }
    let channel = RPCNetworkChannel(
      target: server.address, group: TestBed.group, logger: TestBed.quietLogger())
    // Without a policy, and for any method: nothing was processed.
    let answer = try await channel.unary(
      .echo, RPCMessage("hello"), RPCCallOptions(timeout: .seconds(60)))
    #expect(Array(buffer: answer.contiguous()) == [42])
    await channel.close(deadline: .zero)
    await server.stop()
  }

  @Test func `a call that nobody takes ends after some servers`() async throws {
    let connections = Mutex(0)
    let server = try await RawServer.start { _ in
      connections.withLock { $0 += 1 }
      return RawServer.settings + RawServer.goAway
    }
    let channel = RPCNetworkChannel(
      target: server.address, group: TestBed.group, logger: TestBed.quietLogger())
    let end = await status {
      _ = try await channel.unary(.echo, RPCMessage(), RPCCallOptions(timeout: .seconds(60)))
    }
    #expect(end.code == .unavailable)
    #expect(connections.withLock { $0 } == 1 + ClientStart.movesMax)
    await channel.close(deadline: .zero)
    await server.stop()
  }

  // MARK: Typed calls

  @Test(arguments: [
    (FileMethods.stat.rpc, RPCMethod.Safety.noSideEffects),
    (IngestMethods.heartbeatGroup.rpc, .idempotent),
    (IngestMethods.joinGroup.rpc, .unknown), (IngestMethods.produce.rpc, .unknown),
  ])
  func `the method table knows what may run twice`(method: RPCMethod, safety: RPCMethod.Safety) {
    #expect(method.safety == safety)
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a typed call is tried again when it failed on the way, and only then`(
    transport: Transport
  ) async throws {
    let attempts = Attempts()
    var router = RPCRouter()
    router.handle(IngestMethods.listGroups) { _, context in
      switch attempts.add(context) {
      case 1: throw RPCStatus(.unavailable, "on the way")
      case 2: return Memq_V1_ListGroupsResponse()
      default: throw MemQError(.notLeader, "an answer")
      }
    }
    router.handle(IngestMethods.deleteGroup) { _, _ in throw RPCStatus(.unavailable, "once") }
    try await withBed(transport, router) { bed in
      _ = try await bed.channel.call(
        IngestMethods.listGroups, Memq_V1_ListGroupsRequest(), timeout: .seconds(60))
      #expect(attempts.previous == [0, 1])
      await #expect(throws: MemQError.self) {
        try await bed.channel.call(
          IngestMethods.listGroups, Memq_V1_ListGroupsRequest(), timeout: .seconds(60))
      }
      #expect(attempts.previous == [0, 1, 0])
      await #expect(throws: MemQError.self) {
        try await bed.channel.call(
          IngestMethods.deleteGroup, Memq_V1_DeleteGroupRequest(), timeout: .seconds(60))
      }
    }
  }
}
