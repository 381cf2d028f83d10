// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRecords
import MemQRPC
import NIOCore
import SwiftProtobuf

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

extension RPCMessage {
  /// CRC-32C over all slices from byte `start` on.
  func crc32c(from start: Int = 0) -> CRC32C {
    var crc = CRC32C()
    var skip = start
    for index in 0..<self.sliceCount {
      let slice = self.slice(index)
      let readable = slice.readableBytes
      defer { skip = max(0, skip - readable) }
      guard skip < readable else { continue }
      slice.withUnsafeReadableBytes { bytes in
        crc.update(UnsafeRawBufferPointer(rebasing: bytes[skip...]))
      }
    }
    return crc
  }

  /// Calls `body` with the first `count` bytes (fewer when there are fewer) in one piece.
  func withPrefix<R>(
    _ count: Int, _ body: (UnsafeRawBufferPointer) throws(MemQError) -> R
  ) throws(MemQError) -> R {
    let count = min(count, self.byteCount)
    let buffer =
      self.slice(0).readableBytes >= count
      ? self.slice(0) : self.range(from: 0, count: count).contiguous()
    return try buffer.withBytes { bytes throws(MemQError) in
      try body(UnsafeRawBufferPointer(rebasing: bytes[..<count]))
    }
  }
}

extension ByteBuffer {
  /// `withUnsafeReadableBytes` with a typed error.
  func withBytes<R>(
    _ body: (UnsafeRawBufferPointer) throws(MemQError) -> R
  ) throws(MemQError) -> R {
    try self.withUnsafeReadableBytes { bytes in
      Result { () throws(MemQError) in try body(bytes) }
    }.get()
  }
}

extension Memq_V1_Record {
  init(_ record: Record) {
    self.init()
    if let key = record.key { self.key = Data(key) }
    if let value = record.value { self.value = Data(value) }
    self.headers = record.headers.map { header in
      .with {
        $0.name = header.name
        if let value = header.value { $0.value = Data(value) }
      }
    }
    self.timestampMs = record.timestamp.milliseconds
    self.offset = record.offset.rawValue
  }
}
