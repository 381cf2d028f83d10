// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Gathers records and encodes them as one record batch v2 with base offset 0 (the leader stamps the real one).
public struct RecordBatchBuilder: Sendable {
  private let compression: Compression
  private let producerID: ProducerID
  private let producerEpoch: ProducerEpoch
  private let baseSequence: Int32
  private var body: [UInt8] = []
  private var baseTimestamp = Timestamp.none
  private var maxTimestamp = Timestamp.none

  public private(set) var recordCount = 0

  /// - Parameter baseSequence: sequence of the first record; −1 without a producer id.
  public init(
    compression: Compression = .none, producerID: ProducerID = .none,
    producerEpoch: ProducerEpoch = .none, baseSequence: Int32 = -1
  ) {
    self.compression = compression
    self.producerID = producerID
    self.producerEpoch = producerEpoch
    self.baseSequence = baseSequence
  }

  public var isEmpty: Bool { self.recordCount == 0 }

  /// Bytes of the batch before compression: an upper estimate of what `build` gives.
  public var byteCount: Int { RecordBatchHeader.byteCount + self.body.count }

  /// Most bytes one more record would add.
  public static func recordBytes(key: Int?, value: Int?, headers: [RecordHeader] = []) -> Int {
    // Length, attributes, timestamp and offset delta, three counts: at their largest.
    var total = 5 + 1 + 10 + 5 + 15 + (key ?? 0) + (value ?? 0)
    for header in headers { total += 10 + header.name.utf8.count + (header.value?.count ?? 0) }
    return total
  }

  /// Adds one record.
  ///
  /// - Parameter timestamp: milliseconds since 1970 UTC; any order.
  public mutating func append(
    key: [UInt8]? = nil, value: [UInt8]?, headers: [RecordHeader] = [], timestamp: Timestamp
  ) {
    func withBytes(_ bytes: [UInt8]?, _ body: (UnsafeRawBufferPointer?) -> Void) {
      if let bytes { bytes.withUnsafeBytes { body($0) } } else { body(nil) }
    }
    withBytes(key) { key in
      withBytes(value) { value in
        self.append(rawKey: key, rawValue: value, headers: headers, timestamp: timestamp)
      }
    }
  }

  /// The same for bytes that stand anywhere; they are copied.
  public mutating func append(
    rawKey key: UnsafeRawBufferPointer?, rawValue value: UnsafeRawBufferPointer?,
    headers: [RecordHeader] = [], timestamp: Timestamp
  ) {
    precondition(self.recordCount < Limits.recordsPerBatchMax)
    if self.isEmpty {
      self.baseTimestamp = timestamp
      self.maxTimestamp = timestamp
    } else if self.maxTimestamp < timestamp {
      self.maxTimestamp = timestamp
    }
    let time = timestamp.milliseconds &- self.baseTimestamp.milliseconds
    let offset = Int64(self.recordCount)
    var length = 1 + Varint.byteCount(time) + Varint.byteCount(offset)
    length += Self.sized(key?.count) + Self.sized(value?.count)
    length += Varint.byteCount(Int64(headers.count))
    for header in headers {
      length += Self.sized(header.name.utf8.count) + Self.sized(header.value?.count)
    }
    Varint.write(Int64(length), onto: &self.body)
    self.body.append(0)
    Varint.write(time, onto: &self.body)
    Varint.write(offset, onto: &self.body)
    self.put(key)
    self.put(value)
    Varint.write(Int64(headers.count), onto: &self.body)
    for header in headers {
      var name = header.name
      name.withUTF8 { self.put(UnsafeRawBufferPointer($0)) }
      if let value = header.value {
        value.withUnsafeBytes { self.put($0) }
      } else {
        self.put(nil)
      }
    }
    self.recordCount += 1
  }

  private static func sized(_ count: Int?) -> Int {
    Varint.byteCount(Int64(count ?? -1)) + (count ?? 0)
  }

  private mutating func put(_ bytes: UnsafeRawBufferPointer?) {
    Varint.write(Int64(bytes?.count ?? -1), onto: &self.body)
    if let bytes { self.body.append(contentsOf: bytes) }
  }

  /// The batch's bytes.
  ///
  /// - Precondition: there is at least one record.
  /// - Throws: `.internalError` when the compression library fails.
  public consuming func build() throws(MemQError) -> [UInt8] {
    precondition(!self.isEmpty)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(self.byteCount)
    var header = RecordBatchHeader(
      attributes: RecordBatchAttributes(self.compression), recordCount: Int32(self.recordCount),
      baseTimestamp: self.baseTimestamp, maxTimestamp: self.maxTimestamp,
      producerID: self.producerID, producerEpoch: self.producerEpoch,
      baseSequence: self.baseSequence)
    header.write(onto: &bytes)
    if self.compression == .none {
      bytes.append(contentsOf: self.body)
    } else {
      let packed = self.body.withUnsafeBytes { body in
        Result { () throws(MemQError) -> [UInt8] in
          var onto = bytes
          try self.compression.compress(body, onto: &onto)
          return onto
        }
      }
      bytes = try packed.get()
    }
    header.batchLength = bytes.count
    bytes.withUnsafeMutableBytes { all in
      all.storeBytes(of: Int32(all.count - 12).bigEndian, toByteOffset: 8, as: Int32.self)
      let crc = CRC32C.checksum(
        UnsafeRawBufferPointer(rebasing: all[RecordBatchHeader.checksummedFrom...]))
      all.storeBytes(of: crc.bigEndian, toByteOffset: 17, as: UInt32.self)
    }
    return bytes
  }
}

extension RecordBatchHeader {
  /// A header before its batch has a place, a length and a CRC.
  fileprivate init(
    attributes: RecordBatchAttributes, recordCount: Int32, baseTimestamp: Timestamp,
    maxTimestamp: Timestamp, producerID: ProducerID, producerEpoch: ProducerEpoch,
    baseSequence: Int32
  ) {
    self.baseOffset = .zero
    self.batchLength = Self.byteCount
    self.leaderEpoch = .none
    self.magic = 2
    self.crc = 0
    self.attributes = attributes
    self.lastOffsetDelta = recordCount - 1
    self.baseTimestamp = baseTimestamp
    self.maxTimestamp = maxTimestamp
    self.producerID = producerID
    self.producerEpoch = producerEpoch
    self.baseSequence = baseSequence
    self.recordCount = recordCount
  }
}
