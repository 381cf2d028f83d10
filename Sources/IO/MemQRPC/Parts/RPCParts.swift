// Part of MemQ. SPDX-License-Identifier: Apache-2.0

package import Logging
package import NIOCore

/// Parts of this module by themselves, for memq-fuzz: parsers of what peers send, and connections without sockets.
package enum RPCParts {
  /// What became of the bytes of one direction of a stream.
  package struct Deframed {
    package var messages: [RPCMessage] = []
    /// Whether each of them was packed.
    package var flags: [Bool] = []
    package var failure: String?
    package var isMidMessage = false
    package var heldBytes = 0
  }

  package static func deframe(
    _ chunks: [ByteBuffer], maxMessageBytes: Int, acceptsPacked: Bool
  ) -> Deframed {
    var deframer = MessageDeframer(maxMessageBytes: maxMessageBytes)
    deframer.acceptsPacked = acceptsPacked
    var result = Deframed()
    do throws(MessageDeframer.Violation) {
      for chunk in chunks {
        var input = chunk
        while input.readableBytes > 0 {
          guard let message = try deframer.next(from: &input) else { break }
          result.messages.append(message)
          result.flags.append(message.isPacked)
        }
      }
    } catch {
      result.failure = "\(error)"
    }
    result.isMidMessage = deframer.isMidMessage
    result.heldBytes = deframer.heldBytes
    return result
  }

  /// gzip, with the module's own codec.
  package final class Gzip {
    private let codec = GzipCodec()

    package init() {}

    package func pack(_ message: RPCMessage) -> RPCMessage { self.codec.pack(message) }

    /// Nil: not whole, sound gzip, or larger than `maxBytes`.
    package func unpack(_ message: RPCMessage, maxBytes: Int) -> RPCMessage? {
      try? self.codec.unpack(message, maxBytes: maxBytes)
    }
  }

  // MARK: Header values

  package static func decodePercent(_ bytes: [UInt8]) -> String {
    bytes.withUnsafeBufferPointer { PercentCoding.decode($0) }
  }

  package static func encodePercent(_ text: String) -> String { PercentCoding.encode(text) }

  package static func decodeBase64(_ bytes: [UInt8]) -> [UInt8]? { Base64.decode(bytes) }

  package static func encodeBase64(_ bytes: [UInt8]) -> String { Base64.encode(bytes) }

  package static func parseTimeout(_ bytes: [UInt8]) -> Int64? {
    bytes.withUnsafeBufferPointer { GRPCTimeout.parse($0) }
  }

  package static func formatTimeout(nanoseconds: Int64) -> String {
    GRPCTimeout.format(nanoseconds: nanoseconds)
  }

  package static func isGRPC(contentType: [UInt8]) -> Bool {
    contentType.withUnsafeBufferPointer { RequestHead.isGRPC($0) }
  }

  // MARK: Connections

  /// The handler of a server's connection.
  package static func server(
    _ router: RPCRouter, on loop: any EventLoop, settings: RPCConnectionSettings,
    maxMessageBytes: Int, maxConcurrentStreams: Int, logger: Logger
  ) -> any ChannelHandler {
    let profile = ConnectionProfile(
      role: .server(RouteTable(router), ServerEnvironment(logger: logger, observer: nil)),
      settings: settings, maxMessageBytes: maxMessageBytes,
      maxConcurrentStreams: maxConcurrentStreams, prefaceTimeout: .seconds(10), logger: logger,
      budget: ReceiveBudget(bytesMax: 1 << 30))
    return HTTP2Connection(profile: profile, lease: LoopDriver.lease(of: loop))
  }

  /// A client's connection that never connects by itself: lost calls are lost.
  package final class Client {
    private let connection: HTTP2Connection
    private let slot: ClientSlot
    private let driver: LoopDriver

    package init(
      on loop: any EventLoop, group: any EventLoopGroup, settings: RPCConnectionSettings,
      logger: Logger
    ) {
      let lease = LoopDriver.lease(of: loop)
      let profile = ConnectionProfile(
        role: .client(authority: "fuzz"), settings: settings,
        maxMessageBytes: RPCLimits.messageBytesMax, maxConcurrentStreams: 0,
        prefaceTimeout: .seconds(10), logger: logger, target: "fuzz")
      self.driver = lease.driver
      self.connection = HTTP2Connection(profile: profile, lease: lease)
      self.slot = ClientSlot(
        target: "127.0.0.1:1", lease: lease, profile: profile, configuration: .init())
      // A closed slot fails what comes back to it.
      self.slot.close(until: .distantFuture)
    }

    package var handler: any ChannelHandler { self.connection }

    /// Nil: the connection takes no more calls.
    package func start(
      _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
      make: (RPCClientCall) -> any RPCClientHandler
    ) -> RPCClientCall? {
      guard self.connection.acceptsCalls else { return nil }
      let stream = NetStream(
        driver: self.driver, windowBytes: self.slot.profile.settings.windowBytes,
        maxMessageBytes: options.maxMessageBytes, compression: options.compression)
      let call = RPCClientCall(core: stream)
      stream.handler = .client(make(call))
      let start = ClientStart(
        slot: self.slot, path: method.path, metadata: options.metadata, waitForReady: false,
        request: request, previousAttempts: 0)
      stream.start = start
      if let request {
        _ = stream.enqueue(request)
        stream.halfClose()
      }
      guard self.connection.attach(stream, start) else {
        stream.end(with: RPCStatus(.unavailable, "no stream ids are left"))
        return call
      }
      return call
    }
  }
}
