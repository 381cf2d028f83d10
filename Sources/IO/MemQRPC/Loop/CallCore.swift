// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore
import Synchronization

/// One side of one call, bound to its loop: what the two transports implement and every face uses.
///
/// All methods are called on `driver.loop`, but those marked otherwise. After the handler heard
/// `ended`, everything here does nothing.
class CallCore: @unchecked Sendable {
  final let driver: LoopDriver

  // Places in the driver's list of calls with a deadline.
  final var deadline: NIODeadline?
  final var nextWithDeadline: CallCore?
  final unowned(unsafe) var previousWithDeadline: CallCore?
  final var isInDeadlineList = false

  /// For reports.
  @exclusivity(unchecked) final var counts = RPCCallCounts()
  @exclusivity(unchecked) final var end = RPCCallEnd.answered

  /// Bytes sent from other threads that are still on their way to the loop.
  private let hoppingBytes = Atomic<Int>(0)
  /// What the last `send` on the loop answered, for senders elsewhere.
  private let hasRoomHint = Atomic<Bool>(true)

  init(driver: LoopDriver) {
    self.driver = driver
  }

  final var isOnLoop: Bool { self.driver.loop.inEventLoop }

  // MARK: For the transports

  /// Queues a message. False: the queue stands above its high-water mark; `writable` will be called.
  func enqueue(_ message: RPCMessage) -> Bool { fatalError("abstract") }
  /// Server: sends the response's headers now, with custom metadata; ignored once they, or a message, were sent.
  func sendHeaders(_ metadata: RPCMetadata) { fatalError("abstract") }
  /// Client: nothing more will be sent.
  func halfClose() { fatalError("abstract") }
  /// Server: the status follows the queued messages.
  func finish(_ status: RPCStatus) { fatalError("abstract") }
  /// Ends the call at once, dropping what is queued: the handler hears `status`, the peer a reset.
  func abort(_ status: RPCStatus) { fatalError("abstract") }
  /// The handler took `bytes` of received messages.
  func consume(_ bytes: Int) { fatalError("abstract") }
  /// Calls the handler's `writable` when there is room, at the end of this turn at the earliest.
  func callWritableSoon() { fatalError("abstract") }
  var queuedBytes: Int { fatalError("abstract") }
  /// Client: something of the response came, be it headers only.
  var hasResponse: Bool { false }
  /// Server: how responses are encoded, when the client takes it and none was sent. In-process calls have no encoding.
  func compress(_ compression: RPCCompression) {}
  func deadlinePassed() { fatalError("abstract") }

  // MARK: From any thread

  final func send(_ message: RPCMessage) -> Bool {
    if self.isOnLoop { return self.enqueue(message) }
    let bytes = message.byteCount
    let hopping = self.hoppingBytes.add(bytes, ordering: .relaxed).newValue
    let hasRoom =
      hopping <= RPCLimits.sendQueueHighBytes && self.hasRoomHint.load(ordering: .relaxed)
    self.driver.loop.execute {
      self.hoppingBytes.subtract(bytes, ordering: .relaxed)
      let hasRoomNow = self.enqueue(message)
      self.hasRoomHint.store(hasRoomNow, ordering: .relaxed)
      if hasRoomNow && !hasRoom { self.callWritableSoon() }
    }
    return hasRoom
  }

  /// The transport is about to call the handler's `writable`.
  final func noteRoom() {
    self.hasRoomHint.store(true, ordering: .relaxed)
  }

  /// Runs `body` now when on the loop, else there later. Calls of one thread keep their order.
  final func onLoop(_ body: @escaping @Sendable () -> Void) {
    if self.isOnLoop {
      body()
    } else {
      self.driver.loop.execute(body)
    }
  }
}
