// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import MemQAPI
import MemQModel
import MemQRPC
import MemQTestSupport
import NIOCore
import SwiftProtobuf
import Testing

/// The typed layer: messages, errors, payloads that pass by reference.
@Suite(.timeLimit(.minutes(5))) struct TypedTests {
  @Test(arguments: Transport.allCases)
  func `an error crosses whole`(transport: Transport) async throws {
    let thrown = MemQError(
      .recordBatchTooLarge, "größer als erlaubt", subject: "events/3", limit: 1000, actual: 2000,
      isRetriable: true)
    var router = RPCRouter()
    router.handle(MetadataMethods.createTopic) { _, _ in throw thrown }
    try await withBed(transport, router) { bed in
      do throws(MemQError) {
        _ = try await bed.channel.call(MetadataMethods.createTopic, .init(), timeout: .seconds(30))
        Issue.record("no error")
      } catch {
        #expect(error == thrown)
      }
    }
  }

  @Test func `every code keeps its number and its text`() {
    for code in ErrorCode.allCases {
      let error = MemQError(code, "text", limit: nil, actual: -1)
      let status = RPCStatus(error)
      #expect(!status.isOK)
      #expect(MemQError(status) == error)
      #expect(MemQError(Memq_V1_ErrorDetail(error)) == error)
    }
  }

  @Test func `statuses of others become errors of ours`() {
    for code in RPCCode.allCases where code != .ok {
      #expect(MemQError(RPCStatus(code, "text")).message == "text")
    }
    #expect(MemQError(RPCStatus(.unavailable)).isRetriable)
    let tooLarge = MemQError(.overLimit("message", limit: 5, actual: 6))
    #expect(tooLarge.code == .messageTooLarge && tooLarge.limit == 5 && tooLarge.actual == 6)
    // Details that are garbage.
    #expect(MemQError(RPCStatus(.aborted, "text", details: [255, 255, 1])).message == "text")
  }

  @Test func `long texts of an error are shortened, and cost nobody the connection`() async throws {
    let long = String(repeating: "☃", count: 50_000)
    let short = MemQError(RPCStatus(MemQError(.fileNotFound, long, subject: long, limit: 7)))
    #expect(short.code == .fileNotFound && short.limit == 7)
    #expect(short.subject.utf8.count <= 1_024 && short.subject.hasSuffix("☃…"))
    #expect(short.message.utf8.count <= 1_024 && short.message.hasSuffix("☃…"))
    let fails = RPCMethod.test("LongError", .unary)
    var router = RPCRouter.standard()
    router.unary(fails) { request, _ in
      if request.isEmpty { throw RPCStatus(MemQError(.fileNotFound, long, subject: long)) }
      throw RPCStatus(.aborted, long, details: [UInt8](repeating: 1, count: 100_000))
    }
    try await withBed(.network, router) { bed in
      // A call that is open all the while on the same connection.
      let other = try await bed.channel.bidirectional(.chat)
      let ours = await status { _ = try await bed.channel.unary(fails, RPCMessage()) }
      #expect(MemQError(ours).subject == short.subject)
      let plain = await status { _ = try await bed.channel.unary(fails, .pattern(1)) }
      #expect(plain.code == .aborted && plain.message.hasSuffix("☃…") && plain.details.isEmpty)
      try await other.send(.pattern(10))
      #expect(try await other.responses.next()?.byteCount == 10)
      other.cancel()
    }
  }

  @Test(arguments: Transport.allCases)
  func `typed calls of all shapes`(transport: Transport) async throws {
    var router = RPCRouter()
    router.handle(MetadataMethods.listTopics) { _, context in
      var response = Memq_V1_ListTopicsResponse()
      response.topics = [.with { $0.name = context.metadata[first: "want"] ?? "" }]
      return response
    }
    router.handleHotBidirectional(IngestMethods.produce) { reader, _, writer in
      while let request = try await reader.next() {
        var response = Memq_V1_ProduceResponse()
        response.requestID = UInt64(request.payload.byteCount)
        try await writer.send(response)
      }
    }
    router.handleHotServerStream(IngestMethods.fetch) { request, _, writer in
      for number in 0..<3 {
        try await writer.send(
          Hot(
            Memq_V1_FetchResponse(), payload: .pattern(Int(request.maxBytes), seed: UInt8(number))))
      }
      throw MemQError(.offsetOutOfRange, "that was all")
    }
    try await withBed(transport, router) { bed in
      var metadata = RPCMetadata()
      metadata.add("want", "events")
      let topics = try await bed.channel.call(
        MetadataMethods.listTopics, .init(), RPCCallOptions(metadata: metadata))
      #expect(topics.topics.first?.name == "events")

      let produce = try await bed.channel.openHot(IngestMethods.produce)
      for size in [0, 10, 1 << 20] {
        try await produce.send(Hot(Memq_V1_ProduceRequest(), payload: .pattern(size)))
        #expect(try await produce.responses.next()?.requestID == UInt64(size))
      }
      try await produce.halfClose()
      #expect(try await produce.responses.next() == nil)

      let fetch = try await bed.channel.streamHot(
        IngestMethods.fetch, .with { $0.maxBytes = 100_000 })
      for number in 0..<3 {
        #expect(try await fetch.next()?.payload == .pattern(100_000, seed: UInt8(number)))
      }
      do throws(MemQError) {
        _ = try await fetch.next()
        Issue.record("no error")
      } catch {
        #expect(error.code == .offsetOutOfRange)
      }
    }
  }

  @Test(arguments: [Transport.inProcess, .network])
  func `what is no message is the caller's fault`(transport: Transport) async throws {
    var router = RPCRouter()
    router.handle(MetadataMethods.createTopic) { _, _ in .init() }
    try await withBed(transport, router) { bed in
      let status = await status {
        _ = try await bed.channel.unary(
          MetadataMethods.createTopic.rpc, RPCMessage(bytes: [255, 255, 255]))
      }
      #expect(status.code == .invalidArgument)
      #expect(MemQError(status).code == .corruptMessage)
    }
  }

  // MARK: Payload splitting

  private func cut(_ bytes: [UInt8], _ random: inout SeededGenerator) -> RPCMessage {
    var message = RPCMessage()
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = min(rest.count, Int.random(in: 1...40, using: &random))
      message.append(ByteBuffer(bytes: rest.prefix(count)))
      rest = rest.dropFirst(count)
    }
    return message
  }

  private func example(_ random: inout SeededGenerator) -> Memq_V1_ProduceRequest {
    var request = Memq_V1_ProduceRequest()
    request.requestID = UInt64.random(in: 0...UInt64.max, using: &random)
    request.topic = String(repeating: "t", count: Int.random(in: 0...20, using: &random))
    return request
  }

  @Test(arguments: 1...200)
  func `splitting agrees with swift-protobuf however the bytes are cut`(seed: Int) throws {
    var random = SeededGenerator(seed: UInt64(seed))
    var request = self.example(&random)
    let count = Int.random(in: 0...300, using: &random)
    let batch = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }

    // Ours to theirs.
    let encoded = Hot(request, payload: self.cut(batch, &random)).encoded()
    let plain = try Memq_V1_ProduceRequest(decoding: encoded)
    #expect(Array(plain.batch) == batch)

    // Theirs to ours, the fields in their order and the payload in front.
    request.batch = plain.batch
    let theirs: [UInt8] = try request.serializedBytes()
    var payloadOnly = Memq_V1_ProduceRequest()
    payloadOnly.batch = plain.batch
    request.batch = .init()
    let front: [UInt8] =
      try payloadOnly.serializedBytes() as [UInt8] + (try request.serializedBytes() as [UInt8])
    for bytes in [theirs, front] {
      let hot = try Hot<Memq_V1_ProduceRequest>(decoding: self.cut(bytes, &random))
      #expect(Array(buffer: hot.payload.contiguous()) == batch)
      #expect(hot.header == request)
      #expect(hot.header.batch.isEmpty)
    }
  }

  @Test(arguments: 1...500)
  func `what swift-protobuf refuses is refused, and nothing traps`(seed: Int) throws {
    var random = SeededGenerator(seed: UInt64(seed))
    var request = self.example(&random)
    request.batch = .init([1, 2, 3])
    var bytes: [UInt8] = try request.serializedBytes()
    for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty {
      switch Int.random(in: 0..<3, using: &random) {
      case 0:
        bytes[bytes.indices.randomElement(using: &random)!] ^=
          1 << UInt8.random(in: 0...7, using: &random)
      case 1: bytes.removeLast(Int.random(in: 1...bytes.count, using: &random))
      default: bytes.append(UInt8.random(in: 0...255, using: &random))
      }
    }
    let ours = try? Hot<Memq_V1_ProduceRequest>(decoding: self.cut(bytes, &random))
    let theirs = try? Memq_V1_ProduceRequest(serializedBytes: bytes)
    // Groups are the one thing we refuse and they may take.
    if let ours {
      #expect(theirs != nil, "seed \(seed): \(bytes)")
      #expect(theirs.map { Array($0.batch) } == Array(buffer: ours.payload.contiguous()))
    }
  }

  @Test func `a payload is neither copied nor looked at`() throws {
    let payload = RPCMessage.pattern(1 << 20)
    let hot = Hot(Memq_V1_AppendRequest(), payload: payload)
    let decoded = try Hot<Memq_V1_AppendRequest>(decoding: hot.encoded())
    let address = payload.slice(0).withUnsafeReadableBytes { UInt(bitPattern: $0.baseAddress) }
    let after = decoded.payload.slice(0).withUnsafeReadableBytes {
      UInt(bitPattern: $0.baseAddress)
    }
    #expect(decoded.payload.sliceCount == 1)
    #expect(address == after)
  }
}
