// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import MemQAPI
import MemQModel
import MemQRPC
import NIOCore
import SwiftProtobuf

typealias SwiftProtobufMessage = SwiftProtobuf.Message & Sendable

/// The cases, by the names they have everywhere.
enum InteropCase: String, CaseIterable, Sendable {
  case emptyUnary = "empty_unary"
  case largeUnary = "large_unary"
  case clientStreaming = "client_streaming"
  case serverStreaming = "server_streaming"
  case pingPong = "ping_pong"
  case emptyStream = "empty_stream"
  case cancelAfterBegin = "cancel_after_begin"
  case cancelAfterFirstResponse = "cancel_after_first_response"
  case timeoutOnSleepingServer = "timeout_on_sleeping_server"
  case customMetadata = "custom_metadata"
  case statusCodeAndMessage = "status_code_and_message"
  case specialStatusMessage = "special_status_message"
  case unimplementedMethod = "unimplemented_method"
  case unimplementedService = "unimplemented_service"
  case clientCompressedUnary = "client_compressed_unary"
  case serverCompressedUnary = "server_compressed_unary"
  case clientCompressedStreaming = "client_compressed_streaming"
  case serverCompressedStreaming = "server_compressed_streaming"
}

/// How a case went.
struct CaseResult: Sendable, Encodable {
  let name: String
  /// What was not as it should be; nil: passed.
  let failure: String?
  let milliseconds: Int

  var line: String {
    if let failure = self.failure { return "FAIL \(self.name): \(failure)" }
    return "pass \(self.name) \(self.milliseconds) ms"
  }

  static func json(_ results: [CaseResult]) -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
    // Strings and numbers encode.
    let bytes = try! encoder.encode(results)
    return String(decoding: bytes, as: UTF8.self)
  }
}

/// A case met something else than it expects.
struct CaseFailure: Error, CustomStringConvertible {
  let description: String

  init(_ description: String) { self.description = description }
}

/// Runs the cases.
struct InteropClient: Sendable {
  static let largeRequestBytes = 271_828
  static let largeResponseBytes = 314_159
  static let requestBytes = [27_182, 8, 1_828, 45_904]
  static let responseBytes = [31_415, 9, 2_653, 58_979]

  let channel: any RPCChannel
  /// For each call, and so for each case.
  let timeout: Duration

  func run(_ interopCase: InteropCase) async -> CaseResult {
    let start = ContinuousClock.now
    var failure: String?
    do {
      try await self.body(interopCase)
    } catch {
      failure = "\(error)"
    }
    let milliseconds = Int((ContinuousClock.now - start) / .milliseconds(1))
    return CaseResult(name: interopCase.rawValue, failure: failure, milliseconds: milliseconds)
  }

  private func body(_ interopCase: InteropCase) async throws {
    switch interopCase {
    case .emptyUnary: try await self.emptyUnary()
    case .largeUnary: try await self.largeUnary()
    case .clientStreaming: try await self.clientStreaming()
    case .serverStreaming: try await self.serverStreaming()
    case .pingPong: try await self.pingPong()
    case .emptyStream: try await self.emptyStream()
    case .cancelAfterBegin: try await self.cancelAfterBegin()
    case .cancelAfterFirstResponse: try await self.cancelAfterFirstResponse()
    case .timeoutOnSleepingServer: try await self.timeoutOnSleepingServer()
    case .customMetadata: try await self.customMetadata()
    case .statusCodeAndMessage: try await self.statusCodeAndMessage()
    case .specialStatusMessage: try await self.specialStatusMessage()
    case .unimplementedMethod: try await self.unimplemented(InteropMethods.unimplemented)
    case .unimplementedService: try await self.unimplemented(InteropMethods.ofUnimplementedService)
    case .clientCompressedUnary: try await self.clientCompressedUnary()
    case .serverCompressedUnary: try await self.serverCompressedUnary()
    case .clientCompressedStreaming: try await self.clientCompressedStreaming()
    case .serverCompressedStreaming: try await self.serverCompressedStreaming()
    }
  }

  // MARK: The cases

