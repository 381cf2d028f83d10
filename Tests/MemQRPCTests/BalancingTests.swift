// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQTestSupport
import NIOCore
import Synchronization
import Testing

@testable import MemQRPC

@Suite struct MemberChoiceTests {
  private func pick(
    _ choice: inout MemberChoice, _ health: [MemberChoice.Health], key: UInt64? = nil
  ) -> Int? {
    choice.pick(
      health.count, affinity: key,
      seed: { MemberChoice.mix(MemberChoice.hash("10.0.0.\($0):7460")) }, health: { health[$0] })
  }

  @Test func `calls go round those that are connected`() {
    var choice = MemberChoice(.roundRobin, start: 7)
    var counts = [0, 0, 0, 0]
    for _ in 0..<90 {
      counts[self.pick(&choice, [.connected, .failing, .connected, .connected])!] += 1
    }
    #expect(counts[1] == 0 && counts.allSatisfy { $0 == 0 || $0 >= 22 })
    // Better one that may be there than one that is known not to be; better that than nobody.
    #expect(self.pick(&choice, [.failing, .unknown, .failing]) == 1)
    #expect(self.pick(&choice, [.failing, .failing]) != nil)
    #expect(self.pick(&choice, []) == nil)
  }

  @Test func `pick first stays until its member fails, and does not return`() {
    var choice = MemberChoice(.pickFirst, start: 0)
    #expect(self.pick(&choice, [.unknown, .connected, .connected]) == 0)
    #expect(self.pick(&choice, [.failing, .unknown, .connected]) == 1)
    #expect(self.pick(&choice, [.connected, .connected, .connected]) == 1)
    // The list changes: the member in use is elsewhere now, or gone.
    choice.moved(to: 2)
    #expect(self.pick(&choice, [.connected, .connected, .connected]) == 2)
    choice.moved(to: nil)
    #expect(self.pick(&choice, [.connected, .connected, .connected]) == 0)
  }

  @Test func `only the keys of a member that is gone move, and they come back`() {
    var choice = MemberChoice(.sticky, start: 0)
    let all = [MemberChoice.Health](repeating: .connected, count: 5)
    var without = all
    without[3] = .failing
    var counts = [0, 0, 0, 0, 0]
    for key in 0..<10_000 {
      let key = RPCCallOptions.affinity(of: "user-\(key)")
      let home = self.pick(&choice, all, key: key)!
      counts[home] += 1
      let other = self.pick(&choice, without, key: key)!
      #expect(home == 3 ? other != 3 : other == home)
      #expect(self.pick(&choice, all, key: key) == home)
      // A sixth member takes keys from the others, and moves none between them.
      let more = self.pick(&choice, all + [.connected], key: key)!
      #expect(more == home || more == 5)
    }
    #expect(counts.allSatisfy { $0 > 1_700 && $0 < 2_300 })
  }
}

