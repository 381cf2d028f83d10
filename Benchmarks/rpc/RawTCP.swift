// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import NIOPosix
import NIOSSL

/// The floor: framed messages over a bare TCP connection of swift-nio.
enum RawTCP {
  /// What the server does with a message.
  enum Answer {
    /// 8 bytes back for each.
    case acknowledge
    /// The message itself.
    case echo
    /// Each request names a size; messages of that size follow while the client has asked for more than it got.
    case stream(messageBytes: Int)
  }

  static func serve(
    group: any EventLoopGroup, _ answer: Answer, tls: NIOSSLContext? = nil
  ) async throws -> Int {
    let channel = try await ServerBootstrap(group: group)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
      .childChannelOption(.recvAllocator, value: Sockets.receive(isSecure: tls != nil))
      .childChannelOption(.writeBufferWaterMark, value: Sockets.writeMarks)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          if let tls {
            try channel.pipeline.syncOperations.addHandler(NIOSSLServerHandler(context: tls))
          }
          try channel.pipeline.syncOperations.addHandler(Server(answer))
        }
      }
      .bind(host: "127.0.0.1", port: 0).get()
    return channel.localAddress!.port!
  }

  /// Moves the messages of `workload`; `requestBytes` differ from its own when the server's messages are what is measured.
  static func run(
    _ workload: Workload, requestBytes: Int, port: Int, group: any EventLoopGroup,
    latencies: Latencies?, tls: NIOSSLContext? = nil
  ) async throws {
    let loop = group.next()
    let done = loop.makePromise(of: Void.self)
    let channel = try await ClientBootstrap(group: loop)
      .channelOption(.tcpOption(.tcp_nodelay), value: 1)
      .channelOption(.recvAllocator, value: Sockets.receive(isSecure: tls != nil))
      .channelOption(.writeBufferWaterMark, value: Sockets.writeMarks)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          if let tls {
            try channel.pipeline.syncOperations.addHandler(
              NIOSSLClientHandler(context: tls, serverHostname: nil))
          }
          try channel.pipeline.syncOperations.addHandler(
            Client(workload, requestBytes, done, latencies))
        }
      }
      .connect(host: "127.0.0.1", port: port).get()
    try await done.futureResult.get()
    try await channel.close().get()
  }

  private final class Server: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    private let answer: Answer
    private let payload: ByteBuffer
    private var deframer = Deframer()
    private var acknowledged = 0
    private var hasWritten = false

    init(_ answer: Answer) {
      self.answer = answer
      self.payload =
        if case .stream(let bytes) = answer { Workload.payload(bytes) } else { ByteBuffer() }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      self.deframer.take(self.unwrapInboundIn(data)) { slices in
        switch self.answer {
        case .acknowledge: self.acknowledged += 1
        case .echo:
          var copy = slices[0]
          for slice in slices.dropFirst() { copy.writeImmutableBuffer(slice) }
          self.write(context, copy)
        case .stream: self.write(context, self.payload)
        }
      }
    }

    private func write(_ context: ChannelHandlerContext, _ payload: ByteBuffer) {
      for piece in Framing.message(payload) {
        context.write(self.wrapOutboundOut(piece), promise: nil)
      }
      self.hasWritten = true
    }

    func channelReadComplete(context: ChannelHandlerContext) {
      if self.acknowledged > 0 {
        var reply = context.channel.allocator.buffer(capacity: self.acknowledged * 13)
        for _ in 0..<self.acknowledged {
          reply.writeInteger(UInt8(0))
          reply.writeInteger(UInt32(8))
          reply.writeInteger(UInt64(1))
        }
        self.acknowledged = 0
        context.write(self.wrapOutboundOut(reply), promise: nil)
        self.hasWritten = true
      }
      if self.hasWritten { context.flush() }
      self.hasWritten = false
    }
  }

  private final class Client: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    private let workload: Workload
    private let payload: ByteBuffer
    private let done: EventLoopPromise<Void>
    private let latencies: Latencies?
    private var deframer = Deframer()
    private var sent = 0
    private var answered = 0
    private var started = NIODeadline.now()

    init(
      _ workload: Workload, _ requestBytes: Int, _ done: EventLoopPromise<Void>,
      _ latencies: Latencies?
    ) {
      self.workload = workload
      self.payload = Workload.payload(requestBytes)
      self.done = done
      self.latencies = latencies
    }

    func channelActive(context: ChannelHandlerContext) { self.fill(context) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      self.deframer.take(self.unwrapInboundIn(data)) { _ in
        self.answered += 1
        self.latencies?.add(since: self.started)
      }
    }

    func channelReadComplete(context: ChannelHandlerContext) { self.fill(context) }

    private func fill(_ context: ChannelHandlerContext) {
      if self.answered == self.workload.messages { return self.done.succeed() }
      self.started = .now()
      var wrote = false
      while self.sent < self.workload.messages, self.sent - self.answered < self.workload.inFlight {
        self.sent += 1
        wrote = true
        for piece in Framing.message(self.payload) {
          context.write(self.wrapOutboundOut(piece), promise: nil)
        }
      }
      if wrote { context.flush() }
    }
  }
}
