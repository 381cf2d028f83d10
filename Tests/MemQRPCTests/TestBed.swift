// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQRPC
import NIOCore
import NIOPosix
import Synchronization
import Testing

/// The ways a call can take. Behaviour must not differ between them.
enum Transport: String, CaseIterable, Sendable, CustomTestStringConvertible {
  case inProcess
  case network
  case unixSocket
  /// Two hops: the network to a server that forwards to another over the network.
  case forwarded

  var testDescription: String { self.rawValue }
}

/// A router that can be called.
struct TestBed: Sendable {
  let channel: any RPCChannel
  let servers: [RPCServer]
  private let channels: [any RPCChannel]

  static let group = MultiThreadedEventLoopGroup.singleton

  static func quietLogger() -> Logger {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }

  init(
    _ transport: Transport, _ router: RPCRouter,
    server configuration: RPCServer.Configuration = .init(),
    client: RPCNetworkChannel.Configuration = .init()
  ) async throws {
    let logger = Self.quietLogger()
    switch transport {
    case .inProcess:
      self.channel = RPCInProcessChannel(
        router: router, group: Self.group, maxMessageBytes: configuration.maxMessageBytes,
        logger: logger)
      self.servers = []
      self.channels = [self.channel]
    case .network, .unixSocket:
      let address = transport == .network ? "127.0.0.1:0" : "unix:\(Self.socketPath())"
      let server = try await RPCServer.start(
        router: router, on: address, group: Self.group, configuration: configuration,
        logger: logger)
      self.channel = RPCNetworkChannel(
        target: server.localAddress, group: Self.group, configuration: client, logger: logger)
      self.servers = [server]
      self.channels = [self.channel]
    case .forwarded:
      let back = try await RPCServer.start(
        router: router, on: "127.0.0.1:0", group: Self.group, configuration: configuration,
        logger: logger)
      let onward = RPCNetworkChannel(
        target: back.localAddress, group: Self.group, configuration: client, logger: logger)
      var forwarding = RPCRouter()
      for method in router.methods { forwarding.forward(method, to: { onward }) }
      let front = try await RPCServer.start(
        router: forwarding, on: "127.0.0.1:0", group: Self.group, configuration: configuration,
        logger: logger)
      self.channel = RPCNetworkChannel(
        target: front.localAddress, group: Self.group, configuration: client, logger: logger)
      self.servers = [front, back]
      self.channels = [self.channel, onward]
    }
  }

  func stop() async {
    for channel in self.channels { await channel.close(deadline: .seconds(2)) }
    for server in self.servers { await server.shutdown(deadline: .seconds(2)) }
  }

  private static let counter = Atomic<Int>(0)

  private static func socketPath() -> String {
    let number = self.counter.add(1, ordering: .relaxed).newValue
    return "/tmp/memq-rpc-test-\(getpid())-\(number).sock"
  }
}

/// Runs `body` on a bed and stops it whatever happens.
func withBed<R: Sendable>(
  _ transport: Transport, _ router: RPCRouter, server: RPCServer.Configuration = .init(),
  client: RPCNetworkChannel.Configuration = .init(),
  _ body: (TestBed) async throws -> R
) async throws -> R {
  let bed = try await TestBed(transport, router, server: server, client: client)
  do {
    let result = try await body(bed)
    await bed.stop()
    return result
  } catch {
    await bed.stop()
    throw error
  }
}

/// Something that happens once, which tests wait for.
final class Signal<Value: Sendable>: Sendable {
  private struct State {
    var value: Value?
    var waiters: [CheckedContinuation<Value, Never>] = []
  }

  private let state = Mutex(State())

  func fire(_ value: Value) {
    let waiters = self.state.withLock { state -> [CheckedContinuation<Value, Never>] in
      guard state.value == nil else { return [] }
      state.value = value
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.resume(returning: value) }
  }

  var value: Value {
    get async {
      await withCheckedContinuation { waiter in
        let value = self.state.withLock { state -> Value? in
          if state.value == nil { state.waiters.append(waiter) }
          return state.value
        }
        if let value { waiter.resume(returning: value) }
      }
    }
  }

  var isFired: Bool { self.state.withLock { $0.value != nil } }
}

extension RPCMessage {
  init(_ text: String) {
    self.init(ByteBuffer(string: text))
  }

  var text: String { String(buffer: self.contiguous()) }

  /// `count` bytes that tell where they stand, different for every `seed`. Slices of one buffer, made once.
  static func pattern(_ count: Int, seed: UInt8 = 0) -> RPCMessage {
    RPCMessage(Self.patternBytes.getSlice(at: Int(seed), length: count)!)
  }

  private static let patternBytes: ByteBuffer = {
    var words = ByteBuffer()
    words.reserveCapacity((16 << 20) + 1024)
    var state: UInt64 = 0x9e37_79b9_7f4a_7c15
    while words.readableBytes < (16 << 20) + 1024 {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      words.writeInteger(state)
    }
    return words
  }()
}

extension RPCMethod {
  static func test(_ name: String, _ kind: Kind) -> RPCMethod {
    RPCMethod(service: "memq.test.Test", name: name, kind: kind)
  }

  static let echo = test("Echo", .unary)
  static let fail = test("Fail", .unary)
  static let count = test("Count", .serverStreaming)
  static let sum = test("Sum", .clientStreaming)
  static let chat = test("Chat", .bidirectional)
  static let hang = test("Hang", .unary)
}

extension RPCRouter {
  /// Methods for most tests.
  static func standard() -> RPCRouter {
    var router = RPCRouter()
    router.unary(.echo) { request, _ in request }
    router.unary(.fail) { request, _ in
      var trailers = RPCMetadata()
      trailers.add("why", "because")
      trailers.addBinary("raw-bin", [0, 255, 7])
      throw RPCStatus(
        .failedPrecondition, request.text, details: [1, 2, 3, 250], trailers: trailers)
    }
    router.serverStreaming(.count) { request, _, writer in
      for number in 0..<(Int(request.text) ?? 0) {
        try await writer.send(RPCMessage("\(number)"))
      }
      writer.setTrailer("sent", request.text)
    }
    router.clientStreaming(.sum) { reader, _ in
      var bytes = 0
      var messages = 0
      for try await message in reader {
        bytes += message.byteCount
        messages += 1
      }
      return RPCMessage("\(messages) \(bytes)")
    }
    router.bidirectional(.chat) { reader, _, writer in
      for try await message in reader { try await writer.send(message) }
    }
    return router
  }
}

/// The status a call ends with.
func status(_ body: () async throws -> Void) async -> RPCStatus {
  do {
    try await body()
    return .ok
  } catch let status as RPCStatus {
    return status
  } catch {
    return RPCStatus(.unknown, "not a status: \(error)")
  }
}
