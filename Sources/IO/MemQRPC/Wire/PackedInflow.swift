// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule

/// The messages of a call whose sender may pack them, between the wire and the handler.
///
/// Credit counts wire bytes, handlers count unpacked ones, and memory is what is unpacked: so a message is unpacked only when the handler
/// holds less than a window of such bytes, and its wire bytes return as credit when the handler took all that came of it.
///
/// Bound: at most a window of packed bytes waits, and at most a window and one message of unpacked bytes is with the handler.
struct PackedInflow: Sendable {
  private struct Delivered {
    var bytes: Int
    var wireBytes: Int
  }

  private let windowBytes: Int
  private var held = Deque<RPCMessage>()
  private(set) var heldBytes = 0
  private var delivered = Deque<Delivered>()
  /// Unpacked bytes with the handler.
  private(set) var unconsumedBytes = 0

  init(windowBytes: Int) {
    self.windowBytes = windowBytes
  }

  /// Nothing waits to be unpacked.
  var isEmpty: Bool { self.held.isEmpty }
  /// Messages without bytes need no credit: their number has a limit of its own.
  var isFull: Bool { self.held.count >= RPCLimits.queuedMessagesMax }
  /// A message waits, and the handler may get it.
  var isReady: Bool { !self.held.isEmpty && self.unconsumedBytes < self.windowBytes }

  /// A message came whole.
  mutating func hold(_ message: RPCMessage) {
    self.held.append(message)
    self.heldBytes += message.byteCount
  }

  /// The next message, as it came.
  mutating func next() -> RPCMessage? {
    guard self.isReady, let message = self.held.popFirst() else { return nil }
    self.heldBytes -= message.byteCount
    return message
  }

  /// `bytes` that came as `wireBytes` go to the handler. Answers the wire bytes that are paid for at once: of a message without bytes.
  mutating func deliver(_ bytes: Int, wireBytes: Int) -> Int {
    self.unconsumedBytes += bytes
    if bytes > 0 {
      self.delivered.append(Delivered(bytes: bytes, wireBytes: wireBytes))
    } else if self.delivered.isEmpty {
      return wireBytes
    } else {
      self.delivered[self.delivered.count - 1].wireBytes += wireBytes
    }
    return 0
  }

  /// The handler took `bytes`. Answers the wire bytes to pay for.
  mutating func consumed(_ bytes: Int) -> Int {
    precondition(bytes >= 0 && bytes <= self.unconsumedBytes, "consumed more than was received")
    self.unconsumedBytes -= bytes
    var left = bytes
    var wireBytes = 0
    while left > 0 {
      guard self.delivered[0].bytes <= left else {
        self.delivered[0].bytes -= left
        break
      }
      let first = self.delivered.removeFirst()
      left -= first.bytes
      wireBytes += first.wireBytes
    }
    return wireBytes
  }
}
