// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import NIOCore
import Synchronization
import Testing

@testable import MemQRPC

/// Interceptors, and what calls hand on to the calls made for them.
@Suite(.timeLimit(.minutes(5))) struct InterceptorTests {
  private final class Log<Entry: Sendable>: Sendable {
    private let state = Mutex<[Entry]>([])
    func add(_ entry: Entry) { self.state.withLock { $0.append(entry) } }
    var entries: [Entry] { self.state.withLock { $0 } }
  }

  private typealias Report = (method: String, report: RPCCallReport)

  private static func reporting(_ log: Log<Report>) -> RPCServerInterceptor {
    RPCServerInterceptor { method in
      RPCServerInterceptor.Hooks(after: { _, report in log.add((method.name, report)) })
    }
  }

  private func waitFor(_ count: Int, _ log: Log<Report>) async {
    while log.entries.count < count { await Task.yield() }
  }

  // MARK: Server

  @Test(arguments: [Transport.inProcess, .network])
  func `interceptors are asked once for each method and called in order`(
    transport: Transport
  ) async throws {
    let order = Log<String>()
    let prepared = Log<String>()
    func named(_ name: String) -> RPCServerInterceptor {
      RPCServerInterceptor { method in
        prepared.add("\(name) \(method.name)")
        guard method.name != "Fail" else { return nil }
        return RPCServerInterceptor.Hooks(
          before: { _ in order.add("before \(name)") },
          after: { _, _ in order.add("after \(name)") })
      }
    }
    var inner = RPCRouter()
    inner.unary(.echo) { request, _ in
      order.add("handler")
      return request
    }
    inner.unary(.fail) { _, _ in throw RPCStatus(.aborted) }
    inner.intercept(named("inner"))
    var router = RPCRouter()
    router.intercept(named("first"))
    router.merge(inner)
    router.intercept(named("second"))
    try await withBed(transport, router) { (bed: TestBed) async throws -> Void in
      for _ in 0..<2 { _ = try await bed.channel.unary(.echo, RPCMessage()) }
      #expect(
        await status { _ = try await bed.channel.unary(.fail, RPCMessage()) }.code == .aborted)
    }
    let once = [
      "before first", "before second", "before inner", "handler", "after inner", "after second",
      "after first",
    ]
    #expect(order.entries == once + once)
    #expect(prepared.entries.count == 6)
  }

  private enum Tenant: RPCContextKey { typealias Value = String }

  @Test(arguments: [Transport.inProcess, .network])
  func `an interceptor adds to the context, or refuses`(transport: Transport) async throws {
    let log = Log<Report>()
    var router = RPCRouter()
    router.unary(.echo) { _, context in RPCMessage(context[Tenant.self] ?? "nobody") }
    router.intercept(Self.reporting(log))
    router.intercept(
      RPCServerInterceptor { _ in
        RPCServerInterceptor.Hooks(before: { context in
          guard let tenant = context.metadata[first: "tenant"] else {
            var trailers = RPCMetadata()
            trailers.add("hint", "say who")
            throw RPCStatus(.permissionDenied, "no tenant", trailers: trailers)
          }
          context[Tenant.self] = tenant
        })
      })
    try await withBed(transport, router) { (bed: TestBed) async throws -> Void in
      let options = RPCCallOptions(metadata: RPCMetadata([("tenant", "blue")]))
      #expect(try await bed.channel.unary(.echo, RPCMessage(), options).text == "blue")
      let refused = await status { _ = try await bed.channel.unary(.echo, RPCMessage()) }
      #expect(refused.code == .permissionDenied && refused.message == "no tenant")
      #expect(refused.trailers[first: "hint"] == "say who")
    }
    await self.waitFor(2, log)
    #expect(log.entries.map(\.report.code) == [.ok, .permissionDenied])
    #expect(log.entries.map(\.report.end) == [.answered, .refused])
  }

  @Test(arguments: Transport.allCases)
  func `a bearer token says who calls, and health needs none`(transport: Transport) async throws {
    var router = RPCRouter()
    router.unary(.echo) { _, context in RPCMessage(context.principal?.name ?? "nobody") }
    let health = HealthService()
    health.register(on: &router)
    health.set("", .serving)
    let ann = RPCPrincipal(name: "ann")
    router.intercept(.bearer { $0 == "secret" ? ann : nil })
    try await withBed(transport, router) { (bed: TestBed) async throws -> Void in
      func ask(_ authorization: String?) async throws -> String {
        var options = RPCCallOptions(timeout: .seconds(60))
        if let authorization { options.metadata.add("authorization", authorization) }
        return try await bed.channel.unary(.echo, RPCMessage(), options).text
      }
      #expect(try await ask("Bearer secret") == "ann")
      #expect(try await ask("bearer secret") == "ann")
      for wrong in [nil, "", "Bearer ", "Bearer secre", "Basic secret", "secret"] {
        let refused = await status { _ = try await ask(wrong) }
        #expect(refused.code == .unauthenticated, "\(refused)")
      }
      #expect(try await bed.channel.health(timeout: .seconds(60)) == .serving)
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a report tells what moved, and what ended the call`(transport: Transport) async throws {
    let log = Log<Report>()
    let hanging = Log<Int>()
    var router = RPCRouter.standard()
    router.unary(.hang) { _, _ in
      hanging.add(0)
      try await Task.sleep(for: .seconds(1000))
      return RPCMessage()
    }
    router.intercept(Self.reporting(log))
    var configuration = RPCServer.Configuration()
    configuration.maxMessageBytes = 10_000
    try await withBed(transport, router, server: configuration) {
      (bed: TestBed) async throws -> Void in
      let stream = try await bed.channel.bidirectional(.chat)
      for count in [0, 10, 5000] {
        try await stream.send(RPCMessage(bytes: [UInt8](repeating: 1, count: count)))
      }
      try await stream.halfClose()
      for try await _ in stream.responses {}
      await self.waitFor(1, log)
      let whole = RPCCallCounts(
        messagesReceived: 3, messagesSent: 3, bytesReceived: 5010, bytesSent: 5010)
      #expect(log.entries[0].report.counts == whole)
      #expect(log.entries[0].report.end == .answered && log.entries[0].report.code == .ok)

      let late = RPCCallOptions(timeout: .seconds(1))
      _ = await status { _ = try await bed.channel.unary(.hang, RPCMessage(), late) }
      #expect(hanging.entries.count == 1)
      await self.waitFor(2, log)
      #expect([.deadlinePassed, .resetByPeer].contains(log.entries[1].report.end))

      let cancelled = Task { try await bed.channel.unary(.hang, RPCMessage()) }
      while hanging.entries.count < 2 { await Task.yield() }
      cancelled.cancel()
      _ = await status { _ = try await cancelled.value }
      await self.waitFor(3, log)
      #expect(log.entries[2].report.end == .resetByPeer && log.entries[2].report.code == .cancelled)

      _ = await status { _ = try await bed.channel.unary(.echo, .pattern(20_000)) }
      await self.waitFor(4, log)
      #expect(log.entries[3].report.end == .limitBroken)
      #expect(log.entries[3].report.code == .resourceExhausted)
    }
  }

  // MARK: Client

  @Test(arguments: [Transport.inProcess, .network])
  func `a caller's interceptors see every call, and its options`(
    transport: Transport
  ) async throws {
    let ends = Log<Report>()
    var router = RPCRouter.standard()
    router.unary(.hang) { _, context in RPCMessage(context.metadata[first: "who"] ?? "nobody") }
    try await withBed(transport, router) { (bed: TestBed) async throws -> Void in
      let channel = RPCInterceptedChannel(
        bed.channel,
        [
          RPCClientInterceptor(
            before: { _, options in options.metadata.add("who", "me") },
            after: { method, report in ends.add((method.name, report)) })
        ])
      #expect(try await channel.unary(.hang, RPCMessage("1234")).text == "me")
      _ = await status { _ = try await channel.unary(.fail, RPCMessage()) }
      #expect(ends.entries.map(\.method) == ["Hang", "Fail"])
      #expect(ends.entries.map(\.report.code) == [.ok, .failedPrecondition])
      #expect(
        ends.entries[0].report.counts
          == RPCCallCounts(messagesReceived: 1, messagesSent: 1, bytesReceived: 2, bytesSent: 4))
    }
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: TestBed.group, logger: TestBed.quietLogger())
    let address = server.localAddress
    await server.shutdown(deadline: .zero)
    let nobody = RPCInterceptedChannel(
      RPCNetworkChannel(target: address, group: TestBed.group, logger: TestBed.quietLogger()),
      [RPCClientInterceptor(after: { method, report in ends.add((method.name, report)) })])
    _ = await status { _ = try await nobody.unary(.echo, RPCMessage()) }
    #expect(ends.entries.last?.report.end == .connectionLost)
    await nobody.close(deadline: .zero)
  }

  // MARK: Handed on

  /// A handler that asks another server what deadline and trace it sees.
  private func asking(
    _ back: any RPCChannel, _ change: @escaping @Sendable (inout RPCCallOptions) -> Void = { _ in }
  ) -> RPCRouter {
    var router = RPCRouter()
    router.unary(.echo) { _, _ in
      var options = RPCCallOptions(timeout: .seconds(500))
      change(&options)
      return try await back.unary(.echo, RPCMessage(), options)
    }
    router.unary(.hang) { _, _ in
      let task = RPCScope.beyondCall {
        Task { try await back.unary(.echo, RPCMessage(), RPCCallOptions(timeout: .seconds(500))) }
      }
      return try await task.value
    }
    router.bidirectional(.chat) { reader, _, writer in
      while let request = try await reader.next() {
        let options = RPCCallOptions(timeout: .seconds(500))
        try await writer.send(try await back.unary(.echo, request, options))
      }
    }
    return router
  }

  /// "seconds left, trace".
  private var telling: RPCRouter {
    var router = RPCRouter()
    router.unary(.echo) { _, context in
      let left = context.remaining.map { Int($0.components.seconds) } ?? -1
      let trace = context.metadata[first: "traceparent"] ?? "none"
      let state = context.metadata[first: "tracestate"] ?? "none"
      return RPCMessage("\(left) \(trace) \(state)")
    }
    return router
  }

  private static let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

  private func options(_ timeout: Duration) -> RPCCallOptions {
    var options = RPCCallOptions(timeout: timeout)
    options.metadata.add("traceparent", Self.traceparent)
    options.metadata.add("tracestate", "vendor=1")
    return options
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a handler's calls take over its deadline and its trace`(
    transport: Transport
  ) async throws {
    try await withBed(transport, self.telling) { (back: TestBed) async throws -> Void in
      try await withBed(transport, self.asking(back.channel)) {
        (front: TestBed) async throws -> Void in
        func parts(_ method: RPCMethod, _ timeout: Duration) async throws -> [String] {
          try await front.channel.unary(method, RPCMessage(), self.options(timeout)).text
            .split(separator: " ").map(String.init)
        }
        let inherited = try await parts(.echo, .seconds(100))
        #expect((1...100).contains(Int(inherited[0])!))
        let trace = try #require(RPCTrace(inherited[1]))
        #expect(trace.traceID == "0af7651916cd43dd8448eb211c80319c" && trace.flags == 1)
        #expect(trace.span != RPCTrace(Self.traceparent)!.span)
        #expect(inherited[2] == "vendor=1")
        // Its own timeout counts when that is sooner.
        #expect(Int(try await parts(.echo, .seconds(5000))[0])! <= 500)
        // Work that goes on without its caller takes over neither.
        let beyond = try await parts(.hang, .seconds(100))
        #expect(Int(beyond[0])! > 100 && beyond[1] == "none")
        let stream = try await front.channel.bidirectional(.chat, self.options(.seconds(100)))
        try await stream.send(RPCMessage())
        let streamed = try #require(try await stream.responses.next()).text.split(separator: " ")
        #expect((1...100).contains(Int(streamed[0])!) && streamed[1].contains(trace.traceID))
      }
      let own: @Sendable (inout RPCCallOptions) -> Void = { $0.inherits = false }
      try await withBed(transport, self.asking(back.channel, own)) {
        (front: TestBed) async throws -> Void in
        let answer = try await front.channel.unary(.echo, RPCMessage(), self.options(.seconds(100)))
        let parts = answer.text.split(separator: " ")
        #expect(Int(parts[0])! > 100 && parts[1] == "none")
      }
    }
  }

  @Test func `calls handled one after the other share neither cancellation nor deadline`()
    async throws
  {
    let mayEnd = Signal<Void>()
    let seen = Log<String>()
    let started = Log<Int>()
    var router = RPCRouter()
    router.unary(.echo) { request, _ in
      if request.text == "beyond its end" {
        // Goes on when its call is over and others are handled.
        Task {
          await mayEnd.value
          seen.add("\(RPCScope.context?.remaining.map { $0 > .seconds(500) } == true)")
        }
      }
      return RPCMessage("\(Task.isCancelled) \(RPCScope.context?.remaining == nil)")
    }
    router.unary(.hang) { request, _ in
      started.add(1)
      try await Task.sleep(for: .seconds(600))
      return request
    }
    try await withBed(.network, router) { (bed: TestBed) async throws -> Void in
      _ = try await bed.channel.unary(
        .echo, RPCMessage("beyond its end"), RPCCallOptions(timeout: .seconds(1000)))
      for round in 1...20 {
        let calls = (0..<8).map { _ in
          Task { try await bed.channel.unary(.hang, RPCMessage()) }
        }
        while started.entries.count < round * 8 { await Task.yield() }
        for call in calls { call.cancel() }
        for call in calls { _ = await call.result }
        for _ in 0..<16 {
          #expect(try await bed.channel.unary(.echo, RPCMessage("now")).text == "false true")
        }
      }
      mayEnd.fire(())
      while seen.entries.isEmpty { await Task.yield() }
      #expect(seen.entries == ["true"])
    }
  }

  @Test func `a call without a trace begins one for the calls it makes`() async throws {
    try await withBed(.network, self.telling) { (back: TestBed) async throws -> Void in
      try await withBed(.network, self.asking(back.channel)) {
        (front: TestBed) async throws -> Void in
        let stream = try await front.channel.bidirectional(.chat)
        var traces: [RPCTrace] = []
        for _ in 0..<2 {
          try await stream.send(RPCMessage())
          let text = try #require(try await stream.responses.next()).text
          traces.append(try #require(RPCTrace(String(text.split(separator: " ")[1]))))
        }
        #expect(traces[0].traceID == traces[1].traceID && traces[0].span != traces[1].span)
      }
    }
  }

  @Test func `the log of a failing handler names the trace`() async throws {
    struct Broken: Error {}
    let lines = Log<String>()
    var logger = Logger(label: "test") { _ in Lines(lines.add) }
    logger.logLevel = .trace
    var router = RPCRouter()
    router.unary(.echo) { _, _ in throw Broken() }
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: TestBed.group, logger: logger)
    let channel = RPCNetworkChannel(
      target: server.localAddress, group: TestBed.group, logger: TestBed.quietLogger())
    let end = await status {
      _ = try await channel.unary(.echo, RPCMessage(), self.options(.seconds(60)))
    }
    #expect(end.code == .unknown)
    let line = lines.entries.first { $0.contains("Handler failed") }
    #expect(line?.contains("0af7651916cd43dd8448eb211c80319c") == true)
    await channel.close(deadline: .zero)
    await server.shutdown(deadline: .zero)
  }

  @Test(arguments: [
    ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
    ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true),
    ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false),
    ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
    ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false),
    ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
    ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
    ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", false), ("", false),
  ])
  func `traceparent is what the W3C says`(text: String, isValid: Bool) {
    let trace = RPCTrace(text)
    #expect((trace != nil) == isValid)
    if let trace, text.hasPrefix("00") { #expect(trace.traceparent == text) }
  }
}

private struct Lines: LogHandler {
  let add: @Sendable (String) -> Void
  var metadata = Logger.Metadata()
  var logLevel = Logger.Level.trace

  init(_ add: @escaping @Sendable (String) -> Void) { self.add = add }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { self.metadata[key] }
    set { self.metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    self.add("\(event.message) \(event.metadata ?? [:])")
  }
}
