// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Testing

@testable import MemQRPC

/// Corners of the gRPC contract.
@Suite(.timeLimit(.minutes(5))) struct ContractTests {
  private func head(_ request: [UInt8]) async throws -> [String: String] {
    var router = RPCRouter.standard()
    router.unary(.hang) { request, _ in request }
    return try await withBed(.network, router) { (bed: TestBed) async throws -> [String: String] in
      let peer = try await RawPeer.connect(port: bed.servers[0].localPort)
      await peer.send(RawPeer.hello + request)
      let frame = await peer.frame(ofType: 1)
      await peer.close()
      return RawPeer.decode(frame?.payload ?? [])
    }
  }

  @Test(arguments: [
    ("application/grpc", "200"), ("application/grpc+proto", "200"),
    ("application/grpc;charset=utf-8", "200"), ("application/grpc+proto; a=b", "200"),
    ("application/grpc+json", "415"), ("application/grpc+protobuf", "415"),
    ("application/grpc-web", "415"), ("application/grpcx", "415"), ("text/plain", "415"),
  ])
  func `only protobuf is spoken`(contentType: String, status: String) async throws {
    let head = try await self.head(
      RawPeer.request(stream: 1, end: true, changing: ["content-type": contentType]))
    #expect(head[":status"] == status)
  }

  @Test(arguments: [
    ("0n", RPCCode.deadlineExceeded), ("99999999H", .ok), ("1S", .ok),
    ("100000000n", .invalidArgument),
    ("", .invalidArgument), ("S", .invalidArgument), ("-1S", .invalidArgument),
    ("1.5S", .invalidArgument), ("1s", .invalidArgument),
  ])
  func `timeouts are eight digits and a unit`(timeout: String, code: RPCCode) async throws {
    let message: [UInt8] = [0, 0, 0, 0, 0]
    let path = "/memq.test.Test/" + (code == .deadlineExceeded ? "Sum" : "Echo")
    let body = code == .deadlineExceeded ? [] : RawPeer.frame(0, flags: 1, stream: 1, message)
    let head = try await self.head(
      RawPeer.request(
        stream: 1, changing: [":path": path], adding: [("grpc-timeout", timeout)]) + body)
    #expect(head["grpc-status"] == (code == .ok ? nil : "\(code.rawValue)"))
  }

  @Test func `odd metadata arrives as the contract says`() async throws {
    var router = RPCRouter()
    router.unary(.echo) { _, context in
      let texts = context.metadata.all("text").map { "[\($0)]" }.joined()
      let binaries = context.metadata.entries.compactMap { entry -> String? in
        guard case .binary(let bytes) = entry.value else { return nil }
        return "\(bytes)"
      }
      return RPCMessage(texts + binaries.joined())
    }
    try await withBed(.network, router) { (bed: TestBed) async throws -> Void in
      var options = RPCCallOptions(timeout: .seconds(60))
      // Spaces at the ends would break the stream; other bytes have no place in a header.
      for value in ["  both ends ", "twice", "twice", "", "   ", "grün\n"] {
        options.metadata.add("text", value)
      }
      options.metadata.addBinary("raw-bin", [])
      options.metadata.addBinary("raw-bin", [0, 255, 1, 2])
      let text = try await bed.channel.unary(.echo, RPCMessage(), options).text
      #expect(text == "[both ends][twice][twice][][][gr??n?][][0, 255, 1, 2]")
    }
  }

  @Test(arguments: [
    ("AAEC", [[UInt8(0), 1, 2]]), ("AAE=", [[0, 1]]), ("AAE", [[0, 1]]),
    ("AA==,AQ , Ag", [[0], [1], [2]]),
    ("", [[]]), ("AA,,AQ==", [[0], [], [1]]),
  ])
  func `binary values come padded or not, joined or not`(text: String, values: [[UInt8]]) {
    var metadata = RPCMetadata()
    let isGood = Array("a-bin".utf8).withUnsafeBufferPointer { name in
      Array(text.utf8).withUnsafeBufferPointer { metadata.addReceived(name, $0) }
    }
    #expect(isGood)
    #expect(metadata.entries.map(\.value) == values.map { .binary($0) })
  }

  @Test(arguments: ["A", "AAAAA", "A=A", "AA===", "@@", "ÄÄ"])
  func `what is not base64 is refused`(text: String) {
    var metadata = RPCMetadata()
    let isGood = Array("a-bin".utf8).withUnsafeBufferPointer { name in
      Array(text.utf8).withUnsafeBufferPointer { metadata.addReceived(name, $0) }
    }
    #expect(!isGood)
  }

  @Test func `names with a meaning of their own are not for users`() {
    for name in ["grpc-status", "grpc-anything", ":path", "te", "content-type", "", "a b", "ü"] {
      #expect(!RPCMetadata.isLegal(name))
    }
    for name in ["x-trace", "a_b.c-1", "authorization"] { #expect(RPCMetadata.isLegal(name)) }
  }

  @Test(arguments: [Transport.network, .forwarded])
  func `any status message comes as it was`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { (bed: TestBed) async throws -> Void in
      for text in [
        " leading", "trailing ", " ", "100 %", "%41", "%zz%", "a\r\nb\u{0}", "☃ und ü", "",
      ] {
        let end = await status { _ = try await bed.channel.unary(.fail, RPCMessage(text)) }
        #expect(end.message == text && end.code == .failedPrecondition)
      }
    }
  }

  @Test(arguments: ["%", "%4", "%zz", "a%", "%E2%98", "%FF"])
  func `broken escapes stand for themselves or are repaired`(text: String) {
    let decoded = Array(text.utf8).withUnsafeBufferPointer { PercentCoding.decode($0) }
    #expect(text.hasPrefix("%E2") || text == "%FF" ? decoded.contains("\u{fffd}") : decoded == text)
  }

  @Test func `a status too large for headers is told without what does not fit`() async throws {
    var router = RPCRouter.standard()
    router.unary(.hang) { request, _ in
      var status = RPCStatus(.aborted, "short", details: [UInt8](repeating: 1, count: 50_000))
      for number in 0..<300 {
        status.trailers.add("trailer-\(number)", String(repeating: "x", count: 5_000))
      }
      throw status
    }
    try await withBed(.network, router) { (bed: TestBed) async throws -> Void in
      let stream = try await bed.channel.bidirectional(.chat)
      let end = await status { _ = try await bed.channel.unary(.hang, RPCMessage()) }
      #expect(end.code == .aborted && end.message == "short" && end.details.isEmpty)
      #expect(end.trailers[first: "memq-omitted-details"] == "50000")
      #expect(end.trailers[first: "memq-omitted-trailers"] != nil)
      // The other calls of the connection go on.
      try await stream.send(RPCMessage("hello"))
      #expect(try await stream.responses.next()?.text == "hello")
    }
  }

  @Test func `metadata beyond all limits costs its own call and no other`() async throws {
    try await withBed(.network, .standard()) { (bed: TestBed) async throws -> Void in
      let stream = try await bed.channel.bidirectional(.chat)
      for bytes in [20_000, 40_000, 2_000_000] {
        var options = RPCCallOptions(timeout: .seconds(60))
        options.metadata.add("large", String(repeating: "x", count: bytes))
        let end = await status { _ = try await bed.channel.unary(.echo, RPCMessage(), options) }
        #expect(end.code == .resourceExhausted)
      }
      try await stream.send(RPCMessage("hello"))
      #expect(try await stream.responses.next()?.text == "hello")
    }
  }

  @Test(arguments: [
    ([("grpc-status", "5"), ("grpc-message", "gone%21")], RPCCode.notFound, "gone!"),
    ([("grpc-status", "99")], .unknown, ""), ([("grpc-status", "x")], .unknown, ""),
    ([], .internal, "the server ended the call without a status"),
    ([("grpc-status", "0")], .internal, "no response in a call that has one"),
  ])
  func `a response of trailers only is a status`(
    trailers: [(String, String)], code: RPCCode, message: String
  ) async throws {
    let answer = RawServer.settings + RawServer.trailersOnly(trailers)
    let server = try await RawServer.start { _ in answer }
    let channel = RPCNetworkChannel(
      target: server.address, group: TestBed.group, logger: TestBed.quietLogger())
    let end = await status { _ = try await channel.unary(.echo, RPCMessage()) }
    #expect(end.code == code && end.message == message)
    await channel.close(deadline: .zero)
    await server.stop()
  }

  @Test func `a status in the middle of a message is the status`() async throws {
    let head = RawPeer.headers([(":status", "200"), ("content-type", "application/grpc")])
    for (code, expected) in [("8", RPCCode.resourceExhausted), ("0", .internal)] {
      let answer =
        RawServer.settings + RawPeer.frame(1, flags: 4, stream: 1, head)
        + RawPeer.frame(0, stream: 1, [0, 0, 0, 0, 100, 1, 2, 3])
        + RawServer.trailers([("grpc-status", code)])
      let server = try await RawServer.start { _ in answer }
      let channel = RPCNetworkChannel(
        target: server.address, group: TestBed.group, logger: TestBed.quietLogger())
      #expect(await status { _ = try await channel.unary(.echo, RPCMessage()) }.code == expected)
      await channel.close(deadline: .zero)
      await server.stop()
    }
  }

  @Test func `a channel that is closed again, sooner, does not wait for the first time`()
    async throws
  {
    let began = Signal<Void>()
    var router = RPCRouter()
    router.unary(.hang) { _, _ in
      began.fire(())
      try await Task.sleep(for: .seconds(1000))
      return RPCMessage()
    }
    try await withBed(.network, router) { (bed: TestBed) async throws -> Void in
      let channel = bed.channel
      let call = Task { await status { _ = try await channel.unary(.hang, RPCMessage()) } }
      await began.value
      let first = Task { await channel.close(deadline: .seconds(1000)) }
      await channel.close(deadline: .milliseconds(100))
      await first.value
      #expect(await call.value.code == .unavailable)
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `a writer whose call is over says how it ended`(transport: Transport) async throws {
    let began = Signal<Void>()
    let told = Signal<RPCStatus>()
    var router = RPCRouter()
    router.bidirectional(.chat) { reader, _, writer in
      began.fire(())
      while try await reader.next() != nil {}
    }
    router.serverStreaming(.count) { _, _, writer in
      began.fire(())
      // Waits for its own cancellation, and writes all the same.
      try? await Task.sleep(for: .seconds(1000))
      told.fire(await status { try await writer.send(RPCMessage("too late")) })
    }
    try await withBed(transport, router) { (bed: TestBed) async throws -> Void in
      do {
        let reader = try await bed.channel.serverStreaming(.count, RPCMessage())
        await began.value
        withExtendedLifetime(reader) {}
      }
      // Nobody holds the stream any more: that cancels the call.
      #expect(await told.value.code == .cancelled)
    }
  }
}
