// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import NIOCore
import NIOSSL
import NIOTLS

/// Server: stands before TLS and looks at the first byte. Who does not speak TLS is told so in its own language.
final class PlaintextGuard: ChannelInboundHandler, RemovableChannelHandler {
  typealias InboundIn = ByteBuffer
  typealias OutboundOut = ByteBuffer

  /// Tells the handlers behind that the peer is being turned away.
  struct PlaintextPeer {}

  /// The type of TLS handshake records.
  static let handshakeRecord: UInt8 = 22

  private let logger: Logger
  private var isRejecting = false

  init(logger: Logger) {
    self.logger = logger
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard !self.isRejecting else { return }
    let bytes = self.unwrapInboundIn(data)
    guard let first = bytes.readableBytesView.first, first != Self.handshakeRecord else {
      context.fireChannelRead(data)
      context.pipeline.syncOperations.removeHandler(self, promise: nil)
      return
    }
    self.reject(context, bytes)
  }

  private func reject(_ context: ChannelHandlerContext, _ bytes: ByteBuffer) {
    self.isRejecting = true
    context.fireUserInboundEventTriggered(PlaintextPeer())
    self.logger.debug(
      "A peer without TLS at a TLS port",
      metadata: ["peer": "\(context.channel.peerDescription)"])
    let answer: ByteBuffer? =
      switch Preface.judge(bytes.readableBytesView) {
      // To HTTP/2, too: gRPC's clients take a GOAWAY for a server on leave and come back at once, for ever; this they tell.
      case .http1, .http2, .tooShort: ByteBuffer(string: Preface.http1Answer(isSecure: true))
      case .other, .tls: nil
      }
    guard let answer else { return context.close(promise: nil) }
    context.writeAndFlush(self.wrapOutboundOut(answer), promise: nil)
    // Closing both ways at once could reset the connection before the peer has read the answer.
    context.close(mode: .output, promise: nil)
    let channel = context.channel
    context.eventLoop.scheduleTask(in: .seconds(1)) { channel.close(promise: nil) }
  }
}

/// Client: waits for the handshake, and says in words why it failed.
final class ClientHandshake: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer

  private let target: String
  private let name: String
  private let isHostName: Bool
  private let tls: RPCTLS
  private let timeout: TimeAmount
  private var onEnd: ((String?) -> Void)?
  private var timer: Scheduled<Void>?

  /// - Parameters:
  ///   - name: what the server is to show a certificate for.
  ///   - isHostName: and not an address. NIOSSL takes a certificate for the address the connection leads to as well, and the common name of
  ///     one without other names; who asks for a name wants that name.
  ///   - onEnd: called once, with why it failed, or nil.
  init(
    target: String, name: String, isHostName: Bool, tls: RPCTLS, timeout: TimeAmount,
    onEnd: @escaping (String?) -> Void
  ) {
    self.target = target
    self.name = name
    self.isHostName = isHostName
    self.tls = tls
    self.timeout = timeout
    self.onEnd = onEnd
  }

  func handlerAdded(context: ChannelHandlerContext) {
    let timeout = self.timeout
    self.timer = context.eventLoop.assumeIsolated().scheduleTask(in: timeout) {
      self.end(
        "no TLS handshake with \(self.target) within \(timeout.nanoseconds / 1_000_000) ms")
    }
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    guard let event = event as? TLSUserEvent,
      case .handshakeCompleted(let negotiated) = event
    else { return context.fireUserInboundEventTriggered(event) }
    let certificate = try? context.pipeline.syncOperations.nioSSL_peerCertificate()
    if self.isHostName, certificate?.isFor(host: self.name) != true {
      self.end(
        TLSFailure.wrongName(target: self.target, name: self.name, certificate: certificate))
    } else if negotiated == TLSMaterial.applicationProtocol {
      self.end(nil)
    } else {
      self.end("\(self.target) speaks TLS, but not HTTP/2: it does not agree to ALPN h2")
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    guard self.onEnd != nil else { return context.fireErrorCaught(error) }
    let certificate = try? context.pipeline.syncOperations.nioSSL_peerCertificate()
    self.end(
      TLSFailure.client(
        error, target: self.target, name: self.name, certificate: certificate, tls: self.tls))
  }

  func channelInactive(context: ChannelHandlerContext) {
    self.end("\(self.target) closed the connection during the TLS handshake")
    context.fireChannelInactive()
  }

  /// Nobody waits any more.
  func cancel() {
    self.onEnd = nil
    self.end(nil)
  }

  private func end(_ problem: String?) {
    self.timer?.cancel()
    self.timer = nil
    let onEnd = self.onEnd
    self.onEnd = nil
    onEnd?(problem)
  }
}

extension RPCAddress {
  /// For people.
  var host: String {
    switch self {
    case .tcp(let host, _): host
    case .unix: "a unix socket"
    }
  }

  /// What a certificate must be for. Nil: an address of IP, which NIOSSL compares by itself, or a socket without a name.
  var tlsHost: String? {
    guard case .tcp(let host, _) = self else { return nil }
    return NameResolution.isLiteral(host) ? nil : host
  }
}

extension StaticHeader {
  static let schemeHTTPS = StaticHeader(":scheme", "https")
}
