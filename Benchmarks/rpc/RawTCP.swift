// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import NIOPosix

/// The floor: messages of a fixed size over a bare TCP connection of swift-nio, 8 bytes back for each.
enum RawTCP {
  static func serve(group: any EventLoopGroup, messageBytes: Int) async throws -> Int {
    let channel = try await ServerBootstrap(group: group)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
      .childChannelOption(.recvAllocator, value: Sockets.receive)
      .childChannelOption(.writeBufferWaterMark, value: Sockets.writeMarks)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Sink(messageBytes))
        }
      }
      .bind(host: "127.0.0.1", port: 0).get()
    return channel.localAddress!.port!
  }

  static func run(_ workload: Workload, port: Int, group: any EventLoopGroup) async throws {
    let loop = group.next()
    let done = loop.makePromise(of: Void.self)
    let channel = try await ClientBootstrap(group: loop)
      .channelOption(.tcpOption(.tcp_nodelay), value: 1)
      .channelOption(.recvAllocator, value: Sockets.receive)
      .channelOption(.writeBufferWaterMark, value: Sockets.writeMarks)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Source(workload, done))
        }
      }
      .connect(host: "127.0.0.1", port: port).get()
    try await done.futureResult.get()
    try await channel.close().get()
  }

  private final class Sink: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    private let messageBytes: Int
    private var left: Int
    private var acks = 0

    init(_ messageBytes: Int) {
      self.messageBytes = messageBytes
      self.left = messageBytes
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      var count = self.unwrapInboundIn(data).readableBytes
      while count >= self.left {
        count -= self.left
        self.left = self.messageBytes
        self.acks += 1
      }
      self.left -= count
    }

    func channelReadComplete(context: ChannelHandlerContext) {
      guard self.acks > 0 else { return }
      var reply = context.channel.allocator.buffer(capacity: self.acks * 8)
      for _ in 0..<self.acks { reply.writeInteger(UInt64(self.messageBytes)) }
      self.acks = 0
      context.writeAndFlush(self.wrapOutboundOut(reply), promise: nil)
    }
  }

  private final class Source: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    private let workload: Workload
    private let payload: ByteBuffer
    private let done: EventLoopPromise<Void>
    private var sent = 0
    private var ackBytes = 0

    init(_ workload: Workload, _ done: EventLoopPromise<Void>) {
      self.workload = workload
      self.payload = Workload.payload(workload.messageBytes)
      self.done = done
    }

    func channelActive(context: ChannelHandlerContext) { self.fill(context) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      self.ackBytes += self.unwrapInboundIn(data).readableBytes
    }

    func channelReadComplete(context: ChannelHandlerContext) { self.fill(context) }

    private func fill(_ context: ChannelHandlerContext) {
      let acked = self.ackBytes / 8
      if acked == self.workload.messages { return self.done.succeed() }
      while self.sent < self.workload.messages, self.sent - acked < self.workload.inFlight {
        self.sent += 1
        context.write(self.wrapOutboundOut(self.payload), promise: nil)
      }
      context.flush()
    }
  }
}
