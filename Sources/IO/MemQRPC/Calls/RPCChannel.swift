// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// Where calls go: over the network or to a router in this process, with the same semantics.
///
/// Every async method throws ``RPCStatus`` when the call ends other than ok. Cancelling the Swift task cancels the call.
public protocol RPCChannel: Sendable {
  /// Where callback calls started from elsewhere run; calls started on one of the channel's loops may stay there.
  var eventLoop: any EventLoop { get }

  /// Starts a call on the callback face. From any thread.
  ///
  /// - Parameters:
  ///   - request: sent at once, followed by a half-close, when given.
  ///   - make: called before `start` returns, and before anything happens to the call, with the call its handler will need
  ///     for `consumed` and `send`. The handler is then used on `call.eventLoop` only, and never from inside a method
  ///     of the call.
  func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall

  /// Lets calls in flight end for at most `deadline`, then ends them with `UNAVAILABLE`; new ones fail at once.
  func close(deadline: Duration) async
}

extension RPCChannel {
  /// Starts a call whose messages are sent later.
  public func start(
    _ method: RPCMethod, _ options: RPCCallOptions = RPCCallOptions(),
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    self.start(method, options, request: nil, make: make)
  }

  public func unary(
    _ method: RPCMethod, _ request: RPCMessage, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws -> RPCMessage {
    let collector = UnaryCollector()
    return try await withTaskCancellationHandler {
      try await withUnsafeThrowingContinuation { continuation in
        collector.continuation = continuation
        let call = self.start(method, options, request: request) { call in
          collector.call = call
          return collector
        }
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
    var state: ClientStreamState?
    _ = self.start(method, options, request: request) { call in
      let handler = StreamCollector(call)
      state = handler.makeState(call)
      return handler
    }
    return RPCClientStream(state!)
  }
}
