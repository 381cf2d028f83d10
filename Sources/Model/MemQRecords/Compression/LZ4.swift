// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CLz4
import MemQModel

/// The LZ4 frame format as Kafka's clients write it: independent blocks of up to 64 KiB.
enum LZ4 {
  static func compress(
    _ bytes: UnsafeRawBufferPointer, onto output: inout [UInt8]
  ) throws(MemQError) {
    var preferences = LZ4F_preferences_t()
    preferences.frameInfo.blockSizeID = LZ4F_max64KB
    preferences.frameInfo.blockMode = LZ4F_blockIndependent
    let bound = LZ4F_compressFrameBound(bytes.count, &preferences)
    let start = output.count
    output.append(contentsOf: repeatElement(0, count: bound))
    let written = output.withUnsafeMutableBytes { all in
      LZ4F_compressFrame(
        all.baseAddress!.advanced(by: start), bound, bytes.baseAddress, bytes.count, &preferences)
    }
    guard LZ4F_isError(written) == 0 else { throw libraryFailed("lz4") }
    output.removeLast(bound - written)
  }

  static func decompress(
    _ bytes: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> [UInt8] {
    var made: OpaquePointer?
    guard LZ4F_isError(LZ4F_createDecompressionContext(&made, UInt32(LZ4F_VERSION))) == 0,
      let context = made
    else { throw libraryFailed("lz4") }
    defer { LZ4F_freeDecompressionContext(context) }
    guard bytes.count > 0 else { throw badCompression("lz4", "there are none") }
    var output = GrowingOutput(expecting: bytes.count * 4, maxBytes: maxBytes)
    var at = 0
    var hint = 1
    while at < bytes.count || hint != 0 {
      var taken = bytes.count - at
      let source = bytes.baseAddress!.advanced(by: at)
      var given = 0
      if output.isFull {
        var probe: UInt8 = 0
        given = 1
        hint = LZ4F_decompress(context, &probe, &given, source, &taken, nil)
        guard given == 0 else { throw tooLarge(maxBytes) }
      } else {
        hint = try output.write { room in
          given = room.count
          let hint = LZ4F_decompress(context, room.baseAddress, &given, source, &taken, nil)
          return (LZ4F_isError(hint) == 0 ? given : 0, hint)
        }
      }
      guard LZ4F_isError(hint) == 0 else { throw badCompression("lz4", "a block is damaged") }
      guard taken > 0 || given > 0 || hint == 0 else {
        throw badCompression("lz4", "they end too early")
      }
      at += taken
    }
    return output.finish()
  }
}
