// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Zigzag varints as record batch v2 (and protobuf's sint) write them.
enum Varint {
  static func write(_ value: Int64, onto bytes: inout [UInt8]) {
    var rest = UInt64(bitPattern: (value << 1) ^ (value >> 63))
    while rest >= 0x80 {
      bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    bytes.append(UInt8(rest))
  }

  /// Bytes that `value` takes: 1 to 10.
  static func byteCount(_ value: Int64) -> Int {
    let zigzag = UInt64(bitPattern: (value << 1) ^ (value >> 63))
    return max(1, (64 - zigzag.leadingZeroBitCount + 6) / 7)
  }

  /// Nil when the bytes end inside it or it has more than ten bytes. Moves `at` past it.
  static func read(_ bytes: UnsafeRawBufferPointer, _ at: inout Int) -> Int64? {
    var raw: UInt64 = 0
    var shift: UInt64 = 0
    while at < bytes.count, shift < 70 {
      let byte = bytes[at]
      at += 1
      // The tenth byte holds the last bit alone.
      guard shift < 63 || byte <= 1 else { return nil }
      raw |= UInt64(byte & 0x7F) << shift
      if byte < 0x80 { return Int64(bitPattern: (raw >> 1) ^ (0 &- (raw & 1))) }
      shift += 7
    }
    return nil
  }
}
