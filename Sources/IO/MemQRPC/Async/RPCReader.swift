// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import NIOCore
import Synchronization

/// Inbound messages of one call, in order, back-pressured: the peer gets credit for a message when `next()` hands it out.
///
/// One consumer at a time. Throws ``RPCStatus``: how the call ended, when that was not ok.
public struct RPCReader: AsyncSequence, Sendable {
  public typealias Element = RPCMessage

  let queue: InboundQueue
  /// Client: ends the call when nobody holds it any more.
  private let lease: ClientStreamState?

  init(_ queue: InboundQueue, lease: ClientStreamState? = nil) {
    self.queue = queue
    self.lease = lease
  }

  /// The next message; nil when the peer has sent all (client: and the status is ok).
  ///
  /// - Precondition: nil was not returned before, and no other `next()` is waiting.
  public func next() async throws -> RPCMessage? {
    try await self.queue.next()
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(reader: self) }

  public struct AsyncIterator: AsyncIteratorProtocol {
    let reader: RPCReader

    public mutating func next() async throws -> RPCMessage? {
      try await self.reader.queue.next()
    }
  }
}

/// The loop-bound state behind ``RPCReader``. Bounded by flow control: what is here was not credited; and by count, as empty
/// messages need no credit.
final class InboundQueue: @unchecked Sendable {
  private enum End {
    case open
    case done
    case failed(RPCStatus)
    /// The consumer heard of the end.
    case told
  }

  private typealias Waiter = UnsafeContinuation<RPCMessage?, any Error>

  private let core: CallCore
  /// Client: a cancelled consumer cancels the call.
  private let cancelsCall: Bool
  private var messages = Deque<RPCMessage>()
  private var end = End.open
  private var waiter: Waiter?

  init(core: CallCore, cancelsCall: Bool) {
    self.core = core
    self.cancelsCall = cancelsCall
  }

  private var loop: any EventLoop { self.core.driver.loop }

  // MARK: The call's side, on the loop

  func received(_ message: RPCMessage) {
    if let waiter = self.waiter.take() {
      self.core.consume(message.byteCount)
      waiter.resume(returning: message)
    } else if self.messages.count < RPCLimits.queuedMessagesMax {
      self.messages.append(message)
    } else {
      self.core.abort(
        RPCStatus(
          .resourceExhausted,
          "\(self.messages.count) messages wait to be read, the limit is \(RPCLimits.queuedMessagesMax)"
        ))
    }
  }

  /// No more messages. With `status`, the ones still queued are dropped and the consumer gets it.
  func close(_ status: RPCStatus?) {
    guard case .open = self.end else {
      if let status, case .done = self.end { self.fail(status) }
      return
    }
    guard let status else {
      self.end = .done
      if let waiter = self.waiter.take() {
        self.end = .told
        waiter.resume(returning: nil)
      }
      return
    }
    self.fail(status)
  }

  private func fail(_ status: RPCStatus) {
    self.messages.removeAll()
    self.end = .failed(status)
    if let waiter = self.waiter.take() { waiter.resume(throwing: status) }
  }

  /// No more messages once the queued ones are read; then the consumer gets `status`.
  func closeAfterQueued(_ status: RPCStatus) {
    guard case .open = self.end else { return }
    self.end = .failed(status)
    if self.messages.isEmpty, let waiter = self.waiter.take() { waiter.resume(throwing: status) }
  }

  // MARK: The consumer's side

  func next() async throws -> RPCMessage? {
    if self.loop.inEventLoop, let ready = self.ready() { return try ready.get() }
    // On the loop the task itself tells; elsewhere it is not current any more when the loop takes the waiter.
    let flag = self.loop.inEventLoop ? nil : CancellationFlag()
    return try await withTaskCancellationHandler {
      try await withUnsafeThrowingContinuation { (waiter: Waiter) in
        if let flag {
          self.loop.execute { self.wait(waiter, isCancelled: flag.isSet) }
        } else {
          self.wait(
            waiter, isCancelled: withUnsafeCurrentTask { $0?.isCancelled ?? false })
        }
      }
    } onCancel: {
      flag?.set()
      self.loop.execute { self.giveUp() }
    }
  }

  private func wait(_ waiter: Waiter, isCancelled: Bool) {
    if let ready = self.ready() { return waiter.resume(with: ready) }
    precondition(self.waiter == nil, "two consumers of one RPCReader")
    self.waiter = waiter
    if isCancelled { self.giveUp() }
  }

  private func ready() -> Result<RPCMessage?, any Error>? {
    if let message = self.messages.popFirst() {
      self.core.consume(message.byteCount)
      return .success(message)
    }
    switch self.end {
    case .open: return nil
    case .done:
      self.end = .told
      return .success(nil)
    case .failed(let status): return .failure(status)
    case .told: preconditionFailure("RPCReader was read after its end")
    }
  }

  /// The consumer's task was cancelled while, or before, it waits here.
  private func giveUp() {
    if let waiter = self.waiter.take() { waiter.resume(throwing: RPCStatus.cancelled) }
    if self.cancelsCall { self.core.abort(.cancelled) }
  }
}

/// A task's cancellation, for whoever begins to wait on its behalf elsewhere: the task may be cancelled before its waiter has
/// got there, and is told of it only once.
final class CancellationFlag: Sendable {
  private let flag = Atomic(false)

  func set() { self.flag.store(true, ordering: .releasing) }
  var isSet: Bool { self.flag.load(ordering: .acquiring) }
}
