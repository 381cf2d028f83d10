// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
public import NIOCore
import Synchronization

/// The callback face of a server call. Every method is called on `call.eventLoop` and must not block.
public protocol RPCServerHandler: AnyObject {
  /// A message came. Its flow-control credit returns when `call.consumed(message.byteCount)` is called.
  func received(_ message: RPCMessage)
  /// The client will send no more messages.
  func halfClosed()
  /// After `send` returned false: there is room again.
  func writable()
  /// Cancelled by the peer, deadline, connection lost, or our own finish is done; exactly once, last.
  func ended(_ status: RPCStatus)
}

/// One call, for its handler. All methods may be called from any thread; those of one thread keep their order.
public final class RPCServerCall: Sendable {
  public let context: RPCContext
  let core: CallCore
  let environment: ServerEnvironment
  /// Made when first asked for: most calls call nobody.
  private let knownTrace = Mutex<RPCTrace?>(nil)

  init(core: CallCore, context: RPCContext, environment: ServerEnvironment) {
    self.core = core
    self.context = context
    self.environment = environment
  }

  public var eventLoop: any EventLoop { self.core.driver.loop }

  /// The trace the call belongs to: its caller's, or one of its own.
  public var trace: RPCTrace {
    self.knownTrace.withLock { known in
      if let known { return known }
      let trace = self.context.trace ?? .random()
      known = trace
      return trace
    }
  }

  /// Gives the peer credit for `bytes` of received messages.
  ///
  /// - Precondition: no more than was received and not yet consumed.
  public func consumed(_ bytes: Int) {
    let core = self.core
    // Every method here asks by itself whether it is on the loop: a closure would cost an allocation for each call.
    if core.isOnLoop { core.consume(bytes) } else { core.onLoop { core.consume(bytes) } }
  }

  /// Sends a message. False: the call's queue stands above 1 MiB; stop until `writable()`. Who goes
  /// on regardless loses the call at ``RPCLimits/sendQueueMaxBytes``. Ignored after the end.
  @discardableResult
  public func send(_ message: RPCMessage) -> Bool {
    self.core.send(message)
  }

  /// Sends the response's headers now, with `metadata` (gRPC's "initial metadata"). Without it they leave with the first message.
  /// Ignored after the first message, and at the second time.
  public func sendHeaders(_ metadata: RPCMetadata) {
    let core = self.core
    core.onLoop { core.sendHeaders(metadata) }
  }

  /// How responses are encoded, when the client takes that encoding. To be said before the first response.
  public func setCompression(_ compression: RPCCompression) {
    let core = self.core
    core.onLoop { core.compress(compression) }
  }

  /// Ends the call: `status` follows the messages sent so far. A status other than ok is sent as soon as they left.
  public func finish(_ status: RPCStatus, trailers: RPCMetadata = RPCMetadata()) {
    let core = self.core
    if trailers.isEmpty, core.isOnLoop { return core.finish(status) }
    var final = status
    final.trailers.append(trailers)
    core.onLoop { [final] in core.finish(final) }
  }

  /// Bytes sent and not yet given to the connection. On the loop only.
  public var queuedBytes: Int {
    self.eventLoop.preconditionInEventLoop()
    return self.core.queuedBytes
  }

  /// Runs `body` on the loop: at once when called there.
  public func execute(_ body: @escaping @Sendable () -> Void) {
    self.core.onLoop(body)
  }
}

/// Hears of a server's connections, for metrics; of its calls ``RPCServerInterceptor``s do. Called on event loops: must not block.
public protocol RPCServerObserver: Sendable {
  /// Connections open now.
  func connectionsChanged(to count: Int)
  /// A connection stopped reading data: what all of them hold unconsumed is above the server's limit.
  func receivingPaused()
  /// A connection was ended for what its peer did: `too_many_pings`, `control_frames`, `frame_timeout`.
  func peerExpelled(_ why: String)
}

extension RPCServerObserver {
  public func receivingPaused() {}
  public func peerExpelled(_ why: String) {}
}

/// What all calls of one server, or in-process channel, share.
final class ServerEnvironment: Sendable {
  let logger: Logger
  let observer: (any RPCServerObserver)?

  init(logger: Logger, observer: (any RPCServerObserver)?) {
    self.logger = logger
    self.observer = observer
  }

  /// The status for an error that left a handler. What is not a status is our bug, or not meant for the peer.
  func status(for error: any Error, in context: RPCContext) -> RPCStatus {
    if let status = error as? RPCStatus {
      return status.isOK ? RPCStatus(.internal, "the handler threw the status ok") : status
    }
    if error is CancellationError { return .cancelled }
    self.logger.error(
      "Handler failed",
      metadata: [
        "rpc.method": "\(context.method)", "error": "\(error)", "peer": "\(context.peer)",
        "trace.id": "\(context.trace?.traceID ?? "none")",
      ])
    return RPCStatus(.unknown, "the server failed to handle the call")
  }
}
