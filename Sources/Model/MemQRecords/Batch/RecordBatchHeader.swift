// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The first 61 bytes of a record batch v2 (docs/formats/record-batch.md): Kafka's, byte for byte.
///
/// Base offset and leader epoch lie outside the CRC, so that a leader stamps them without reading the rest.
public struct RecordBatchHeader: Hashable, Sendable {
  public static let byteCount = 61
  /// The CRC covers everything from here on.
  public static let checksummedFrom = 21

  public var baseOffset: Offset
  /// Bytes of the whole batch, the 12 before the length field's end included.
  public var batchLength: Int
  public var leaderEpoch: LeaderEpoch
  public var magic: UInt8
  /// CRC-32C of the bytes from 21 on.
  public var crc: UInt32
  public var attributes: RecordBatchAttributes
  /// Last record's offset less the base offset.
  public var lastOffsetDelta: Int32
  public var baseTimestamp: Timestamp
  public var maxTimestamp: Timestamp
  /// `.none` when the producer is not idempotent.
  public var producerID: ProducerID
  public var producerEpoch: ProducerEpoch
  /// Sequence of the first record; −1 without a producer id.
  public var baseSequence: Int32
  public var recordCount: Int32

  /// One past the last record.
  public var endOffset: Offset { self.baseOffset + (Int64(self.lastOffsetDelta) + 1) }
  /// Sequence of the last record; wraps past Int32.max to 0 as Kafka's does.
  public var lastSequence: Int32 {
    guard self.baseSequence >= 0 else { return self.baseSequence }
    return Int32((Int64(self.baseSequence) + Int64(self.lastOffsetDelta)) & Int64(Int32.max))
  }
  public var compression: Compression { self.attributes.compression ?? .none }
  public var isIdempotent: Bool { self.producerID.rawValue >= 0 }

  /// Reads the header. Structural checks only: length, magic, counts; the CRC is `validate`'s business.
  ///
  /// - Throws: `.recordBatchInvalid`.
  public init(parsing bytes: UnsafeRawBufferPointer) throws(MemQError) {
    guard bytes.count >= Self.byteCount else {
      throw MemQError(
        .recordBatchInvalid, "a record batch has at least 61 bytes", limit: Int64(Self.byteCount),
        actual: Int64(bytes.count))
    }
    self.baseOffset = Offset(bytes.bigEndian(at: 0))
    let lengthField = Int(bytes.bigEndian(at: 8, as: Int32.self))
    self.batchLength = lengthField + 12
    self.leaderEpoch = LeaderEpoch(Int64(bytes.bigEndian(at: 12, as: Int32.self)))
    self.magic = bytes[16]
    self.crc = bytes.bigEndian(at: 17)
    self.attributes = RecordBatchAttributes(rawValue: bytes.bigEndian(at: 21))
    self.lastOffsetDelta = bytes.bigEndian(at: 23)
    self.baseTimestamp = Timestamp(milliseconds: bytes.bigEndian(at: 27))
    self.maxTimestamp = Timestamp(milliseconds: bytes.bigEndian(at: 35))
    self.producerID = ProducerID(bytes.bigEndian(at: 43))
    self.producerEpoch = ProducerEpoch(bytes.bigEndian(at: 51))
    self.baseSequence = bytes.bigEndian(at: 53)
    self.recordCount = bytes.bigEndian(at: 57)
    try self.checkStructure()
  }

  private func checkStructure() throws(MemQError) {
    func refuse(_ message: String, limit: Int64? = nil, actual: Int64) -> MemQError {
      MemQError(.recordBatchInvalid, message, limit: limit, actual: actual)
    }
    guard self.magic == 2 else {
      throw refuse("only record batch version 2 is taken", limit: 2, actual: Int64(self.magic))
    }
    guard self.batchLength >= Self.byteCount else {
      throw refuse(
        "the length field is too small", limit: Int64(Self.byteCount),
        actual: Int64(self.batchLength))
    }
    guard (0..<(Int64.max - Int64(Int32.max))).contains(self.baseOffset.rawValue) else {
      throw refuse("the base offset is out of range", actual: self.baseOffset.rawValue)
    }
    guard self.lastOffsetDelta >= 0 else {
      throw refuse(
        "the last offset delta is negative", limit: 0, actual: Int64(self.lastOffsetDelta))
    }
    guard self.recordCount > 0, self.recordCount <= Limits.recordsPerBatchMax else {
      throw refuse(
        "the record count is out of range", limit: Int64(Limits.recordsPerBatchMax),
        actual: Int64(self.recordCount))
    }
    guard self.attributes.compression != nil else {
      throw refuse(
        "unknown compression", limit: 4, actual: Int64(self.attributes.rawValue & 7))
    }
    if self.producerID.rawValue >= 0 {
      guard self.producerEpoch.rawValue >= 0, self.baseSequence >= 0 else {
        throw refuse(
          "a batch with a producer id needs its epoch and sequence", limit: 0,
          actual: Int64(min(Int32(self.producerEpoch.rawValue), self.baseSequence)))
      }
    }
  }

