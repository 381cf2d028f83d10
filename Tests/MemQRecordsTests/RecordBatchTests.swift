// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQTestSupport
import Testing

@testable import MemQRecords

@Suite struct RecordBatchTests {
  private func example(
    _ compression: Compression, _ random: inout SeededGenerator, records count: Int
  ) -> ([Record], RecordBatchBuilder) {
    var builder = RecordBatchBuilder(compression: compression)
    var records: [Record] = []
    for index in 0..<count {
      func some(_ bound: Int) -> [UInt8]? {
        random.below(5) == 0
          ? nil : (0..<random.below(bound)).map { _ in UInt8(random.below(4)) }
      }
      let record = Record(
        key: some(40), value: some(300),
        headers: (0..<random.below(3)).map { RecordHeader(name: "h\($0)", value: some(20)) },
        timestamp: Timestamp(milliseconds: Int64(truncatingIfNeeded: random.next() >> 20)),
        offset: Offset(Int64(index)))
      records.append(record)
      builder.append(
        key: record.key, value: record.value, headers: record.headers, timestamp: record.timestamp)
    }
    return (records, builder)
  }

  @Test(arguments: Compression.allCases)
  func `records come back as they went in`(compression: Compression) throws {
    var random = SeededGenerator(seed: 11)
    for count in [1, 2, 17, 1500] {
      let (records, builder) = self.example(compression, &random, records: count)
      let estimate = builder.byteCount
      let bytes = try builder.build()
      if compression == .none { #expect(bytes.count == estimate) }
      try bytes.withUnsafeBytes { whole in
        _ = try RecordBatchHeader.validate(whole, maxBytes: bytes.count)
        try RecordBatch.validateRecords(whole)
        #expect(try RecordBatch.records(whole) == records)
        var parts: [[UInt8]] = []
        try RecordBatch.forEachPart(whole) { parts.append(Array($0)) }
        let wanted: [[UInt8]] = records.flatMap { record in
          [record.key ?? [], record.value ?? []]
            + record.headers.flatMap { [Array($0.name.utf8), $0.value ?? []] }
        }
        #expect(parts == wanted.filter { !$0.isEmpty })
      }
    }
  }

  @Test func `stamping changes offset and epoch and keeps the checksum valid`() throws {
    var random = SeededGenerator(seed: 12)
    var bytes = try self.example(.lz4, &random, records: 9).1.build()
    bytes.withUnsafeMutableBytes {
      RecordBatchHeader.stamp($0, baseOffset: Offset(1 << 40), leaderEpoch: LeaderEpoch(77))
    }
    let header = try bytes.withUnsafeBytes { whole in
      try RecordBatchHeader.validate(whole, maxBytes: .max)
    }
    #expect(header.baseOffset == Offset(1 << 40))
    #expect(header.endOffset == Offset(1 << 40) + 9)
    #expect(header.leaderEpoch == LeaderEpoch(77))
    #expect(
      try bytes.withUnsafeBytes { try RecordBatch.records($0) }.last?.offset == Offset(1 << 40) + 8)
  }

  @Test func `a walk over several batches gives each, and says when the last is cut`() throws {
    var random = SeededGenerator(seed: 13)
    var all: [UInt8] = []
    var counts: [Int] = []
    for compression in Compression.allCases {
      let (records, builder) = self.example(compression, &random, records: 5 + counts.count)
      all += try builder.build()
      counts.append(records.count)
    }
    var walk = RecordBatchIterator(all)
    var seen: [Int] = []
    while let batch = try walk.next(checksum: true) {
      seen.append(try walk.records(of: batch).count)
    }
    #expect(seen == counts)
    var cut = RecordBatchIterator(all.dropLast())
    let error = #expect(throws: MemQError.self) { while try cut.next() != nil {} }
    #expect(error?.code == .recordBatchInvalid)
  }

