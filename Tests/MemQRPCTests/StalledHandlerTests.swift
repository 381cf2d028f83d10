// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Synchronization
import Testing

@testable import MemQRPC

/// Waits that a cancellation ends, and handlers that take nothing.
@Suite(.timeLimit(.minutes(10))) struct StalledHandlerTests {
  @Test(arguments: [Transport.inProcess, .network])
  func `a reader off the loop that is cancelled already does not wait`(
    transport: Transport
  ) async throws {
    let code = Signal<RPCCode>()
    var router = RPCRouter()
    router.bidirectional(.chat) { reader, _, _ in
      let task = Task {
        withUnsafeCurrentTask { $0?.cancel() }
        return await status { _ = try await reader.next() }.code
      }
      code.fire(await task.value)
    }
    try await withBed(transport, router) { bed in
      let stream = try await bed.channel.bidirectional(.chat)
      #expect(await code.value == .cancelled)
      withExtendedLifetime(stream) {}
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a writer off the loop that is cancelled already does not wait for room`(
    transport: Transport
  ) async throws {
    let done = Signal<Void>()
    var router = RPCRouter()
    router.serverStreaming(.count) { _, _, writer in
      // The first is with the client, who does not take it; the second stays in the queue.
      for _ in 0..<2 { try await writer.send(.pattern(RPCLimits.messageBytesMax)) }
      await Task {
        withUnsafeCurrentTask { $0?.cancel() }
        await writer.gate.waitForRoomOrCancellation()
      }.value
      done.fire(())
    }
    try await withBed(transport, router) { bed in
      let reader = try await bed.channel.serverStreaming(.count, RPCMessage())
      await done.value
      withExtendedLifetime(reader) {}
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `empty messages that nobody takes end the call`(transport: Transport) async throws {
    let proceed = Signal<Void>()
    let ended = Signal<RPCStatus>()
    var router = RPCRouter()
    router.bidirectional(.chat) { _, _, _ in await proceed.value }
    try await withBed(transport, router) { bed in
      let call = bed.channel.start(.chat) { _ in EndOnly(ended) }
      call.execute {
        for _ in 0...RPCLimits.queuedMessagesMax { call.send(RPCMessage()) }
      }
      let status = await ended.value
      #expect(status.code == .resourceExhausted && status.message.contains("messages wait"))
      proceed.fire(())
    }
  }

  @Test func `a call that fails at once ends after its start returned`() async throws {
    let ended = Signal<RPCStatus>()
    let channel = RPCNetworkChannel(
      target: "nowhere", group: TestBed.group, logger: TestBed.quietLogger())
    let wasEnded = try await channel.eventLoop.submit {
      _ = channel.start(.echo, RPCCallOptions(), request: RPCMessage()) { _ in EndOnly(ended) }
      return ended.isFired
    }.get()
    #expect(!wasEnded)
    #expect(await ended.value.code == .invalidArgument)
    await channel.close(deadline: .zero)
  }

  @Test func `all connections together hold a bounded number of bytes, and others go on`()
    async throws
  {
    final class Observer: RPCServerObserver {
      let pauses = Atomic2(0)
      func callEnded(_ method: RPCMethod, code: RPCCode, duration: Duration) {}
      func connectionsChanged(to count: Int) {}
      func receivingPaused() { self.pauses.add(1) }
    }
    let observer = Observer()
    var configuration = RPCServer.Configuration()
    configuration.windowBytes = 1 << 20
    configuration.unconsumedBytesMax = 4 << 20
    configuration.observer = observer
    let held = Held()
    var router = RPCRouter.standard()
    router.callback(.hold) { call in HoldingHandler(call, held) }
    try await withBed(.network, router, server: configuration) { bed in
      // 64 calls of 2 MiB each: without the bound each fills its window.
      let channels = (0..<4).map { _ in
        RPCNetworkChannel(
          target: bed.servers[0].localAddress, group: TestBed.group,
          logger: TestBed.quietLogger())
      }
      var ends: [Signal<RPCStatus>] = []
      for channel in channels {
        for _ in 0..<16 {
          let ended = Signal<RPCStatus>()
          ends.append(ended)
          let call = channel.start(.hold) { _ in EndOnly(ended) }
          call.execute {
            for _ in 0..<32 { call.send(.pattern(64 << 10)) }
            call.halfClose()
          }
        }
      }
      while observer.pauses.value == 0 { await Task.yield() }
      // When these are through, the senders have long stopped.
      for _ in 0..<200 { _ = try await bed.channel.unary(.echo, .pattern(1_000)) }
      // The bound, and what each connection's own window let through before it was noticed.
      #expect(held.bytes.value <= (4 + 4 * 2) << 20)
      held.release()
      for ended in ends { #expect(await ended.value.isOK) }
      for channel in channels { await channel.close(deadline: .seconds(1)) }
    }
  }
}

extension RPCMethod {
  fileprivate static let hold = test("Hold", .clientStreaming)
}

/// Takes nothing until it is told to.
private final class Held: Sendable {
  let bytes = Atomic2(0)
  private let handlers = Mutex<(isOpen: Bool, all: [HoldingHandler])>((false, []))

  /// False: there is nothing to wait for.
  func add(_ handler: HoldingHandler) -> Bool {
    self.handlers.withLock {
      if !$0.isOpen { $0.all.append(handler) }
      return !$0.isOpen
    }
  }

  func release() {
    let all = self.handlers.withLock { state in
      state.isOpen = true
      defer { state.all = [] }
      return state.all
    }
    for handler in all { handler.release() }
  }
}

private final class HoldingHandler: RPCServerHandler, @unchecked Sendable {
  private let call: RPCServerCall
  private let held: Held
  private var heldBytes = 0
  private var holds = false

  init(_ call: RPCServerCall, _ held: Held) {
    self.call = call
    self.held = held
    self.holds = held.add(self)
  }

  func received(_ message: RPCMessage) {
    guard self.holds else { return self.call.consumed(message.byteCount) }
    self.heldBytes += message.byteCount
    self.held.bytes.add(message.byteCount)
  }

  func release() {
    self.call.execute {
      self.holds = false
      self.call.consumed(self.heldBytes)
      self.heldBytes = 0
    }
  }

  func halfClosed() {
    self.call.send(RPCMessage("done"))
    self.call.finish(.ok)
  }
  func writable() {}
  func ended(_ status: RPCStatus) {}
}

private final class EndOnly: RPCClientHandler {
  private let signal: Signal<RPCStatus>

  init(_ signal: Signal<RPCStatus>) { self.signal = signal }

  func received(_ message: RPCMessage) {}
  func writable() {}
  func ended(_ status: RPCStatus, trailers: RPCMetadata) { self.signal.fire(status) }
}
