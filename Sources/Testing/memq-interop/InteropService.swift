// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import NIOCore

/// grpc.testing.TestService, as gRPC's public description of the interoperability tests wants it.
struct InteropService: Sendable {
  static let names = [InteropMethods.service]
  /// A response is one message, with a few bytes around the payload.
  static let payloadBytesMax = RPCLimits.messageBytesMax - 1024
  static let intervalMax: Duration = .seconds(60)
  /// HalfDuplexCall keeps all requests before it answers.
  static let keptRequestsMax = 1000

  func router() -> RPCRouter {
    var router = RPCRouter()
    self.add(to: &router, InteropMethods.empty) { reader, writer in
      _ = try await Self.only(Empty.self, in: reader)
      try await writer.send(RPCMessage())
    }
    self.add(to: &router, InteropMethods.unary) { reader, writer in
      let (request, wasCompressed) = try await Self.only(SimpleRequest.self, in: reader)
      if request.hasExpectCompressed {
        try Self.check(wasCompressed, expected: request.expectCompressed.value)
      }
      try Self.check(request.responseStatus, request.hasResponseStatus)
      try await writer.send(
        try Self.response(request.responseSize, compressed: request.responseCompressed.value))
    }
    self.add(to: &router, InteropMethods.output) { reader, writer in
      try await Self.answer(try await Self.only(OutputRequest.self, in: reader).request, writer)
    }
    self.add(to: &router, InteropMethods.input) { reader, writer in
      var bytes: Int64 = 0
      while let message = try await reader.next() {
        let request = try Self.decode(InputRequest.self, message)
        if request.hasExpectCompressed {
          try Self.check(message.wasCompressed, expected: request.expectCompressed.value)
        }
        bytes += Int64(request.payload.body.count)
      }
      var response = InputResponse()
      response.aggregatedPayloadSize = Int32(truncatingIfNeeded: bytes)
      try await writer.send(response.encoded())
    }
    self.add(to: &router, InteropMethods.fullDuplex) { reader, writer in
      while let message = try await reader.next() {
        try await Self.answer(try Self.decode(OutputRequest.self, message), writer)
      }
    }
    self.add(to: &router, InteropMethods.halfDuplex) { reader, writer in
      var requests: [OutputRequest] = []
      while let message = try await reader.next() {
        guard requests.count < Self.keptRequestsMax else {
          throw RPCStatus(.resourceExhausted, "more than \(Self.keptRequestsMax) requests")
        }
        requests.append(try Self.decode(OutputRequest.self, message))
      }
      for request in requests { try await Self.answer(request, writer) }
    }
    return router
  }

  private func add(
    to router: inout RPCRouter, _ method: RPCMethod,
    _ body: @escaping @Sendable (RPCReader, RPCWriter) async throws -> Void
  ) {
    router.bidirectional(method) { reader, context, writer in
      // Each response says for itself whether it may be.
      context.setCompression(.gzip)
      let metadata = context.metadata
      if let value = metadata[first: EchoMetadata.initial] {
        writer.sendHeaders(RPCMetadata([(EchoMetadata.initial, value)]))
      }
      if let value = metadata.binary(first: EchoMetadata.trailing) {
        writer.setBinaryTrailer(EchoMetadata.trailing, value)
      }
      try await body(reader, writer)
    }
  }

  // MARK: Parts of the calls

  private static func answer(_ request: OutputRequest, _ writer: RPCWriter) async throws {
    for wanted in request.responseParameters {
      let interval = Duration.microseconds(Int64(wanted.intervalUs))
      guard interval >= .zero, interval <= Self.intervalMax else {
        throw RPCStatus(.invalidArgument, "interval_us is 0 to 60000000, not \(wanted.intervalUs)")
      }
      if interval > .zero { try await Task.sleep(for: interval) }
      try await writer.send(try Self.response(wanted.size, compressed: wanted.compressed.value))
    }
    try Self.check(request.responseStatus, request.hasResponseStatus)
  }

  private static func check(_ wasCompressed: Bool, expected: Bool) throws {
    guard wasCompressed != expected else { return }
    throw RPCStatus(
      .invalidArgument,
      expected ? "the request was not compressed" : "the request was compressed")
  }

  private static func response(_ wanted: Int32, compressed: Bool) throws -> RPCMessage {
    guard wanted >= 0, wanted <= Self.payloadBytesMax else {
      throw RPCStatus(
        .invalidArgument, "a payload has 0 to \(Self.payloadBytesMax) bytes, not \(wanted)")
    }
    var response = RPCMessage.payload(ofZeros: Int(wanted))
    response.mayBeCompressed = compressed
    return response
  }

  /// Ends the call as the caller wants it to.
  private static func check(_ wanted: Grpc_Testing_EchoStatus, _ isSet: Bool) throws {
    guard isSet, wanted.code != 0 else { return }
    throw RPCStatus(RPCCode(rawValue: Int(wanted.code)) ?? .unknown, wanted.message)
  }

  private static func only<Request: SwiftProtobufMessage>(
    _ type: Request.Type, in reader: RPCReader
  ) async throws -> (request: Request, wasCompressed: Bool) {
    guard let message = try await reader.next() else {
      throw RPCStatus(.unimplemented, "no request in a call that takes one")
    }
    let request = try Self.decode(type, message)
    guard try await reader.next() == nil else {
      throw RPCStatus(.unimplemented, "more than one request in a call that takes one")
    }
    return (request, message.wasCompressed)
  }

  private static func decode<Request: SwiftProtobufMessage>(
    _ type: Request.Type, _ message: RPCMessage
  ) throws -> Request {
    do throws(MemQError) {
      return try Request(decoding: message)
    } catch {
      throw RPCStatus(error)
    }
  }
}
