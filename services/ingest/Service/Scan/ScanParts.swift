// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import NIOCore

/// Gathers parts that are judged each by itself into as few calls as possible.
struct ScanParts {
  /// Parts of one call, one after another.
  struct Call: Sendable {
    var content = ByteBuffer()
    var sizes: [Int64] = []
  }

  /// Bytes of one call, unless a single part is larger: half the limit of a message.
  static let bytesMax = 8 << 20
  /// Parts of one call; their sizes take up to ten bytes each.
  static let partsMax = 100_000
  /// Parts up to this size that are the same are judged once: header names, and keys that come again.
  static let knownBytesMax = 64
  /// Such parts remembered.
  static let knownMax = 10_000

  private var calls: [Call] = []
  private var filling = Call()
  private var known: Set<[UInt8]> = []

  /// Adds a part, unless the same one is there already.
  mutating func add(_ part: UnsafeRawBufferPointer) {
    if part.count <= Self.knownBytesMax, self.known.count < Self.knownMax {
      guard self.known.insert(Array(part)).inserted else { return }
    }
    let isFull =
      self.filling.content.readableBytes + part.count > Self.bytesMax
      || self.filling.sizes.count >= Self.partsMax
    if isFull { self.close() }
    self.filling.content.writeBytes(part)
    self.filling.sizes.append(Int64(part.count))
  }

  private mutating func close() {
    guard !self.filling.sizes.isEmpty else { return }
    self.calls.append(self.filling)
    self.filling = Call()
  }

  /// Everything that was added.
  mutating func finish() -> [Call] {
    self.close()
    return self.calls
  }
}
