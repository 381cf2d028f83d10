// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// The callback face of a client call. Every method is called on `call.eventLoop` and must not block.
public protocol RPCClientHandler: AnyObject {
  /// The response's headers came, and there is custom metadata in them. At most once, before the first message.
  func receivedHeaders(_ metadata: RPCMetadata)
  /// A message came. Its flow-control credit returns when `call.consumed(message.byteCount)` is called.
  func received(_ message: RPCMessage)
  /// After `send` returned false: there is room again.
  func writable()
  /// The call is over, `status.code` says how; exactly once, last.
  func ended(_ status: RPCStatus, trailers: RPCMetadata)
}

extension RPCClientHandler {
  public func receivedHeaders(_ metadata: RPCMetadata) {}
}

/// One call, for its caller. All methods may be called from any thread; those of one thread keep their order.
public final class RPCClientCall: Sendable {
  let core: CallCore

  init(core: CallCore) {
    self.core = core
  }

  public var eventLoop: any EventLoop { self.core.driver.loop }

  /// Sends a message. False: the call's queue stands above 1 MiB; stop until `writable()`. Who goes
  /// on regardless loses the call at ``RPCLimits/sendQueueMaxBytes``. Ignored after the end.
  @discardableResult
  public func send(_ message: RPCMessage) -> Bool {
    self.core.send(message)
  }

  /// Nothing more will be sent.
  public func halfClose() {
    let core = self.core
    core.onLoop { core.halfClose() }
  }

  /// Ends the call with `CANCELLED`, here and at the server.
  public func cancel() {
    let core = self.core
    core.onLoop { core.abort(.cancelled) }
  }

  /// Gives the peer credit for `bytes` of received messages.
  ///
  /// - Precondition: no more than was received and not yet consumed.
  public func consumed(_ bytes: Int) {
    let core = self.core
    if core.isOnLoop { core.consume(bytes) } else { core.onLoop { core.consume(bytes) } }
  }

  /// Runs `body` on the loop: at once when called there.
  public func execute(_ body: @escaping @Sendable () -> Void) {
    self.core.onLoop(body)
  }

  /// Bytes sent and not yet given to the connection. On the loop only.
  public var queuedBytes: Int {
    self.eventLoop.preconditionInEventLoop()
    return self.core.queuedBytes
  }
}
