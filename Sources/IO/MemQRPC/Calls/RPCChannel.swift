// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// Where calls go: over the network or to a router in this process, with the same semantics.
///
/// Every async method throws ``RPCStatus`` when the call ends other than ok. Cancelling the Swift task cancels the call.
public protocol RPCChannel: Sendable {
  /// Where callback calls started from elsewhere run; calls started on one of the channel's loops may stay there.
  var eventLoop: any EventLoop { get }

  /// Starts a call on the callback face. From any thread; `handler` is used on `call.eventLoop` only, and
  /// first after this turn of the loop.
  ///
  /// - Parameter request: sent at once, followed by a half-close, when given.
  func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    handler: any RPCClientHandler
  ) -> RPCClientCall

  /// Lets calls in flight end for at most `deadline`, then ends them with `UNAVAILABLE`; new ones fail at once.
  func close(deadline: Duration) async
}

extension RPCChannel {
  /// Starts a call whose messages are sent later.
  public func start(
    _ method: RPCMethod, _ options: RPCCallOptions = RPCCallOptions(),
    handler: any RPCClientHandler
  ) -> RPCClientCall {
    self.start(method, options, request: nil, handler: handler)
  }

  public func unary(
    _ method: RPCMethod, _ request: RPCMessage, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws -> RPCMessage {
    let collector = UnaryCollector()
    return try await withTaskCancellationHandler {
      try await withUnsafeThrowingContinuation { continuation in
        collector.continuation = continuation
        let call = self.start(method, options, request: request, handler: collector)
        collector.cancellation.set(call)
      }
    } onCancel: {
      collector.cancellation.cancel()
    }
  }

  public func serverStreaming(
    _ method: RPCMethod, _ request: RPCMessage, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws -> RPCReader {
    self.open(method, options, request: request).responses
  }

  /// Opens a call both sides write to; for client streaming, too.
  public func bidirectional(
    _ method: RPCMethod, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws -> RPCClientStream {
    self.open(method, options, request: nil)
  }

  private func open(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?
  ) -> RPCClientStream {
    let handler = StreamCollector()
    let call = self.start(method, options, request: request, handler: handler)
    return RPCClientStream(handler.attach(call))
  }
}
