// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@testable import MemQRecords

/// Our bytes against kafka-python's.
@Suite struct RecordBatchGoldenTests {
  static let records = [
    Record(
      key: Array("key".utf8), value: Array("value".utf8),
      timestamp: Timestamp(milliseconds: 1_700_000_000_000), offset: Offset(0)),
    Record(
      key: nil, value: [],
      headers: [
        RecordHeader(name: "name", value: Array("v".utf8)), RecordHeader(name: "null", value: nil),
        RecordHeader(name: "", value: []),
      ], timestamp: Timestamp(milliseconds: 1_700_000_000_250), offset: Offset(1)),
    Record(
      key: [], value: nil, timestamp: Timestamp(milliseconds: 1_699_999_999_999), offset: Offset(2)),
    Record(
      key: Array("schlüssel".utf8), value: (0..<768).map { UInt8(truncatingIfNeeded: $0) },
      headers: [RecordHeader(name: "ü", value: [0, 0xFF])],
      timestamp: Timestamp(milliseconds: 1_700_000_000_001), offset: Offset(3)),
  ]

  static let packed: [(Compression, String, Int)] = [
    (.none, GoldenBatches.none, 1), (.gzip, GoldenBatches.gzip, 1),
    (.snappy, GoldenBatches.snappy, 1), (.lz4, GoldenBatches.lz4, 1),
    (.zstd, GoldenBatches.zstd, 1), (.gzip, GoldenBatches.gzipLong, 100),
    (.snappy, GoldenBatches.snappyLong, 100), (.lz4, GoldenBatches.lz4Long, 100),
    (.zstd, GoldenBatches.zstdLong, 100),
  ]

  private func builder(
    _ compression: Compression = .none, producer: (Int64, Int16, Int32) = (-1, -1, -1)
  ) -> RecordBatchBuilder {
    var builder = RecordBatchBuilder(
      compression: compression, producerID: ProducerID(producer.0),
      producerEpoch: ProducerEpoch(producer.1), baseSequence: producer.2)
    for record in Self.records {
      builder.append(
        key: record.key, value: record.value, headers: record.headers, timestamp: record.timestamp)
    }
    return builder
  }

  @Test func `batches we build are the bytes kafka-python builds`() throws {
    // A leader epoch of -1 means the same in both: the leader stamps it.
    #expect(hexText(try self.builder().build()).dropFirst(32) == GoldenBatches.none.dropFirst(32))
    #expect(
      hexText(try self.builder(producer: (4711, 3, 99)).build()).dropFirst(32)
        == GoldenBatches.idempotent.dropFirst(32))
  }

  @Test(arguments: Self.packed)
  func `batches kafka-python builds decode`(
    compression: Compression, hex: String, repeats: Int
  ) throws {
    let bytes = try #require(hexBytes(hex))
    let header = try bytes.withUnsafeBytes { bytes in
      try RecordBatchHeader.validate(bytes, maxBytes: 1 << 20)
    }
    #expect(header.compression == compression)
    #expect(header.recordCount == Int32(4 * repeats))
    #expect(header.baseTimestamp.milliseconds == 1_700_000_000_000)
    #expect(header.maxTimestamp.milliseconds == 1_700_000_000_250)
    #expect(!header.isIdempotent)
    try bytes.withUnsafeBytes { try RecordBatch.validateRecords($0) }
    let records = try bytes.withUnsafeBytes { try RecordBatch.records($0) }
    #expect(records.count == 4 * repeats)
    for (index, record) in records.enumerated() {
      var expected = Self.records[index % 4]
      expected.offset = Offset(Int64(index))
      #expect(record == expected)
    }
  }

  @Test func `header fields are where Kafka has them`() throws {
    let bytes = try #require(hexBytes(GoldenBatches.idempotent))
    let header = try bytes.withUnsafeBytes { bytes in
      try RecordBatchHeader(parsing: bytes)
    }
    #expect(header.producerID == ProducerID(4711))
    #expect(header.producerEpoch == ProducerEpoch(3))
    #expect(header.baseSequence == 99)
    #expect(header.lastSequence == 102)
    #expect(header.endOffset == Offset(4))
    #expect(header.batchLength == bytes.count)
    var again: [UInt8] = []
    header.write(onto: &again)
    #expect(again == Array(bytes.prefix(61)))
  }

  @Test func `keys go to the partition Kafka gives them`() {
    for (key, hash) in GoldenBatches.hashes {
      let found = Array(key.utf8).withUnsafeBytes { KeyHash.murmur2($0) }
      #expect(found & 0x7FFF_FFFF == hash)
      let partition = Array(key.utf8).withUnsafeBytes { KeyHash.partition(of: $0, among: 7) }
      #expect(partition.rawValue == Int32(hash % 7))
    }
  }
}
