// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// When received bytes of a stream are given back to the peer as flow-control credit.
///
/// Bytes of a message return when the handler took the message, so the peer can have at most one window
/// of bytes waiting here. Two exceptions keep the stream moving:
/// - Prefixes, and everything after our side stopped listening, return at once.
/// - A message above a quarter of the window is paid for while it arrives, when nothing else waits: otherwise
///   a message larger than the window could never arrive whole.
///
/// Returned credit is gathered up to an eighth of the window. nghttp2 holds back less than half a window more,
/// and an unpaid partial message less than a quarter: together less than the window, so the peer always
/// has credit left and progress is certain.
///
/// Bound: unconsumed + partial ≤ window + largest message.
struct ReceiveCredit: Sendable {
  let windowBytes: Int
  /// Bytes of whole messages given to the handler and not yet consumed.
  private(set) var unconsumedBytes = 0
  /// Of the message in progress: bytes received and not paid for.
  private(set) var unpaidPartialBytes = 0
  /// Bytes already paid for while their message arrived; `consumed` does not pay them again.
  private var prepaidPartialBytes = 0
  private var prepaidBytes = 0
  /// Credit due to the peer, not yet handed to HTTP/2.
  private var dueBytes = 0

  init(windowBytes: Int) {
    self.windowBytes = windowBytes
  }

  /// `count` bytes of prefixes, or that nobody will read, came.
  mutating func skipped(_ count: Int) {
    self.dueBytes += count
  }

  /// `count` payload bytes came of a message of `total` bytes that is still incomplete.
  mutating func receivedPartial(_ count: Int, of total: Int) {
    self.unpaidPartialBytes += count
    if total > self.windowBytes / 4 && self.unconsumedBytes == 0 { self.payPartial() }
  }

  /// A message of `total` bytes is whole and goes to the handler.
  mutating func delivered(_ total: Int) {
    self.prepaidBytes += self.prepaidPartialBytes
    self.prepaidPartialBytes = 0
    self.unpaidPartialBytes = 0
    self.unconsumedBytes += total
  }

  /// The handler is done with `count` bytes; `partialOf` is the size of the message in progress, if any.
  mutating func consumed(_ count: Int, partialOf total: Int) {
    precondition(count >= 0 && count <= self.unconsumedBytes, "consumed more than was received")
    self.unconsumedBytes -= count
    let alreadyPaid = min(count, self.prepaidBytes)
    self.prepaidBytes -= alreadyPaid
    self.dueBytes += count - alreadyPaid
    if self.unconsumedBytes == 0 && total > self.windowBytes / 4 { self.payPartial() }
  }

  /// The handler is gone: everything it held is free.
  mutating func releaseAll() {
    self.dueBytes += self.unconsumedBytes - self.prepaidBytes + self.unpaidPartialBytes
    self.unconsumedBytes = 0
    self.prepaidBytes = 0
    self.prepaidPartialBytes = 0
    self.unpaidPartialBytes = 0
  }

  /// Takes the credit to hand on now: 0 until it is worth a call.
  mutating func takeDue() -> Int {
    guard self.dueBytes > 0, self.dueBytes >= self.windowBytes / 8 else { return 0 }
    defer { self.dueBytes = 0 }
    return self.dueBytes
  }

  /// Takes all credit: at the end of a call.
  mutating func takeAllDue() -> Int {
    defer { self.dueBytes = 0 }
    return self.dueBytes
  }

  private mutating func payPartial() {
    self.dueBytes += self.unpaidPartialBytes
    self.prepaidPartialBytes += self.unpaidPartialBytes
    self.unpaidPartialBytes = 0
  }
}
