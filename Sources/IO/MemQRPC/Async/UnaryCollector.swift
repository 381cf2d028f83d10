// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Synchronization

/// The handler behind an awaited unary call: one response, one status, one resumption.
///
/// It returns no credit: the one response fits, or is paid for while it arrives. But a large packed one is taken, so that a second,
/// which is a mistake to tell of, is not held back behind it.
final class UnaryCollector: RPCClientHandler, @unchecked Sendable {
  /// Set before the call starts.
  var continuation: UnsafeContinuation<RPCMessage, any Error>?
  /// Set before the call starts, gone at its end.
  var call: RPCClientCall?
  let cancellation = CancellationSlot()
  private var response: RPCMessage?
  private var isSurplus = false

  func received(_ message: RPCMessage) {
    self.isSurplus = self.response != nil
    self.response = message
    if message.byteCount > RPCMessage.copyBelowBytes { self.call?.consumed(message.byteCount) }
  }

  func writable() {}

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    self.call = nil
    guard let continuation = self.continuation.take() else { return }
    self.cancellation.clear()
    if !status.isOK {
      continuation.resume(throwing: status)
    } else if let response = self.response, !self.isSurplus {
      continuation.resume(returning: response)
    } else {
      let text = self.isSurplus ? "more than one response" : "no response"
      continuation.resume(
        throwing: RPCStatus(.internal, "\(text) in a call that has one", trailers: trailers))
    }
  }
}

/// Where a task's cancellation finds its call. It may come before the call does: a task that is cancelled already
/// runs the cancellation handler first.
final class CancellationSlot: Sendable {
  private enum State {
    case waiting
    case running(RPCClientCall)
    case cancelled
    case over
  }

  private let state = Mutex(State.waiting)

  func set(_ call: RPCClientCall) {
    let wasCancelled = self.state.withLock { state in
      switch state {
      case .waiting:
        state = .running(call)
        return false
      case .cancelled: return true
      case .running, .over: return false
      }
    }
    if wasCancelled { call.cancel() }
  }

  func cancel() {
    let call: RPCClientCall? = self.state.withLock { state in
      switch state {
      case .waiting:
        state = .cancelled
        return nil
      case .running(let call):
        state = .cancelled
        return call
      case .cancelled, .over: return nil
      }
    }
    call?.cancel()
  }

  func clear() {
    self.state.withLock { $0 = .over }
  }
}
