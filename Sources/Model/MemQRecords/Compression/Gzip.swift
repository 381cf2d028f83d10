// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CZlib
import MemQModel

/// RFC 1952 by zlib. Several members one after another unpack as one, as Java's reader does it.
enum Gzip {
  /// 15 bits of window, plus 16: the gzip wrapper.
  private static let windowBits: Int32 = 31

  static func compress(
    _ bytes: UnsafeRawBufferPointer, onto output: inout [UInt8]
  ) throws(MemQError) {
    var stream = z_stream()
    guard
      deflateInit2_(
        &stream, 6, Z_DEFLATED, Self.windowBits, 8, Z_DEFAULT_STRATEGY, ZLIB_VERSION,
        Int32(MemoryLayout<z_stream>.size)) == Z_OK
    else { throw libraryFailed("gzip") }
    defer { deflateEnd(&stream) }
    let bound = Int(deflateBound(&stream, UInt(bytes.count)))
    let start = output.count
    output.append(contentsOf: repeatElement(0, count: bound))
    let status = output.withUnsafeMutableBytes { all -> Int32 in
      stream.next_in = pointer(bytes)
      stream.avail_in = UInt32(bytes.count)
      stream.next_out = all.baseAddress!.advanced(by: start).assumingMemoryBound(to: UInt8.self)
      stream.avail_out = UInt32(bound)
      return deflate(&stream, Z_FINISH)
    }
    guard status == Z_STREAM_END else { throw libraryFailed("gzip") }
    output.removeLast(Int(stream.avail_out))
  }

  static func decompress(
    _ bytes: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> [UInt8] {
    var stream = z_stream()
    guard
      inflateInit2_(
        &stream, Self.windowBits, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK
    else { throw libraryFailed("gzip") }
    defer { inflateEnd(&stream) }
    stream.next_in = pointer(bytes)
    stream.avail_in = UInt32(bytes.count)
    var output = GrowingOutput(expecting: bytes.count * 4, maxBytes: maxBytes)
    while true {
      var probe: UInt8 = 0
      // At the bound, one byte of room tells "ends exactly here" from "too large".
      let status: Int32
      if output.isFull {
        status = withUnsafeMutablePointer(to: &probe) { room in
          stream.next_out = room
          stream.avail_out = 1
          return inflate(&stream, Z_NO_FLUSH)
        }
        guard stream.avail_out == 1 else { throw tooLarge(maxBytes) }
      } else {
        status = try output.write { room in
          stream.next_out = room.baseAddress!.assumingMemoryBound(to: UInt8.self)
          stream.avail_out = UInt32(room.count)
          let status = inflate(&stream, Z_NO_FLUSH)
          return (room.count - Int(stream.avail_out), status)
        }
      }
      switch status {
      case Z_OK:
        // A call that neither took nor gave anything says Z_BUF_ERROR, so this always goes on.
        continue
      case Z_STREAM_END:
        if stream.avail_in == 0 { return output.finish() }
        guard inflateReset(&stream) == Z_OK else {
          throw badCompression("gzip", "no second member")
        }
      case Z_BUF_ERROR: throw badCompression("gzip", "they end too early")
      default: throw badCompression("gzip", "code \(status)")
      }
    }
  }

  private static func pointer(_ bytes: UnsafeRawBufferPointer) -> UnsafeMutablePointer<UInt8>? {
    UnsafeMutableRawPointer(mutating: bytes.baseAddress)?.assumingMemoryBound(to: UInt8.self)
  }
}
