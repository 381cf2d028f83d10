// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import NIOPosix
import Synchronization

@testable import MemQRPC

/// A server that answers the first bytes of each connection with bytes made by hand.
final class RawServer: Sendable {
  private let channel: any Channel

  private init(_ channel: any Channel) {
    self.channel = channel
  }

  /// - Parameter answer: for the first, second … connection; nil: close it.
  static func start(_ answer: @escaping @Sendable (Int) -> [UInt8]?) async throws -> RawServer {
    let connections = Mutex(0)
    let channel = try await ServerBootstrap(group: TestBed.group)
      .childChannelInitializer { channel in
        let number = connections.withLock { count in
          count += 1
          return count
        }
        return channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Answerer(answer(number)))
        }
      }
      .bind(host: "127.0.0.1", port: 0).get()
    return RawServer(channel)
  }

  var address: String { self.channel.localAddress?.rpcDescription ?? "" }

  func stop() async {
    try? await self.channel.close().get()
  }

  // MARK: What it may say

  static let settings = RawPeer.frame(4)

  /// No stream was processed.
  static let goAway = RawPeer.frame(7, [0, 0, 0, 0, 0, 0, 0, 0])

  /// The whole response of the connection's first call.
  static func response(_ message: [UInt8]) -> [UInt8] {
    let head = RawPeer.headers([(":status", "200"), ("content-type", "application/grpc")])
    let prefix: [UInt8] = [0, 0, 0, 0, UInt8(message.count)]
    return RawPeer.frame(1, flags: 4, stream: 1, head)
      + RawPeer.frame(0, stream: 1, prefix + message) + Self.trailers([("grpc-status", "0")])
  }

  static func trailers(_ pairs: [(String, String)]) -> [UInt8] {
    RawPeer.frame(1, flags: 5, stream: 1, RawPeer.headers(pairs))
  }

  /// A response that is a status and nothing else.
  static func trailersOnly(_ pairs: [(String, String)]) -> [UInt8] {
    self.trailers([(":status", "200"), ("content-type", "application/grpc")] + pairs)
  }
}

private final class Answerer: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  private let answer: [UInt8]?
  private var hasAnswered = false

  init(_ answer: [UInt8]?) {
    self.answer = answer
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard !self.hasAnswered else { return }
    self.hasAnswered = true
    guard let answer = self.answer else { return context.close(promise: nil) }
    context.writeAndFlush(self.wrapOutboundOut(ByteBuffer(bytes: answer)), promise: nil)
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    context.close(promise: nil)
  }
}