  @Test func `each refusal names its reason`() throws {
    var random = SeededGenerator(seed: 14)
    let good = try self.example(.none, &random, records: 3).1.build()
    func code(_ change: (inout [UInt8]) -> Void, max: Int = 1 << 20) -> ErrorCode? {
      var bytes = good
      change(&bytes)
      return #expect(throws: MemQError.self) {
        try bytes.withUnsafeBytes { _ = try RecordBatchHeader.validate($0, maxBytes: max) }
      }?.code
    }
    #expect(code({ $0[70] ^= 1 }) == .recordBatchChecksumMismatch)
    #expect(code({ $0[16] = 1 }) == .recordBatchInvalid)
    #expect(code({ $0.append(0) }) == .recordBatchInvalid)
    #expect(code({ $0.removeLast() }) == .recordBatchInvalid)
    #expect(code({ $0[60] += 1 }) == .recordBatchInvalid)
    #expect(code({ $0[22] = 5 }) == .recordBatchInvalid)
    #expect(code({ $0.removeLast($0.count - 60) }) == .recordBatchInvalid)
    #expect(code({ _ in }, max: 100) == .recordBatchTooLarge)
  }

  @Test(arguments: Compression.allCases)
  func `unpacking stops at its bound`(compression: Compression) throws {
    let zeros = [UInt8](repeating: 0, count: 3 << 20)
    var packed: [UInt8] = []
    try zeros.withUnsafeBytes { bytes in try compression.compress(bytes, onto: &packed) }
    func unpack(_ bytes: some Collection<UInt8>, maxBytes: Int) throws -> Int {
      try Array(bytes).withUnsafeBytes {
        try compression.decompress($0, maxBytes: maxBytes).count
      }
    }
    #expect(try unpack(packed, maxBytes: 3 << 20) == 3 << 20)
    let error = #expect(throws: MemQError.self) { try unpack(packed, maxBytes: (3 << 20) - 1) }
    #expect(error?.code == .recordBatchTooLarge)
    if compression != .none {
      #expect(throws: MemQError.self) {
        try unpack(packed.dropLast(packed.count / 2), maxBytes: 4 << 20)
      }
    }
  }

  @Test(arguments: Compression.allCases)
  func `garbage is refused and never traps`(compression: Compression) throws {
    var random = SeededGenerator(seed: 15)
    let good = try self.example(compression, &random, records: 40).1.build()
    for _ in 0..<3000 {
      var bytes = good
      for _ in 0...random.below(4) {
        switch random.below(4) {
        case 0: bytes[random.below(bytes.count)] = UInt8(random.below(256))
        case 1: bytes[random.below(bytes.count)] ^= 1 << UInt8(random.below(8))
        case 2: bytes.removeLast(random.below(min(bytes.count - 1, 30)))
        default: bytes.insert(UInt8(random.below(256)), at: random.below(bytes.count))
        }
      }
      // Mended length and CRC let the damage through to the records.
      if bytes.count > 61, random.below(3) > 0 { mend(&bytes) }
      bytes.withUnsafeBytes { whole in
        _ = try? RecordBatchHeader.validate(whole, maxBytes: 1 << 20)
        _ = try? RecordBatch.validateRecords(whole, unpackedBytesMax: 1 << 20)
        _ = try? RecordBatch.records(whole, unpackedBytesMax: 1 << 20)
      }
      var walk = RecordBatchIterator(bytes)
      while let batch = try? walk.next() {
        _ = try? walk.records(of: batch, unpackedBytesMax: 1 << 20)
      }
    }
  }

  private func mend(_ bytes: inout [UInt8]) {
    bytes.withUnsafeMutableBytes { all in
      all.storeBytes(of: Int32(all.count - 12).bigEndian, toByteOffset: 8, as: Int32.self)
      let crc = CRC32C.checksum(UnsafeRawBufferPointer(rebasing: all[21...]))
      all.storeBytes(of: crc.bigEndian, toByteOffset: 17, as: UInt32.self)
    }
  }

  @Test func `varints take every value`() {
    var random = SeededGenerator(seed: 16)
    let values: [Int64] = [0, 1, -1, 63, -64, 64, 8191, -8192, .max, .min]
    for value in values
      + (0..<500).map({ _ in Int64(bitPattern: random.next()) >> random.below(64) })
    {
      var bytes: [UInt8] = []
      Varint.write(value, onto: &bytes)
      #expect(bytes.count == Varint.byteCount(value))
      bytes.withUnsafeBytes { raw in
        var at = 0
        #expect(Varint.read(raw, &at) == value)
        #expect(at == raw.count)
        at = 0
        #expect(Varint.read(UnsafeRawBufferPointer(rebasing: raw.dropLast()), &at) == nil)
      }
    }
  }
}