/// Calls over several servers.
@Suite(.timeLimit(.minutes(5))) struct BalancingTests {
  private func server(_ name: String, on address: String = "127.0.0.1:0") async throws -> RPCServer
  {
    var router = RPCRouter()
    router.unary(.echo) { _, _ in RPCMessage(name) }
    router.bidirectional(.chat) { reader, _, writer in
      try await writer.send(RPCMessage(name))
      for try await message in reader { try await writer.send(message) }
    }
    return try await RPCServer.start(
      router: router, on: address, group: TestBed.group, logger: TestBed.quietLogger())
  }

  private func servers(_ count: Int) async throws -> [RPCServer] {
    var servers: [RPCServer] = []
    for number in 0..<count { servers.append(try await self.server("\(number)")) }
    return servers
  }

  private func channel(
    _ targets: [String], _ change: (inout RPCBalancedChannel.Configuration) -> Void = { _ in }
  ) -> RPCBalancedChannel {
    var configuration = RPCBalancedChannel.Configuration()
    change(&configuration)
    return RPCBalancedChannel(
      targets: targets, group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
  }

  private func ask(
    _ channel: RPCBalancedChannel, affinity: UInt64? = nil, waits: Bool = false
  ) async throws -> String {
    var options = RPCCallOptions(timeout: .seconds(60), waitForReady: waits)
    options.affinity = affinity
    return try await channel.unary(.echo, RPCMessage(), options).text
  }

  private func connected(_ channel: RPCBalancedChannel, _ count: Int) async {
    while channel.connectedCount != count { await Task.yield() }
  }

  @Test(arguments: [2, 3, 4]) func `each server gets its turn`(count: Int) async throws {
    let servers = try await self.servers(count)
    let channel = self.channel(servers.map(\.localAddress))
    await self.connected(channel, count)
    var counts: [String: Int] = [:]
    for _ in 0..<(10 * count) { counts[try await self.ask(channel), default: 0] += 1 }
    #expect(counts.count == count)
    #expect(counts.values.allSatisfy { $0 == 10 })
    await channel.close(deadline: .seconds(1))
    for server in servers { await server.shutdown(deadline: .seconds(1)) }
  }

  @Test(arguments: [RPCBalancing.roundRobin, .pickFirst, .sticky])
  func `calls go through restarts of the servers without an error`(
    balancing: RPCBalancing
  ) async throws {
    var servers = try await self.servers(2)
    let channel = self.channel(servers.map(\.localAddress)) { $0.balancing = balancing }
    // A member that is not in use is not looked after: its back-off may still run when the other goes.
    let waits = balancing == .pickFirst
    let stop = Signal<Void>()
    let callers = (0..<4).map { number in
      Task {
        var count = 0
        while !stop.isFired {
          _ = try await self.ask(channel, affinity: UInt64(number), waits: waits)
          count += 1
        }
        return count
      }
    }
    for round in 0..<6 {
      let place = round % 2
      for _ in 0..<50 { _ = try await self.ask(channel, affinity: 1, waits: waits) }
      let address = servers[place].localAddress
      await servers[place].shutdown(deadline: .seconds(30))
      for _ in 0..<50 { _ = try await self.ask(channel, affinity: 1, waits: waits) }
      servers[place] = try await self.server("\(place)", on: address)
      if balancing != .pickFirst { await self.connected(channel, 2) }
    }
    stop.fire(())
    for caller in callers { #expect(try await caller.value > 0) }
    await channel.close(deadline: .seconds(1))
    for server in servers { await server.shutdown(deadline: .seconds(1)) }
  }

  @Test func `a key keeps its server, and gets it back`() async throws {
    let servers = try await self.servers(3)
    let channel = self.channel(servers.map(\.localAddress)) { $0.balancing = .sticky }
    await self.connected(channel, 3)
    var homes: [UInt64: String] = [:]
    for key in 0..<40 {
      let key = RPCCallOptions.affinity(of: "key \(key)")
      homes[key] = try await self.ask(channel, affinity: key)
      #expect(try await self.ask(channel, affinity: key) == homes[key])
    }
    #expect(Set(homes.values).count == 3)
    let address = servers[0].localAddress
    await servers[0].shutdown(deadline: .seconds(5))
    for (key, home) in homes {
      let now = try await self.ask(channel, affinity: key)
      #expect(home == "0" ? now != "0" : now == home)
    }
    let again = try await self.server("0", on: address)
    await self.connected(channel, 3)
    for (key, home) in homes { #expect(try await self.ask(channel, affinity: key) == home) }
    await channel.close(deadline: .seconds(1))
    for server in servers + [again] { await server.shutdown(deadline: .seconds(1)) }
  }

  @Test func `members change while calls go on, and a removed one ends its own`() async throws {
    let servers = try await self.servers(2)
    let channel = self.channel([servers[0].localAddress])
    let stream = try await channel.bidirectional(.chat, RPCCallOptions(timeout: .seconds(60)))
    #expect(try await stream.responses.next()?.text == "0")
    channel.update(targets: [servers[1].localAddress])
    #expect(channel.addresses == [servers[1].localAddress])
    for _ in 0..<20 { #expect(try await self.ask(channel) == "1") }
    try await stream.send(RPCMessage("still there?"))
    #expect(try await stream.responses.next()?.text == "still there?")
    try await stream.halfClose()
    #expect(try await stream.responses.next() == nil)
    channel.update(targets: [])
    let status = await status { _ = try await self.ask(channel) }
    #expect(status.code == .unavailable && status.message.contains("no server"))
    await channel.close(deadline: .seconds(1))
    for server in servers { await server.shutdown(deadline: .seconds(1)) }
  }

  @Test func `nobody there is unavailable, or waited for`() async throws {
    let servers = try await self.servers(2)
    let addresses = servers.map(\.localAddress)
    for server in servers { await server.shutdown(deadline: .zero) }
    let channel = self.channel(addresses)
    #expect(await status { _ = try await self.ask(channel) }.code == .unavailable)
    var options = RPCCallOptions(timeout: .milliseconds(100), waitForReady: true)
    let late = await status { _ = try await channel.unary(.echo, RPCMessage(), options) }
    #expect(late.code == .unavailable || late.code == .deadlineExceeded)
    options.timeout = .seconds(60)
    let waiting = Task { [options] in
      try await channel.unary(.echo, RPCMessage(), options).text
    }
    let back = try await self.server("back", on: addresses[1])
    #expect(try await waiting.value == "back")
    await channel.close(deadline: .seconds(1))
    await back.shutdown(deadline: .seconds(1))
  }

  @Test func `calls wait for a member together, and not without limit`() async throws {
    let channel = self.channel([]) { $0.channel.waitingCallsMax = 2 }
    let options = RPCCallOptions(timeout: .seconds(60), waitForReady: true)
    let waiting = (0..<2).map { _ in
      Task { try await channel.unary(.echo, RPCMessage(), options).text }
    }
    while channel.waitingCount < 2 { await Task.yield() }
    let third = await status { _ = try await channel.unary(.echo, RPCMessage(), options) }
    #expect(third.code == .resourceExhausted)
    let server = try await self.server("here")
    channel.update(targets: [server.localAddress])
    for call in waiting { #expect(try await call.value == "here") }
    // Who waits when the channel is closed hears so.
    channel.update(targets: [])
    let last = Task { try await channel.unary(.echo, RPCMessage(), options).text }
    while channel.waitingCount < 1 { await Task.yield() }
    await channel.close(deadline: .seconds(1))
    #expect(await status { _ = try await last.value }.code == .unavailable)
    await server.shutdown(deadline: .seconds(1))
  }

  @Test func `a socket is a member like any other`() async throws {
    let server = try await self.server("socket", on: "unix:/tmp/memq-rpc-balanced-\(getpid()).sock")
    let channel = self.channel([server.localAddress])
    #expect(try await self.ask(channel) == "socket")
    await channel.close(deadline: .seconds(1))
    await server.shutdown(deadline: .seconds(1))
  }

  @Test func `what a closed channel refuses may go elsewhere`() async throws {
    let channel = RPCNetworkChannel(
      target: "127.0.0.1:1", group: TestBed.group, logger: TestBed.quietLogger())
    await channel.close(deadline: .zero)
    #expect(await status { _ = try await channel.unary(.echo, RPCMessage()) }.isUnsent)
  }

  @Test func `a name is as many members as it has addresses, and follows them`() async throws {
    let servers = try await self.servers(3)
    let addresses = servers.map(\.localAddress)
    let book = Mutex(["cluster:1": [addresses[0], addresses[1]]])
    let asked = Mutex(0)
    var configuration = RPCBalancedChannel.Configuration()
    configuration.resolveInterval = .milliseconds(5)
    let hooks = RPCBalancedChannel.Hooks(
      resolve: { target in
        asked.withLock { $0 += 1 }
        return book.withLock { $0[target] ?? [] }
      },
      connect: { address, target, onConnected in
        var settings = RPCNetworkChannel.Configuration()
        settings.keepsConnected = true
        settings.authority = target
        settings.onConnected = onConnected
        return RPCNetworkChannel(
          target: address, group: TestBed.group, configuration: settings,
          logger: TestBed.quietLogger())
      })
    let channel = RPCBalancedChannel(
      targets: ["cluster:1"], group: TestBed.group, configuration: configuration, hooks: hooks)
    while channel.addresses != [addresses[0], addresses[1]] { await Task.yield() }
    book.withLock { $0["cluster:1"] = [addresses[1], addresses[2]] }
    while channel.addresses != [addresses[1], addresses[2]] { await Task.yield() }
    for _ in 0..<10 { #expect(try await self.ask(channel) != "0") }
    // A look-up that fails changes nothing.
    book.withLock { $0["cluster:1"] = [] }
    let before = asked.withLock { $0 }
    while asked.withLock({ $0 }) < before + 3 { await Task.yield() }
    #expect(channel.addresses == [addresses[1], addresses[2]])
    await channel.close(deadline: .seconds(1))
    for server in servers { await server.shutdown(deadline: .seconds(1)) }
  }

  @Test func `names become addresses, and addresses stay`() async {
    #expect(await NameResolution.addresses(of: "127.0.0.1:80") == ["127.0.0.1:80"])
    #expect(await NameResolution.addresses(of: "[::1]:80") == ["[::1]:80"])
    #expect(await NameResolution.addresses(of: "unix:/a") == ["unix:/a"])
    #expect(await NameResolution.addresses(of: "localhost:80").contains("127.0.0.1:80"))
    #expect(await NameResolution.addresses(of: "no-such-host.invalid:1") == [])
  }
}
