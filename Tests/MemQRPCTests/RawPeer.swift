// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CNghttp2
import NIOCore
import NIOPosix
import NIOSSL
import Synchronization

/// A peer that writes bytes by hand: whatever a hostile or a foreign one might send.
final class RawPeer: Sendable {
  /// What came: frames, or the end.
  struct Frame: Sendable {
    let type: UInt8
    let flags: UInt8
    let stream: UInt32
    let payload: [UInt8]
  }

  private let channel: any Channel
  private let inbox: Inbox

  private init(channel: any Channel, inbox: Inbox) {
    self.channel = channel
    self.inbox = inbox
  }

  /// - Parameter tls: nil: without. The name is not checked.
  static func connect(port: Int, tls: TLSConfiguration? = nil) async throws -> RawPeer {
    let inbox = Inbox()
    let context = try tls.map { try NIOSSLContext(configuration: $0) }
    let channel = try await ClientBootstrap(group: TestBed.group)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          if let context {
            try channel.pipeline.syncOperations.addHandler(
              NIOSSLClientHandler(context: context, serverHostname: nil))
          }
          try channel.pipeline.syncOperations.addHandler(Collector(inbox))
        }
      }
      .connect(host: "127.0.0.1", port: port).get()
    return RawPeer(channel: channel, inbox: inbox)
  }

  /// Listens, and waits for whoever comes first.
  struct Listener: Sendable {
    fileprivate let channel: any Channel
    fileprivate let first: Signal<RawPeer>

    var address: String { "127.0.0.1:\(self.channel.localAddress!.port!)" }
    /// The first connection.
    var peer: RawPeer { get async { await self.first.value } }
    func close() async { try? await self.channel.close().get() }
  }

  static func listen(tls: TLSConfiguration? = nil) async throws -> Listener {
    let first = Signal<RawPeer>()
    let context = try tls.map { try NIOSSLContext(configuration: $0) }
    let channel = try await ServerBootstrap(group: TestBed.group)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          if let context { try pipeline.addHandler(NIOSSLServerHandler(context: context)) }
          let inbox = Inbox()
          try pipeline.addHandler(Collector(inbox))
          first.fire(RawPeer(channel: channel, inbox: inbox))
        }
      }
      .bind(host: "127.0.0.1", port: 0).get()
    return Listener(channel: channel, first: first)
  }

  /// Passes over the preface of a client.
  func skipPreface() async -> Bool { await self.bytes(Self.preface.count) == Self.preface }

  /// What the other side showed; call it once bytes came.
  var certificate: NIOSSLCertificate? {
    get async throws { try await self.channel.nioSSL_peerCertificate().get() }
  }

  func close() async {
    try? await self.channel.close().get()
  }

  func resume() async {
    try? await self.channel.setOption(.autoRead, value: true).get()
  }

  /// Reads nothing from here on.
  func pause() async {
    try? await self.channel.setOption(.autoRead, value: false).get()
  }

  // MARK: Sending

  /// Errors of writing are of no interest: the other side may have had enough.
  func send(_ bytes: [UInt8]) async {
    try? await self.channel.writeAndFlush(ByteBuffer(bytes: bytes)).get()
  }

  func send(_ text: String) async {
    await self.send(Array(text.utf8))
  }

  static let preface = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)

  static func frame(
    _ type: UInt8, flags: UInt8 = 0, stream: UInt32 = 0, _ payload: [UInt8] = []
  )
    -> [UInt8]
  {
    let length = payload.count
    let head: [UInt8] = [
      UInt8(length >> 16 & 255), UInt8(length >> 8 & 255), UInt8(length & 255), type, flags,
      UInt8(stream >> 24 & 127), UInt8(stream >> 16 & 255), UInt8(stream >> 8 & 255),
      UInt8(stream & 255),
    ]
    return head + payload
  }

  /// The preface and empty settings.
  static var hello: [UInt8] { Self.preface + Self.frame(4) }

  /// Headers as literals without an index.
  static func headers(_ pairs: [(String, String)]) -> [UInt8] {
    var bytes: [UInt8] = []
    for (name, value) in pairs {
      bytes.append(0)
      Self.append(Array(name.utf8), to: &bytes)
      Self.append(Array(value.utf8), to: &bytes)
    }
    return bytes
  }

  private static func append(_ text: [UInt8], to bytes: inout [UInt8]) {
    if text.count < 127 {
      bytes.append(UInt8(text.count))
    } else {
      bytes.append(127)
      var rest = text.count - 127
      while rest >= 128 {
        bytes.append(UInt8(rest & 127) | 128)
        rest >>= 7
      }
      bytes.append(UInt8(rest))
    }
    bytes += text
  }

  static func requestHeaders(
    _ path: String = RPCMethodPath.echo, changing: [String: String] = [:],
    adding: [(String, String)] = []
  ) -> [UInt8] {
    let pairs = [
      (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"),
      ("te", "trailers"), ("content-type", "application/grpc"),
    ]
    return Self.headers(pairs.map { ($0.0, changing[$0.0] ?? $0.1) } + adding)
  }

  /// HEADERS and END_HEADERS.
  static func request(
    stream: UInt32, end: Bool = false, changing: [String: String] = [:],
    adding: [(String, String)] = []
  ) -> [UInt8] {
    Self.frame(
      1, flags: end ? 5 : 4, stream: stream,
      Self.requestHeaders(changing: changing, adding: adding))
  }

  // MARK: Receiving

  /// Everything until the peer closes.
  func rest() async -> [UInt8] {
    while let _ = await self.inbox.more() {}
    return self.inbox.take(.max)!
  }

  /// The next frame; nil when the peer closed.
  func frame() async -> Frame? {
    guard let head = await self.bytes(9) else { return nil }
    let length = Int(head[0]) << 16 | Int(head[1]) << 8 | Int(head[2])
    let stream =
      UInt32(head[5] & 127) << 24 | UInt32(head[6]) << 16 | UInt32(head[7]) << 8 | UInt32(head[8])
    guard let payload = await self.bytes(length) else { return nil }
    return Frame(type: head[3], flags: head[4], stream: stream, payload: payload)
  }

  /// The next frame of `type`, others skipped.
  func frame(ofType type: UInt8) async -> Frame? {
    while let frame = await self.frame() {
      if frame.type == type { return frame }
    }
    return nil
  }

  private func bytes(_ count: Int) async -> [UInt8]? {
    while true {
      if let bytes = self.inbox.take(count) { return bytes }
      guard await self.inbox.more() != nil else { return nil }
    }
  }

  /// Decodes the header block of the connection's first response.
  static func decode(_ block: [UInt8]) -> [String: String] {
    var inflater: OpaquePointer?
    guard nghttp2_hd_inflate_new(&inflater) == 0 else { return [:] }
    defer { nghttp2_hd_inflate_del(inflater) }
    var headers: [String: String] = [:]
    block.withUnsafeBufferPointer { input in
      var offset = 0
      while true {
        var nv = nghttp2_nv()
        var flags: Int32 = 0
        let used = nghttp2_hd_inflate_hd2(
          inflater, &nv, &flags, input.baseAddress! + offset, input.count - offset, 1)
        guard used >= 0 else { return }
        offset += used
        if UInt32(flags) & NGHTTP2_HD_INFLATE_EMIT.rawValue != 0 {
          let name = String(
            decoding: UnsafeBufferPointer(start: nv.name, count: nv.namelen), as: UTF8.self)
          headers[name] = String(
            decoding: UnsafeBufferPointer(start: nv.value, count: nv.valuelen), as: UTF8.self)
        }
        if UInt32(flags) & NGHTTP2_HD_INFLATE_FINAL.rawValue != 0 { return }
      }
    }
    return headers
  }
}

