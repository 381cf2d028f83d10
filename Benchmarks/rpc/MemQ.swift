// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQRPC
import MemQRuntime
import MemQTelemetry
import NIOCore
import NIOPosix

/// The same over MemQRPC: one streaming call on the callback face, or unary calls on either face.
enum MemQ {
  static let append = RPCMethod(service: "memq.bench.Bench", name: "Append", kind: .bidirectional)
  static let appendAsync = RPCMethod(
    service: "memq.bench.Bench", name: "AppendAsync", kind: .bidirectional)
  static let fetch = RPCMethod(
    service: "memq.bench.Bench", name: "Fetch", kind: .serverStreaming)
  static let ping = RPCMethod(service: "memq.bench.Bench", name: "Ping", kind: .unary)
  static let pingAsync = RPCMethod(service: "memq.bench.Bench", name: "PingAsync", kind: .unary)

  /// What callers of a guarded server show.
  static let token = "mF9rT2kVxQ7sLw3nZp8dYb5hGc4jRa6e"

  static var logger: Logger {
    var logger = Logger(label: "bench")
    logger.logLevel = .error
    return logger
  }

  static func serve(
    group: any EventLoopGroup, messageBytes: Int, tls: RPCTLS? = nil, isGuarded: Bool = false
  ) async throws -> Int {
    var router = RPCRouter()
    let payload = RPCMessage(Workload.payload(messageBytes))
    router.callback(self.append) { Appender($0) }
    router.callback(self.fetch) { Streamer($0, payload) }
    router.callback(self.ping) { Pinger($0) }
    router.unary(self.pingAsync) { request, _ in request }
    router.bidirectional(self.appendAsync) { reader, _, writer in
      for try await message in reader { try await writer.send(Self.ack(message.byteCount)) }
    }
    var configuration = RPCServer.Configuration()
    configuration.tls = tls
    if isGuarded {
      Telemetry.bootstrap(service: "bench", level: .error)
      let metrics = RPCMetrics()
      configuration.observer = metrics
      router.intercept(metrics.serverInterceptor)
      let known = RPCPrincipal(name: "bench")
      router.intercept(.bearer { $0 == self.token ? known : nil })
    }
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: group, configuration: configuration,
      logger: self.logger)
    Kept.server = server
    return server.localPort
  }

  static func run(
    _ workload: Workload, _ method: RPCMethod, port: Int, group: any EventLoopGroup,
    latencies: Latencies? = nil, tls: RPCTLS? = nil, options: RPCCallOptions = RPCCallOptions()
  ) async throws {
    var configuration = RPCNetworkChannel.Configuration()
    configuration.tls = tls
    let channel = RPCNetworkChannel(
      target: "127.0.0.1:\(port)", group: group, configuration: configuration, logger: self.logger)
    let done = channel.eventLoop.makePromise(of: Void.self)
    switch method.kind {
    case .unary:
      let pings = Pings(workload, method, channel, done, latencies, options)
      channel.eventLoop.execute { pings.fill() }
    case .serverStreaming:
      _ = channel.start(method, RPCCallOptions(), request: self.ack(workload.messages)) {
        Reader($0, workload, done)
      }
    default:
      var source: Source?
      let call = channel.start(method) { call in
        let made = Source(workload, call, done)
        source = made
        return made
      }
      call.execute { [source] in source!.fill() }
    }
    try await done.futureResult.get()
    await channel.close(deadline: .seconds(1))
  }

  /// A number as a message.
  fileprivate static func ack(_ count: Int) -> RPCMessage {
    var bytes = ByteBuffer()
    bytes.writeInteger(UInt64(count))
    return RPCMessage(bytes)
  }
}

/// Keeps the server for the life of the process.
private enum Kept {
  nonisolated(unsafe) static var server: RPCServer?
}

private final class Appender: RPCServerHandler {
  private let call: RPCServerCall

  init(_ call: RPCServerCall) {
    self.call = call
  }

  func received(_ message: RPCMessage) {
    self.call.consumed(message.byteCount)
    self.call.send(MemQ.ack(message.byteCount))
  }

  func halfClosed() { self.call.finish(.ok) }
  func writable() {}
  func ended(_ status: RPCStatus) {}
}

