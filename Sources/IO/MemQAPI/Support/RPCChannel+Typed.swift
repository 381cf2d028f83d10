// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC

/// Typed calls. They throw ``MemQError`` and nothing else: the server's own, or one for the status.
///
/// Unary calls of methods that may run twice, by `idempotency_level` in proto/, are tried up to three times when they fail on the way;
/// a service's own answer is never asked for again. ``RPCCallOptions/retry`` says otherwise.
extension RPCChannel {
  public func call<Q, R>(
    _ method: Method<Q, R>, _ request: Q, timeout: Duration?
  ) async throws(MemQError) -> R {
    try await self.call(method, request, RPCCallOptions(timeout: timeout))
  }

  public func call<Q, R>(
    _ method: Method<Q, R>, _ request: Q, _ options: RPCCallOptions
  ) async throws(MemQError) -> R {
    try R(decoding: try await self.exchange(method.rpc, request.encoded(), options))
  }

  /// A unary call whose request carries its payload by reference.
  public func callHot<Q: PayloadMessage, R>(
    _ method: Method<Q, R>, _ request: Hot<Q>, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws(MemQError) -> R {
    try R(decoding: try await self.exchange(method.rpc, request.encoded(), options))
  }

  private func exchange(
    _ method: RPCMethod, _ request: RPCMessage, _ options: RPCCallOptions
  ) async throws(MemQError) -> RPCMessage {
    var options = options
    if options.retry == nil, method.safety != .unknown { options.retry = .onTheWay }
    do {
      return try await self.unary(method, request, options)
    } catch {
      throw MemQError(anyRPC: error)
    }
  }

  /// A server-streaming call.
  public func stream<Q, R>(
    _ method: Method<Q, R>, _ request: Q, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws(MemQError) -> TypedReader<R> {
    TypedReader(try await self.begin(method.rpc, request.encoded(), options), Codec<R, R>.plain)
  }

  /// A server-streaming call whose responses carry their payload by reference.
  public func streamHot<Q, R: PayloadMessage>(
    _ method: Method<Q, R>, _ request: Q, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws(MemQError) -> TypedReader<Hot<R>> {
    TypedReader(try await self.begin(method.rpc, request.encoded(), options), Codec<R, Hot<R>>.hot)
  }

  private func begin(
    _ method: RPCMethod, _ request: RPCMessage, _ options: RPCCallOptions
  ) async throws(MemQError) -> RPCReader {
    do {
      return try await self.serverStreaming(method, request, options)
    } catch {
      throw MemQError(anyRPC: error)
    }
  }

  /// A call both sides write to; a client-streaming one, too.
  public func open<Q, R>(
    _ method: Method<Q, R>, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws(MemQError) -> TypedStream<Q, R> {
    try await self.open(method, options, requests: .plain, responses: .plain)
  }

  /// As ``open(_:_:)``, with requests that carry their payload by reference.
  public func openHot<Q: PayloadMessage, R>(
    _ method: Method<Q, R>, _ options: RPCCallOptions = RPCCallOptions()
  ) async throws(MemQError) -> TypedStream<Hot<Q>, R> {
    try await self.open(method, options, requests: .hot, responses: .plain)
  }

  public func open<Q, R, Out, In>(
    _ method: Method<Q, R>, _ options: RPCCallOptions, requests: Codec<Q, Out>,
    responses: Codec<R, In>
  ) async throws(MemQError) -> TypedStream<Out, In> {
    do {
      return TypedStream(try await self.bidirectional(method.rpc, options), requests, responses)
    } catch {
      throw MemQError(anyRPC: error)
    }
  }
}

extension RPCServerCall {
  /// Ends the call with an error of ours.
  public func finish(_ error: MemQError) {
    self.finish(RPCStatus(error))
  }
}