enum RPCMethodPath {
  static let echo = "/memq.test.Test/Echo"
}

/// Bytes that came, and whoever waits for them.
private final class Inbox: Sendable {
  private struct State {
    var bytes: [UInt8] = []
    var isClosed = false
    var seen = 0
    var waiter: CheckedContinuation<Void?, Never>?
  }

  private let state = Mutex(State())

  func add(_ bytes: [UInt8]) {
    let waiter = self.state.withLock { state in
      state.bytes += bytes
      return state.waiter.take()
    }
    waiter?.resume(returning: ())
  }

  func close() {
    let waiter = self.state.withLock { state in
      state.isClosed = true
      return state.waiter.take()
    }
    waiter?.resume(returning: nil)
  }

  /// Waits for bytes beyond those seen at the last call; nil when no more will come.
  func more() async -> Void? {
    await withCheckedContinuation { waiter in
      let answer: Void?? = self.state.withLock { state in
        if state.bytes.count > state.seen {
          state.seen = state.bytes.count
          return .some(())
        }
        if state.isClosed { return .some(nil) }
        state.waiter = waiter
        return nil
      }
      if let answer { waiter.resume(returning: answer) }
    }
  }

  func take(_ count: Int) -> [UInt8]? {
    self.state.withLock { state in
      if count == .max {
        defer { state.bytes = [] }
        return state.bytes
      }
      guard state.bytes.count >= count else { return nil }
      let taken = Array(state.bytes[..<count])
      state.bytes.removeFirst(count)
      state.seen = max(0, state.seen - count)
      return taken
    }
  }
}

private final class Collector: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private let inbox: Inbox

  init(_ inbox: Inbox) {
    self.inbox = inbox
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    self.inbox.add(Array(buffer: self.unwrapInboundIn(data)))
  }

  func channelInactive(context: ChannelHandlerContext) { self.inbox.close() }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }
}
