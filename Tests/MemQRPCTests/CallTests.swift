// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import NIOCore
import Synchronization
import Testing

/// What a call does, over every transport.
@Suite(.timeLimit(.minutes(5))) struct CallTests {
  @Test(arguments: Transport.allCases)
  func `a unary call returns the response`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      for size in [0, 1, 100, 16383, 16384, 300_000, 5 << 20, (16 << 20) - 10] {
        let message = RPCMessage.pattern(size)
        let response = try await bed.channel.unary(.echo, message)
        #expect(response == message, "size \(size)")
      }
    }
  }

  @Test(arguments: Transport.allCases)
  func `a status arrives whole`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      let text = "100 % wrong: größer als\n✓"
      let status = await status { _ = try await bed.channel.unary(.fail, RPCMessage(text)) }
      #expect(status.code == .failedPrecondition)
      #expect(status.message == text)
      #expect(status.details == [1, 2, 3, 250])
      #expect(status.trailers[first: "why"] == "because")
      #expect(status.trailers.binary(first: "raw-bin") == [0, 255, 7])
    }
  }

  @Test(arguments: Transport.allCases)
  func `a server stream ends with its trailers`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      let stream = try await bed.channel.bidirectional(.count)
      try await stream.send(RPCMessage("1000"))
      try await stream.halfClose()
      var numbers: [String] = []
      for try await message in stream.responses { numbers.append(message.text) }
      #expect(numbers == (0..<1000).map { "\($0)" })
      #expect(stream.trailers[first: "sent"] == "1000")
      let empty = try await bed.channel.serverStreaming(.count, RPCMessage("0"))
      #expect(try await empty.next() == nil)
    }
  }

  @Test(arguments: Transport.allCases)
  func `a client stream is summed up`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      let stream = try await bed.channel.bidirectional(.sum)
      for _ in 0..<64 { try await stream.send(.pattern(100_000)) }
      try await stream.halfClose()
      #expect(try await stream.responses.next()?.text == "64 6400000")
      #expect(try await stream.responses.next() == nil)
    }
  }

  @Test(arguments: Transport.allCases)
  func `both sides of a stream talk at once`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      let stream = try await bed.channel.bidirectional(.chat)
      for size in [0, 5, 200_000] {
        let message = RPCMessage.pattern(size)
        try await stream.send(message)
        #expect(try await stream.responses.next() == message)
      }
      async let sent: Void = {
        for number in 0..<200 { try await stream.send(.pattern(65_536, seed: UInt8(number))) }
        try await stream.halfClose()
      }()
      var number = 0
      for try await message in stream.responses {
        #expect(message == .pattern(65_536, seed: UInt8(number)))
        number += 1
      }
      try await sent
      #expect(number == 200)
    }
  }

  @Test(arguments: Transport.allCases)
  func `metadata reaches the handler, binary values included`(transport: Transport) async throws {
    let seen = Signal<RPCMetadata>()
    var router = RPCRouter()
    router.unary(.echo) { request, context in
      seen.fire(context.metadata)
      return request
    }
    try await withBed(transport, router) { bed in
      var metadata = RPCMetadata()
      metadata.add("Tenant", "blue")
      metadata.add("tenant", "green")
      metadata.addBinary("trace-bin", Array(0...255))
      metadata.addBinary("empty-bin", [])
      _ = try await bed.channel.unary(.echo, RPCMessage(), RPCCallOptions(metadata: metadata))
      let got = await seen.value
      #expect(got.all("tenant") == ["blue", "green"])
      #expect(got.binary(first: "trace-bin") == Array(0...255))
      #expect(got.binary(first: "empty-bin") == [])
    }
  }

  @Test(arguments: Transport.allCases)
  func `an unknown method is unimplemented`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      let unknown = RPCMethod.test("Nowhere", .unary)
      let status = await status { _ = try await bed.channel.unary(unknown, RPCMessage("x")) }
      #expect(status.code == .unimplemented)
      #expect(status.message.contains("/memq.test.Test/Nowhere"))
    }
  }

  @Test(arguments: Transport.allCases)
  func `what a handler throws that is no status tells the peer nothing`(
    transport: Transport
  ) async throws {
    struct Secret: Error {}
    var router = RPCRouter()
    router.unary(.echo) { _, _ in throw Secret() }
    try await withBed(transport, router) { bed in
      let status = await status { _ = try await bed.channel.unary(.echo, RPCMessage()) }
      #expect(status.code == .unknown)
      #expect(!status.message.contains("Secret"))
    }
  }

  @Test(arguments: Transport.allCases)
  func `a deadline ends the call on both sides`(transport: Transport) async throws {
    let cancelled = Signal<Bool>()
    let remaining = Signal<Duration?>()
    var router = RPCRouter()
    router.unary(.hang) { request, context in
      guard let left = context.remaining, left > .zero else { return request }
      remaining.fire(left)
      try await withTaskCancellationHandler {
        try await Task.sleep(for: .seconds(600))
      } onCancel: {
        cancelled.fire(true)
      }
      return request
    }
    try await withBed(transport, router) { bed in
      // On a busy machine a short deadline may pass before the handler is reached.
      for seconds in [1, 2, 4, 8, 16, 32] where !remaining.isFired {
        let timeout = Duration.seconds(seconds)
        let status = await status {
          _ = try await bed.channel.unary(.hang, RPCMessage(), RPCCallOptions(timeout: timeout))
        }
        #expect(status.code == .deadlineExceeded)
        if remaining.isFired {
          let left = try #require(await remaining.value)
          #expect(left > .zero && left <= timeout)
        }
      }
      try #require(remaining.isFired)
      #expect(await cancelled.value)
    }
  }

  @Test(arguments: Transport.allCases)
  func `cancelling the caller's task cancels the handler's`(transport: Transport) async throws {
    let started = Signal<Void>()
    let cancelled = Signal<Void>()
    var router = RPCRouter()
    router.unary(.hang) { request, _ in
      started.fire(())
      try await withTaskCancellationHandler {
        try await Task.sleep(for: .seconds(600))
      } onCancel: {
        cancelled.fire(())
      }
      return request
    }
    try await withBed(transport, router) { bed in
      let task = Task { try await bed.channel.unary(.hang, RPCMessage()) }
      await started.value
      task.cancel()
      await cancelled.value
      let result = await task.result
      #expect(throws: RPCStatus.self) { _ = try result.get() }
      // A task that is cancelled before it calls.
      let early = Task {
        withUnsafeCurrentTask { $0?.cancel() }
        return try await bed.channel.unary(.hang, RPCMessage())
      }
      let outcome = await early.result
      #expect(throws: RPCStatus.self) { _ = try outcome.get() }
    }
  }

  @Test(arguments: Transport.allCases)
  func `letting go of a stream cancels its call`(transport: Transport) async throws {
    let ended = Signal<RPCCode>()
    var router = RPCRouter()
    router.bidirectional(.chat) { reader, _, writer in
      do {
        for try await message in reader { try await writer.send(message) }
        ended.fire(.ok)
      } catch let status as RPCStatus {
        ended.fire(status.code)
        throw status
      }
    }
    try await withBed(transport, router) { bed in
      do {
        let stream = try await bed.channel.bidirectional(.chat)
        try await stream.send(RPCMessage("hello"))
        #expect(try await stream.responses.next()?.text == "hello")
      }
      #expect(await ended.value == .cancelled)
    }
  }

  @Test(arguments: Transport.allCases)
  func `messages over the limit are refused with the numbers`(transport: Transport) async throws {
    var small = RPCServer.Configuration()
    small.maxMessageBytes = 1000
    try await withBed(transport, .standard(), server: small) { bed in
      let fits = try await bed.channel.unary(.echo, .pattern(1000))
      #expect(fits.byteCount == 1000)
      let tooLong = await status { _ = try await bed.channel.unary(.echo, .pattern(1001)) }
      #expect(tooLong.code == .resourceExhausted)
      #expect(tooLong.trailers[first: RPCStatus.limitTrailer] == "1000")
      #expect(tooLong.trailers[first: RPCStatus.actualTrailer] == "1001")

      let options = RPCCallOptions(maxMessageBytes: 100)
      let send = await status { _ = try await bed.channel.unary(.echo, .pattern(101), options) }
      #expect(send.code == .resourceExhausted)
      #expect(send.trailers[first: RPCStatus.limitTrailer] == "100")
      // The connection goes on.
      let after = try await bed.channel.unary(.echo, RPCMessage("x"))
      #expect(after.text == "x")
    }
  }

  @Test(arguments: Transport.allCases)
  func `a response over the caller's limit is refused`(transport: Transport) async throws {
    var router = RPCRouter()
    router.unary(.echo) { _, _ in .pattern(5000) }
    try await withBed(transport, router) { bed in
      let status = await status {
        _ = try await bed.channel.unary(.echo, RPCMessage(), RPCCallOptions(maxMessageBytes: 4999))
      }
      #expect(status.code == .resourceExhausted)
      #expect(status.trailers[first: RPCStatus.limitTrailer] == "4999")
      #expect(status.trailers[first: RPCStatus.actualTrailer] == "5000")
    }
  }

  @Test(arguments: Transport.allCases)
  func `a status may come before the client is done`(transport: Transport) async throws {
    var router = RPCRouter()
    router.bidirectional(.chat) { reader, _, _ in
      _ = try await reader.next()
      throw RPCStatus(.aborted, "enough")
    }
    try await withBed(transport, router) { bed in
      let stream = try await bed.channel.bidirectional(.chat)
      try await stream.send(RPCMessage("one"))
      let end = await status { _ = try await stream.responses.next() }
      #expect(end.code == .aborted)
      let send = await status {
        while true { try await stream.send(.pattern(1000)) }
      }
      #expect(send.code == .aborted)
    }
  }

  @Test(arguments: Transport.allCases)
  func `messages sent before an error arrive before it`(transport: Transport) async throws {
    var router = RPCRouter()
    router.serverStreaming(.count) { _, _, writer in
      for number in 0..<10 { try await writer.send(.pattern(50_000, seed: UInt8(number))) }
      throw RPCStatus(.dataLoss, "then it broke")
    }
    try await withBed(transport, router) { bed in
      let reader = try await bed.channel.serverStreaming(.count, RPCMessage())
      var count = 0
      let end = await status {
        while let message = try await reader.next() {
          #expect(message == .pattern(50_000, seed: UInt8(count)))
          count += 1
        }
      }
      #expect(count == 10)
      #expect(end.code == .dataLoss)
    }
  }

  @Test(arguments: Transport.allCases)
  func `many calls run at once`(transport: Transport) async throws {
    try await withBed(transport, .standard()) { bed in
      try await withThrowingTaskGroup(of: Void.self) { group in
        for number in 0..<3000 {
          group.addTask {
            let message = RPCMessage("call \(number)")
            let response = try await bed.channel.unary(
              .echo, message, RPCCallOptions(timeout: .seconds(50)))
            #expect(response == message)
          }
        }
        try await group.waitForAll()
      }
    }
  }
}
