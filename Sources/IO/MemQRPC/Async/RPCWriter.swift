// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Outbound messages of one call. `send` suspends while the call's queue stands above its high-water mark.
public struct RPCWriter: Sendable {
  let gate: OutboundGate

  init(_ gate: OutboundGate) {
    self.gate = gate
  }

  /// Queues `message` for sending, as soon as there is room.
  ///
  /// - Throws: ``RPCStatus`` when the call is over, `CancellationError` when this task was cancelled while it waited.
  public func send(_ message: RPCMessage) async throws {
    try await self.gate.send(message)
  }

  /// Sends the response's headers now, with custom metadata; see ``RPCServerCall/sendHeaders(_:)``. Server side only.
  public func sendHeaders(_ metadata: RPCMetadata) {
    let core = self.gate.core
    core.onLoop { core.sendHeaders(metadata) }
  }

  /// Adds custom metadata to the trailers that end the call. Server side only.
  public func setTrailer(_ name: String, _ value: String) {
    let gate = self.gate
    gate.core.onLoop { gate.trailers.add(name, value) }
  }

  /// Adds binary metadata to the trailers; `name` ends in `-bin`.
  public func setBinaryTrailer(_ name: String, _ value: [UInt8]) {
    let gate = self.gate
    gate.core.onLoop { gate.trailers.addBinary(name, value) }
  }
}

/// The loop-bound state behind ``RPCWriter``.
final class OutboundGate: @unchecked Sendable {
  private typealias Waiter = UnsafeContinuation<Void, Never>

  let core: CallCore
  /// For the status, server side.
  var trailers = RPCMetadata()
  private var hasRoom = true
  private var ended: RPCStatus?
  private var waiters: [Waiter] = []

  init(core: CallCore) {
    self.core = core
  }

  // MARK: The call's side, on the loop

  func writable() {
    self.hasRoom = true
    self.wake()
  }

  func end(_ status: RPCStatus) {
    self.ended = status
    self.wake()
  }

  private func wake() {
    guard !self.waiters.isEmpty else { return }
    var waiters: [Waiter] = []
    swap(&waiters, &self.waiters)
    for waiter in waiters { waiter.resume() }
  }

  // MARK: The producer's side

  /// - Parameter shielded: a cancelled task waits for room all the same; the call's end ends the wait.
  func send(_ message: RPCMessage, shielded: Bool = false) async throws {
    var outcome = self.core.isOnLoop ? self.attempt(message) : await self.hop(message)
    while true {
      switch outcome {
      case .success(true): return
      case .success(false): break
      case .failure(let status): throw status
      }
      if shielded {
        await withUnsafeContinuation { self.waitForRoom($0) { false } }
      } else {
        try Task.checkCancellation()
        await self.waitForRoomOrCancellation()
        try Task.checkCancellation()
      }
      outcome = await self.hop(message)
    }
  }

  /// False: no room. On the loop. A result, as a typed throw inlined into an async function stops the optimizer.
  private func attempt(_ message: RPCMessage) -> Result<Bool, RPCStatus> {
    if let status = self.ended {
      return .failure(status.isOK ? RPCStatus(.cancelled, "the call is over") : status)
    }
    guard self.hasRoom else { return .success(false) }
    self.hasRoom = self.core.enqueue(message)
    return .success(true)
  }

  private func hop(_ message: RPCMessage) async -> Result<Bool, RPCStatus> {
    if self.core.isOnLoop { return self.attempt(message) }
    return await withUnsafeContinuation { continuation in
      self.core.driver.loop.execute { continuation.resume(returning: self.attempt(message)) }
    }
  }

  /// Returns when there is room, the call is over, or the task is cancelled: before or while it waits.
  func waitForRoomOrCancellation() async {
    let flag = CancellationFlag()
    await withTaskCancellationHandler {
      await withUnsafeContinuation { self.waitForRoom($0) { flag.isSet } }
    } onCancel: {
      flag.set()
      self.core.driver.loop.execute { self.wake() }
    }
  }

  private func waitForRoom(_ waiter: Waiter, unless isCancelled: @escaping @Sendable () -> Bool) {
    self.core.onLoop {
      if self.hasRoom || self.ended != nil || isCancelled() {
        waiter.resume()
      } else {
        self.waiters.append(waiter)
      }
    }
  }
}
