// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQTestSupport
import NIOCore
import Synchronization
import Testing

@testable import MemQRPC

/// gzip, both ways.
@Suite(.timeLimit(.minutes(5))) struct CompressionTests {
  private static func zeros(_ count: Int) -> RPCMessage {
    RPCMessage(ByteBuffer(repeating: 0, count: count))
  }

  /// The same bytes cut at random places.
  private func cut(
    _ message: RPCMessage, using random: inout SeededGenerator
  ) -> RPCMessage {
    var rest = message.contiguous()
    var slices: [ByteBuffer] = []
    while rest.readableBytes > 0 {
      let count = Int.random(in: 1...max(1, min(rest.readableBytes, 700)), using: &random)
      slices.append(rest.readSlice(length: min(count, rest.readableBytes))!)
    }
    return RPCMessage(slices: slices)
  }

  // MARK: The codec

  @Test(arguments: 1...20)
  func `what is packed unpacks, however both are cut`(seed: Int) throws {
    var random = SeededGenerator(seed: UInt64(seed))
    let codec = GzipCodec()
    for _ in 0..<4 {
      var plain = RPCMessage()
      for _ in 0..<Int.random(in: 1...5, using: &random) {
        let count = [0, 1, 90, 4000, 70_000, 200_000].randomElement(using: &random)!
        let noise = RPCMessage.pattern(count / 8, seed: UInt8(seed))
        plain.append(self.cut(noise, using: &random))
        plain.append(Self.zeros(count - count / 8))
      }
      let packed = codec.pack(plain)
      guard plain.byteCount >= GzipCodec.compressFromBytes else {
        #expect(packed == plain && !packed.isPacked)
        continue
      }
      #expect(packed.isPacked && packed.byteCount < plain.byteCount)
      let recut = self.cut(packed, using: &random)
      #expect(try codec.unpack(recut, maxBytes: plain.byteCount) == plain)
      #expect(throws: GzipCodec.Failure.tooLarge) {
        try codec.unpack(recut, maxBytes: plain.byteCount - 1)
      }
    }
  }

  @Test func `noise, and what must not be compressed, stays as it is`() {
    let codec = GzipCodec()
    #expect(!codec.pack(.pattern(100_000)).isPacked)
    var text = Self.zeros(100_000)
    text.mayBeCompressed = false
    #expect(!codec.pack(text).isPacked)
  }

  @Test func `a bomb is stopped at the limit, not unpacked`() {
    let codec = GzipCodec()
    let bomb = codec.pack(Self.zeros(8 << 20))
    #expect(bomb.byteCount < 1 << 20)
    #expect(throws: GzipCodec.Failure.tooLarge) { try codec.unpack(bomb, maxBytes: 1 << 20) }
    #expect(codec.turnBytes <= 1 << 20 + 1)
  }

  @Test func `what is not whole, sound gzip is refused`() throws {
    let codec = GzipCodec()
    let plain = RPCMessage(String(repeating: "all work and no play ", count: 50))
    let packed = Array(buffer: codec.pack(plain).contiguous())
    func unpack(_ bytes: [UInt8]) throws -> RPCMessage {
      try codec.unpack(RPCMessage(bytes: bytes), maxBytes: 1 << 20)
    }
    for count in 0..<packed.count {
      #expect(throws: GzipCodec.Failure.corrupt) { try unpack(Array(packed[..<count])) }
    }
    #expect(throws: GzipCodec.Failure.corrupt) { try unpack(packed + [1, 2, 3]) }
    var damaged = packed
    damaged[damaged.count - 6] ^= 1
    #expect(throws: GzipCodec.Failure.corrupt) { try unpack(damaged) }
    // After all of it the codec is as new; members one after another are one message.
    #expect(try unpack(packed + packed).byteCount == 2 * plain.byteCount)
  }

  @Test(arguments: 1...50)
  func `credit is paid in wire bytes, and all of it`(seed: Int) {
    var random = SeededGenerator(seed: UInt64(seed))
    var inflow = PackedInflow(windowBytes: 1000)
    var wire = 0
    var paid = 0
    for _ in 0..<300 {
      if Bool.random(using: &random) {
        let bytes = Int.random(in: 0...40, using: &random)
        wire += bytes
        inflow.hold(RPCMessage(ByteBuffer(repeating: 0, count: bytes)))
      }
      if let message = inflow.next() {
        let bytes = Int.random(in: 0...900, using: &random)
        paid += inflow.deliver(bytes, wireBytes: message.byteCount)
      }
      #expect(inflow.unconsumedBytes < 1000 + 900)
      let taken = Int.random(in: 0...inflow.unconsumedBytes, using: &random)
      paid += inflow.consumed(taken)
    }
    paid += inflow.consumed(inflow.unconsumedBytes)
    while let message = inflow.next() { paid += inflow.deliver(0, wireBytes: message.byteCount) }
    #expect(paid == wire)
  }

  // MARK: Calls

  private func compressing() -> RPCRouter {
    var router = RPCRouter()
    router.unary(.echo) { request, context in
      context.setCompression(.gzip)
      return request
    }
    router.bidirectional(.chat) { reader, context, writer in
      context.setCompression(.gzip)
      for try await message in reader { try await writer.send(message) }
    }
    return router
  }

  @Test(arguments: Transport.allCases)
  func `compressed calls are like any others`(transport: Transport) async throws {
    try await withBed(transport, self.compressing()) { bed in
      var options = RPCCallOptions(timeout: .seconds(60))
      options.compression = .gzip
      for count in [0, 1, 1000, 300_000] {
        let message = Self.zeros(count)
        #expect(try await bed.channel.unary(.echo, message, options) == message)
      }
      let stream = try await bed.channel.bidirectional(.chat, options)
      var sent: [RPCMessage] = []
      for number in 0..<20 {
        var message = RPCMessage(String(repeating: "\(number) ", count: number * 100))
        message.mayBeCompressed = number % 3 != 0
        sent.append(message)
        try await stream.send(message)
      }
      try await stream.halfClose()
      var received: [RPCMessage] = []
      for try await message in stream.responses { received.append(message) }
      #expect(received == sent)
    }
  }

  @Test(arguments: [Transport.network, .unixSocket])
  func `limits hold for what is unpacked`(transport: Transport) async throws {
    var configuration = RPCServer.Configuration()
    configuration.maxMessageBytes = 100_000
    try await withBed(transport, self.compressing(), server: configuration) { bed in
      var options = RPCCallOptions(timeout: .seconds(60))
      options.compression = .gzip
      let over = await status {
        _ = try await bed.channel.unary(.echo, Self.zeros(100_001), options)
      }
      #expect(over.code == .resourceExhausted)
      #expect(over.trailers[first: RPCStatus.limitTrailer] == "100000")
      options.maxMessageBytes = 50_000
      let own = await status {
        _ = try await bed.channel.unary(.echo, Self.zeros(50_001), options)
      }
      #expect(own.code == .resourceExhausted && own.message.contains("message to send"))
      options.compression = .identity
      options.maxMessageBytes = 100_000
      let allowed = try await bed.channel.unary(.echo, Self.zeros(100_000), options)
      #expect(allowed.byteCount == 100_000)
    }
  }

  /// Takes nothing until told, then everything.
  private final class Hoarder: RPCServerHandler, @unchecked Sendable {
    let call: RPCServerCall
    let full: Signal<Void>
    let done: Signal<(peak: Int, total: Int)>
    var unconsumed = 0
    var peak = 0
    var total = 0
    var isOpen = false

    init(
      _ call: RPCServerCall, _ full: Signal<Void>, _ done: Signal<(peak: Int, total: Int)>
    ) {
      self.call = call
      self.full = full
      self.done = done
    }

    func received(_ message: RPCMessage) {
      self.total += message.byteCount
      self.unconsumed += message.byteCount
      self.peak = max(self.peak, self.unconsumed)
      if self.isOpen { return self.release() }
      guard self.unconsumed >= 1 << 20 else { return }
      self.isOpen = true
      self.full.fire(())
      // Only once the whole request has had the time to pile up here, were it let in.
      self.call.eventLoop.scheduleTask(in: .milliseconds(50)) { self.release() }
    }

    func release() {
      self.call.consumed(self.unconsumed)
      self.unconsumed = 0
    }

    func halfClosed() {
      self.done.fire((self.peak, self.total))
      self.call.finish(.ok)
    }

    func writable() {}
    func ended(_ status: RPCStatus) {}
  }

  @Test func `a stalled handler's messages stay packed`() async throws {
    let full = Signal<Void>()
    let done = Signal<(peak: Int, total: Int)>()
    var router = RPCRouter()
    router.callback(.sum) { Hoarder($0, full, done) }
    var configuration = RPCServer.Configuration()
    configuration.windowBytes = 1 << 20
    try await withBed(.network, router, server: configuration) { bed in
      var options = RPCCallOptions(timeout: .seconds(60))
      options.compression = .gzip
      let stream = try await bed.channel.bidirectional(.sum, options)
      // 40 MiB in less than the window.
      for _ in 0..<40 { try await stream.send(Self.zeros(1 << 20)) }
      try await stream.halfClose()
      let (peak, total) = await done.value
      #expect(total == 40 << 20)
      #expect(peak <= 2 << 20)
      for try await _ in stream.responses {}
    }
  }

  @Test func `all calls of a connection together hold a bounded number of unpacked bytes`()
    async throws
  {
    let hoard = Hoard()
    var router = RPCRouter()
    router.callback(.sum) { hoard.handler($0) }
    var configuration = RPCServer.Configuration()
    configuration.connection.unconsumedBytesMax = 4 << 20
    try await withBed(.network, router, server: configuration) {
      (bed: TestBed) async throws -> Void in
      var options = RPCCallOptions(timeout: .seconds(60))
      options.compression = .gzip
      // 32 MiB in 150 KiB, one message for each call, and nobody takes any.
      let calls = (0..<32).map { _ in
        Task { [options] in
          let stream = try await bed.channel.bidirectional(.sum, options)
          try await stream.send(Self.zeros(1 << 20))
          try await stream.halfClose()
          for try await _ in stream.responses {}
        }
      }
      // All of it has come, and more than the limit was not unpacked.
      while hoard.begun < 32 || hoard.heldBytes < 4 << 20 { await Task.yield() }
      #expect(hoard.heldBytes <= 5 << 20)
      hoard.open()
      for call in calls { try await call.value }
      #expect(hoard.total == 32 << 20 && hoard.peak <= 5 << 20)
    }
  }

  /// Handlers that take nothing until told.
  private final class Hoard: Sendable {
    private struct State {
      var begun = 0
      var isOpen = false
      var held: [(RPCServerCall, Int)] = []
      /// Their answer would let go of what they hold.
      var ended: [RPCServerCall] = []
      var heldBytes = 0
      var peak = 0
      var total = 0
    }

    private let state = Mutex(State())

    var begun: Int { self.state.withLock { $0.begun } }
    var heldBytes: Int { self.state.withLock { $0.heldBytes } }
    var peak: Int { self.state.withLock { $0.peak } }
    var total: Int { self.state.withLock { $0.total } }

    func handler(_ call: RPCServerCall) -> any RPCServerHandler {
      self.state.withLock { $0.begun += 1 }
      return Handler(self, call)
    }

    func open() {
      let held = self.state.withLock { state in
        state.isOpen = true
        state.heldBytes = 0
        defer { state.held = [] }
        return state.held
      }
      for (call, bytes) in held { call.consumed(bytes) }
      for call in self.state.withLock({ $0.ended }) { call.finish(.ok) }
    }

    private final class Handler: RPCServerHandler {
      let hoard: Hoard
      let call: RPCServerCall

      init(_ hoard: Hoard, _ call: RPCServerCall) {
        self.hoard = hoard
        self.call = call
      }

      func received(_ message: RPCMessage) {
        let isOpen = self.hoard.state.withLock { state in
          state.total += message.byteCount
          guard !state.isOpen else { return true }
          state.held.append((self.call, message.byteCount))
          state.heldBytes += message.byteCount
          state.peak = max(state.peak, state.heldBytes)
          return false
        }
        if isOpen { self.call.consumed(message.byteCount) }
      }

      func halfClosed() {
        let isOpen = self.hoard.state.withLock { state in
          if !state.isOpen { state.ended.append(self.call) }
          return state.isOpen
        }
        if isOpen { self.call.finish(.ok) }
      }

      func writable() {}
      func ended(_ status: RPCStatus) {}
    }
  }

  @Test func `a slow reader gets all of a compressed stream, and then its status`() async throws {
    let sent = Signal<Void>()
    var router = RPCRouter()
    router.serverStreaming(.count) { _, context, writer in
      context.setCompression(.gzip)
      for _ in 0..<20 { try await writer.send(Self.zeros(1 << 20)) }
      sent.fire(())
      writer.setTrailer("sent", "20")
      throw RPCStatus(.aborted, "behind the messages")
    }
    var client = RPCNetworkChannel.Configuration()
    client.connection.windowBytes = 1 << 20
    try await withBed(.network, router, client: client) { bed in
      let reader = try await bed.channel.serverStreaming(
        .count, RPCMessage(), RPCCallOptions(timeout: .seconds(60)))
      await sent.value
      // Nothing of the call is left at the server, and its connection may go.
      await bed.servers[0].shutdown(deadline: .seconds(30))
      var total = 0
      let end = await status {
        for try await message in reader { total += message.byteCount }
      }
      #expect(total == 20 << 20)
      #expect(end.code == .aborted && end.trailers[first: "sent"] == "20")
    }
  }

  // MARK: The wire

  private func withPeer<R: Sendable>(
    _ router: RPCRouter, _ body: (RawPeer) async throws -> R
  ) async throws -> R {
    var configuration = RPCServer.Configuration()
    configuration.maxMessageBytes = 1 << 20
    return try await withBed(.network, router, server: configuration) { bed in
      let peer = try await RawPeer.connect(port: bed.servers[0].localPort)
      let result = try await body(peer)
      await peer.close()
      #expect(try await bed.channel.unary(.echo, RPCMessage("still here")).text == "still here")
      return result
    }
  }

  private static func data(_ flag: UInt8, _ message: [UInt8]) -> [UInt8] {
    let length = message.count
    return RawPeer.frame(
      0, flags: 1, stream: 1,
      [flag, 0, UInt8(length >> 16), UInt8(length >> 8 & 255), UInt8(length & 255)] + message)
  }

  private static func packed(_ count: Int) -> [UInt8] {
    Array(buffer: GzipCodec().pack(Self.zeros(count)).contiguous())
  }

  @Test(arguments: [
    ("gzip", true), ("deflate , gzip", true), ("identity", false),
    ("gzipped,xgzip", false),
  ])
  func `a response is compressed when the client takes it`(
    accepted: String, isPacked: Bool
  ) async throws {
    try await self.withPeer(self.compressing()) { peer in
      await peer.send(
        RawPeer.hello
          + RawPeer.request(stream: 1, adding: [("grpc-accept-encoding", accepted)])
          + Self.data(0, [UInt8](repeating: 7, count: 1000)))
      let head = RawPeer.decode(await peer.frame(ofType: 1)?.payload ?? [])
      #expect(head["grpc-encoding"] == (isPacked ? "gzip" : nil))
      #expect(head["grpc-accept-encoding"] == "identity,gzip")
      let body = await peer.frame(ofType: 0)?.payload ?? []
      #expect(body.first == (isPacked ? 1 : 0))
      #expect((body.count < 200) == isPacked)
    }
  }

  @Test func `a message may stay plain in a compressed call`() async throws {
    try await self.withPeer(.standard()) { peer in
      await peer.send(
        RawPeer.hello + RawPeer.request(stream: 1, adding: [("grpc-encoding", "gzip")])
          + Self.data(0, [1, 2, 3]))
      #expect(await peer.frame(ofType: 0)?.payload == [0, 0, 0, 0, 3, 1, 2, 3])
    }
  }

  @Test(arguments: [
    // What the header says, the flag, the message, and the code.
    ("gzip", UInt8(1), packed(5000), RPCCode.ok),
    ("gzip", 1, [1, 2, 3, 4], .internal),
    ("gzip", 1, [], .internal),
    ("gzip", 1, packed(5000) + [0], .internal),
    ("gzip", 1, packed(2 << 20), .resourceExhausted),
    ("identity", 1, packed(5000), .internal),
    ("gzip", 2, [1], .internal),
    ("snappy", 1, [1], .unimplemented),
    ("snappy", 0, [1], .unimplemented),
  ])
  func `requests are taken or refused by what their headers say`(
    encoding: String, flag: UInt8, message: [UInt8], code: RPCCode
  ) async throws {
    try await self.withPeer(.standard()) { peer in
      await peer.send(
        RawPeer.hello + RawPeer.request(stream: 1, adding: [("grpc-encoding", encoding)])
          + Self.data(flag, message))
      let head = RawPeer.decode(await peer.frame(ofType: 1)?.payload ?? [])
      #expect(head["grpc-accept-encoding"] == "identity,gzip")
      #expect(head["grpc-status"] == (code == .ok ? nil : "\(code.rawValue)"))
      if code == .ok {
        #expect(await peer.frame(ofType: 0)?.payload.prefix(5) == [0, 0, 0, 0x13, 0x88])
      }
    }
  }
}
