// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import NIOCore

/// Something that happens around the calls made over a channel.
public struct RPCClientInterceptor: Sendable {
  /// Before the call: it may change metadata and other options.
  public var before: (@Sendable (RPCMethod, inout RPCCallOptions) -> Void)?
  /// The call is over: once, on an event loop, whatever attempts it took. It must not block.
  public var after: (@Sendable (RPCMethod, RPCCallReport) -> Void)?

  public init(
    before: (@Sendable (RPCMethod, inout RPCCallOptions) -> Void)? = nil,
    after: (@Sendable (RPCMethod, RPCCallReport) -> Void)? = nil
  ) {
    self.before = before
    self.after = after
  }
}

/// A channel whose calls pass interceptors: `before` in order, `after` in the opposite order.
public final class RPCInterceptedChannel: RPCChannel {
  private let channel: any RPCChannel
  private let interceptors: [RPCClientInterceptor]
  private let hasAfter: Bool

  /// Closing it closes `channel`.
  public init(_ channel: any RPCChannel, _ interceptors: [RPCClientInterceptor]) {
    self.channel = channel
    self.interceptors = interceptors
    self.hasAfter = interceptors.contains { $0.after != nil }
  }

  public var eventLoop: any EventLoop { self.channel.eventLoop }

  public func start(
    _ method: RPCMethod, _ options: RPCCallOptions, request: RPCMessage?,
    make: (RPCClientCall) -> any RPCClientHandler
  ) -> RPCClientCall {
    var options = options
    for interceptor in self.interceptors { interceptor.before?(method, &options) }
    guard self.hasAfter else {
      return self.channel.start(method, options, request: request, make: make)
    }
    return self.channel.start(method, options, request: request) { call in
      InterceptedHandler(make(call), call, method, self.interceptors)
    }
  }

  public func close(deadline: Duration) async {
    await self.channel.close(deadline: deadline)
  }
}

private final class InterceptedHandler: RPCClientHandler {
  private let handler: any RPCClientHandler
  private let call: RPCClientCall
  private let method: RPCMethod
  private let interceptors: [RPCClientInterceptor]
  private let startedAt = NIODeadline.now()

  init(
    _ handler: any RPCClientHandler, _ call: RPCClientCall, _ method: RPCMethod,
    _ interceptors: [RPCClientInterceptor]
  ) {
    self.handler = handler
    self.call = call
    self.method = method
    self.interceptors = interceptors
  }

  func receivedHeaders(_ metadata: RPCMetadata) { self.handler.receivedHeaders(metadata) }
  func received(_ message: RPCMessage) { self.handler.received(message) }
  func writable() { self.handler.writable() }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    let report = RPCCallReport(
      code: status.code, end: self.call.core.end,
      duration: .nanoseconds((NIODeadline.now() - self.startedAt).nanoseconds),
      counts: self.call.core.counts)
    for interceptor in self.interceptors.reversed() { interceptor.after?(self.method, report) }
    self.handler.ended(status, trailers: trailers)
  }
}
