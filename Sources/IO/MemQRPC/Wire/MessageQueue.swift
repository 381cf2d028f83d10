// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import NIOCore

/// Messages waiting to leave on one stream, read out as framed bytes of any length.
struct MessageQueue: Sendable {
  /// A piece of the framed byte stream.
  enum Piece {
    /// Bytes of a message prefix: the low `count` bytes of `bits`, most significant first.
    case prefix(bits: UInt64, count: Int)
    case payload(ByteBuffer)
  }

  /// Framed bytes not yet taken, prefixes included.
  private(set) var byteCount = 0
  /// The message being sent; kept apart so that a call with one message allocates no queue.
  private var current: RPCMessage?
  private var rest = Deque<RPCMessage>()
  private var prefixTaken = 0
  private var sliceIndex = 0
  private var sliceOffset = 0

  var isEmpty: Bool { self.byteCount == 0 }

  mutating func append(_ message: RPCMessage) {
    self.byteCount += 5 + message.byteCount
    // Compared with nil, an optional would be copied.
    if case .some = self.current {
      self.rest.append(message)
    } else {
      self.current = message
    }
  }

  mutating func removeAll() {
    self = MessageQueue()
  }

  /// Takes up to `limit` bytes that are contiguous in memory; nil when nothing is left.
  mutating func take(upTo limit: Int) -> Piece? {
    guard !self.isEmpty, limit > 0 else { return nil }
    if self.prefixTaken < 5 { return self.takePrefix(limit) }
    let slice = self.current!.slice(self.sliceIndex)
    let count = min(limit, slice.readableBytes - self.sliceOffset)
    let isWhole = count == slice.readableBytes
    let piece =
      isWhole
      ? slice : slice.getSlice(at: slice.readerIndex + self.sliceOffset, length: count)!
    self.sliceOffset += count
    self.byteCount -= count
    self.skipFinished()
    return .payload(piece)
  }

  private mutating func takePrefix(_ limit: Int) -> Piece {
    let count = min(limit, 5 - self.prefixTaken)
    let behind = 5 - self.prefixTaken - count
    // The flag byte stands above the length.
    let prefix = UInt64(self.current!.byteCount) | (self.current!.isPacked ? 1 << 32 : 0)
    let bits = (prefix >> UInt64(8 * behind)) & (1 << UInt64(8 * count) - 1)
    self.prefixTaken += count
    self.byteCount -= count
    if self.prefixTaken == 5 { self.skipFinished() }
    return .prefix(bits: bits, count: count)
  }

  /// Moves past slices, and a message, that have nothing left.
  private mutating func skipFinished() {
    while self.sliceIndex < self.current!.sliceCount,
      self.sliceOffset >= self.current!.byteCount(ofSlice: self.sliceIndex)
    {
      self.sliceIndex += 1
      self.sliceOffset = 0
    }
    guard self.sliceIndex == self.current!.sliceCount else { return }
    self.current = self.rest.popFirst()
    self.prefixTaken = 0
    self.sliceIndex = 0
    self.sliceOffset = 0
  }
}
