// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Methods and their handlers. Built once, then given to a server, an in-process channel, or both.
///
/// Async bodies run as tasks on the executor of the call's event loop: they may suspend, but not block. The
/// task is cancelled when the call ends early. A thrown ``RPCStatus`` ends the call with it; any other
/// error is logged and becomes `UNKNOWN` with a text that tells the peer nothing.
public struct RPCRouter: Sendable {
  /// A class, because each call passes its route along.
  final class Route: Sendable {
    let method: RPCMethod
    let make: @Sendable (RPCServerCall) -> any RPCServerHandler
    /// Of the routers it came from, outermost first.
    let interceptors: [RPCServerInterceptor]
    /// Made for a server.
    let hooks: RouteHooks?

    init(
      method: RPCMethod, make: @escaping @Sendable (RPCServerCall) -> any RPCServerHandler,
      interceptors: [RPCServerInterceptor] = [], hooks: RouteHooks? = nil
    ) {
      self.method = method
      self.make = make
      self.interceptors = interceptors
      self.hooks = hooks
    }
  }

  private(set) var routes: [String: Route] = [:]
  private var interceptors: [RPCServerInterceptor] = []

  public init() {}

  /// The methods registered so far, by path.
  public var methods: [RPCMethod] {
    self.routes.values.map(\.method).sorted { $0.path < $1.path }
  }

  /// The callback face: `make` is called on the loop when the request's headers have come.
  ///
  /// - Precondition: no route stands under this method's path.
  public mutating func callback(
    _ method: RPCMethod, _ make: @escaping @Sendable (RPCServerCall) -> any RPCServerHandler
  ) {
    precondition(self.routes[method.path] == nil, "\(method) is registered twice")
    self.routes[method.path] = Route(method: method, make: make)
  }

  public mutating func unary(
    _ method: RPCMethod,
    _ body: @escaping @Sendable (RPCMessage, RPCContext) async throws -> RPCMessage
  ) {
    precondition(method.kind == .unary)
    self.callback(method) { AsyncUnaryHandler($0, body) }
  }

  public mutating func serverStreaming(
    _ method: RPCMethod,
    _ body: @escaping @Sendable (RPCMessage, RPCContext, RPCWriter) async throws -> Void
  ) {
    precondition(method.kind == .serverStreaming)
    self.callback(method) { AsyncServerStreamHandler($0, body) }
  }

  public mutating func clientStreaming(
    _ method: RPCMethod,
    _ body: @escaping @Sendable (RPCReader, RPCContext) async throws -> RPCMessage
  ) {
    precondition(method.kind == .clientStreaming)
    self.callback(method) { call in
      AsyncStreamHandler(call) { reader, context, writer in
        try await writer.send(try await body(reader, context))
      }
    }
  }

  public mutating func bidirectional(
    _ method: RPCMethod,
    _ body: @escaping @Sendable (RPCReader, RPCContext, RPCWriter) async throws -> Void
  ) {
    precondition(method.kind == .bidirectional)
    self.callback(method) { AsyncStreamHandler($0, body) }
  }

  /// Passes the calls of `method` on, messages as opaque bytes, metadata, deadline, cancellation and status with them.
  ///
  /// - Parameter channel: asked for each call. What it throws ends the call, as a handler's error would.
  public mutating func forward(
    _ method: RPCMethod, to channel: @escaping @Sendable () throws -> any RPCChannel
  ) {
    self.callback(method) { Forwarder($0, to: channel) }
  }

  /// Adds all routes of `other`.
  ///
  /// - Precondition: no method stands in both.
  public mutating func merge(_ other: RPCRouter) {
    for route in other.routes.values {
      self.callback(route.method, route.make)
      self.routes[route.method.path] = Route(
        method: route.method, make: route.make,
        interceptors: other.interceptors + route.interceptors)
    }
  }

  /// Adds all routes of `other`, whose calls are decided about one by one: handled here, or passed on as by ``forward(_:to:)``.
  ///
  /// - Parameters:
  ///   - mark: metadata that calls carry which are passed on, so that they are not passed on for ever.
  ///   - place: asked for each call; nil: here. What it throws ends the call.
  /// - Precondition: no method stands in both.
  public mutating func merge(
    _ other: RPCRouter, mark: RPCMetadata,
    place: @escaping @Sendable (RPCContext) throws -> (any RPCChannel)?
  ) {
    for route in other.routes.values {
      self.callback(route.method) { call in
        do {
          guard let channel = try place(call.context) else { return route.make(call) }
          return Forwarder(call, mark: mark) { channel }
        } catch {
          return Forwarder(call) { throw error }
        }
      }
    }
  }

  /// Has all methods, those registered before and later, pass `interceptor`; one added earlier is asked first.
  public mutating func intercept(_ interceptor: RPCServerInterceptor) {
    self.interceptors.append(interceptor)
  }

  /// The routes with the hooks of their interceptors, for one server.
  func prepared() -> [String: Route] {
    self.routes.mapValues { route in
      Route(
        method: route.method, make: route.make,
        hooks: RouteHooks(self.interceptors + route.interceptors, route.method))
    }
  }

  static func unknownMethod(_ path: String) -> RPCStatus {
    RPCStatus(.unimplemented, "no method \(path) here")
  }
}
