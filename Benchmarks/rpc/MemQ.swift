// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQRPC
import NIOCore
import NIOPosix

/// The same over MemQRPC: one bidirectional call on the callback face, or unary calls on either face.
enum MemQ {
  static let append = RPCMethod(service: "memq.bench.Bench", name: "Append", kind: .bidirectional)
  static let appendAsync = RPCMethod(
    service: "memq.bench.Bench", name: "AppendAsync", kind: .bidirectional)
  static let ping = RPCMethod(service: "memq.bench.Bench", name: "Ping", kind: .unary)
  static let pingAsync = RPCMethod(service: "memq.bench.Bench", name: "PingAsync", kind: .unary)

  static var logger: Logger {
    var logger = Logger(label: "bench")
    logger.logLevel = .error
    return logger
  }

  static func serve(group: any EventLoopGroup) async throws -> Int {
    var router = RPCRouter()
    router.callback(self.append) { Appender($0) }
    router.callback(self.ping) { Pinger($0) }
    router.unary(self.pingAsync) { request, _ in request }
    router.bidirectional(self.appendAsync) { reader, _, writer in
      for try await message in reader { try await writer.send(Self.ack(message.byteCount)) }
    }
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: group, logger: self.logger)
    Kept.server = server
    return server.localPort
  }

  static func run(
    _ workload: Workload, _ method: RPCMethod, port: Int, group: any EventLoopGroup
  ) async throws {
    let channel = RPCNetworkChannel(target: "127.0.0.1:\(port)", group: group, logger: self.logger)
    let done = channel.eventLoop.makePromise(of: Void.self)
    if method.kind == .unary {
      let pings = Pings(workload, method, channel, done)
      channel.eventLoop.execute { pings.fill() }
    } else {
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
  private var sent = 0
  private var ended = 0

  init(
    _ workload: Workload, _ method: RPCMethod, _ channel: RPCNetworkChannel,
    _ done: EventLoopPromise<Void>
  ) {
    self.workload = workload
    self.method = method
    self.channel = channel
    self.payload = RPCMessage(Workload.payload(workload.messageBytes))
    self.done = done
  }

  func fill() {
    while self.sent < self.workload.messages, self.sent - self.ended < self.workload.inFlight {
      self.sent += 1
      _ = self.channel.start(self.method, RPCCallOptions(), request: self.payload) { _ in One(self)
      }
    }
    if self.ended == self.workload.messages { self.done.succeed() }
  }

  private final class One: RPCClientHandler {
    private let all: Pings

    init(_ all: Pings) {
      self.all = all
    }

    func received(_ message: RPCMessage) {}
    func writable() {}

    func ended(_ status: RPCStatus, trailers: RPCMetadata) {
      guard status.isOK else { return self.all.done.fail(status) }
      self.all.ended += 1
      self.all.fill()
    }
  }
}
