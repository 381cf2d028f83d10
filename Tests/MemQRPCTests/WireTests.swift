// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import MemQTestSupport
import NIOCore
import Testing

/// What a server answers to bytes no client of ours would send.
@Suite(.timeLimit(.minutes(5))) struct WireTests {
  private func withServer<R: Sendable>(
    _ configuration: RPCServer.Configuration = .init(), router: RPCRouter = .standard(),
    _ body: (TestBed, RawPeer) async throws -> R
  ) async throws -> R {
    try await withBed(.network, router, server: configuration) { bed in
      let peer = try await RawPeer.connect(port: bed.servers[0].localPort)
      let result = try await body(bed, peer)
      await peer.close()
      // Whatever happened, the server serves.
      let after = try await bed.channel.unary(.echo, RPCMessage("still here"))
      #expect(after.text == "still here")
      return result
    }
  }

  /// The headers of the first response on a fresh connection.
  private func answer(_ peer: RawPeer, to request: [UInt8]) async -> [String: String] {
    await peer.send(RawPeer.hello + request)
    guard let frame = await peer.frame(ofType: 1) else { return [:] }
    return RawPeer.decode(frame.payload)
  }

  @Test func `an HTTP/1 request gets an answer a person understands`() async throws {
    try await self.withServer { _, peer in
      await peer.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
      let text = String(decoding: await peer.rest(), as: UTF8.self)
      #expect(text.hasPrefix("HTTP/1.1 400 "))
      #expect(text.contains("gRPC over HTTP/2"))
    }
  }

  @Test(arguments: ["\u{16}\u{3}\u{1}\u{2}\u{0}", "\u{0}\u{0}", "hello there, server, who are you"])
  func `garbage is closed`(garbage: String) async throws {
    try await self.withServer { _, peer in
      await peer.send(garbage)
      #expect(await peer.rest().isEmpty)
    }
  }

  @Test func `a broken preface is closed`() async throws {
    try await self.withServer { _, peer in
      await peer.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
      _ = await peer.rest()
    }
  }

  @Test func `a connection without a preface is closed in time`() async throws {
    var configuration = RPCServer.Configuration()
    configuration.prefaceTimeout = .seconds(2)
    try await self.withServer(configuration) { _, peer in
      await peer.send("PR")
      #expect(await peer.rest().isEmpty)
    }
  }

  @Test func `another content type is HTTP 415`() async throws {
    try await self.withServer { _, peer in
      let headers = await self.answer(
        peer, to: RawPeer.request(stream: 1, changing: ["content-type": "application/json"]))
      #expect(headers[":status"] == "415")
      #expect(headers["grpc-message"] == "the content-type must be application/grpc")
    }
  }

  @Test func `another HTTP method is 405`() async throws {
    try await self.withServer { _, peer in
      let headers = await self.answer(
        peer, to: RawPeer.request(stream: 1, end: true, changing: [":method": "GET"]))
      #expect(headers[":status"] == "405")
    }
  }

  @Test func `an unknown encoding is unimplemented, and told what is`() async throws {
    try await self.withServer { _, peer in
      let headers = await self.answer(
        peer, to: RawPeer.request(stream: 1, adding: [("grpc-encoding", "deflate")]))
      #expect(headers[":status"] == "200")
      #expect(headers["grpc-status"] == "12")
      #expect(headers["grpc-accept-encoding"] == "identity,gzip")
    }
  }

  @Test func `a header list over the limit is refused with the numbers`() async throws {
    try await self.withServer { _, peer in
      // A frame above 16 KiB may come only once the server's settings are acknowledged.
      await peer.send(RawPeer.hello)
      _ = await peer.frame(ofType: 4)
      await peer.send(RawPeer.frame(4, flags: 1))
      let long = String(repeating: "x", count: 1000)
      await peer.send(
        RawPeer.request(stream: 1, adding: (0..<20).map { ("header-\($0)", long) }))
      let headers = RawPeer.decode(await peer.frame(ofType: 1)?.payload ?? [])
      #expect(headers["grpc-status"] == "8")
      #expect(headers["memq-limit"] == "16384")
    }
  }

  @Test(arguments: [("grpc-timeout", "soon"), ("grpc-timeout", "1"), ("trace-bin", "!!!")])
  func `malformed headers are refused by name`(name: String, value: String) async throws {
    try await self.withServer { _, peer in
      let headers = await self.answer(
        peer, to: RawPeer.request(stream: 1, adding: [(name, value)]))
      #expect(headers["grpc-status"] == "3")
      #expect(headers["grpc-message"]?.contains(name) == true)
    }
  }

  @Test func `a message that says it is compressed is refused`() async throws {
    try await self.withServer { _, peer in
      let data = RawPeer.frame(0, flags: 1, stream: 1, [1, 0, 0, 0, 2, 7, 7])
      let headers = await self.answer(peer, to: RawPeer.request(stream: 1) + data)
      #expect(headers["grpc-status"] == "13")
    }
  }

  @Test func `a message over the limit is refused by its prefix`() async throws {
    try await self.withServer { _, peer in
      let data = RawPeer.frame(0, stream: 1, [0, 0xff, 0xff, 0xff, 0xff])
      let headers = await self.answer(peer, to: RawPeer.request(stream: 1) + data)
      #expect(headers["grpc-status"] == "8")
      #expect(headers["memq-actual"] == "4294967295")
    }
  }

  @Test func `a request that ends inside a message is refused`() async throws {
    try await self.withServer { _, peer in
      let data = RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 9, 1])
      let headers = await self.answer(peer, to: RawPeer.request(stream: 1) + data)
      #expect(headers["grpc-status"] == "13")
    }
  }

  @Test func `the server enforces the deadline itself`() async throws {
    var router = RPCRouter()
    router.unary(.echo) { request, _ in
      if request.isEmpty { try await Task.sleep(for: .seconds(600)) }
      return request
    }
    try await self.withServer(router: router) { _, peer in
      let data = RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 0])
      let headers = await self.answer(
        peer, to: RawPeer.request(stream: 1, adding: [("grpc-timeout", "100m")]) + data)
      #expect(headers["grpc-status"] == "4")
    }
  }

  @Test func `streams beyond the limit are refused, the others served`() async throws {
    var configuration = RPCServer.Configuration()
    configuration.maxConcurrentStreams = 3
    try await self.withServer(configuration) { _, peer in
      await peer.send(RawPeer.hello)
      for number in 0..<5 { await peer.send(RawPeer.request(stream: UInt32(2 * number + 1))) }
      for expected: UInt32 in [7, 9] {
        let reset = await peer.frame(ofType: 3)
        #expect(reset?.stream == expected)
        #expect(reset?.payload == [0, 0, 0, 7])
      }
      await peer.send(RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 1, 42]))
      #expect(await peer.frame(ofType: 0)?.payload == [0, 0, 0, 0, 1, 42])
    }
  }

  @Test func `rapid resets end the connection`() async throws {
    try await self.withServer { _, peer in
      await peer.send(RawPeer.hello)
      var flood: [UInt8] = []
      for number in 0..<1500 {
        let stream = UInt32(2 * number + 1)
        flood += RawPeer.request(stream: stream) + RawPeer.frame(3, stream: stream, [0, 0, 0, 8])
      }
      await peer.send(flood)
      let goAway = await peer.frame(ofType: 7)
      #expect(goAway != nil)
      _ = await peer.rest()
    }
  }

  @Test func `empty frames without end end the connection`() async throws {
    try await self.withServer { _, peer in
      await peer.send(RawPeer.hello + RawPeer.request(stream: 1))
      let empty = RawPeer.frame(0, stream: 1)
      await peer.send(Array(repeatElement(empty, count: 2000).joined()))
      #expect(await peer.frame(ofType: 7) != nil)
      _ = await peer.rest()
    }
  }

  @Test func `a header block without end ends the connection`() async throws {
    try await self.withServer { _, peer in
      await peer.send(RawPeer.hello + RawPeer.frame(1, stream: 1, RawPeer.requestHeaders()))
      let more = RawPeer.frame(9, stream: 1, RawPeer.headers([("x", "y")]))
      await peer.send(Array(repeatElement(more, count: 100).joined()))
      _ = await peer.rest()
    }
  }

  @Test func `a peer that reads nothing does not fill the server`() async throws {
    let total = 4096
    let written = Atomic2(0)
    var router = RPCRouter.standard()
    router.serverStreaming(.test("Flood", .serverStreaming)) { _, _, writer in
      for _ in 0..<total {
        try await writer.send(.pattern(1 << 20))
        written.add(1)
      }
    }
    try await self.withServer(router: router) { bed, peer in
      // Windows of 2 GiB, and then nothing is credited or read by the peer's code.
      let settings = RawPeer.frame(4, [0, 4, 0x7f, 0xff, 0xff, 0xff])
      let window = RawPeer.frame(8, [0x7f, 0xff, 0, 0])
      await peer.pause()
      await peer.send(
        RawPeer.preface + settings + window
          + RawPeer.frame(
            1, flags: 4, stream: 1, RawPeer.requestHeaders("/memq.test.Test/Flood"))
          + RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 0]))
      for _ in 0..<200 { _ = try await bed.channel.unary(.echo, .pattern(1000)) }
      // The call's queue, the channel's watermark, and what the kernel takes.
      #expect(written.value < 32)
    }
  }

  @Test(arguments: 1...60)
  func `random frames do not harm the server`(seed: Int) async throws {
    var random = SeededGenerator(seed: UInt64(seed))
    var bytes = RawPeer.hello
    for _ in 0..<200 {
      let type = UInt8.random(in: 0...10, using: &random)
      let stream = UInt32.random(in: 0...9, using: &random)
      let flags = UInt8.random(in: 0...255, using: &random) & 0x2d
      switch Int.random(in: 0..<4, using: &random) {
      case 0: bytes += RawPeer.request(stream: stream | 1, end: Bool.random(using: &random))
      case 1:
        bytes += RawPeer.frame(
          0, flags: flags & 1, stream: stream | 1, [0, 0, 0, 0, 2, 1, 2])
      default:
        let payload = (0..<Int.random(in: 0...40, using: &random)).map { _ in
          UInt8.random(in: 0...255, using: &random)
        }
        bytes += RawPeer.frame(type, flags: flags, stream: stream, payload)
      }
    }
    try await self.withServer { _, peer in
      await peer.send(bytes)
    }
  }
}