  private func emptyUnary() async throws {
    let answer = try await self.exchange(InteropMethods.empty, Empty().encoded())
    try require(answer.message.isEmpty, "the response has \(answer.message.byteCount) bytes, not 0")
  }

  private func largeUnary() async throws {
    let answer = try await self.exchange(InteropMethods.unary, Self.largeRequest.encoded())
    try Self.check(answer.message, payloadBytes: Self.largeResponseBytes)
  }

  private func clientStreaming() async throws {
    let stream = try await self.open(InteropMethods.input)
    for count in Self.requestBytes {
      var request = InputRequest()
      request.payload = .zeros(count)
      try await stream.send(request.encoded())
    }
    try await stream.halfClose()
    let response = try InputResponse(decoding: try await Self.only(in: stream.responses))
    let sum = Self.requestBytes.reduce(0, +)
    try require(
      response.aggregatedPayloadSize == Int32(sum),
      "aggregated_payload_size is \(response.aggregatedPayloadSize), not \(sum)")
  }

  private func serverStreaming() async throws {
    let stream = try await self.open(InteropMethods.output)
    try await stream.send(Self.request(responses: Self.responseBytes).encoded())
    try await stream.halfClose()
    for count in Self.responseBytes { try await Self.next(in: stream, payloadBytes: count) }
    try await Self.expectEnd(of: stream)
  }

  private func pingPong() async throws {
    let stream = try await self.open(InteropMethods.fullDuplex)
    for (request, response) in zip(Self.requestBytes, Self.responseBytes) {
      try await stream.send(Self.request(responses: [response], payload: request).encoded())
      try await Self.next(in: stream, payloadBytes: response)
    }
    try await stream.halfClose()
    try await Self.expectEnd(of: stream)
  }

  private func emptyStream() async throws {
    let stream = try await self.open(InteropMethods.fullDuplex)
    try await stream.halfClose()
    try await Self.expectEnd(of: stream)
  }

  private func cancelAfterBegin() async throws {
    let stream = try await self.open(InteropMethods.input)
    stream.cancel()
    try await Self.expect(.cancelled) { _ = try await stream.responses.next() }
  }

  private func cancelAfterFirstResponse() async throws {
    let stream = try await self.open(InteropMethods.fullDuplex)
    let request = Self.request(
      responses: [Self.responseBytes[0]], payload: Self.requestBytes[0])
    try await stream.send(request.encoded())
    try await Self.next(in: stream, payloadBytes: Self.responseBytes[0])
    stream.cancel()
    try await Self.expect(.cancelled) { _ = try await stream.responses.next() }
  }

  /// The server waits for more requests, so the deadline is what ends the call.
  private func timeoutOnSleepingServer() async throws {
    let stream = try await self.channel.bidirectional(
      InteropMethods.fullDuplex, RPCCallOptions(timeout: .milliseconds(1), waitForReady: true))
    try await Self.expect(.deadlineExceeded) {
      try await stream.send(
        Self.request(responses: [], payload: Self.requestBytes[0]).encoded())
      _ = try await stream.responses.next()
    }
  }

  private func customMetadata() async throws {
    var metadata = RPCMetadata()
    metadata.add(EchoMetadata.initial, "test_initial_metadata_value")
    metadata.addBinary(EchoMetadata.trailing, [0xab, 0xab, 0xab])
    let unary = try await self.exchange(InteropMethods.unary, Self.largeRequest.encoded(), metadata)
    try Self.check(unary.message, payloadBytes: Self.largeResponseBytes)
    try Self.check(headers: unary.headers, trailers: unary.trailers)

    let stream = try await self.open(InteropMethods.fullDuplex, metadata)
    let request = Self.request(
      responses: [Self.largeResponseBytes], payload: Self.largeRequestBytes)
    try await stream.send(request.encoded())
    try await stream.halfClose()
    try await Self.next(in: stream, payloadBytes: Self.largeResponseBytes)
    try await Self.expectEnd(of: stream)
    try Self.check(headers: stream.headers, trailers: stream.trailers)
  }

