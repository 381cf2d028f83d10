// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Walks whole record batches that stand one after another.
///
/// It owns its bytes; `records` decodes one of the batches it gave.
public struct RecordBatchIterator: Sendable {
  /// One batch: its header and its place in the bytes.
  public struct Batch: Hashable, Sendable {
    public let header: RecordBatchHeader
    public let range: Range<Int>
  }

  private let bytes: ArraySlice<UInt8>
  private var at: Int

  public init(_ bytes: [UInt8]) { self.init(bytes[...]) }

  public init(_ bytes: ArraySlice<UInt8>) {
    self.bytes = bytes
    self.at = bytes.startIndex
  }

  /// Copies the bytes.
  public init(_ bytes: UnsafeRawBufferPointer) { self.init(Array(bytes)) }

  /// The next batch; nil at the end. The CRC is checked when `checksum` is true.
  ///
  /// - Throws: `.recordBatchInvalid` (also for a cut last batch), `.recordBatchChecksumMismatch`.
  public mutating func next(checksum: Bool = false) throws(MemQError) -> Batch? {
    guard self.at < self.bytes.endIndex else { return nil }
    let rest = self.bytes[self.at...]
    let header = try Self.reading(rest) { bytes throws(MemQError) in
      let header = try RecordBatchHeader(parsing: bytes)
      guard header.batchLength <= bytes.count else {
        throw MemQError(
          .recordBatchInvalid, "the last batch is cut", limit: Int64(bytes.count),
          actual: Int64(header.batchLength))
      }
      guard checksum else { return header }
      let whole = UnsafeRawBufferPointer(rebasing: bytes[..<header.batchLength])
      return try RecordBatchHeader.validate(whole, maxBytes: .max)
    }
    let range = self.at..<(self.at + header.batchLength)
    self.at = range.upperBound
    return Batch(header: header, range: range)
  }

  /// Decodes a batch that `next` gave.
  ///
  /// - Throws: `.recordBatchInvalid`, `.recordBatchTooLarge` (unpacked).
  public func records(
    of batch: Batch, unpackedBytesMax: Int = RecordBatch.unpackedBytesMaxDefault
  ) throws(MemQError) -> [Record] {
    try Self.reading(self.bytes[batch.range]) { bytes throws(MemQError) in
      try RecordBatch.records(bytes, unpackedBytesMax: unpackedBytesMax)
    }
  }

  private static func reading<R>(
    _ bytes: ArraySlice<UInt8>, _ body: (UnsafeRawBufferPointer) throws(MemQError) -> R
  ) throws(MemQError) -> R {
    try bytes.withUnsafeBytes { bytes in
      Result { () throws(MemQError) in try body(bytes) }
    }.get()
  }
}
