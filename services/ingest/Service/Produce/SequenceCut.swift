// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords

/// What is left to send of a batch whose first records were appended before (`SEQUENCE_STRADDLES`).
enum SequenceCut {
  /// The records behind sequence `last` as a batch of their own; nil when the refusal can't be about this batch.
  ///
  /// - Throws: `.recordBatchInvalid`, `.internalError`.
  static func rest(
    of batch: UnsafeRawBufferPointer, after last: Int32
  ) throws(MemQError) -> (batch: [UInt8], dropped: Int)? {
    let header = try RecordBatchHeader(parsing: batch)
    let modulus = Int64(Int32.max) + 1
    let dropped = Int(
      (Int64(last) + 1 - Int64(header.baseSequence) + modulus) % modulus)
    guard header.isIdempotent, dropped > 0, dropped < Int(header.recordCount) else { return nil }
    let base = Int32((Int64(header.baseSequence) + Int64(dropped)) % modulus)
    var builder = RecordBatchBuilder(
      compression: header.compression, producerID: header.producerID,
      producerEpoch: header.producerEpoch, baseSequence: base)
    for record in try RecordBatch.records(batch).dropFirst(dropped) {
      builder.append(
        key: record.key, value: record.value, headers: record.headers, timestamp: record.timestamp)
    }
    return (try builder.build(), dropped)
  }
}
