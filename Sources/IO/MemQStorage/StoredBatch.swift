// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords
import NIOCore

/// A batch as the log keeps it: stamped, in slices.
struct StoredBatch: Sendable {
  let summary: BatchSummary
  let slices: [ByteBuffer]
  let byteCount: Int
  /// The batch's own CRC.
  let checksum: UInt32
  /// Memory it holds on to, at its backing buffers.
  let memoryBytes: Int

  /// Below this, bytes are copied together instead of keeping their buffers alive.
  private static let copyBelow = 16 << 10
  private static let stampBytes = 16
  /// What this and a slice take themselves.
  private static let overhead = 256

  /// - Throws: `.recordBatchInvalid` when length, magic or version can't be a whole record batch v2.
  init(_ append: Volume.Append) throws(MemQError) {
    var slices = append.batch.filter { $0.readableBytes > 0 }
    let byteCount = slices.reduce(0) { $0 + $1.readableBytes }
    self.summary = append.summary
    self.byteCount = byteCount
    let head = try Self.head(slices, byteCount, append.partition)
    self.checksum = head.getInteger(at: 17, as: UInt32.self)!
    var stamp = ByteBufferAllocator().buffer(
      capacity: byteCount < Self.copyBelow ? byteCount : Self.stampBytes)
    stamp.writeInteger(append.summary.baseOffset.rawValue)
    stamp.writeInteger(head.getInteger(at: 8, as: Int32.self)!)
    stamp.writeInteger(Int32(truncatingIfNeeded: append.summary.leaderEpoch.rawValue))
    Self.drop(Self.stampBytes, of: &slices)
    if byteCount < Self.copyBelow {
      for var slice in slices { stamp.writeBuffer(&slice) }
      self.slices = [stamp]
      self.memoryBytes = byteCount + Self.overhead
    } else {
      let (kept, bytes) = Self.kept(slices)
      self.slices = [stamp] + kept
      self.memoryBytes = bytes + Self.overhead * self.slices.count
    }
  }

  /// The first 61 bytes, in one piece.
  private static func head(
    _ slices: [ByteBuffer], _ byteCount: Int, _ partition: TopicPartition
  ) throws(MemQError) -> ByteBuffer {
    let count = RecordBatchHeader.byteCount
    var head = ByteBufferAllocator().buffer(capacity: count)
    for slice in slices where head.readableBytes < count {
      head.writeImmutableBuffer(
        slice.getSlice(
          at: slice.readerIndex, length: min(slice.readableBytes, count - head.readableBytes))!)
    }
    guard head.readableBytes == count, head.getInteger(at: 16, as: Int8.self) == 2,
      head.getInteger(at: 8, as: Int32.self) == Int32(exactly: byteCount - 12)
    else {
      throw MemQError(
        .recordBatchInvalid, "not one whole record batch v2", subject: partition.description,
        actual: Int64(byteCount))
    }
    return head
  }

  private static func drop(_ count: Int, of slices: inout [ByteBuffer]) {
    var left = count
    while left > 0 {
      let taken = min(left, slices[0].readableBytes)
      slices[0].moveReaderIndex(forwardBy: taken)
      left -= taken
      if slices[0].readableBytes == 0 { slices.removeFirst() }
    }
  }

  /// Large slices as they are, small ones copied; charged at their backing buffers, each once in a row.
  private static func kept(_ slices: [ByteBuffer]) -> ([ByteBuffer], Int) {
    var kept: [ByteBuffer] = []
    var bytes = 0
    var lastBacking: UnsafeRawPointer?
    for slice in slices {
      if slice.readableBytes < Self.copyBelow {
        var copy = ByteBufferAllocator().buffer(capacity: slice.readableBytes)
        copy.writeImmutableBuffer(slice)
        kept.append(copy)
        bytes += slice.readableBytes
      } else {
        let backing = slice.withVeryUnsafeBytes { $0.baseAddress }
        if backing != lastBacking { bytes += slice.storageCapacity }
        lastBacking = backing
        kept.append(slice)
      }
    }
    return (kept, bytes)
  }
}
