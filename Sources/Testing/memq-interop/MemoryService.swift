// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQRPC
import NIOCore
import Synchronization

/// Calls that take nothing, for measuring what a stalled handler holds: memq.testing.MemoryService.
///
/// `Hold` (client streaming) consumes none of its messages until `Release` (unary, an empty message) is called; then it counts them, and
/// answers how many bytes came, as text.
final class MemoryService: Sendable {
  static let hold = RPCMethod(
    service: "memq.testing.MemoryService", name: "Hold", kind: .clientStreaming)
  static let release = RPCMethod(
    service: "memq.testing.MemoryService", name: "Release", kind: .unary)

  private struct State {
    var isReleased = false
    var holding: [ObjectIdentifier: HoldingHandler] = [:]
  }

  private let state = Mutex(State())

  func register(on router: inout RPCRouter) {
    router.callback(Self.hold) { HoldingHandler($0, self) }
    router.unary(Self.release) { _, _ in
      self.release()
      return RPCMessage()
    }
  }

  private func release() {
    let holding = self.state.withLock { state in
      state.isReleased = true
      return Array(state.holding.values)
    }
    for handler in holding { handler.release() }
  }

  /// False: nothing is held any more.
  fileprivate func add(_ handler: HoldingHandler) -> Bool {
    self.state.withLock { state in
      state.holding[ObjectIdentifier(handler)] = handler
      return !state.isReleased
    }
  }

  fileprivate func remove(_ handler: HoldingHandler) {
    self.state.withLock { $0.holding[ObjectIdentifier(handler)] = nil }
  }
}

private final class HoldingHandler: RPCServerHandler, @unchecked Sendable {
  private let call: RPCServerCall
  private let service: MemoryService
  /// They stay in memory, as the messages of a handler that is busy elsewhere do.
  private var held: [RPCMessage] = []
  private var byteCount = 0
  private var holds = false

  init(_ call: RPCServerCall, _ service: MemoryService) {
    self.call = call
    self.service = service
    self.holds = service.add(self)
  }

  func received(_ message: RPCMessage) {
    self.byteCount += message.byteCount
    if self.holds { self.held.append(message) } else { self.call.consumed(message.byteCount) }
  }

  func release() {
    self.call.execute {
      self.holds = false
      let bytes = self.held.reduce(0) { $0 + $1.byteCount }
      self.held = []
      self.call.consumed(bytes)
    }
  }

  func halfClosed() {
    self.call.send(RPCMessage(ByteBuffer(string: "\(self.byteCount)")))
    self.call.finish(.ok)
  }

  func writable() {}

  func ended(_ status: RPCStatus) {
    self.held = []
    self.service.remove(self)
  }
}
