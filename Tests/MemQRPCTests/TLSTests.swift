// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Foundation
import Logging
import MemQModel
import MemQRPC
import NIOCore
import NIOPosix
import NIOSSL
import Synchronization
import Testing

/// TLS: who may talk to whom, what is said when they may not, and new certificates under way.
@Suite(.timeLimit(.minutes(5))) struct TLSTests {
  private let certificates = TestCertificates.shared

  private func router(_ seen: Signal<RPCPeerIdentity?> = Signal()) -> RPCRouter {
    var router = RPCRouter.standard()
    router.unary(.hang) { request, context in
      seen.fire(context.peerIdentity)
      return request
    }
    return router
  }

  private func serverTLS(
    _ pair: TestCertificates.Pair, clients: RPCServerTLSFiles.Clients = .none,
    trust: String? = nil, versionMin: RPCTLSVersion = .tls13, reload: Duration? = nil,
    observer: (any RPCTLSObserver)? = nil
  ) throws -> RPCTLS {
    try RPCTLS(
      server: RPCServerTLSFiles(
        certificate: pair.certificate, key: pair.key, clients: clients,
        trust: trust ?? (clients == .none ? nil : self.certificates.authority),
        versionMin: versionMin),
      reloadInterval: reload, observer: observer, logger: TestBed.quietLogger())
  }

  private func clientTLS(
    _ pair: TestCertificates.Pair? = nil, trust: String? = nil, serverName: String? = nil
  ) throws -> RPCTLS {
    try RPCTLS(
      client: RPCClientTLSFiles(
        trust: trust ?? self.certificates.authority, certificate: pair?.certificate,
        key: pair?.key, serverName: serverName),
      reloadInterval: nil, logger: TestBed.quietLogger())
  }

  private func withServer<R: Sendable>(
    _ tls: RPCTLS?, on address: String = "127.0.0.1:0", router: RPCRouter = .standard(),
    prefaceTimeout: Duration = .seconds(60),
    _ body: (RPCServer) async throws -> R
  ) async throws -> R {
    var configuration = RPCServer.Configuration()
    configuration.tls = tls
    configuration.prefaceTimeout = prefaceTimeout
    let server = try await RPCServer.start(
      router: router, on: address, group: TestBed.group, configuration: configuration,
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

  private func withChannel<R: Sendable>(
    to target: String, _ tls: RPCTLS?, timeout: Duration = .seconds(60),
    _ body: (RPCNetworkChannel) async throws -> R
  ) async throws -> R {
    var configuration = RPCNetworkChannel.Configuration()
    configuration.tls = tls
    configuration.prefaceTimeout = timeout
    let channel = RPCNetworkChannel(
      target: target, group: TestBed.group, configuration: configuration,
      logger: TestBed.quietLogger())
    do {
      let result = try await body(channel)
      await channel.close(deadline: .seconds(2))
      return result
    } catch {
      await channel.close(deadline: .zero)
      throw error
    }
  }

  /// How a first call ends.
  private func firstCall(
    to server: RPCServer, _ tls: RPCTLS?
  ) async throws -> RPCStatus {
    try await self.withChannel(to: server.localAddress, tls) { channel in
      await status { _ = try await channel.unary(.echo, RPCMessage("first")) }
    }
  }

  // MARK: Good ones

  @Test func `calls go over TLS, large and small, many at once`() async throws {
    let tls = try self.serverTLS(self.certificates.make("good"))
    try await self.withServer(tls) { server in
      try await self.withChannel(to: server.localAddress, self.clientTLS()) { channel in
        try await withThrowingTaskGroup(of: Void.self) { group in
          for number in 0..<20 {
            group.addTask {
              let message = RPCMessage.pattern(number * 300_000, seed: UInt8(number))
              let answer = try await channel.unary(.echo, message)
              #expect(answer == message)
            }
          }
          try await group.waitForAll()
        }
      }
    }
  }

  @Test func `a name in place of an address is what the certificate must have`() async throws {
    let tls = try self.serverTLS(self.certificates.make("named", names: "DNS:memq.example"))
    try await self.withServer(tls) { server in
      let client = try self.clientTLS(serverName: "memq.example")
      #expect(try await self.firstCall(to: server, client).isOK)
    }
  }

  /// That it is for the address the connection leads to is not enough: who asks for a name wants that name.
  @Test(arguments: [
    ("DNS:localhost,IP:127.0.0.1", "other.example", "localhost, 127.0.0.1"),
    ("DNS:*.memq.example", "memq.example", "*.memq.example"),
    ("DNS:*.memq.example", "a.b.memq.example", "*.memq.example"),
    ("DNS:*.memq.example", "a.memq.example", nil),
    ("DNS:MEMQ.example", "memq.EXAMPLE.", nil),
  ])
  func `a name that was asked for must be in the certificate`(
    _ names: String, _ asked: String, _ shown: String?
  ) async throws {
    let tls = try self.serverTLS(self.certificates.make("for-\(asked)", names: names))
    try await self.withServer(tls) { server in
      let status = try await self.firstCall(
        to: server, self.clientTLS(serverName: asked))
      if let shown {
        #expect(
          status.message
            == "the certificate of \(server.localAddress) is for \(shown), not for \(asked)")
      } else {
        #expect(status.isOK)
      }
    }
  }

  @Test func `a handler learns who its client is`() async throws {
    let pair = try self.certificates.make(
      "client", commonName: "node 7",
      names: "DNS:seven.example,URI:spiffe://memq.example/node/7,email:ops@memq.example")
    let fingerprint = try self.certificates.openssl(
      ["x509", "-in", "client.pem", "-noout", "-fingerprint", "-sha256"])
    let seen = Signal<RPCPeerIdentity?>()
    let tls = try self.serverTLS(self.certificates.make("good2"), clients: .required)
    try await self.withServer(tls, router: self.router(seen)) { server in
      try await self.withChannel(to: server.localAddress, self.clientTLS(pair)) { channel in
        _ = try await channel.unary(.hang, RPCMessage())
      }
    }
    let identity = try #require(await seen.value)
    #expect(identity.commonName == "node 7")
    #expect(identity.dnsNames == ["seven.example"])
    #expect(identity.uris == ["spiffe://memq.example/node/7"])
    #expect(identity.emailAddresses == ["ops@memq.example"])
    let digest = identity.certificateDigest.map { String(format: "%02X", $0) }
    #expect(fingerprint.contains(digest.joined(separator: ":")))
    #expect(identity.expirySeconds > Int64(time(nil)))
  }

  @Test func `where a client certificate is optional, none is as good as a good one`()
    async throws
  {
    let tls = try self.serverTLS(self.certificates.make("good3"), clients: .optional)
    let pair = try self.certificates.make("client3", commonName: "three")
    for (client, name) in [(nil, nil), (pair, "three")] {
      let seen = Signal<RPCPeerIdentity?>()
      try await self.withServer(tls, router: self.router(seen)) { server in
        try await self.withChannel(to: server.localAddress, self.clientTLS(client)) { channel in
          _ = try await channel.unary(.hang, RPCMessage())
        }
      }
      #expect(await seen.value?.commonName == name)
    }
    let refused = try await self.withServer(tls) { server in
      try await self.firstCall(
        to: server, self.clientTLS(TestCertificates.strangers.make("client3")))
    }
    #expect(refused.code == .unavailable)
    #expect(refused.message.contains("refuses our certificate: it does not know its issuer"))
  }

  @Test func `TLS goes over a unix socket, too, under a given name`() async throws {
    let tls = try self.serverTLS(self.certificates.make("socket", names: "DNS:socket.example"))
    let path = self.certificates.file("tls.sock")
    try await self.withServer(tls, on: "unix:\(path)") { server in
      let client = try self.clientTLS(serverName: "socket.example")
      #expect(try await self.firstCall(to: server, client).isOK)
    }
  }

  // MARK: Bad certificates

  enum BadServer: String, CaseIterable, Sendable {
    case expired, early, otherName, stranger, selfSigned, clientOnly

    func make(_ certificates: TestCertificates) throws -> TestCertificates.Pair {
      switch self {
      case .expired: try certificates.make("expired", validity: .past)
      case .early: try certificates.make("early", validity: .future)
      case .otherName:
        try certificates.make("other", names: "DNS:a.example,DNS:b.example")
      case .stranger: try TestCertificates.strangers.make("server")
      case .selfSigned:
        TestCertificates.Pair(
          certificate: TestCertificates.strangers.authority,
          key: TestCertificates.strangers.file("ca.key"))
      case .clientOnly:
        try certificates.make(
          "client-only", extra: ["-addext", "extendedKeyUsage=clientAuth"])
      }
    }

    var says: String {
      switch self {
      case .expired: "expired on 2020-02-01 00:00:00 UTC"
      case .early: "is not valid before 2090-01-01 00:00:00 UTC"
      case .otherName: "is for a.example, b.example, not for 127.0.0.1"
      case .stranger:
        "is of an unknown issuer, \"Stranger\": it is not among the trusted roots"
      case .selfSigned: "is self-signed and not among the trusted ones"
      case .clientOnly: "is not made for servers (extended key usage)"
      }
    }
  }

  @Test(arguments: BadServer.allCases)
  func `a client says what is wrong with a server's certificate`(_ bad: BadServer) async throws {
    let tls = try self.serverTLS(bad.make(self.certificates))
    try await self.withServer(tls) { server in
      let status = try await self.firstCall(to: server, self.clientTLS())
      #expect(status.code == .unavailable)
      #expect(status.message == "the certificate of \(server.localAddress) \(bad.says)")
    }
  }

  enum BadClient: String, CaseIterable, Sendable {
    case none, expired, stranger, serverOnly

    func make(_ certificates: TestCertificates) throws -> TestCertificates.Pair? {
      switch self {
      case .none: nil
      case .expired: try certificates.make("expired-client", validity: .past)
      case .stranger: try TestCertificates.strangers.make("client")
      case .serverOnly:
        try certificates.make(
          "server-only", extra: ["-addext", "extendedKeyUsage=serverAuth"])
      }
    }

    var isTold: String {
      switch self {
      case .none: "requires a client certificate, and we showed none"
      case .expired: "refuses our certificate: it is expired or not yet valid"
      case .stranger: "refuses our certificate: it does not know its issuer"
      case .serverOnly: "refuses our certificate"
      }
    }

    var isLogged: String {
      switch self {
      case .none: "the client shows no certificate"
      case .expired: "the client's certificate expired on 2020-02-01 00:00:00 UTC"
      case .stranger: "the client's certificate is of an unknown issuer, \"Stranger\""
      case .serverOnly: "the client's certificate is not made for clients (extended key usage)"
      }
    }
  }

  @Test(arguments: BadClient.allCases)
  func `a server says what is wrong with a client's certificate, to the client and in its log`(
    _ bad: BadClient
  ) async throws {
    let pair = try self.certificates.make("good-\(bad)")
    let log = LogLines()
    let tls = try RPCTLS(
      server: RPCServerTLSFiles(
        certificate: pair.certificate, key: pair.key, clients: .required,
        trust: self.certificates.authority),
      reloadInterval: nil, logger: log.logger)
    try await self.withServer(tls) { server in
      let status = try await self.firstCall(
        to: server, self.clientTLS(bad.make(self.certificates)))
      #expect(status.code == .unavailable)
      #expect(status.message == "\(server.localAddress) \(bad.isTold)")
    }
    let line = await log.next()
    #expect(line.contains("TLS handshake failed"))
    #expect(line.contains(bad.isLogged))
  }

  // MARK: Other peers

  @Test func `a client without TLS is told so by a TLS port`() async throws {
    let tls = try self.serverTLS(self.certificates.make("guarded"))
    try await self.withServer(tls) { server in
      let status = try await self.firstCall(to: server, nil)
      #expect(status.code == .unavailable)
      #expect(
        status.message
          == "\(server.localAddress) does not speak HTTP/2 like this; it answers: This port speaks gRPC over HTTP/2, with TLS. Use a gRPC client."
      )
      let browser = try await RawPeer.connect(port: server.localPort)
      await browser.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
      let answer = String(decoding: await browser.rest(), as: UTF8.self)
      #expect(answer.hasPrefix("HTTP/1.1 400"))
      #expect(answer.contains("with TLS"))
      let noise = try await RawPeer.connect(port: server.localPort)
      await noise.send([0, 1, 2, 3])
      #expect(await noise.rest().isEmpty)
    }
  }

  @Test func `a TLS client at a port without TLS hears nothing, and says so`() async throws {
    try await self.withServer(nil) { server in
      let status = try await self.firstCall(to: server, self.clientTLS())
      #expect(status.code == .unavailable)
      #expect(
        status.message
          == "\(server.localAddress) closed the connection during the TLS handshake: perhaps it does not speak TLS"
      )
    }
  }

  @Test func `a peer that does not agree to HTTP/2 by ALPN is told, and closed`() async throws {
    let tls = try self.serverTLS(self.certificates.make("alpn"))
    try await self.withServer(tls) { server in
      for protocols in [[], ["http/1.1"]] {
        let client = try self.certificates.rawClient(protocols: protocols)
        let peer = try await RawPeer.connect(port: server.localPort, tls: client)
        await peer.send(RawPeer.hello)
        let goAway = try #require(await peer.frame(ofType: 7))
        #expect(Array(goAway.payload[4..<8]) == [0, 0, 0, 12])
        #expect(String(decoding: goAway.payload[8...], as: UTF8.self) == "ALPN h2 is required")
        #expect(await peer.frame() == nil)
        let browser = try await RawPeer.connect(port: server.localPort, tls: client)
        await browser.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        let answer = String(decoding: await browser.rest(), as: UTF8.self)
        #expect(answer.hasPrefix("HTTP/1.1 400"))
      }
    }
  }

  @Test func `a client names the scheme and the server as TLS has them`() async throws {
    let pair = try self.certificates.make("scheme", names: "DNS:memq.example")
    let listener = try await RawPeer.listen(tls: self.certificates.rawServer(pair))
    let client = try self.clientTLS(serverName: "memq.example")
    try await self.withChannel(to: listener.address, client) { channel in
      let call = Task { try await channel.unary(.echo, RPCMessage()) }
      let peer = await listener.peer
      #expect(await peer.skipPreface())
      let request = try #require(await peer.frame(ofType: 1))
      let headers = RawPeer.decode(request.payload)
      #expect(headers[":scheme"] == "https")
      #expect(headers[":authority"] == "memq.example")
      await peer.close()
      _ = await call.result
    }
    await listener.close()
  }

  @Test func `a server that speaks TLS and not HTTP/2 is named as one`() async throws {
    let pair = try self.certificates.make("no-alpn")
    let listener = try await RawPeer.listen(
      tls: self.certificates.rawServer(pair, protocols: ["http/1.1"]))
    let status = try await self.withChannel(to: listener.address, self.clientTLS()) { channel in
      await MemQRPCTests.status { _ = try await channel.unary(.echo, RPCMessage()) }
    }
    #expect(status.code == .unavailable)
    #expect(status.message.hasPrefix("\(listener.address) speaks TLS, but not HTTP/2"))
    await listener.close()
  }

  @Test func `TLS 1.2 is spoken only where it is allowed`() async throws {
    let pair = try self.certificates.make("old")
    let client = try self.certificates.rawClient(versionMax: .tlsv12)
    try await self.withServer(self.serverTLS(pair)) { server in
      let peer = try await RawPeer.connect(port: server.localPort, tls: client)
      await peer.send(RawPeer.hello)
      #expect(await peer.frame() == nil)
    }
    try await self.withServer(self.serverTLS(pair, versionMin: .tls12)) { server in
      let peer = try await RawPeer.connect(port: server.localPort, tls: client)
      await peer.send(RawPeer.hello)
      #expect(await peer.frame(ofType: 4) != nil)
      await peer.close()
    }
  }

  @Test func `who begins no handshake, or does not end it, is closed`() async throws {
    let tls = try self.serverTLS(self.certificates.make("slow"))
    try await self.withServer(tls, prefaceTimeout: .milliseconds(100)) { server in
      let silent = try await RawPeer.connect(port: server.localPort)
      #expect(await silent.rest().isEmpty)
      let half = try await RawPeer.connect(port: server.localPort)
      await half.send([22, 3, 1, 2, 0, 1, 0])
      _ = await half.rest()
    }
    // A server that accepts and says nothing.
    let listener = try await ServerBootstrap(group: TestBed.group)
      .bind(host: "127.0.0.1", port: 0).get()
    let target = "127.0.0.1:\(listener.localAddress!.port!)"
    let status = try await self.withChannel(
      to: target, self.clientTLS(), timeout: .milliseconds(100)
    ) { channel in
      await MemQRPCTests.status { _ = try await channel.unary(.echo, RPCMessage()) }
    }
    #expect(status.code == .unavailable)
    #expect(status.message == "no TLS handshake with \(target) within 100 ms")
    try await listener.close().get()
  }

  // MARK: New files

  private final class Observer: RPCTLSObserver {
    let expiries = Mutex<[Int64?]>([])
    let inUse = Signal<Void>()
    let failed = Signal<Void>()
    private let uses = Atomic2(0)

    func certificateInUse(expirySeconds: Int64?) {
      self.uses.add(1)
      if self.uses.value == 2 { self.inUse.fire(()) }
    }
    func reloadFailed() { self.failed.fire(()) }
  }

  /// The common name a new connection sees.
  private func shown(
    by server: RPCServer, _ certificates: TestCertificates
  ) async throws -> String? {
    let peer = try await RawPeer.connect(port: server.localPort, tls: certificates.rawClient())
    await peer.send(RawPeer.hello)
    _ = await peer.frame(ofType: 4)
    let name = try await peer.certificate?.subjectName.first?.value
    await peer.close()
    return name
  }

  @Test func `new files serve new connections while an old stream goes on`() async throws {
    let certificates = try TestCertificates()
    let observer = Observer()
    let tls = try self.serverTLS(
      certificates.make("server", commonName: "old"), reload: .milliseconds(20),
      observer: observer)
    try await self.withServer(tls) { server in
      let client = try self.clientTLS(trust: certificates.authority)
      try await self.withChannel(to: server.localAddress, client) { channel in
        let chat = try await channel.bidirectional(.chat)
        try await chat.send(RPCMessage("before"))
        #expect(try await chat.responses.next()?.text == "before")
        #expect(try await self.shown(by: server, certificates) == "old")
        _ = try certificates.make("server", commonName: "new")
        await observer.inUse.value
        #expect(try await self.shown(by: server, certificates) == "new")
        try await chat.send(RPCMessage("after"))
        #expect(try await chat.responses.next()?.text == "after")
        try await chat.halfClose()
        #expect(try await chat.responses.next() == nil)
      }
    }
  }

  @Test func `files that cannot be used leave the old ones in use`() async throws {
    let certificates = try TestCertificates()
    let observer = Observer()
    let pair = try certificates.make("server", commonName: "old")
    let tls = try self.serverTLS(pair, reload: .milliseconds(20), observer: observer)
    try await self.withServer(tls) { server in
      try "no certificate".write(toFile: pair.certificate, atomically: true, encoding: .utf8)
      await observer.failed.value
      #expect(try await self.shown(by: server, certificates) == "old")
      #expect(throws: MemQError.self) { try tls.reload() }
      // Repaired.
      _ = try certificates.make("server", commonName: "new")
      _ = try tls.reload()
      #expect(try await self.shown(by: server, certificates) == "new")
    }
  }

  @Test func `new roots decide about new clients`() async throws {
    let trusted = try TestCertificates(authority: "first")
    let second = try TestCertificates(authority: "second")
    let roots = trusted.file("roots.pem")
    try FileManager.default.copyItem(atPath: trusted.authority, toPath: roots)
    let tls = try self.serverTLS(
      self.certificates.make("roots"), clients: .required, trust: roots)
    let client = try self.clientTLS(second.make("client"))
    try await self.withServer(tls) { server in
      #expect(try await self.firstCall(to: server, client).code == .unavailable)
      let both =
        try String(contentsOfFile: trusted.authority, encoding: .utf8)
        + String(contentsOfFile: second.authority, encoding: .utf8)
      try both.write(toFile: roots, atomically: true, encoding: .utf8)
      let changes = [try tls.reload(), try tls.reload()]
      #expect(changes == [true, false])
      #expect(try await self.firstCall(to: server, client).isOK)
    }
  }

  // MARK: Files that cannot be used at the start

  @Test func `a file that cannot be used is named, with what is wrong`() throws {
    let pair = try self.certificates.make("files")
    let other = try self.certificates.make("files2")
    let locked = self.certificates.file("locked.key")
    try self.certificates.openssl(
      ["pkey", "-in", pair.key, "-out", locked, "-aes256", "-passout", "pass:x"])
    let missing = self.certificates.file("nowhere.pem")
    func problem(_ files: RPCServerTLSFiles) -> MemQError? {
      do throws(MemQError) {
        _ = try RPCTLS(server: files, reloadInterval: nil, logger: TestBed.quietLogger())
        return nil
      } catch {
        return error
      }
    }
    let cases: [(RPCServerTLSFiles, subject: String, message: String)] = [
      (.init(certificate: missing, key: pair.key), missing, "No such file or directory"),
      (.init(certificate: pair.key, key: pair.key), pair.key, "holds no certificate in PEM"),
      (
        .init(certificate: pair.certificate, key: pair.certificate), pair.certificate,
        "holds no private key in PEM"
      ),
      (
        .init(certificate: pair.certificate, key: other.key), other.key,
        "is not the key of the certificate in \(pair.certificate)"
      ),
      (.init(certificate: pair.certificate, key: locked), locked, "holds an encrypted key"),
      (
        .init(certificate: pair.certificate, key: pair.key, clients: .required),
        "clients: required", "name a file of trusted roots"
      ),
      (
        .init(certificate: pair.certificate, key: pair.key, clients: .optional, trust: missing),
        missing, "cannot be read"
      ),
    ]
    for (files, subject, message) in cases {
      let error = try #require(problem(files))
      #expect(error.code == .configurationInvalid)
      #expect(error.subject == subject)
      #expect(error.message.contains(message), "\(error.message)")
    }
    #expect(throws: MemQError.self) {
      _ = try RPCTLS(
        client: RPCClientTLSFiles(certificate: pair.certificate), reloadInterval: nil,
        logger: TestBed.quietLogger())
    }
  }
}

/// A logger whose lines can be waited for.
final class LogLines: Sendable {
  private let lines = AsyncStream.makeStream(of: String.self)

  var logger: Logger {
    Logger(label: "test") { _ in Handler(lines: self.lines.continuation) }
  }

  /// The next line with its metadata.
  func next() async -> String {
    for await line in self.lines.stream { return line }
    return ""
  }

  private struct Handler: LogHandler {
    let lines: AsyncStream<String>.Continuation
    var metadata: Logger.Metadata = [:]
    var logLevel = Logger.Level.info

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
      get { self.metadata[key] }
      set { self.metadata[key] = newValue }
    }

    func log(event: LogEvent) {
      let metadata = (event.metadata ?? [:]).map { "\($0.key)=\($0.value)" }.joined(separator: " ")
      self.lines.yield("\(event.message) \(metadata)")
    }
  }
}
