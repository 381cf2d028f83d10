// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Passes one call on to another channel. The two sides may live on different loops: this object belongs to
/// the server call's, ``ForwardedResponses`` to the outgoing call's, and only call objects stand between.
///
/// Back-pressure: a message's credit returns to its sender when the other side's queue has room.
final class Forwarder: RPCServerHandler, @unchecked Sendable {
  private let call: RPCServerCall
  private var outgoing: RPCClientCall?
  private var responses: ForwardedResponses?
  /// Bytes passed on, not yet credited, because the outgoing queue is full.
  private var withheldBytes = 0
  private var isFull = false

  /// - Parameter mark: metadata added to the caller's.
  init(
    _ call: RPCServerCall, mark: RPCMetadata = RPCMetadata(),
    to channel: () throws -> any RPCChannel
  ) {
    self.call = call
    let context = call.context
    do {
      var options = RPCCallOptions(timeout: context.remaining, metadata: context.metadata)
      options.metadata.append(mark)
      options.previousAttempts = context.previousAttempts
      self.outgoing = try channel().start(context.method, options) { outgoing in
        let responses = ForwardedResponses(call: call, outgoing: outgoing, forwarder: self)
        self.responses = responses
        return responses
      }
    } catch {
      call.finish(call.environment.status(for: error, in: context))
    }
  }

  func received(_ message: RPCMessage) {
    guard let outgoing = self.outgoing else { return self.call.consumed(message.byteCount) }
    if !outgoing.send(message) { self.isFull = true }
    self.withheldBytes += message.byteCount
    if !self.isFull { self.release() }
  }

  func halfClosed() {
    self.outgoing?.halfClose()
  }

  func writable() {
    guard let outgoing = self.outgoing, let responses = self.responses else { return }
    outgoing.execute { responses.callerHasRoom() }
  }

  func ended(_ status: RPCStatus) {
    self.outgoing.take()?.cancel()
    self.responses = nil
  }

  fileprivate func outgoingHasRoom() {
    self.isFull = false
    self.release()
  }

  private func release() {
    let bytes = self.withheldBytes
    self.withheldBytes = 0
    self.call.consumed(bytes)
  }
}

/// The handler of the outgoing call: its messages and its status go back to the caller.
private final class ForwardedResponses: RPCClientHandler, @unchecked Sendable {
  private let call: RPCServerCall
  private let forwarder: Forwarder
  private let outgoing: RPCClientCall
  private var withheldBytes = 0
  private var isFull = false

  init(call: RPCServerCall, outgoing: RPCClientCall, forwarder: Forwarder) {
    self.call = call
    self.outgoing = outgoing
    self.forwarder = forwarder
  }

  func receivedHeaders(_ metadata: RPCMetadata) {
    self.call.sendHeaders(metadata)
  }

  func received(_ message: RPCMessage) {
    if !self.call.send(message) { self.isFull = true }
    self.withheldBytes += message.byteCount
    if !self.isFull { self.release() }
  }

  func writable() {
    let forwarder = self.forwarder
    self.call.execute { forwarder.outgoingHasRoom() }
  }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    self.call.finish(status)
  }

  func callerHasRoom() {
    self.isFull = false
    self.release()
  }

  private func release() {
    let bytes = self.withheldBytes
    self.withheldBytes = 0
    self.outgoing.consumed(bytes)
  }
}
