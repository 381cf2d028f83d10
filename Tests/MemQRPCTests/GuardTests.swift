// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import MemQRPC

/// Connections that grow old, do nothing, or keep a server busy for nothing.
@Suite(.timeLimit(.minutes(5))) struct GuardTests {
  private func withServer<R: Sendable>(
    _ router: RPCRouter = .standard(), _ change: (inout RPCServer.Configuration) -> Void,
    _ body: (RPCServer) async throws -> R
  ) async throws -> R {
    var configuration = RPCServer.Configuration()
    change(&configuration)
    let server = try await RPCServer.start(
      router: router, on: "127.0.0.1:0", group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
    do {
      let result = try await body(server)
      await server.shutdown(deadline: .seconds(2))
      return result
    } catch {
      await server.shutdown(deadline: .zero)
      throw error
    }
  }

  private func channel(
    to server: RPCServer, _ change: (inout RPCNetworkChannel.Configuration) -> Void = { _ in }
  ) -> RPCNetworkChannel {
    var configuration = RPCNetworkChannel.Configuration()
    change(&configuration)
    return RPCNetworkChannel(
      target: server.localAddress, group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
  }

  /// A handler that echoes when told to.
  private func held(_ started: Signal<Void>, _ proceed: Signal<Void>) -> RPCRouter {
    var router = RPCRouter.standard()
    router.unary(.hang) { request, _ in
      started.fire(())
      await proceed.value
      return request
    }
    return router
  }

  private static let ping = RawPeer.frame(6, [1, 2, 3, 4, 5, 6, 7, 8])

  private func expulsion(_ peer: RawPeer) async -> String? {
    guard let goAway = await peer.frame(ofType: 7) else { return nil }
    #expect(Array(goAway.payload[4..<8]) == [0, 0, 0, 11])
    #expect(await peer.frame() == nil)
    return String(decoding: goAway.payload[8...], as: UTF8.self)
  }

  // MARK: Age and idleness

  @Test func `an old connection takes no new calls and ends behind its last one`() async throws {
    let started = Signal<Void>()
    let proceed = Signal<Void>()
    try await self.withServer(self.held(started, proceed)) {
      $0.limits.ageMax = .milliseconds(50)
    } _: { server in
      let peer = try await RawPeer.connect(port: server.localPort)
      await peer.send(RawPeer.hello)
      let channel = self.channel(to: server)
      let call = Task { try await channel.unary(.hang, RPCMessage("old")) }
      await started.value
      // An old peer without calls is told, twice, and closed.
      let notice = try #require(await peer.frame(ofType: 7))
      #expect(Array(notice.payload[..<8]) == [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0])
      let ping = try #require(await peer.frame(ofType: 6))
      // The answer to another PING says nothing: calls on their way are still taken.
      await peer.send(RawPeer.frame(6, flags: 1, [UInt8](repeating: 0, count: 8)))
      await peer.send(RawPeer.request(stream: 1))
      await peer.send(
        RawPeer.frame(0, flags: 1, stream: 1, [0, 0, 0, 0, 0])
          + RawPeer.frame(6, flags: 1, ping.payload))
      let final = try #require(await peer.frame(ofType: 7))
      #expect(Array(final.payload[..<8]) == [0, 0, 0, 1, 0, 0, 0, 0])
      _ = await peer.rest()
      // One with a call is replaced for new calls, and ends with its own.
      while channel.isConnected { await Task.yield() }
      #expect(try await channel.unary(.echo, RPCMessage("new")).text == "new")
      proceed.fire(())
      #expect(try await call.value.text == "old")
      await channel.close(deadline: .seconds(1))
    }
  }

  @Test func `what runs on beyond the grace of an old connection is cut off`() async throws {
    let started = Signal<Void>()
    try await self.withServer(self.held(started, Signal())) {
      $0.limits.ageMax = .milliseconds(20)
      $0.limits.ageGrace = .milliseconds(20)
    } _: { server in
      let channel = self.channel(to: server)
      let status = await status { _ = try await channel.unary(.hang, RPCMessage()) }
      #expect(status.code == .unavailable)
      await channel.close(deadline: .zero)
    }
  }

  @Test func `a stop is not held up by the grace of an old connection`() async throws {
    let started = Signal<Void>()
    var configuration = RPCServer.Configuration()
    configuration.limits.ageMax = .milliseconds(20)
    let server = try await RPCServer.start(
      router: self.held(started, Signal()), on: "127.0.0.1:0", group: TestBed.group,
      configuration: configuration, logger: TestBed.quietLogger())
    let channel = self.channel(to: server)
    let call = Task { try await channel.unary(.hang, RPCMessage()) }
    await started.value
    while channel.isConnected { await Task.yield() }
    let start = ContinuousClock.now
    await server.shutdown(deadline: .milliseconds(50))
    #expect(ContinuousClock.now - start < .seconds(200))
    _ = await call.result
    await channel.close(deadline: .zero)
  }

  @Test func `a connection without calls is closed by either side, one with calls is not`()
    async throws
  {
    let started = Signal<Void>()
    let proceed = Signal<Void>()
    let router = self.held(started, proceed)
    try await self.withServer(router) {
      $0.limits.idleMax = .milliseconds(50)
    } _: { server in
      let idle = self.channel(to: server)
      let busy = self.channel(to: server)
      let call = Task { try await busy.unary(.hang, RPCMessage("busy")) }
      await started.value
      _ = try await idle.unary(.echo, RPCMessage())
      while idle.isConnected { await Task.yield() }
      #expect(busy.isConnected)
      // The next call makes a new one.
      _ = try await idle.unary(.echo, RPCMessage())
      proceed.fire(())
      #expect(try await call.value.text == "busy")
      for channel in [idle, busy] { await channel.close(deadline: .seconds(1)) }
    }
    try await self.withServer(router) { _ in
    } _: { server in
      let channel = self.channel(to: server) { $0.connectionIdleMax = .milliseconds(50) }
      for _ in 0..<2 {
        _ = try await channel.unary(.echo, RPCMessage())
        while server.connectionCount > 0 { await Task.yield() }
      }
      await channel.close(deadline: .seconds(1))
    }
  }

  @Test func `a peer without calls is asked whether it lives, when told to, and closed if not`()
    async throws
  {
    try await self.withServer {
      $0.connection.keepaliveIdleInterval = .milliseconds(20)
    } _: { server in
      let peer = try await RawPeer.connect(port: server.localPort)
      await peer.send(RawPeer.hello)
      let ping = try #require(await peer.frame(ofType: 6))
      await peer.send(RawPeer.frame(6, flags: 1, ping.payload))
      await peer.close()
    }
    try await self.withServer {
      $0.connection.keepaliveIdleInterval = .milliseconds(20)
      $0.connection.keepaliveTimeout = .milliseconds(20)
    } _: { server in
      let silent = try await RawPeer.connect(port: server.localPort)
      await silent.send(RawPeer.hello)
      _ = await silent.rest()
    }
  }

  // MARK: Too many pings

  @Test func `a client that pings too often is told so and sent away`() async throws {
    try await self.withServer { _ in
    } _: { server in
      // Without calls.
      let idle = try await RawPeer.connect(port: server.localPort)
      await idle.send(RawPeer.hello)
      for _ in 0..<4 { await idle.send(Self.ping) }
      #expect(await self.expulsion(idle) == "too_many_pings")
    }
    let started = Signal<Void>()
    let router = self.held(started, Signal())
    try await self.withServer(router) { _ in
    } _: { server in
      // With one open.
      let busy = try await RawPeer.connect(port: server.localPort)
      await busy.send(RawPeer.hello + RawPeer.request(stream: 1))
      for _ in 0..<4 { await busy.send(Self.ping) }
      #expect(await self.expulsion(busy) == "too_many_pings")
    }
  }

  @Test func `pings between answers, slow pings and allowed ones are no strikes`() async throws {
    let empty = [UInt8](repeating: 0, count: 5)
    try await self.withServer { _ in
    } _: { server in
      let peer = try await RawPeer.connect(port: server.localPort)
      await peer.send(RawPeer.hello)
      for number in 0..<20 {
        let stream = UInt32(2 * number + 1)
        await peer.send(RawPeer.request(stream: stream))
        await peer.send(RawPeer.frame(0, flags: 1, stream: stream, empty))
        var frame = await peer.frame(ofType: 1)
        while let head = frame, head.flags & 1 == 0 { frame = await peer.frame(ofType: 1) }
        #expect(frame != nil)
        await peer.send(Self.ping)
        await peer.send(Self.ping)
      }
      await peer.close()
    }
    var police = PingPolice()
    let limits = RPCConnectionLimits()
    var now = NIODeadline.now()
    for _ in 0..<100 {
      let isBorne = police.received(at: now, hasCalls: true, limits)
      #expect(isBorne)
      now = now + .seconds(10)
    }
    // Without calls the same pace is too fast.
    var verdicts: [Bool] = []
    for index in 0..<4 {
      verdicts.append(
        police.received(at: now + .seconds(Int64(10 * index)), hasCalls: false, limits))
    }
    #expect(verdicts == [true, true, false, false])
  }

  @Test func `our own client is never sent away by our own server`() {
    let settings = RPCConnectionSettings()
    let limits = RPCConnectionLimits()
    #expect(settings.keepaliveInterval > limits.pingIntervalMin)
    #expect(settings.keepaliveIdleInterval == nil)
  }

  @Test func `a client that is told it pings too often pings half as often`() async throws {
    let listener = try await RawPeer.listen()
    let channel = RPCNetworkChannel(
      target: listener.address, group: TestBed.group, logger: TestBed.quietLogger())
    let call = Task { try await channel.unary(.echo, RPCMessage()) }
    let peer = await listener.peer
    #expect(await peer.skipPreface())
    let calm: [UInt8] = [0, 0, 0, 1, 0, 0, 0, 11]
    await peer.send(RawPeer.frame(4) + RawPeer.frame(7, calm + Array("too_many_pings".utf8)))
    await peer.close()
    let status = await status { _ = try await call.value }
    #expect(status.code == .unavailable)
    #expect(status.message == "\(listener.address) ended the connection: too_many_pings")
    let slot = channel.slots[0]
    #expect(try await channel.eventLoop.submit { slot.keepaliveFactor }.get() == 2)
    await channel.close(deadline: .zero)
    await listener.close()
  }

  // MARK: Floods

  /// HAProxy does so: a WINDOW_UPDATE for the stream and one for the connection behind every DATA frame.
  @Test func `a proxy may return the credit of each small response at once`() {
    var budget = ControlFrameBudget()
    for _ in 0..<50_000 {
      budget.sent(30)
      let isBorne = budget.spend() && budget.spend()
      #expect(isBorne)
    }
  }

  @Test func `pings at the very interval are no strikes, and strikes wear off`() {
    var (police, limits) = (PingPolice(), RPCConnectionLimits())
    limits.pingIntervalMin = .seconds(10)
    limits.pingStrikesMax = 2
    var now = NIODeadline.uptimeNanoseconds(1)
    for _ in 0..<100 {
      for wait in [TimeAmount.seconds(10), .seconds(9), .seconds(1)] {
        now = now + wait
        let isBorne = police.received(at: now, hasCalls: true, limits)
        #expect(isBorne)
      }
    }
  }

  @Test(arguments: [
    RawPeer.frame(8, [0, 0, 0, 1]), RawPeer.frame(2, stream: 1, [0, 0, 0, 0, 15]),
  ])
  func `frames that bring nothing forward are borne up to a number`(
    _ frame: [UInt8]
  )
    async throws
  {
    try await self.withServer { _ in
    } _: { server in
      let peer = try await RawPeer.connect(port: server.localPort)
      await peer.send(RawPeer.hello)
      let flood = Array(repeatElement(frame, count: 5_100).joined())
      await peer.send(flood)
      await peer.send(flood)
      #expect(await self.expulsion(peer) == "control_frames")
    }
  }

  @Test func `a peer that takes much may give much credit`() {
    var budget = ControlFrameBudget()
    var refused = 0
    for _ in 0..<1_000 {
      budget.sent(256 << 10)
      for _ in 0..<256 where !budget.spend() { refused += 1 }
    }
    #expect(refused == 0)
  }

  // MARK: Trickles

  @Test(arguments: [
    // A frame head, a frame of headers, a header block without its end.
    Array(RawPeer.request(stream: 1)[..<5]), Array(RawPeer.request(stream: 1)[..<20]),
    RawPeer.frame(1, flags: 0, stream: 1, RawPeer.requestHeaders()),
    Array(RawPeer.frame(6, [1, 2, 3, 4, 5, 6, 7, 8])[..<12]),
  ])
  func `a frame that is begun and not ended ends its connection`(_ part: [UInt8]) async throws {
    try await self.withServer {
      $0.limits.frameTimeout = .milliseconds(50)
    } _: { server in
      let peer = try await RawPeer.connect(port: server.localPort)
      await peer.send(RawPeer.hello + part)
      #expect(await self.expulsion(peer) == "frame_timeout")
    }
  }

  @Test func `frames cut anywhere are followed to their ends`() {
    var bytes = RawPeer.hello
    bytes += RawPeer.frame(1, flags: 0, stream: 1, [1, 2, 3])
    bytes += RawPeer.frame(9, flags: 0, stream: 1)
    bytes += RawPeer.frame(9, flags: 4, stream: 1, [4])
    let whole = bytes
    bytes += RawPeer.frame(0, flags: 1, stream: 1, [UInt8](repeating: 7, count: 300))
    for cut in 0...bytes.count {
      var tracker = FrameTracker(prefaceBytes: 24)
      bytes[..<cut].withUnsafeBytes { tracker.advance($0) }
      let isAtEnd = [24, 33, whole.count].contains(cut) || cut >= whole.count + 9
      #expect(tracker.isOwed == !isAtEnd, "\(cut)")
      bytes[cut...].withUnsafeBytes { tracker.advance($0) }
      #expect(!tracker.isOwed)
      // The preface, SETTINGS, a header block, DATA.
      #expect(tracker.completed == 4)
    }
  }

  @Test func `a message that never comes whole ends its call, not the others`() async throws {
    try await self.withServer {
      $0.limits.messageTimeout = .milliseconds(50)
      $0.connection.keepaliveInterval = .milliseconds(20)
    } _: { server in
      let peer = try await RawPeer.connect(port: server.localPort)
      await peer.send(RawPeer.hello)
      // Headers alone; a message's beginning.
      await peer.send(RawPeer.request(stream: 1) + RawPeer.request(stream: 3))
      await peer.send(RawPeer.frame(0, stream: 3, [0, 0, 0, 0, 9, 1]))
      var statuses: Set<String> = []
      var streams: Set<UInt32> = []
      while streams.count < 2, let frame = await peer.frame() {
        if frame.type == 6 { await peer.send(RawPeer.frame(6, flags: 1, frame.payload)) }
        guard frame.type == 1 else { continue }
        streams.insert(frame.stream)
        if statuses.isEmpty { statuses.insert(RawPeer.decode(frame.payload)["grpc-status"] ?? "") }
      }
      #expect(streams == [1, 3])
      #expect(statuses == ["4"])
      await peer.close()
      // A stream may be silent between messages as long as it likes.
      let channel = self.channel(to: server)
      let chat = try await channel.bidirectional(.chat)
      for text in ["a", "b"] {
        try await chat.send(RPCMessage(text))
        #expect(try await chat.responses.next()?.text == text)
        try await Task.sleep(for: .milliseconds(150))
      }
      try await chat.halfClose()
      #expect(try await chat.responses.next() == nil)
      await channel.close(deadline: .seconds(1))
    }
  }

  @Test func `a server that accepts and never speaks is given up`() async throws {
    let listener = try await ServerBootstrap(group: TestBed.group)
      .bind(host: "127.0.0.1", port: 0).get()
    var configuration = RPCNetworkChannel.Configuration()
    configuration.prefaceTimeout = .milliseconds(50)
    let target = "127.0.0.1:\(listener.localAddress!.port!)"
    let channel = RPCNetworkChannel(
      target: target, group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
    let status = await status { _ = try await channel.unary(.echo, RPCMessage()) }
    #expect(status.code == .unavailable)
    #expect(status.message.hasPrefix("\(target) does not speak HTTP/2"))
    await channel.close(deadline: .zero)
    try await listener.close().get()
  }
}
