// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Gathers the bytes of frames into buffers to write: small pieces are copied together, large ones stand alone, uncopied.
struct FrameOutput {
  /// Below this a copy is cheaper than one more buffer in the gathered write.
  private static let copyBelowBytes = 2048

  private(set) var buffers: [ByteBuffer] = []
  private var tail = ByteBuffer()
  private(set) var byteCount = 0
  private var capacityHint = 256

  mutating func writeFrameHead(_ bytes: UnsafeRawBufferPointer) {
    self.byteCount += bytes.count
    self.reserve(bytes.count)
    self.tail.writeBytes(bytes)
  }

  /// The low `count` bytes of `bits`, most significant first.
  mutating func writePrefix(bits: UInt64, count: Int) {
    self.byteCount += count
    self.reserve(count)
    withUnsafeBytes(of: bits.bigEndian) { bytes in
      _ = self.tail.writeBytes(UnsafeRawBufferPointer(rebasing: bytes.suffix(count)))
    }
  }

  mutating func write(_ slice: ByteBuffer) {
    self.byteCount += slice.readableBytes
    if slice.readableBytes < Self.copyBelowBytes {
      self.reserve(slice.readableBytes)
      self.tail.writeImmutableBuffer(slice)
    } else {
      self.closeTail()
      self.buffers.append(slice)
    }
  }

  /// Takes all buffers, in order.
  mutating func takeBuffers(_ body: (ByteBuffer) -> Void) {
    self.closeTail()
    for buffer in self.buffers { body(buffer) }
    self.buffers.removeAll(keepingCapacity: true)
    self.byteCount = 0
  }

  private mutating func reserve(_ count: Int) {
    if self.tail.storageCapacity == 0 {
      self.tail.reserveCapacity(max(self.capacityHint, count))
    }
  }

  /// A written buffer is shared with the socket: appending to it would copy it.
  private mutating func closeTail() {
    let bytes = self.tail.readableBytes
    guard bytes > 0 else { return }
    self.buffers.append(self.tail)
    self.tail = ByteBuffer()
    // The next is likely as long; never more than 64 KiB on a guess.
    self.capacityHint = min(max(256, bytes), 64 << 10)
  }
}
