// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Cuts the bytes of one direction of a stream into gRPC messages: one flag byte, a big-endian
/// 32-bit length, the message.
///
/// Invariant: memory held is at most the message in progress (≤ `maxMessageBytes`) and the number of
/// slices at most 1 + 2 × its size / 16 KiB, however the peer cuts its frames.
struct MessageDeframer: Sendable {
  /// What a peer can do wrong. Each ends the call.
  enum Violation: Error, Equatable {
    case tooLarge(bytes: Int)
    /// The flag says compressed, and no compression was agreed on.
    case compressed
    case badFlag(UInt8)
  }

  let maxMessageBytes: Int
  private var prefix: UInt64 = 0
  private var prefixBytes = 0
  private var expectedBytes = 0
  private var isPacked = false
  private var partial: PartialMessage?

  init(maxMessageBytes: Int) {
    self.maxMessageBytes = maxMessageBytes
  }

  /// An encoding was agreed on: messages may be packed.
  var acceptsPacked = false

  /// Bytes of a message, or of its prefix, have come, and the rest has not.
  var isMidMessage: Bool { self.prefixBytes > 0 }

  /// Payload bytes of the message in progress that are held here.
  private(set) var heldBytes = 0

  /// Size of the message in progress; 0 when its prefix is not whole.
  var messageBytes: Int { self.prefixBytes == 5 ? self.expectedBytes : 0 }

  /// Takes bytes off the front of `input`: the next whole message, or nil when `input` is used up.
  mutating func next(from input: inout ByteBuffer) throws(Violation) -> RPCMessage? {
    while self.prefixBytes < 5 {
      guard let byte = input.readInteger(as: UInt8.self) else { return nil }
      self.prefix = self.prefix << 8 | UInt64(byte)
      self.prefixBytes += 1
      if self.prefixBytes == 5 { try self.openMessage() }
    }
    let needed = self.expectedBytes - self.heldBytes
    if input.readableBytes >= needed {
      let rest = input.readSlice(length: needed)!
      return self.close(with: rest)
    }
    if input.readableBytes > 0 {
      if self.partial == nil { self.partial = PartialMessage(expectedBytes: self.expectedBytes) }
      self.partial!.append(input)
      self.heldBytes += input.readableBytes
      input.moveReaderIndex(to: input.writerIndex)
    }
    return nil
  }

  private mutating func openMessage() throws(Violation) {
    let flag = UInt8(truncatingIfNeeded: self.prefix >> 32)
    let length = Int(UInt32(truncatingIfNeeded: self.prefix))
    guard flag <= 1 else { throw .badFlag(flag) }
    guard flag == 0 || self.acceptsPacked else { throw .compressed }
    guard length <= self.maxMessageBytes else { throw .tooLarge(bytes: length) }
    self.expectedBytes = length
    self.isPacked = flag == 1
  }

  private mutating func close(with rest: ByteBuffer) -> RPCMessage {
    self.prefix = 0
    self.prefixBytes = 0
    self.heldBytes = 0
    var message: RPCMessage
    if var partial = self.partial.take() {
      partial.append(rest)
      message = partial.takeMessage()
    } else if rest.readableBytes >= RPCMessage.copyBelowBytes {
      message = RPCMessage(rest)
    } else {
      message = RPCMessage(ByteBuffer(copying: rest))
    }
    message.isPacked = self.isPacked
    return message
  }
}

/// The slices of a message that is still arriving. Small pieces are gathered into buffers of our own.
private struct PartialMessage: Sendable {
  private var slices = RPCMessage()
  /// Small pieces since the last large one.
  private var tail: ByteBuffer?

  /// Room for pieces of 64 KiB: reads and frames cut most messages about so. At most 256 entries on a peer's word.
  init(expectedBytes: Int) {
    self.slices.reserveSlices(min(256, (expectedBytes >> 16) + 2))
  }

  mutating func append(_ piece: ByteBuffer) {
    if piece.readableBytes < RPCMessage.copyBelowBytes {
      if var tail = self.tail.take() {
        tail.writeImmutableBuffer(piece)
        self.tail = tail
      } else {
        self.tail = ByteBuffer(copying: piece)
      }
    } else {
      self.flushTail()
      self.slices.append(piece)
    }
  }

  private mutating func flushTail() {
    if let tail = self.tail.take() { self.slices.append(tail) }
  }

  /// The whole message; nothing is left here.
  mutating func takeMessage() -> RPCMessage {
    self.flushTail()
    var whole = RPCMessage()
    swap(&whole, &self.slices)
    return whole
  }
}

extension ByteBuffer {
  /// A buffer of its own with the readable bytes of `source`.
  init(copying source: ByteBuffer) {
    self = source.withUnsafeReadableBytes { ByteBuffer(bytes: $0) }
  }
}
