// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import MemQRPC
import NIOCore
import NIOPosix
import Synchronization
import Testing

/// Where servers listen: what they take, what they leave alone, what they leave behind.
@Suite(.timeLimit(.minutes(5))) struct ListeningTests {
  private static let counter = Atomic<Int>(0)

  private let path: String = {
    let number = Self.counter.add(1, ordering: .relaxed).newValue
    return "/tmp/memq-listen-\(getpid())-\(number).sock"
  }()

  private func server(
    on address: String, router: RPCRouter = .standard(),
    group: any EventLoopGroup = TestBed.group,
    _ change: (inout RPCServer.Configuration) -> Void = { _ in }
  ) async throws -> RPCServer {
    var configuration = RPCServer.Configuration()
    change(&configuration)
    return try await RPCServer.start(
      router: router, on: address, group: group, configuration: configuration,
      logger: TestBed.quietLogger())
  }

  private func answers(_ address: String) async -> Bool {
    let channel = RPCNetworkChannel(
      target: address, group: TestBed.group, logger: TestBed.quietLogger())
    let status = await status { _ = try await channel.unary(.echo, RPCMessage("?")) }
    await channel.close(deadline: .zero)
    return status.isOK
  }

  private func refusal(_ body: () async throws -> RPCServer) async -> MemQError? {
    do {
      await (try body()).shutdown(deadline: .zero)
      return nil
    } catch {
      return error as? MemQError
    }
  }

  private func mode(_ path: String) -> UInt32? {
    var found = stat()
    return lstat(path, &found) == 0 ? found.st_mode & 0o777 : nil
  }

  /// What a process leaves that was killed.
  private func leaveDeadSocket() {
    let socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    let address = try! SocketAddress(unixDomainSocketPath: self.path)
    #expect(address.withSockAddr { bind(socket, $0, socklen_t($1)) } == 0)
    #expect(Glibc.listen(socket, 1) == 0)
    close(socket)
  }

  // MARK: Unix sockets

  @Test func `a live unix socket is never taken from its server`() async throws {
    let first = try await self.server(on: "unix:\(self.path)")
    let error = await self.refusal { try await self.server(on: "unix:\(self.path)") }
    #expect(error?.code == .addressInUse)
    #expect(error?.subject == "unix:\(self.path)")
    #expect(await self.answers("unix:\(self.path)"))
    await first.shutdown(deadline: .seconds(1))
  }

  @Test func `the file of a dead server is replaced, and goes with its successor`() async throws {
    self.leaveDeadSocket()
    let server = try await self.server(on: "unix:\(self.path)")
    #expect(await self.answers("unix:\(self.path)"))
    #expect(self.mode(self.path) == 0o600)
    await server.shutdown(deadline: .seconds(1))
    #expect(self.mode(self.path) == nil)
    let open = try await self.server(on: "unix:\(self.path)") { $0.socketFileMode = 0o660 }
    #expect(self.mode(self.path) == 0o660)
    await open.shutdown(deadline: .seconds(1))
  }

  @Test func `of many that start at once on a dead socket one gets it`() async throws {
    self.leaveDeadSocket()
    let servers = await withTaskGroup(of: RPCServer?.self) { group in
      for _ in 0..<16 {
        group.addTask { try? await self.server(on: "unix:\(self.path)") }
      }
      return await group.reduce(into: [RPCServer]()) { if let server = $1 { $0.append(server) } }
    }
    #expect(servers.count == 1)
    #expect(await self.answers("unix:\(self.path)"))
    for server in servers { await server.shutdown(deadline: .seconds(1)) }
  }

  @Test func `what is no socket, and what is another's by now, stays`() async throws {
    let file = open(self.path, O_CREAT | O_WRONLY, 0o644)
    close(file)
    let error = await self.refusal { try await self.server(on: "unix:\(self.path)") }
    #expect(error?.code == .addressInUse)
    #expect(error?.message.contains("no socket") == true)
    unlink(self.path)

    let first = try await self.server(on: "unix:\(self.path)")
    unlink(self.path)
    let second = try await self.server(on: "unix:\(self.path)")
    await first.shutdown(deadline: .seconds(1))
    #expect(await self.answers("unix:\(self.path)"))
    await second.shutdown(deadline: .seconds(1))
    let nowhere = await self.refusal { try await self.server(on: "unix:/nowhere/memq.sock") }
    #expect(nowhere?.code == .unavailable)
  }

  @Test func `a caller over a unix socket is known by process and user`() async throws {
    let peer = Signal<String>()
    var router = RPCRouter()
    router.unary(.echo) { request, context in
      peer.fire(context.peer)
      return request
    }
    let server = try await self.server(on: "unix:\(self.path)", router: router)
    #expect(await self.answers("unix:\(self.path)"))
    #expect(await peer.value == "unix:pid=\(getpid()),uid=\(getuid())")
    await server.shutdown(deadline: .seconds(1))
  }

  // MARK: A socket per loop

  @Test func `each loop accepts its own connections, on one port`() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 3)
    let loops = Mutex<Set<ObjectIdentifier>>([])
    var router = RPCRouter()
    router.unary(.echo) { request, _ in request }
    router.callback(.hang) { call in
      loops.withLock { _ = $0.insert(ObjectIdentifier(call.eventLoop)) }
      call.finish(RPCStatus(.cancelled))
      return Ignoring()
    }
    let server = try await self.server(on: "127.0.0.1:0", router: router, group: group) {
      $0.listensPerLoop = true
    }
    // The kernel spreads by chance: that none of so many reaches the others is out of the question.
    for _ in 0..<200 where loops.withLock({ $0.count }) < 3 {
      let channel = RPCNetworkChannel(
        target: server.localAddress, group: TestBed.group, logger: TestBed.quietLogger())
      _ = await status { _ = try await channel.unary(.hang, RPCMessage()) }
      await channel.close(deadline: .zero)
    }
    #expect(loops.withLock { $0.count } == 3)
    let address = server.localAddress
    await server.shutdown(deadline: .seconds(1))
    #expect(
      await RPCNetworkChannel.isRefused(address, group: TestBed.group, timeout: .seconds(10)))
    try await group.shutdownGracefully()
  }

  @Test func `a port that is listened on is taken, with a socket per loop, too`() async throws {
    let shared = try await self.server(on: "127.0.0.1:0") { $0.listensPerLoop = true }
    let plain = try await self.server(on: "127.0.0.1:0")
    for taken in [shared, plain] {
      for perLoop in [true, false] {
        let error = await self.refusal {
          try await self.server(on: taken.localAddress) { $0.listensPerLoop = perLoop }
        }
        #expect(error?.code == .addressInUse)
        #expect(error?.subject == taken.localAddress)
      }
    }
    let address = shared.localAddress
    await shared.shutdown(deadline: .zero)
    let servers = await withTaskGroup(of: RPCServer?.self) { group in
      for _ in 0..<8 {
        group.addTask { try? await self.server(on: address) { $0.listensPerLoop = true } }
      }
      return await group.reduce(into: [RPCServer]()) { if let server = $1 { $0.append(server) } }
    }
    #expect(servers.count == 1)
    for server in servers + [plain] { await server.shutdown(deadline: .zero) }
  }
}

private final class Ignoring: RPCServerHandler {
  func received(_ message: RPCMessage) {}
  func halfClosed() {}
  func writable() {}
  func ended(_ status: RPCStatus) {}
}
