// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQPacking
import MemQRecords
import NIOCore

/// Neighbouring blocks of a run that are read by one request. A run is cut into spans from its start, the same way for
/// every reader, so that all of them share what is cached.
struct SpanPlan {
  /// Indices of its blocks.
  let blocks: Range<Int>
  /// Its bytes in the object.
  let range: Range<Int64>

  init(_ run: ObjectRun, holding block: Int, spanBytes: Int) {
    var blocks = 0..<0
    var range = run.position..<run.position
    for index in run.blocks.indices {
      let end = range.upperBound + Int64(run.blocks[index].byteCount)
      if !blocks.isEmpty, end - range.lowerBound > spanBytes {
        if blocks.contains(block) { break }
        blocks = index..<index
        range = range.upperBound..<range.upperBound
      }
      blocks = blocks.lowerBound..<(index + 1)
      range = range.lowerBound..<end
    }
    self.blocks = blocks
    self.range = range
  }

  /// Checks each block against its CRC-32C.
  ///
  /// - Throws: `.objectCorrupt`.
  func verify(_ bytes: ByteBuffer, _ run: ObjectRun) throws(MemQError) {
    var place = bytes.readerIndex
    for index in self.blocks {
      let block = run.blocks[index]
      guard let slice = bytes.getSlice(at: place, length: block.byteCount),
        slice.withUnsafeReadableBytes({ CRC32C.checksum($0) }) == block.crc
      else {
        throw MemQError(
          .objectCorrupt,
          "block \(index) of run \(run.partition) does not have its CRC-32C: the object is damaged")
      }
      place += block.byteCount
    }
  }

  /// Whole batches from the one that holds `offset`, up to `maxBytes`, at least one, to the span's end at most.
  ///
  /// - Parameter block: the block that holds it.
  func cut(
    _ bytes: ByteBuffer, run: ObjectRun, block: Int, from offset: Offset, maxBytes: Int
  ) throws(MemQError) -> ColdRead {
    var walk = BatchWalk(bytes, at: self.place(of: block, in: run))
    while let header = try walk.next() {
      guard offset < header.endOffset else { continue }
      let start = walk.place - header.batchLength
      var next = header.endOffset
      var epoch = header.leaderEpoch
      var end = walk.place
      while let more = try walk.next(), walk.place - start <= maxBytes {
        next = more.endOffset
        epoch = more.leaderEpoch
        end = walk.place
      }
      var batches = bytes.getSlice(at: bytes.readerIndex + start, length: end - start)!
      // A small piece must not keep the whole span in memory.
      if batches.readableBytes < 16 << 10 { batches = ByteBuffer(bytes: batches.readableBytesView) }
      return ColdRead(
        batches: batches, baseOffset: header.baseOffset, nextOffset: next, lastEpoch: epoch)
    }
    throw MemQError(
      .objectCorrupt, "no batch of the run holds the offset", subject: "\(run.partition)",
      actual: offset.rawValue)
  }

  /// Base offset of the first batch, from `block` on, with a record of this time or later.
  func offset(
    _ bytes: ByteBuffer, run: ObjectRun, block: Int, atOrAfter timestamp: Timestamp
  ) throws(MemQError) -> Offset? {
    var walk = BatchWalk(bytes, at: self.place(of: block, in: run))
    while let header = try walk.next() {
      if header.maxTimestamp >= timestamp { return max(header.baseOffset, run.baseOffset) }
    }
    return nil
  }

  private func place(of block: Int, in run: ObjectRun) -> Int {
    run.blocks[self.blocks.lowerBound..<block].reduce(0) { $0 + $1.byteCount }
  }
}

/// Walks the headers of batches that stand one after another.
private struct BatchWalk {
  private let bytes: ByteBuffer
  /// Just past the batch given last, from the buffer's first readable byte.
  private(set) var place: Int

  init(_ bytes: ByteBuffer, at place: Int) {
    self.bytes = bytes
    self.place = place
  }

  mutating func next() throws(MemQError) -> RecordBatchHeader? {
    let (place, count) = (self.place, self.bytes.readableBytes)
    guard place < count else { return nil }
    let result = self.bytes.withUnsafeReadableBytes { bytes in
      Result { () throws(MemQError) in
        try RecordBatchHeader(parsing: UnsafeRawBufferPointer(rebasing: bytes[place...]))
      }
    }
    guard let header = try? result.get(), header.batchLength <= count - place else {
      throw MemQError(.objectCorrupt, "the bytes of a run are not record batches")
    }
    self.place = place + header.batchLength
    return header
  }
}
