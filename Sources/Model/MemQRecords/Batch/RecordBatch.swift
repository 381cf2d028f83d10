// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What can be done with the bytes of one whole record batch v2.
public enum RecordBatch {
  /// Default bound for unpacked records of one batch (64 MiB): eight times the largest batch there is.
  public static let unpackedBytesMaxDefault = 64 << 20

  /// Decodes every record, offsets counted from the batch's base offset.
  ///
  /// - Parameter whole: exactly one batch. Its CRC is not checked here.
  /// - Throws: `.recordBatchInvalid`, `.recordBatchTooLarge` (unpacked).
  public static func records(
    _ whole: UnsafeRawBufferPointer, unpackedBytesMax: Int = unpackedBytesMaxDefault
  ) throws(MemQError) -> [Record] {
    let header = try Self.header(whole)
    return try Self.withUnpacked(whole, header, unpackedBytesMax) { bytes throws(MemQError) in
      var cursor = RecordCursor(bytes, count: header.recordCount)
      var records: [Record] = []
      // A record takes at least seven bytes.
      records.reserveCapacity(min(Int(header.recordCount), bytes.count / 7 + 1))
      while let parts = try cursor.next() {
        records.append(Record(parts, in: bytes, of: header))
      }
      return records
    }
  }

  /// Walks every record and checks that offset deltas are 0, 1, 2, …, as a leader's batch index relies on.
  ///
  /// - Throws: `.recordBatchInvalid`, `.recordBatchTooLarge` (unpacked).
  public static func validateRecords(
    _ whole: UnsafeRawBufferPointer, unpackedBytesMax: Int = unpackedBytesMaxDefault
  ) throws(MemQError) {
    let header = try Self.header(whole)
    try Self.withUnpacked(whole, header, unpackedBytesMax) { bytes throws(MemQError) in
      var cursor = RecordCursor(bytes, count: header.recordCount)
      var expected: Int32 = 0
      while let parts = try cursor.next() {
        guard parts.offsetDelta == expected else {
          throw MemQError(
            .recordBatchInvalid, "offset deltas do not rise one by one", limit: Int64(expected),
            actual: Int64(parts.offsetDelta))
        }
        expected += 1
      }
    }
  }

  /// Calls `body` with everything in the batch that a producer chose, in order: of each record its key, its value, and
  /// name and value of its headers. Nulls and empty parts are passed over.
  ///
  /// - Throws: `.recordBatchInvalid`, `.recordBatchTooLarge` (unpacked).
  public static func forEachPart(
    _ whole: UnsafeRawBufferPointer, unpackedBytesMax: Int = unpackedBytesMaxDefault,
    _ body: (UnsafeRawBufferPointer) -> Void
  ) throws(MemQError) {
    let header = try Self.header(whole)
    try Self.withUnpacked(whole, header, unpackedBytesMax) { bytes throws(MemQError) in
      var cursor = RecordCursor(bytes, count: header.recordCount)
      while let parts = try cursor.next() {
        func tell(_ range: Range<Int>?) {
          guard let range, !range.isEmpty else { return }
          body(UnsafeRawBufferPointer(rebasing: bytes[range]))
        }
        tell(parts.key)
        tell(parts.value)
        for header in parts.headers {
          tell(header.name)
          tell(header.value)
        }
      }
    }
  }

  private static func header(_ whole: UnsafeRawBufferPointer) throws(MemQError) -> RecordBatchHeader
  {
    let header = try RecordBatchHeader(parsing: whole)
    guard header.batchLength == whole.count else {
      throw MemQError(
        .recordBatchInvalid, "the batch's length field does not fit its bytes",
        limit: Int64(whole.count), actual: Int64(header.batchLength))
    }
    return header
  }

  private static func withUnpacked<R>(
    _ whole: UnsafeRawBufferPointer, _ header: RecordBatchHeader, _ maxBytes: Int,
    _ body: (UnsafeRawBufferPointer) throws(MemQError) -> R
  ) throws(MemQError) -> R {
    let packed = UnsafeRawBufferPointer(rebasing: whole[RecordBatchHeader.byteCount...])
    guard header.compression != .none else { return try body(packed) }
    let bytes = try header.compression.decompress(packed, maxBytes: maxBytes)
    let result = bytes.withUnsafeBytes { bytes in
      Result { () throws(MemQError) in try body(bytes) }
    }
    return try result.get()
  }
}

extension Record {
  fileprivate init(
    _ parts: RecordCursor.Parts, in bytes: UnsafeRawBufferPointer, of header: RecordBatchHeader
  ) {
    let time = header.baseTimestamp.milliseconds.addingReportingOverflow(parts.timestampDelta)
    self.init(
      key: parts.key.map { Array(bytes[$0]) },
      value: parts.value.map { Array(bytes[$0]) },
      headers: parts.headers.map { name, value in
        RecordHeader(
          name: String(decoding: bytes[name], as: UTF8.self), value: value.map { Array(bytes[$0]) })
      },
      timestamp: header.attributes.hasAppendTime
        ? header.maxTimestamp : Timestamp(milliseconds: time.partialValue),
      offset: header.baseOffset + Int64(parts.offsetDelta))
  }
}
