// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// A unary handler: collects the one request, runs the body in a task on the loop's executor.
final class AsyncUnaryHandler: RPCServerHandler, @unchecked Sendable {
  typealias Body = @Sendable (RPCMessage, RPCContext) async throws -> RPCMessage

  let call: RPCServerCall
  private let body: Body
  private var request = SingleRequest()
  /// Until the body returned, the task and this hold each other.
  @exclusivity(unchecked) private var task: HandlerTask?

  init(_ call: RPCServerCall, _ body: @escaping Body) {
    self.call = call
    self.body = body
  }

  func received(_ message: RPCMessage) {
    self.request.received(message, on: self.call)
  }

  func halfClosed() {
    guard self.request.isComplete(on: self.call) else { return }
    self.task = HandlerTask.run(self, on: self.call.core.driver)
  }

  /// The task's part.
  func run() async {
    guard let request = self.request.take() else { return }
    do {
      let response = try await self.body(request, self.call.context)
      self.task = nil
      self.call.send(response)
      self.call.finish(.ok)
    } catch {
      self.task = nil
      self.call.finish(self.call.environment.status(for: error, in: self.call.context))
    }
  }

  func writable() {}

  func ended(_ status: RPCStatus) {
    self.task.take()?.cancel()
  }
}

/// The request of a call whose client sends exactly one message.
struct SingleRequest {
  private var message: RPCMessage?

  /// A second message ends the call.
  mutating func received(_ message: RPCMessage, on call: RPCServerCall) {
    // Compared with nil, an optional would be copied.
    if case .some = self.message {
      return call.finish(
        RPCStatus(.unimplemented, "more than one request in a call that takes one"))
    }
    self.message = message
    call.consumed(message.byteCount)
  }

  /// No message at all ends the call.
  func isComplete(on call: RPCServerCall) -> Bool {
    if case .some = self.message { return true }
    call.finish(RPCStatus(.unimplemented, "no request in a call that takes one"))
    return false
  }

  mutating func take() -> RPCMessage? { self.message.take() }
}

/// A server-streaming handler: the one request, then a task that writes.
final class AsyncServerStreamHandler: RPCServerHandler, @unchecked Sendable {
  typealias Body = @Sendable (RPCMessage, RPCContext, RPCWriter) async throws -> Void

  private let call: RPCServerCall
  private let body: Body
  private let gate: OutboundGate
  private var request = SingleRequest()
  private var task: Task<Void, Never>?

  init(_ call: RPCServerCall, _ body: @escaping Body) {
    self.call = call
    self.body = body
    self.gate = OutboundGate(core: call.core)
  }

  func received(_ message: RPCMessage) {
    self.request.received(message, on: self.call)
  }

  func halfClosed() {
    guard self.request.isComplete(on: self.call), let request = self.request.take() else { return }
    let (call, body, gate) = (self.call, self.body, self.gate)
    self.task = Task(executorPreference: call.core.driver) {
      do {
        try await RPCScope.$call.withValue(call) {
          try await body(request, call.context, RPCWriter(gate))
        }
        call.finish(gate, .ok)
      } catch {
        call.finish(gate, call.environment.status(for: error, in: call.context))
      }
    }
  }

  func writable() {
    self.gate.writable()
  }

  func ended(_ status: RPCStatus) {
    self.gate.end(status)
    self.task.take()?.cancel()
  }
}

/// A handler that reads a stream; it may write one, too.
final class AsyncStreamHandler: RPCServerHandler, @unchecked Sendable {
  typealias Body = @Sendable (RPCReader, RPCContext, RPCWriter) async throws -> Void

  private let inbound: InboundQueue
  private let gate: OutboundGate
  private var task: Task<Void, Never>?

  init(_ call: RPCServerCall, _ body: @escaping Body) {
    let inbound = InboundQueue(core: call.core, cancelsCall: false)
    let gate = OutboundGate(core: call.core)
    self.inbound = inbound
    self.gate = gate
    self.task = Task(executorPreference: call.core.driver) {
      do {
        try await RPCScope.$call.withValue(call) {
          try await body(RPCReader(inbound), call.context, RPCWriter(gate))
        }
        call.finish(gate, .ok)
      } catch {
        call.finish(gate, call.environment.status(for: error, in: call.context))
      }
    }
  }

  func received(_ message: RPCMessage) {
    self.inbound.received(message)
  }

  func halfClosed() {
    self.inbound.close(nil)
  }

  func writable() {
    self.gate.writable()
  }

  func ended(_ status: RPCStatus) {
    self.inbound.close(status.isOK ? RPCStatus(.cancelled, "the call is over") : status)
    self.gate.end(status)
    self.task.take()?.cancel()
  }
}

extension RPCServerCall {
  /// Finishes with the trailers gathered in `gate`.
  fileprivate func finish(_ gate: OutboundGate, _ status: RPCStatus) {
    self.core.onLoop {
      var status = status
      status.trailers.append(gate.trailers)
      self.core.finish(status)
    }
  }
}
