// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRPC
import MemQRecords
import NIOCore

/// Record batches as a fetch brings them.
enum FetchedBatches {
  /// The records of whole batches that stand one after another, with offsets from `from` up to `below`.
  ///
  /// - Parameter trail: takes note of their leader epochs.
  /// - Throws: `.recordBatchInvalid`, `.recordBatchChecksumMismatch`, `.recordBatchTooLarge`.
  static func records(
    in payload: RPCMessage, from: Offset, below: Offset, noting trail: inout EpochTrail
  ) throws(MemQError) -> [Record] {
    guard payload.byteCount > 0 else { return [] }
    let result = payload.contiguous().withUnsafeReadableBytes { bytes in
      Result { () throws(MemQError) -> [Record] in
        var records: [Record] = []
        var rest = bytes
        while !rest.isEmpty {
          let header = try RecordBatchHeader(parsing: rest)
          guard header.batchLength <= rest.count else {
            throw MemQError(
              .recordBatchInvalid, "a fetched batch is cut", limit: Int64(rest.count),
              actual: Int64(header.batchLength))
          }
          let whole = UnsafeRawBufferPointer(rebasing: rest[..<header.batchLength])
          rest = UnsafeRawBufferPointer(rebasing: rest[header.batchLength...])
          guard header.endOffset > from, header.baseOffset < below else { continue }
          trail.note(
            header.leaderEpoch, from: max(header.baseOffset, from),
            to: min(header.endOffset, below))
          guard !header.attributes.isControl else { continue }
          _ = try RecordBatchHeader.validate(whole, maxBytes: .max)
          let decoded = try RecordBatch.records(whole)
          if header.baseOffset >= from && header.endOffset <= below {
            if records.isEmpty { records = decoded } else { records += decoded }
          } else {
            records += decoded.filter { $0.offset >= from && $0.offset < below }
          }
        }
        return records
      }
    }
    return try result.get()
  }
}
