// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Synchronization

/// A streaming call, seen by its caller. Dropping the last reference cancels a call that is not over.
public struct RPCClientStream: Sendable {
  private let state: ClientStreamState

  init(_ state: ClientStreamState) {
    self.state = state
  }

  /// The server's messages: nil = ended ok; throws ``RPCStatus`` otherwise.
  public var responses: RPCReader { RPCReader(self.state.inbound, lease: self.state) }

  /// Queues a message, as soon as there is room. Throws ``RPCStatus`` when the call is over. When this task is
  /// cancelled while it waits for room, the call is cancelled.
  public func send(_ message: RPCMessage) async throws {
    try await self.send(message, shielded: false)
  }

  /// As ``send(_:)``, but a cancelled task waits for room all the same: until there is, or the call is over.
  public func sendShielded(_ message: RPCMessage) async throws {
    try await self.send(message, shielded: true)
  }

  private func send(_ message: RPCMessage, shielded: Bool) async throws {
    do {
      try await self.state.gate.send(message, shielded: shielded)
    } catch let error as CancellationError {
      self.state.call.cancel()
      throw error
    }
  }

  /// Nothing more will be sent.
  public func halfClose() async throws {
    self.state.call.halfClose()
  }

  public func cancel() {
    self.state.call.cancel()
  }

  /// Custom metadata of the response's headers; empty before they came. They are here with the first message.
  public var headers: RPCMetadata { self.state.headers.withLock { $0 } }

  /// Custom metadata that came with the status; empty until the call is over.
  public var trailers: RPCMetadata { self.state.trailers.withLock { $0 } }
}

/// What the values in the caller's hands share. The handler holds it weakly: when the caller has let go of
/// all of them, the call is cancelled.
final class ClientStreamState: Sendable {
  let call: RPCClientCall
  let inbound: InboundQueue
  let gate: OutboundGate
  let headers = Mutex(RPCMetadata())
  let trailers: Mutex<RPCMetadata>

  init(call: RPCClientCall, inbound: InboundQueue, gate: OutboundGate) {
    self.call = call
    self.inbound = inbound
    self.gate = gate
    self.trailers = Mutex(RPCMetadata())
  }

  deinit {
    self.call.cancel()
  }
}

/// The handler of a client stream.
final class StreamCollector: RPCClientHandler, @unchecked Sendable {
  private let inbound: InboundQueue
  private let gate: OutboundGate
  private weak var state: ClientStreamState?

  init(_ call: RPCClientCall) {
    self.inbound = InboundQueue(core: call.core, cancelsCall: true)
    self.gate = OutboundGate(core: call.core)
  }

  /// Before the call begins.
  func makeState(_ call: RPCClientCall) -> ClientStreamState {
    let state = ClientStreamState(call: call, inbound: self.inbound, gate: self.gate)
    self.state = state
    return state
  }

  func receivedHeaders(_ metadata: RPCMetadata) {
    self.state?.headers.withLock { $0 = metadata }
  }

  func received(_ message: RPCMessage) {
    self.inbound.received(message)
  }

  func writable() {
    self.gate.writable()
  }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    self.state?.trailers.withLock { $0 = trailers }
    if status.isOK {
      self.inbound.close(nil)
    } else {
      self.inbound.closeAfterQueued(status)
    }
    self.gate.end(status)
  }
}
