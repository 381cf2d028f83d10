// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import NIOCore
import Testing

/// Metadata that leaves with the response's headers, before and apart from the trailers.
@Suite(.timeLimit(.minutes(10))) struct HeadersTests {
  private func router() -> RPCRouter {
    var router = RPCRouter()
    router.bidirectional(.chat) { reader, context, writer in
      var headers = RPCMetadata([("early", "1")])
      headers.addBinary("raw-bin", [1, 0, 255])
      writer.sendHeaders(headers)
      // Too late.
      writer.sendHeaders(RPCMetadata([("early", "2")]))
      writer.setTrailer("late", "3")
      for try await message in reader { try await writer.send(message) }
    }
    router.bidirectional(.late) { reader, _, writer in
      try await writer.send(RPCMessage("first"))
      writer.sendHeaders(RPCMetadata([("early", "1")]))
      throw RPCStatus(.aborted, "enough", trailers: RPCMetadata([("late", "3")]))
    }
    return router
  }

  @Test(arguments: Transport.allCases)
  func `headers come before the first message and stay apart from the trailers`(
    transport: Transport
  ) async throws {
    try await withBed(transport, self.router()) { bed in
      let came = Signal<RPCMetadata>()
      let call = bed.channel.start(.chat) { _ in HeadersOnly(came) }
      // No message was sent: the headers come by themselves.
      let headers = await came.value
      #expect(headers[first: "early"] == "1" && headers.binary(first: "raw-bin") == [1, 0, 255])
      call.cancel()

      let stream = try await bed.channel.bidirectional(.chat)
      try await stream.send(RPCMessage("x"))
      #expect(try await stream.responses.next()?.text == "x")
      #expect(stream.headers.all("early") == ["1"] && stream.headers.all("late").isEmpty)
      try await stream.halfClose()
      #expect(try await stream.responses.next() == nil)
      #expect(stream.trailers == RPCMetadata([("late", "3")]))
    }
  }

  @Test(arguments: Transport.allCases)
  func `headers after the first message are not sent`(transport: Transport) async throws {
    try await withBed(transport, self.router()) { bed in
      let stream = try await bed.channel.bidirectional(.late)
      #expect(try await stream.responses.next()?.text == "first")
      let end = await status { _ = try await stream.responses.next() }
      #expect(end.code == .aborted && end.trailers == RPCMetadata([("late", "3")]))
      #expect(stream.headers.isEmpty)
    }
  }
}

extension RPCMethod {
  fileprivate static let late = test("Late", .bidirectional)
}

private final class HeadersOnly: RPCClientHandler {
  private let signal: Signal<RPCMetadata>

  init(_ signal: Signal<RPCMetadata>) { self.signal = signal }

  func receivedHeaders(_ metadata: RPCMetadata) { self.signal.fire(metadata) }
  func received(_ message: RPCMessage) {}
  func writable() {}
  func ended(_ status: RPCStatus, trailers: RPCMetadata) {}
}
