// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
public import MemQRPC

/// Typed handlers. A thrown ``MemQError`` reaches the caller whole, as status code and details; other errors as
/// ``RPCRouter`` says.
extension RPCRouter {
  public mutating func handle<Q, R>(
    _ method: Method<Q, R>, _ body: @escaping @Sendable (Q, RPCContext) async throws -> R
  ) {
    self.handleUnary(method, request: .plain, response: .plain, body)
  }

  public mutating func handleServerStream<Q, R>(
    _ method: Method<Q, R>,
    _ body: @escaping @Sendable (Q, RPCContext, TypedWriter<R>) async throws -> Void
  ) {
    self.handleServerStream(method, request: .plain, responses: .plain, body)
  }

  public mutating func handleClientStream<Q, R>(
    _ method: Method<Q, R>,
    _ body: @escaping @Sendable (TypedReader<Q>, RPCContext) async throws -> R
  ) {
    self.clientStreaming(method.rpc) { reader, context in
      try await translatingErrors {
        try await body(TypedReader(reader, Codec<Q, Q>.plain), context).encoded()
      }
    }
  }

  public mutating func handleBidirectional<Q, R>(
    _ method: Method<Q, R>,
    _ body: @escaping @Sendable (TypedReader<Q>, RPCContext, TypedWriter<R>) async throws -> Void
  ) {
    self.handleBidirectional(method, requests: .plain, responses: .plain, body)
  }

  /// One request whose payload passes by reference.
  public mutating func handleHot<Q: PayloadMessage, R>(
    _ method: Method<Q, R>, _ body: @escaping @Sendable (Hot<Q>, RPCContext) async throws -> R
  ) {
    self.handleUnary(method, request: .hot, response: .plain, body)
  }

  /// Requests whose payload passes by reference, plain responses.
  public mutating func handleHotBidirectional<Q: PayloadMessage, R>(
    _ method: Method<Q, R>,
    _ body:
      @escaping @Sendable (TypedReader<Hot<Q>>, RPCContext, TypedWriter<R>) async throws -> Void
  ) {
    self.handleBidirectional(method, requests: .hot, responses: .plain, body)
  }

  /// A plain request, responses whose payload passes by reference.
  public mutating func handleHotServerStream<Q, R: PayloadMessage>(
    _ method: Method<Q, R>,
    _ body: @escaping @Sendable (Q, RPCContext, TypedWriter<Hot<R>>) async throws -> Void
  ) {
    self.handleServerStream(method, request: .plain, responses: .hot, body)
  }

  // MARK: The general forms

  public mutating func handleUnary<Q, R, In, Out>(
    _ method: Method<Q, R>, request: Codec<Q, In>, response: Codec<R, Out>,
    _ body: @escaping @Sendable (In, RPCContext) async throws -> Out
  ) {
    self.unary(method.rpc) { message, context in
      try await translatingErrors {
        response.encode(try await body(try request.decode(message), context))
      }
    }
  }

  public mutating func handleServerStream<Q, R, In, Out>(
    _ method: Method<Q, R>, request: Codec<Q, In>, responses: Codec<R, Out>,
    _ body: @escaping @Sendable (In, RPCContext, TypedWriter<Out>) async throws -> Void
  ) {
    self.serverStreaming(method.rpc) { message, context, writer in
      try await translatingErrors {
        try await body(try request.decode(message), context, TypedWriter(writer, responses))
      }
    }
  }

  public mutating func handleBidirectional<Q, R, In, Out>(
    _ method: Method<Q, R>, requests: Codec<Q, In>, responses: Codec<R, Out>,
    _ body: @escaping @Sendable (TypedReader<In>, RPCContext, TypedWriter<Out>) async throws -> Void
  ) {
    self.bidirectional(method.rpc) { reader, context, writer in
      try await translatingErrors {
        try await body(TypedReader(reader, requests), context, TypedWriter(writer, responses))
      }
    }
  }
}

private func translatingErrors<Result>(_ body: () async throws -> Result) async throws -> Result {
  do {
    return try await body()
  } catch let error as MemQError {
    throw RPCStatus(error)
  }
}
