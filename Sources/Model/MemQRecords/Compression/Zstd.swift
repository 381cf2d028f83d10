// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CZstd
import MemQModel

/// Zstandard frames, one or several.
enum Zstd {
  private static let level: Int32 = 3

  static func compress(
    _ bytes: UnsafeRawBufferPointer, onto output: inout [UInt8]
  ) throws(MemQError) {
    let bound = ZSTD_compressBound(bytes.count)
    let start = output.count
    output.append(contentsOf: repeatElement(0, count: bound))
    let written = output.withUnsafeMutableBytes { all in
      ZSTD_compress(
        all.baseAddress!.advanced(by: start), bound, bytes.baseAddress, bytes.count, Self.level)
    }
    guard ZSTD_isError(written) == 0 else { throw libraryFailed("zstd") }
    output.removeLast(bound - written)
  }

  static func decompress(
    _ bytes: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> [UInt8] {
    guard let context = ZSTD_createDCtx() else { throw libraryFailed("zstd") }
    defer { ZSTD_freeDCtx(context) }
    guard bytes.count > 0 else { throw badCompression("zstd", "there are none") }
    var input = ZSTD_inBuffer(src: bytes.baseAddress, size: bytes.count, pos: 0)
    var output = GrowingOutput(expecting: bytes.count * 4, maxBytes: maxBytes)
    var hint = 1
    while input.pos < input.size || hint != 0 {
      let before = input.pos
      let given: Int
      if output.isFull {
        var probe: UInt8 = 0
        (hint, given) = withUnsafeMutableBytes(of: &probe) { step(context, $0, &input) }
        guard given == 0 else { throw tooLarge(maxBytes) }
      } else {
        (hint, given) = try output.write { room in
          let (hint, given) = step(context, room, &input)
          return (given, (hint, given))
        }
      }
      guard ZSTD_isError(hint) == 0 else { throw badCompression("zstd", "a block is damaged") }
      guard input.pos > before || given > 0 || hint == 0 else {
        throw badCompression("zstd", "they end too early")
      }
    }
    return output.finish()
  }

  private static func step(
    _ context: OpaquePointer, _ room: UnsafeMutableRawBufferPointer, _ input: inout ZSTD_inBuffer
  ) -> (hint: Int, given: Int) {
    var target = ZSTD_outBuffer(dst: room.baseAddress, size: room.count, pos: 0)
    let hint = ZSTD_decompressStream(context, &target, &input)
    return (hint, target.pos)
  }
}
