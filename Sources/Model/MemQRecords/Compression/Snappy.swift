// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CSnappy
import MemQModel

/// Snappy as Kafka's clients write it: the xerial framing (16 bytes of header, then blocks, each with its packed length
/// as 32 bits big-endian). Bytes without that header are read as one raw block, which some clients send.
enum Snappy {
  /// "\x82SNAPPY\0", then version 1 and oldest compatible version 1, big-endian.
  static let header: [UInt8] = [
    0x82, 0x53, 0x4E, 0x41, 0x50, 0x50, 0x59, 0, 0, 0, 0, 1, 0, 0, 0, 1,
  ]
  /// Unpacked bytes of one block: xerial's default.
  private static let blockBytes = 32 << 10

  static func compress(
    _ bytes: UnsafeRawBufferPointer, onto output: inout [UInt8]
  ) throws(MemQError) {
    output.append(contentsOf: Self.header)
    var at = 0
    while at < bytes.count {
      let block = UnsafeRawBufferPointer(
        rebasing: bytes[at..<min(at + Self.blockBytes, bytes.count)])
      at += block.count
      var packed = snappy_max_compressed_length(block.count)
      let start = output.count
      output.append(contentsOf: repeatElement(0, count: 4 + packed))
      let status = output.withUnsafeMutableBytes { all in
        snappy_compress(
          block.baseAddress!.assumingMemoryBound(to: CChar.self), block.count,
          all.baseAddress!.advanced(by: start + 4).assumingMemoryBound(to: CChar.self), &packed)
      }
      guard status == SNAPPY_OK else { throw libraryFailed("snappy") }
      for i in 0..<4 { output[start + i] = UInt8(truncatingIfNeeded: packed >> (24 - 8 * i)) }
      output.removeLast(output.count - start - 4 - packed)
    }
  }

  static func decompress(
    _ bytes: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> [UInt8] {
    var output: [UInt8] = []
    guard bytes.count >= Self.header.count, bytes.prefix(8).elementsEqual(Self.header.prefix(8))
    else {
      try Self.unpack(bytes, onto: &output, maxBytes: maxBytes)
      return output
    }
    var at = Self.header.count
    while at < bytes.count {
      guard bytes.count - at >= 4 else { throw badCompression("snappy", "a block has no length") }
      let length = Int(UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: at, as: UInt32.self)))
      at += 4
      guard length <= bytes.count - at else { throw badCompression("snappy", "a block is cut") }
      try Self.unpack(
        UnsafeRawBufferPointer(rebasing: bytes[at..<(at + length)]), onto: &output,
        maxBytes: maxBytes)
      at += length
    }
    return output
  }

  private static func unpack(
    _ block: UnsafeRawBufferPointer, onto output: inout [UInt8], maxBytes: Int
  ) throws(MemQError) {
    guard let base = block.baseAddress?.assumingMemoryBound(to: CChar.self) else {
      throw badCompression("snappy", "a block is empty")
    }
    var unpacked = 0
    guard snappy_uncompressed_length(base, block.count, &unpacked) == SNAPPY_OK else {
      throw badCompression("snappy", "a block has no length")
    }
    guard unpacked <= maxBytes - output.count else { throw tooLarge(maxBytes) }
    // A copy of up to 64 bytes takes 3: a length beyond what the bytes can give is forged.
    guard unpacked <= block.count * 22 + 64 else {
      throw badCompression("snappy", "a block's length is forged")
    }
    let start = output.count
    output.append(contentsOf: repeatElement(0, count: unpacked))
    guard unpacked > 0 else { return }
    let status = output.withUnsafeMutableBytes { all in
      snappy_uncompress(
        base, block.count,
        all.baseAddress!.advanced(by: start).assumingMemoryBound(to: CChar.self), &unpacked)
    }
    guard status == SNAPPY_OK else { throw badCompression("snappy", "a block is damaged") }
  }
}