  /// Checks a whole batch by Kafka's rules: structure, that it has exactly the bytes it says, count = last offset
  /// delta + 1, and the CRC.
  ///
  /// - Parameter maxBytes: the topic's `max.message.bytes`.
  /// - Throws: `.recordBatchTooLarge`, `.recordBatchInvalid`, `.recordBatchChecksumMismatch`.
  public static func validate(
    _ whole: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> RecordBatchHeader {
    let header = try Self.validateStructure(whole.count, whole, maxBytes: maxBytes)
    var crc = CRC32C()
    crc.update(UnsafeRawBufferPointer(rebasing: whole[Self.checksummedFrom...]))
    try header.check(crc)
    return header
  }

  /// The part of `validate` that needs no CRC: for batches that stand in several slices. `first` holds at least the
  /// header; the caller then feeds the bytes from 21 on to a `CRC32C` and calls `check`.
  ///
  /// - Throws: `.recordBatchTooLarge`, `.recordBatchInvalid`.
  public static func validateStructure(
    _ byteCount: Int, _ first: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> RecordBatchHeader {
    guard byteCount <= maxBytes else {
      throw MemQError(
        .recordBatchTooLarge, "the batch has more bytes than max.message.bytes allows",
        limit: Int64(maxBytes), actual: Int64(byteCount))
    }
    let header = try RecordBatchHeader(parsing: first)
    guard header.batchLength == byteCount else {
      throw MemQError(
        .recordBatchInvalid, "the batch's length field does not fit its bytes",
        limit: Int64(byteCount), actual: Int64(header.batchLength))
    }
    guard Int64(header.recordCount) == Int64(header.lastOffsetDelta) + 1 else {
      throw MemQError(
        .recordBatchInvalid, "the record count is not the last offset delta plus one",
        limit: Int64(header.lastOffsetDelta) + 1, actual: Int64(header.recordCount))
    }
    return header
  }

  /// - Throws: `.recordBatchChecksumMismatch` unless `found` is the CRC of the bytes from 21 on.
  public func check(_ found: CRC32C) throws(MemQError) {
    guard found.value == self.crc else {
      throw MemQError(
        .recordBatchChecksumMismatch, "the batch's CRC-32C is wrong: it was damaged on its way",
        limit: Int64(self.crc), actual: Int64(found.value))
    }
  }

  /// Writes base offset (bytes 0..<8) and leader epoch (12..<16); both stand outside the CRC.
  public static func stamp(
    _ bytes: UnsafeMutableRawBufferPointer, baseOffset: Offset, leaderEpoch: LeaderEpoch
  ) {
    precondition(bytes.count >= 16)
    bytes.storeBytes(of: baseOffset.rawValue.bigEndian, toByteOffset: 0, as: Int64.self)
    let epoch = Int32(truncatingIfNeeded: leaderEpoch.rawValue)
    bytes.storeBytes(of: epoch.bigEndian, toByteOffset: 12, as: Int32.self)
  }

  /// The 61 bytes.
  public func write(onto bytes: inout [UInt8]) {
    var writer = ByteWriter()
    writer.integer(self.baseOffset.rawValue)
    writer.integer(Int32(self.batchLength - 12))
    writer.integer(Int32(truncatingIfNeeded: self.leaderEpoch.rawValue))
    writer.integer(self.magic)
    writer.integer(self.crc)
    writer.integer(self.attributes.rawValue)
    writer.integer(self.lastOffsetDelta)
    writer.integer(self.baseTimestamp.milliseconds)
    writer.integer(self.maxTimestamp.milliseconds)
    writer.integer(self.producerID.rawValue)
    writer.integer(self.producerEpoch.rawValue)
    writer.integer(self.baseSequence)
    writer.integer(self.recordCount)
    bytes.append(contentsOf: writer.bytes)
  }
}

extension UnsafeRawBufferPointer {
  /// The big-endian integer at a place that the caller knows to be inside.
  func bigEndian<T: FixedWidthInteger & BitwiseCopyable>(at place: Int, as _: T.Type = T.self) -> T
  {
    T(bigEndian: self.loadUnaligned(fromByteOffset: place, as: T.self))
  }
}
