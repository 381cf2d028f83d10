// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRPC

/// Inbound messages of a call, decoded. As ``RPCReader``, but it throws ``MemQError``.
public struct TypedReader<Element: Sendable>: AsyncSequence, Sendable {
  private let reader: RPCReader
  private let decode: @Sendable (RPCMessage) throws(MemQError) -> Element

  init<Wire>(_ reader: RPCReader, _ codec: Codec<Wire, Element>) {
    self.reader = reader
    self.decode = codec.decode
  }

  /// The next message; nil when the peer has sent all.
  public func next() async throws(MemQError) -> Element? {
    let message: RPCMessage?
    do {
      message = try await self.reader.next()
    } catch {
      throw MemQError(anyRPC: error)
    }
    guard let message else { return nil }
    return try self.decode(message)
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(reader: self) }

  public struct AsyncIterator: AsyncIteratorProtocol {
    let reader: TypedReader

    public mutating func next() async throws -> Element? {
      try await self.reader.next()
    }
  }
}

/// Outbound messages of a call, encoded. As ``RPCWriter``, but it throws ``MemQError``.
public struct TypedWriter<Element: Sendable>: Sendable {
  private let writer: RPCWriter
  private let encode: @Sendable (Element) -> RPCMessage

  init<Wire>(_ writer: RPCWriter, _ codec: Codec<Wire, Element>) {
    self.writer = writer
    self.encode = codec.encode
  }

  /// Sends a message, as soon as there is room.
  public func send(_ message: Element) async throws(MemQError) {
    do {
      try await self.writer.send(self.encode(message))
    } catch {
      throw MemQError(anyRPC: error)
    }
  }

  public func setTrailer(_ name: String, _ value: String) {
    self.writer.setTrailer(name, value)
  }
}

/// A call both sides write to, seen by its caller. Dropping it cancels a call that is not over.
public struct TypedStream<Request: Sendable, Response: Sendable>: Sendable {
  private let stream: RPCClientStream
  private let encode: @Sendable (Request) -> RPCMessage
  /// The server's messages: nil = ended ok; throws otherwise.
  public let responses: TypedReader<Response>

  init<Q, R>(
    _ stream: RPCClientStream, _ requests: Codec<Q, Request>, _ responses: Codec<R, Response>
  ) {
    self.stream = stream
    self.encode = requests.encode
    self.responses = TypedReader(stream.responses, responses)
  }

  /// Sends a message, as soon as there is room.
  public func send(_ message: Request) async throws(MemQError) {
    do {
      try await self.stream.send(self.encode(message))
    } catch {
      throw MemQError(anyRPC: error)
    }
  }

  /// As ``send(_:)``, but a cancelled task waits for room all the same: until there is, or the call is over.
  public func sendShielded(_ message: Request) async throws(MemQError) {
    do {
      try await self.stream.sendShielded(self.encode(message))
    } catch {
      throw MemQError(anyRPC: error)
    }
  }

  /// Nothing more will be sent.
  public func halfClose() async throws(MemQError) {
    do {
      try await self.stream.halfClose()
    } catch {
      throw MemQError(anyRPC: error)
    }
  }

  public func cancel() {
    self.stream.cancel()
  }

  /// Custom metadata that came with the status; empty until the call is over.
  public var trailers: RPCMetadata { self.stream.trailers }
}
