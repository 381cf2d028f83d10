// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import NIOCore
import Synchronization
import Testing

/// A side that does not read bounds the side that writes, and does not stop other calls.
@Suite(.timeLimit(.minutes(5))) struct BackPressureTests {
  /// A hop keeps at most: a window with the receiver, the sender's queue up to its mark and one message more,
  /// and what the sockets and the writing channel hold.
  private static let perHopBytesMax = (8 << 20) + (4 << 20) + (16 << 20)

  @Test(arguments: Transport.allCases)
  func `a handler that does not read bounds its client`(transport: Transport) async throws {
    let proceed = Signal<Void>()
    var router = RPCRouter.standard()
    let slow = RPCMethod.test("Slow", .clientStreaming)
    router.clientStreaming(slow) { reader, _ in
      await proceed.value
      var bytes = 0
      for try await message in reader { bytes += message.byteCount }
      return RPCMessage("\(bytes)")
    }
    try await withBed(transport, router) { bed in
      let stream = try await bed.channel.bidirectional(slow)
      let sent = Atomic2(0)
      let total = 300
      let sender = Task {
        for _ in 0..<total {
          try await stream.send(.pattern(1 << 20))
          sent.add(1)
        }
        try await stream.halfClose()
      }
      // Other calls of the same connection go on meanwhile; when 200 of them are through, the sender has long stopped.
      for _ in 0..<200 { _ = try await bed.channel.unary(.echo, .pattern(1000)) }
      let hops = transport == .forwarded ? 2 : 1
      #expect(sent.value << 20 <= hops * Self.perHopBytesMax)
      #expect(sent.value < total)
      proceed.fire(())
      try await sender.value
      #expect(try await stream.responses.next()?.text == "\(total << 20)")
    }
  }

  @Test(arguments: Transport.allCases)
  func `a client that does not read bounds its handler`(transport: Transport) async throws {
    let written = Atomic2(0)
    let total = 300
    var router = RPCRouter.standard()
    let flood = RPCMethod.test("Flood", .serverStreaming)
    router.serverStreaming(flood) { _, _, writer in
      for number in 0..<total {
        try await writer.send(.pattern(1 << 20, seed: UInt8(truncatingIfNeeded: number)))
        written.add(1)
      }
    }
    try await withBed(transport, router) { bed in
      let reader = try await bed.channel.serverStreaming(flood, RPCMessage())
      _ = try await reader.next()
      for _ in 0..<200 { _ = try await bed.channel.unary(.echo, .pattern(1000)) }
      let hops = transport == .forwarded ? 2 : 1
      #expect(written.value << 20 <= hops * Self.perHopBytesMax)
      #expect(written.value < total)
      var count = 1
      while try await reader.next() != nil { count += 1 }
      #expect(count == total)
    }
  }

  @Test func `many messages that arrive together do not keep each other from becoming whole`()
    async throws
  {
    var configuration = RPCServer.Configuration()
    // Far less than what is on its way at once, in small frames so that all calls take turns.
    configuration.connection.unconsumedBytesMax = 1 << 20
    configuration.connection.frameBytes = 16 << 10
    try await withBed(.network, .standard(), server: configuration) { bed in
      try await withThrowingTaskGroup(of: Int.self) { group in
        for _ in 0..<64 {
          group.addTask {
            try await bed.channel.unary(
              .echo, .pattern(512 << 10), RPCCallOptions(timeout: .seconds(30))
            ).byteCount
          }
        }
        for try await count in group { #expect(count == 512 << 10) }
      }
    }
  }

  @Test func `too many unfinished messages end calls, and the connection goes on`() async throws {
    var configuration = RPCServer.Configuration()
    configuration.connection.partialBytesMax = 1 << 20
    configuration.connection.frameBytes = 16 << 10
    try await withBed(.network, .standard(), server: configuration) { bed in
      let codes = await withTaskGroup(of: RPCCode.self) { group in
        for _ in 0..<64 {
          group.addTask {
            await status {
              _ = try await bed.channel.unary(
                .echo, .pattern(512 << 10), RPCCallOptions(timeout: .seconds(30)))
            }.code
          }
        }
        return await group.reduce(into: Set<RPCCode>()) { $0.insert($1) }
      }
      #expect(codes.contains(.resourceExhausted) && !codes.contains(.deadlineExceeded))
      let after = try await bed.channel.unary(.echo, .pattern(1_000))
      #expect(after.byteCount == 1_000)
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `the callback face is told of room, and stops a sender that ignores it`(
    transport: Transport
  ) async throws {
    let ended = Signal<RPCStatus>()
    let method = RPCMethod.test("Ignore", .serverStreaming)
    var router = RPCRouter()
    router.callback(method) { call in IgnorantSender(call, ended) }
    try await withBed(transport, router) { bed in
      let reader = try await bed.channel.serverStreaming(method, RPCMessage())
      let status = await ended.value
      #expect(status.code == .resourceExhausted)
      withExtendedLifetime(reader) {}
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `senders off the loop are told of room`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      let done = Signal<RPCStatus>()
      var made: CountingEcho?
      let call = bed.channel.start(.chat) { call in
        let handler = CountingEcho(call, done)
        made = handler
        return handler
      }
      let handler = try #require(made)
      // From this thread, in bursts: stop at every false, go on at `writable`.
      let total = 200
      for _ in 0..<total {
        if !call.send(.pattern(300_000)) { await handler.room() }
      }
      call.halfClose()
      #expect(await done.value.isOK)
      #expect(handler.messages.value == total)
    }
  }
}

/// A counter for tests.
final class Atomic2: Sendable {
  private let number: Atomic<Int>

  init(_ value: Int) {
    self.number = Atomic(value)
  }

  func add(_ value: Int) {
    self.number.add(value, ordering: .sequentiallyConsistent)
  }

  var value: Int { self.number.load(ordering: .sequentiallyConsistent) }
}

private final class IgnorantSender: RPCServerHandler {
  private let ended: Signal<RPCStatus>

  init(_ call: RPCServerCall, _ ended: Signal<RPCStatus>) {
    self.ended = ended
    let message = RPCMessage.pattern(1 << 20)
    for _ in 0..<200 { call.send(message) }
  }

  func received(_ message: RPCMessage) {}
  func halfClosed() {}
  func writable() {}
  func ended(_ status: RPCStatus) { self.ended.fire(status) }
}

private final class CountingEcho: RPCClientHandler, @unchecked Sendable {
  let messages = Atomic2(0)
  private let done: Signal<RPCStatus>
  private let waiting = Mutex<(hasRoom: Bool, waiter: CheckedContinuation<Void, Never>?)>(
    (false, nil))
  private let call: RPCClientCall

  init(_ call: RPCClientCall, _ done: Signal<RPCStatus>) {
    self.call = call
    self.done = done
  }

  func received(_ message: RPCMessage) {
    self.messages.add(1)
    self.call.consumed(message.byteCount)
  }

  func writable() {
    let waiter = self.waiting.withLock { state in
      defer { state = (state.waiter == nil, nil) }
      return state.waiter
    }
    waiter?.resume()
  }

  func room() async {
    await withCheckedContinuation { waiter in
      let hasRoom = self.waiting.withLock { state in
        if !state.hasRoom { state.waiter = waiter }
        defer { state.hasRoom = false }
        return state.hasRoom
      }
      if hasRoom { waiter.resume() }
    }
  }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) { self.done.fire(status) }
}