  private static func check(headers: RPCMetadata, trailers: RPCMetadata) throws {
    let value = headers[first: EchoMetadata.initial]
    try require(
      value == "test_initial_metadata_value",
      "the headers hold \(EchoMetadata.initial): \(value ?? "nothing")")
    let binary = trailers.binary(first: EchoMetadata.trailing)
    try require(
      binary == [0xab, 0xab, 0xab],
      "the trailers hold \(EchoMetadata.trailing): \(binary.map { "\($0)" } ?? "nothing")")
  }

  private func statusCodeAndMessage() async throws {
    try await self.expectStatus("test status message", InteropMethods.unary)
    try await self.expectStatus("test status message", InteropMethods.fullDuplex)
  }

  private func specialStatusMessage() async throws {
    let text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    try await self.expectStatus(text, InteropMethods.unary)
  }

  private func expectStatus(_ text: String, _ method: RPCMethod) async throws {
    var wanted = Grpc_Testing_EchoStatus()
    wanted.code = 2
    wanted.message = text
    let request: RPCMessage
    if method == InteropMethods.unary {
      request = SimpleRequest.with { $0.responseStatus = wanted }.encoded()
    } else {
      request = OutputRequest.with { $0.responseStatus = wanted }.encoded()
    }
    let stream = try await self.open(method)
    try await stream.send(request)
    try await stream.halfClose()
    let status = await Self.status { _ = try await stream.responses.next() }
    try require(
      status.code == .unknown && Array(status.message.utf8) == Array(text.utf8),
      "\(method.name) ended with \(status)")
  }

  private func unimplemented(_ method: RPCMethod) async throws {
    try await Self.expect(.unimplemented) { _ = try await self.exchange(method, Empty().encoded()) }
  }

  // MARK: Compression

  /// First a probe: a server that does not look at the flag cannot be tested.
  private func clientCompressedUnary() async throws {
    func request(expecting compressed: Bool, is actually: Bool) -> RPCMessage {
      var request = Self.largeRequest
      request.expectCompressed = .with { $0.value = compressed }
      return request.encoded(compressed: actually)
    }
    try await Self.expect(.invalidArgument) {
      _ = try await self.exchange(
        InteropMethods.unary, request(expecting: true, is: false), compression: .gzip)
    }
    for compressed in [true, false] {
      let answer = try await self.exchange(
        InteropMethods.unary, request(expecting: compressed, is: compressed), compression: .gzip)
      try Self.check(answer.message, payloadBytes: Self.largeResponseBytes)
    }
  }

  private func serverCompressedUnary() async throws {
    for compressed in [true, false] {
      var request = Self.largeRequest
      request.responseCompressed = .with { $0.value = compressed }
      let answer = try await self.exchange(InteropMethods.unary, request.encoded())
      try Self.check(answer.message, payloadBytes: Self.largeResponseBytes)
      try Self.check(answer.message, wasCompressed: compressed)
    }
  }

  private func clientCompressedStreaming() async throws {
    func request(_ count: Int, expecting compressed: Bool, is actually: Bool) -> RPCMessage {
      InputRequest.with { request in
        request.expectCompressed = .with { $0.value = compressed }
        request.payload = .zeros(count)
      }.encoded(compressed: actually)
    }
    let probe = try await self.open(InteropMethods.input, compression: .gzip)
    try await probe.send(request(27_182, expecting: true, is: false))
    try await probe.halfClose()
    try await Self.expect(.invalidArgument) { _ = try await probe.responses.next() }

    let stream = try await self.open(InteropMethods.input, compression: .gzip)
    try await stream.send(request(27_182, expecting: true, is: true))
    try await stream.send(request(45_904, expecting: false, is: false))
    try await stream.halfClose()
    let response = try InputResponse(decoding: try await Self.only(in: stream.responses))
    try require(
      response.aggregatedPayloadSize == 73_086,
      "aggregated_payload_size is \(response.aggregatedPayloadSize), not 73086")
  }

  private func serverCompressedStreaming() async throws {
    let wanted = [(31_415, true), (92_653, false)]
    let request = OutputRequest.with { request in
      request.responseParameters = wanted.map { count, compressed in
        Grpc_Testing_ResponseParameters.with {
          $0.size = Int32(count)
          $0.compressed = .with { $0.value = compressed }
        }
      }
    }
    let stream = try await self.open(InteropMethods.output)
    try await stream.send(request.encoded())
    try await stream.halfClose()
    for (count, compressed) in wanted {
      let message = try await Self.next(in: stream, payloadBytes: count)
      try Self.check(message, wasCompressed: compressed)
    }
    try await Self.expectEnd(of: stream)
  }

