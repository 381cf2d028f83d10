// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRPC
import NIOCore
import NIOPosix
import Testing

/// Connections: made, lost, drained.
@Suite(.timeLimit(.minutes(5))) struct ConnectionTests {
  /// A handler that answers when told to.
  private func held(_ started: Signal<Void>, _ proceed: Signal<Void>) -> RPCRouter {
    var router = RPCRouter.standard()
    router.unary(.hang) { request, _ in
      started.fire(())
      await proceed.value
      return request
    }
    return router
  }

  private func server(
    _ router: RPCRouter, on address: String = "127.0.0.1:0",
    _ configuration: RPCServer.Configuration = .init()
  ) async throws -> RPCServer {
    try await RPCServer.start(
      router: router, on: address, group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
  }

  private func channel(
    _ target: String, _ configuration: RPCNetworkChannel.Configuration = .init()
  ) -> RPCNetworkChannel {
    RPCNetworkChannel(
      target: target, group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
  }

  @Test func `a drain lets calls end and takes no new ones`() async throws {
    let started = Signal<Void>()
    let proceed = Signal<Void>()
    let server = try await self.server(self.held(started, proceed))
    let channel = self.channel(server.localAddress)
    let call = Task { try await channel.unary(.hang, RPCMessage("last words")) }
    await started.value
    let drained = Task { await server.shutdown(deadline: .seconds(30)) }
    // Once the server says so, the channel looks for another connection, and finds nobody.
    while channel.isConnected { await Task.yield() }
    let status = await status { _ = try await channel.unary(.echo, RPCMessage()) }
    #expect(status.code == .unavailable)
    proceed.fire(())
    #expect(try await call.value.text == "last words")
    await drained.value
    #expect(server.connectionCount == 0)
    await channel.close(deadline: .seconds(1))
  }

  @Test func `only an address where nobody listens refuses`() async throws {
    func isRefused(_ target: String) async -> Bool {
      await RPCNetworkChannel.isRefused(target, group: TestBed.group, timeout: .seconds(10))
    }
    let server = try await self.server(.standard())
    let address = server.localAddress
    #expect(await isRefused(address) == false)
    await server.shutdown(deadline: .seconds(1))
    #expect(await isRefused(address))
    #expect(await isRefused("unix:/nowhere/memq.socket"))
    #expect(await isRefused("not an address") == false)
    #expect(await isRefused("no-such-host.invalid:1") == false)
  }

  @Test func `a drain cuts off what is still there at its deadline`() async throws {
    let started = Signal<Void>()
    let server = try await self.server(self.held(started, Signal()))
    let channel = self.channel(server.localAddress)
    let call = Task { try await channel.unary(.hang, RPCMessage()) }
    await started.value
    await server.shutdown(deadline: .milliseconds(100))
    let status = await status { _ = try await call.value }
    #expect(status.code == .unavailable)
    await channel.close(deadline: .seconds(1))
  }

  @Test func `idle connections do not hold up a drain`() async throws {
    let server = try await self.server(.standard())
    let channel = self.channel(server.localAddress)
    _ = try await channel.unary(.echo, RPCMessage())
    let start = ContinuousClock.now
    await server.shutdown(deadline: .seconds(50))
    #expect(ContinuousClock.now - start < .seconds(20))
    await channel.close(deadline: .seconds(1))
  }

  @Test func `calls go through restarts of the server without an error`() async throws {
    var server = try await self.server(.standard())
    let address = server.localAddress
    let channel = self.channel(address)
    let stop = Signal<Void>()
    let caller = Task {
      var count = 0
      while !stop.isFired {
        let message = RPCMessage("\(count)")
        let answer = try await channel.unary(
          .echo, message, RPCCallOptions(timeout: .seconds(30), waitForReady: true))
        #expect(answer == message)
        count += 1
      }
      return count
    }
    for _ in 0..<5 {
      for _ in 0..<50 {
        _ = try await channel.unary(
          .echo, RPCMessage(), RPCCallOptions(timeout: .seconds(30), waitForReady: true))
      }
      await server.shutdown(deadline: .seconds(30))
      server = try await self.server(.standard(), on: address)
    }
    stop.fire(())
    #expect(try await caller.value > 0)
    await channel.close(deadline: .seconds(1))
    await server.shutdown(deadline: .seconds(1))
  }

  @Test func `nobody there is unavailable, at once`() async throws {
    let server = try await self.server(.standard())
    let address = server.localAddress
    await server.shutdown(deadline: .zero)
    let channel = self.channel(address)
    let status = await status { _ = try await channel.unary(.echo, RPCMessage()) }
    #expect(status.code == .unavailable)
    #expect(status.message == "cannot connect to \(address): Connection refused")
    // Waiting is bounded by the deadline.
    let waiting = await MemQRPCTests.status {
      _ = try await channel.unary(
        .echo, RPCMessage(), RPCCallOptions(timeout: .milliseconds(300), waitForReady: true))
    }
    #expect(waiting.code == .deadlineExceeded)
    await channel.close(deadline: .seconds(1))
  }

  @Test func `a malformed target fails every call`() async throws {
    let channel = self.channel("nowhere")
    let status = await status { _ = try await channel.unary(.echo, RPCMessage()) }
    #expect(status.code == .invalidArgument)
    await channel.close(deadline: .zero)
  }

  @Test func `a taken address is a typed error`() async throws {
    let server = try await self.server(.standard())
    do throws(MemQError) {
      _ = try await RPCServer.start(
        router: .standard(), on: server.localAddress, group: TestBed.group,
        logger: TestBed.quietLogger())
      Issue.record("two servers on one address")
    } catch {
      #expect(error.code == .addressInUse)
      #expect(error.subject == server.localAddress)
    }
    await server.shutdown(deadline: .zero)
  }

  @Test func `a peer that is silently gone is noticed`() async throws {
    // Accepts, reads, says nothing.
    let listener = try await ServerBootstrap(group: TestBed.group)
      .bind(host: "127.0.0.1", port: 0).get()
    var configuration = RPCNetworkChannel.Configuration()
    configuration.connection.keepaliveInterval = .milliseconds(100)
    configuration.connection.keepaliveTimeout = .milliseconds(100)
    let channel = self.channel("127.0.0.1:\(listener.localAddress!.port!)", configuration)
    let status = await status { _ = try await channel.unary(.echo, RPCMessage()) }
    #expect(status.code == .unavailable)
    await channel.close(deadline: .zero)
    try await listener.close().get()
  }

  @Test func `a long silence of a living peer is no reason to hang up`() async throws {
    let started = Signal<Void>()
    let proceed = Signal<Void>()
    var bearing = RPCServer.Configuration()
    bearing.limits.pingIntervalMin = .zero
    let server = try await self.server(self.held(started, proceed), on: "127.0.0.1:0", bearing)
    var configuration = RPCNetworkChannel.Configuration()
    configuration.connection.keepaliveInterval = .milliseconds(20)
    configuration.connection.keepaliveTimeout = .seconds(20)
    let channel = self.channel(server.localAddress, configuration)
    let call = Task { try await channel.unary(.hang, RPCMessage("x")) }
    await started.value
    try await Task.sleep(for: .milliseconds(300))
    proceed.fire(())
    #expect(try await call.value.text == "x")
    await channel.close(deadline: .seconds(1))
    await server.shutdown(deadline: .seconds(1))
  }

  @Test func `connections over the limit are closed`() async throws {
    var configuration = RPCServer.Configuration()
    configuration.connectionsMax = 1
    let server = try await self.server(.standard(), on: "127.0.0.1:0", configuration)
    let first = self.channel(server.localAddress)
    _ = try await first.unary(.echo, RPCMessage())
    let second = self.channel(server.localAddress)
    let status = await status { _ = try await second.unary(.echo, RPCMessage()) }
    #expect(status.code == .unavailable)
    _ = try await first.unary(.echo, RPCMessage())
    await second.close(deadline: .zero)
    await first.close(deadline: .seconds(1))
    await server.shutdown(deadline: .seconds(1))
  }

  @Test func `a channel may use several connections`() async throws {
    let server = try await self.server(.standard())
    var configuration = RPCNetworkChannel.Configuration()
    configuration.connections = 3
    let channel = self.channel(server.localAddress, configuration)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for number in 0..<100 {
        group.addTask {
          let answer = try await channel.unary(.echo, RPCMessage("\(number)"))
          #expect(answer.text == "\(number)")
        }
      }
      try await group.waitForAll()
    }
    #expect(server.connectionCount == 3)
    await channel.close(deadline: .seconds(1))
    await server.shutdown(deadline: .seconds(1))
  }

  @Test(arguments: Transport.allCases)
  func `a closed channel fails calls, and ends those that do not end`(
    transport: Transport
  ) async throws {
    let started = Signal<Void>()
    try await withBed(transport, self.held(started, Signal())) { bed in
      let call = Task { try await bed.channel.unary(.hang, RPCMessage()) }
      await started.value
      await bed.channel.close(deadline: .milliseconds(50))
      let cut = await status { _ = try await call.value }
      #expect(cut.code == .unavailable)
      let late = await status { _ = try await bed.channel.unary(.echo, RPCMessage()) }
      #expect(late.code == .unavailable)
    }
  }

  @Test(arguments: Transport.allCases)
  func `health is told and watched`(transport: Transport) async throws {
    let health = HealthService()
    var router = RPCRouter.standard()
    health.register(on: &router)
    health.set("memq.v1.IngestService", .notServing)
    try await withBed(transport, router) { bed in
      #expect(try await bed.channel.health(timeout: .seconds(60)) == .serving)
      #expect(
        try await bed.channel.health(
          of: "memq.v1.IngestService", timeout: .seconds(60)) == .notServing)
      let unknown = await status {
        _ = try await bed.channel.health(of: "nobody", timeout: .seconds(60))
      }
      #expect(unknown.code == .notFound)

      let watch = try await bed.channel.serverStreaming(
        HealthService.watch, RPCMessage(bytes: [10, 5] + Array("later".utf8)))
      #expect(try await watch.next() == RPCMessage(bytes: [8, 3]))
      health.set("later", .serving)
      #expect(try await watch.next() == RPCMessage(bytes: [8, 1]))
      health.shutdown()
      #expect(try await watch.next() == RPCMessage(bytes: [8, 2]))
      #expect(try await bed.channel.health(timeout: .seconds(60)) == .notServing)
    }
  }

  @Test func `an observer hears of connections`() async throws {
    final class Observer: RPCServerObserver {
      let connections = Signal<Int>()
      func connectionsChanged(to count: Int) { self.connections.fire(count) }
    }
    let observer = Observer()
    var configuration = RPCServer.Configuration()
    configuration.observer = observer
    try await withBed(.network, .standard(), server: configuration) { bed in
      for _ in 0..<10 { _ = try await bed.channel.unary(.echo, RPCMessage()) }
    }
    #expect(await observer.connections.value == 1)
  }

  /// Its connection must stay known to it: without that neither credit nor a reset would reach the server.
  @Test func `a call that was refused and went out again on its connection can be cancelled`()
    async throws
  {
    let listener = try await RawPeer.listen()
    let channel = RPCNetworkChannel(
      target: listener.address, group: TestBed.group, logger: TestBed.quietLogger())
    let call = Task { try await channel.unary(.echo, RPCMessage()) }
    let peer = await listener.peer
    #expect(await peer.skipPreface())
    await peer.send(RawPeer.frame(4))
    #expect(await peer.frame(ofType: 1)?.stream == 1)
    let refused: [UInt8] = [0, 0, 0, 7]
    await peer.send(RawPeer.frame(3, stream: 1, refused))
    #expect(await peer.frame(ofType: 1)?.stream == 3)
    call.cancel()
    #expect(await peer.frame(ofType: 3)?.stream == 3)
    #expect(await status { _ = try await call.value }.code == .cancelled)
    await channel.close(deadline: .zero)
    await listener.close()
  }
}
