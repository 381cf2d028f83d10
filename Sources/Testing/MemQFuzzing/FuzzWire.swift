// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQRPC
import MemQTestSupport
import NIOCore
import NIOEmbedded

/// One connection without a socket.
final class FuzzWire {
  let loop = EmbeddedEventLoop()
  private let channel: EmbeddedChannel
  private(set) var receivedBytes = 0
  private(set) var sentBytes = 0

  init(_ make: (EmbeddedEventLoop) -> any ChannelHandler) throws {
    self.channel = EmbeddedChannel(handler: make(self.loop), loop: self.loop)
    try self.channel.connect(to: SocketAddress(unixDomainSocketPath: "/fuzz")).wait()
    self.loop.run()
  }

  var isOpen: Bool { self.channel.isActive }

  func feed(_ bytes: some Sequence<UInt8>) {
    guard self.isOpen else { return }
    let buffer = ByteBuffer(bytes: bytes)
    self.receivedBytes += buffer.readableBytes
    // An error that reaches the end of the pipeline is thrown here; the handler has closed by then.
    _ = try? self.channel.writeInbound(buffer)
    self.loop.run()
  }

  func takeOutput() -> [UInt8] {
    self.loop.run()
    var bytes: [UInt8] = []
    while let buffer = try? self.channel.readOutbound(as: ByteBuffer.self) {
      bytes += Array(buffer: buffer)
    }
    self.sentBytes += bytes.count
    return bytes
  }

  func advance(by time: TimeAmount) {
    self.loop.advanceTime(by: time)
    self.loop.run()
  }

  /// As when the peer is gone.
  func close() {
    if self.isOpen { _ = self.channel.close() }
    self.loop.run()
    _ = try? self.channel.finish(acceptAlreadyClosed: true)
    self.loop.run()
  }
}

/// What handlers met: every one must end once, and hear nothing after that.
final class Ledger: @unchecked Sendable {
  private(set) var failures: [String] = []
  private(set) var open = 0
  private(set) var made = 0
  var deliveredBytes = 0

  func begin() {
    self.made += 1
    self.open += 1
  }

  func end() { self.open -= 1 }

  func fail(_ text: String) {
    if self.failures.count < 10 { self.failures.append(text) }
  }

  func check() throws {
    if let failure = self.failures.first { throw FuzzFailure(failure) }
  }
}

/// Limits small enough that mutated traffic meets them.
enum FuzzLimits {
  static let messageBytesMax = 100_000
  static let streamsMax = 8

  static var settings: RPCConnectionSettings {
    var settings = RPCConnectionSettings()
    settings.windowBytes = 1 << 16
    settings.frameBytes = 1 << 14
    settings.unconsumedBytesMax = 256 << 10
    settings.partialBytesMax = 512 << 10
    return settings
  }

  static let logger: Logger = {
    var logger = Logger(label: "fuzz")
    logger.logLevel = .critical
    return logger
  }()
}

extension RPCMethod {
  /// What the server does with its messages.
  enum Manner: String, CaseIterable {
    case echo = "Echo"
    case hold = "Hold"
    case refuse = "Refuse"
    case asynchronous = "Async"
  }

  static func fuzz(_ manner: Manner) -> RPCMethod {
    RPCMethod(service: "fuzz.Fuzz", name: manner.rawValue, kind: .bidirectional)
  }
}

extension RPCRouter {
  static func fuzz(_ ledger: Ledger) -> RPCRouter {
    var router = RPCRouter()
    for manner in [RPCMethod.Manner.echo, .hold, .refuse] {
      router.callback(.fuzz(manner)) { CheckedServerHandler($0, manner, ledger) }
    }
    router.bidirectional(.fuzz(.asynchronous)) { reader, context, writer in
      context.setCompression(.gzip)
      for try await message in reader { try await writer.send(message) }
    }
    return router
  }
}

/// Echoes, holds or refuses, and notes whatever should not happen to a handler.
final class CheckedServerHandler: RPCServerHandler, @unchecked Sendable {
  private let call: RPCServerCall
  private let manner: RPCMethod.Manner
  private let ledger: Ledger
  private var heldBytes = 0
  private var isHalfClosed = false
  private var isEnded = false

  init(_ call: RPCServerCall, _ manner: RPCMethod.Manner, _ ledger: Ledger) {
    self.call = call
    self.manner = manner
    self.ledger = ledger
    ledger.begin()
    if manner == .echo { call.sendHeaders(RPCMetadata([("fuzz", "1")])) }
  }

  func received(_ message: RPCMessage) {
    if self.isEnded { self.ledger.fail("a message after the end") }
    if self.isHalfClosed { self.ledger.fail("a message after the half-close") }
    if message.byteCount > FuzzLimits.messageBytesMax {
      self.ledger.fail("a message of \(message.byteCount) bytes")
    }
    self.ledger.deliveredBytes += message.byteCount
    switch self.manner {
    case .echo, .asynchronous:
      self.call.send(message)
      self.call.consumed(message.byteCount)
    case .hold:
      self.heldBytes += message.byteCount
      // A window, and one message that was larger than what was left of it.
      let most = FuzzLimits.settings.windowBytes + FuzzLimits.messageBytesMax
      if self.heldBytes > most { self.ledger.fail("\(self.heldBytes) bytes with one handler") }
    case .refuse: self.call.finish(RPCStatus(.aborted, "no"))
    }
  }

  func halfClosed() {
    if self.isEnded { self.ledger.fail("a half-close after the end") }
    if self.isHalfClosed { self.ledger.fail("two half-closes") }
    self.isHalfClosed = true
    if self.manner == .hold { self.call.consumed(self.heldBytes) }
    self.call.finish(.ok)
  }

  func writable() {
    if self.isEnded { self.ledger.fail("room after the end") }
  }

  func ended(_ status: RPCStatus) {
    if self.isEnded { self.ledger.fail("two ends") }
    self.isEnded = true
    self.ledger.end()
  }
}

/// The same for a call of a client.
final class CheckedClientHandler: RPCClientHandler, @unchecked Sendable {
  private let ledger: Ledger
  private let consumes: Bool
  private let call: RPCClientCall
  private var hasHeaders = false
  private var hasMessage = false
  private var isEnded = false

  init(_ call: RPCClientCall, consumes: Bool, _ ledger: Ledger) {
    self.call = call
    self.consumes = consumes
    self.ledger = ledger
    ledger.begin()
  }

  func receivedHeaders(_ metadata: RPCMetadata) {
    if self.hasHeaders || self.hasMessage || self.isEnded { self.ledger.fail("late headers") }
    self.hasHeaders = true
  }

  func received(_ message: RPCMessage) {
    if self.isEnded { self.ledger.fail("a message after the end") }
    if message.byteCount > FuzzLimits.messageBytesMax {
      self.ledger.fail("a message of \(message.byteCount) bytes")
    }
    self.hasMessage = true
    self.ledger.deliveredBytes += message.byteCount
    if self.consumes { self.call.consumed(message.byteCount) }
  }

  func writable() {
    if self.isEnded { self.ledger.fail("room after the end") }
  }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    if self.isEnded { self.ledger.fail("two ends") }
    self.isEnded = true
    self.ledger.end()
  }
}