/// Sends one message as often as the request says.
private final class Streamer: RPCServerHandler {
  private let call: RPCServerCall
  private let payload: RPCMessage
  private var left = 0

  init(_ call: RPCServerCall, _ payload: RPCMessage) {
    self.call = call
    self.payload = payload
  }

  func received(_ message: RPCMessage) {
    self.left = Int(message.slice(0).getInteger(at: message.slice(0).readerIndex, as: UInt64.self)!)
    self.call.consumed(message.byteCount)
  }

  func halfClosed() { self.writable() }

  func writable() {
    while self.left > 0 {
      self.left -= 1
      guard self.call.send(self.payload) else { return }
    }
    self.call.finish(.ok)
  }

  func ended(_ status: RPCStatus) {}
}

private final class Reader: RPCClientHandler {
  private let call: RPCClientCall
  private let done: EventLoopPromise<Void>
  private var left: Int

  init(_ call: RPCClientCall, _ workload: Workload, _ done: EventLoopPromise<Void>) {
    self.call = call
    self.left = workload.messages
    self.done = done
  }

  func received(_ message: RPCMessage) {
    self.left -= 1
    self.call.consumed(message.byteCount)
  }

  func writable() {}

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    if status.isOK && self.left == 0 { self.done.succeed() } else { self.done.fail(status) }
  }
}

private final class Pinger: RPCServerHandler {
  private let call: RPCServerCall

  init(_ call: RPCServerCall) {
    self.call = call
  }

  func received(_ message: RPCMessage) {
    self.call.send(message)
    self.call.finish(.ok)
  }

  func halfClosed() {}
  func writable() {}
  func ended(_ status: RPCStatus) {}
}

private final class Source: RPCClientHandler, @unchecked Sendable {
  private let workload: Workload
  private let payload: RPCMessage
  private let done: EventLoopPromise<Void>
  private let call: RPCClientCall
  private var sent = 0
  private var acked = 0

  init(_ workload: Workload, _ call: RPCClientCall, _ done: EventLoopPromise<Void>) {
    self.workload = workload
    self.call = call
    self.payload = RPCMessage(Workload.payload(workload.messageBytes))
    self.done = done
  }

  func received(_ message: RPCMessage) {
    self.acked += 1
    self.call.consumed(message.byteCount)
    self.fill()
  }

  func fill() {
    while self.sent < self.workload.messages, self.sent - self.acked < self.workload.inFlight {
      self.sent += 1
      self.call.send(self.payload)
    }
    if self.acked == self.workload.messages { self.call.halfClose() }
  }

  func writable() {}

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    if status.isOK { self.done.succeed() } else { self.done.fail(status) }
  }
}

private final class Pings: @unchecked Sendable {
  private let workload: Workload
  private let method: RPCMethod
  private let channel: RPCNetworkChannel
  private let payload: RPCMessage
  private let done: EventLoopPromise<Void>
  private let latencies: Latencies?
  private let options: RPCCallOptions
  private var sent = 0
  private var ended = 0

  init(
    _ workload: Workload, _ method: RPCMethod, _ channel: RPCNetworkChannel,
    _ done: EventLoopPromise<Void>, _ latencies: Latencies?,
    _ options: RPCCallOptions
  ) {
    self.workload = workload
    self.method = method
    self.channel = channel
    self.payload = RPCMessage(Workload.payload(workload.messageBytes))
    self.done = done
    self.latencies = latencies
    self.options = options
  }

  func fill() {
    while self.sent < self.workload.messages, self.sent - self.ended < self.workload.inFlight {
      self.sent += 1
      _ = self.channel.start(self.method, self.options, request: self.payload) { _ in One(self)
      }
    }
    if self.ended == self.workload.messages { self.done.succeed() }
  }

  private final class One: RPCClientHandler {
    private let all: Pings
    private let started = NIODeadline.now()

    init(_ all: Pings) {
      self.all = all
    }

    func received(_ message: RPCMessage) {}
    func writable() {}

    func ended(_ status: RPCStatus, trailers: RPCMetadata) {
      guard status.isOK else { return self.all.done.fail(status) }
      self.all.latencies?.add(since: self.started)
      self.all.ended += 1
      self.all.fill()
    }
  }
}
