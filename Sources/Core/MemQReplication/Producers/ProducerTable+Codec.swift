// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords

/// The producer snapshot, version 0 (big-endian; format: docs/protocols/replication.md).
///
///     magic "MQPS" · version u16 · offset i64 · clock i64 · producers u32 · files u32
///     each, longest unused first: id i64 · epoch i16 · used at i64 · batches u8
///       each, oldest first: base sequence i32 · base offset i64 · end offset i64
///     CRC-32C u32 of all before it
extension ProducerTable {
  static let magic: [UInt8] = Array("MQPS".utf8)
  static let version: UInt16 = 0
  /// Of an encoded table, all but its entries.
  static let headBytes = 34
  static func entryBytes(batches: Int) -> Int { 19 + 20 * batches }

  /// - Parameter offset: the exclusive end of the batches the table covers.
  func encode(at offset: Offset) -> [UInt8] {
    var writer = ByteWriter()
    writer.raw(Self.magic)
    writer.integer(Self.version)
    writer.integer(offset.rawValue)
    writer.integer(self.clock.milliseconds)
    writer.integer(UInt32(self.producers.count))
    writer.integer(UInt32(self.files.count))
    self.encode(self.producers, into: &writer)
    self.encode(self.files, into: &writer)
    writer.integer(writer.bytes.withUnsafeBytes { CRC32C.checksum($0) })
    return writer.bytes
  }

  private func encode(_ order: UseOrder, into writer: inout ByteWriter) {
    var place = order.first
    while place != Self.none {
      let entry = self.entries[place]
      writer.integer(entry.id.rawValue)
      writer.integer(entry.epoch.rawValue)
      writer.integer(entry.usedAt.milliseconds)
      writer.integer(UInt8(entry.batches.count))
      for batch in entry.batches {
        writer.integer(batch.baseSequence)
        writer.integer(batch.baseOffset.rawValue)
        writer.integer(batch.endOffset.rawValue)
      }
      place = entry.later
    }
  }

  /// - Throws: `.logCorrupt` for anything `encode` can't have written.
  static func decode(
    _ bytes: [UInt8], limits: ProducerLimits
  ) throws(MemQError) -> (table: ProducerTable, at: Offset) {
    do {
      return try Self.parse(bytes, limits: limits)
    } catch {
      throw MemQError(.logCorrupt, "a producer snapshot is damaged: \(error.message)")
    }
  }

  private static func parse(
    _ bytes: [UInt8], limits: ProducerLimits
  ) throws(MemQError) -> (table: ProducerTable, at: Offset) {
    guard bytes.count >= 34 else { throw Self.fault("it has \(bytes.count) bytes") }
    let crc = bytes.withUnsafeBytes {
      CRC32C.checksum(UnsafeRawBufferPointer(rebasing: $0[..<(bytes.count - 4)]))
    }
    let stored = bytes.suffix(4).reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    guard crc == stored else { throw Self.fault("its checksum differs") }
    var reader = ByteReader(Array(bytes.dropLast(4)))
    guard try reader.raw(4) == Self.magic else { throw Self.fault("its magic differs") }
    let version: UInt16 = try reader.integer()
    guard version == Self.version else { throw Self.fault("its version is \(version)") }
    let offset = Offset(try reader.integer())
    var table = ProducerTable(limits: limits)
    table.setClock(Timestamp(milliseconds: try reader.integer()))
    let producers: UInt32 = try reader.integer()
    let files: UInt32 = try reader.integer()
    for _ in 0..<producers { try table.parseEntry(&reader, isFile: false) }
    for _ in 0..<files { try table.parseEntry(&reader, isFile: true) }
    try reader.finish()
    return (table, offset)
  }

  private mutating func parseEntry(_ reader: inout ByteReader, isFile: Bool) throws(MemQError) {
    let id = ProducerID(try reader.integer())
    let epoch = ProducerEpoch(try reader.integer())
    let usedAt = Timestamp(milliseconds: try reader.integer())
    let count: UInt8 = try reader.integer()
    // Far from where sums and differences overflow.
    guard id.rawValue >= 0, id.isFile == isFile, count > 0, !self.contains(id),
      usedAt.milliseconds >= -1, usedAt.milliseconds < Int64.max / 2
    else {
      throw Self.fault("producer \(id) is out of place")
    }
    var batches: [KeptBatch] = []
    for _ in 0..<count {
      let batch = KeptBatch(
        baseSequence: try reader.integer(), baseOffset: Offset(try reader.integer()),
        endOffset: Offset(try reader.integer()))
      guard batch.baseSequence >= 0, batch.baseOffset >= .zero, batch.baseOffset < batch.endOffset,
        batch.endOffset.rawValue < Int64.max / 2
      else {
        throw Self.fault("a batch of producer \(id) is empty")
      }
      batches.append(batch)
    }
    self.insert(id, epoch, batches, usedAt: usedAt)
  }

  private static func fault(_ what: String) -> MemQError { MemQError(.corruptMessage, what) }
}