  private static func check(_ message: RPCMessage, wasCompressed: Bool) throws {
    try require(
      message.wasCompressed == wasCompressed,
      "a response was \(message.wasCompressed ? "" : "not ")compressed")
  }

  // MARK: Parts of the cases

  struct Answer {
    let message: RPCMessage
    let headers: RPCMetadata
    let trailers: RPCMetadata
  }

  private func open(
    _ method: RPCMethod, _ metadata: RPCMetadata = RPCMetadata(),
    compression: RPCCompression = .identity
  ) async throws -> RPCClientStream {
    var options = RPCCallOptions(timeout: self.timeout, metadata: metadata)
    options.compression = compression
    return try await self.channel.bidirectional(method, options)
  }

  private func exchange(
    _ method: RPCMethod, _ request: RPCMessage,
    _ metadata: RPCMetadata = RPCMetadata(), compression: RPCCompression = .identity
  ) async throws -> Answer {
    let stream = try await self.open(method, metadata, compression: compression)
    try await stream.send(request)
    try await stream.halfClose()
    let message = try await Self.only(in: stream.responses)
    return Answer(message: message, headers: stream.headers, trailers: stream.trailers)
  }

  static let largeRequest = SimpleRequest.with {
    $0.responseSize = Int32(Self.largeResponseBytes)
    $0.payload = .zeros(Self.largeRequestBytes)
  }

  private static func request(responses: [Int], payload: Int? = nil) -> OutputRequest {
    OutputRequest.with { request in
      request.responseParameters = responses.map { count in
        Grpc_Testing_ResponseParameters.with { $0.size = Int32(count) }
      }
      if let payload { request.payload = .zeros(payload) }
    }
  }

  private static func only(in reader: RPCReader) async throws -> RPCMessage {
    guard let message = try await reader.next() else { throw CaseFailure("no response") }
    guard try await reader.next() == nil else { throw CaseFailure("more than one response") }
    return message
  }

  @discardableResult
  private static func next(
    in stream: RPCClientStream, payloadBytes: Int
  ) async throws -> RPCMessage {
    guard let message = try await stream.responses.next() else {
      throw CaseFailure("the responses ended before one of \(payloadBytes) bytes")
    }
    try Self.check(message, payloadBytes: payloadBytes)
    return message
  }

  private static func expectEnd(of stream: RPCClientStream) async throws {
    if let message = try await stream.responses.next() {
      throw CaseFailure("a response of \(message.byteCount) bytes that nobody asked for")
    }
  }

  private static func check(_ message: RPCMessage, payloadBytes: Int) throws {
    let body = try OutputResponse(decoding: message).payload.body
    try require(
      body.count == payloadBytes, "a payload of \(body.count) bytes instead of \(payloadBytes)")
    try require(
      body.allSatisfy { $0 == 0 }, "the payload's bytes are not all zero")
  }

  private static func status(_ body: () async throws -> Void) async -> RPCStatus {
    do {
      try await body()
      return .ok
    } catch let status as RPCStatus {
      return status
    } catch {
      return RPCStatus(.unknown, "\(error)")
    }
  }

  private static func expect(_ code: RPCCode, _ body: () async throws -> Void) async throws {
    let status = await Self.status(body)
    guard status.code == code else { throw CaseFailure("ended with \(status), not \(code)") }
  }

}

private func require(_ condition: Bool, _ text: @autoclosure () -> String) throws {
  guard condition else { throw CaseFailure(text()) }
}

extension SwiftProtobuf.Message {
  fileprivate func encoded(compressed: Bool) -> RPCMessage {
    var message: RPCMessage = self.encoded()
    message.mayBeCompressed = compressed
    return message
  }
}

extension Grpc_Testing_Payload {
  static func zeros(_ count: Int) -> Self {
    Self.with { $0.body = Data(count: count) }
  }
}
