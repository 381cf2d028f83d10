// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQRecords
import NIOCore

/// One encoded batch on its way to a partition.
struct ProduceBatch {
  enum State: Equatable {
    case waiting
    /// Sent as this request, at this time; no answer yet.
    case outstanding(request: UInt64, sentAt: NIODeadline)
  }

  /// Rises over all batches of a producer; halves of a batch share its number.
  let id: Int64
  let partition: PartitionIndex
  let recordCount: Int
  /// Bytes it takes of the producer's buffer.
  let chargedBytes: Int
  /// When its first record came: deadlines count from here.
  let createdAt: NIODeadline
  var bytes: ByteBuffer
  /// By the record's place in the batch; records without a handler are left out.
  var handlers: [(index: Int, handler: AcknowledgementHandler)]
  /// Of its first record; -1 before it has one.
  var sequence: Int32 = -1
  var attempts = 0
  var state = State.waiting
  /// Why the last attempt failed.
  var lastError: MemQError?
  /// An attempt ended so that nobody knows whether it was appended.
  var mayStand = false

  /// Some records have nobody who hears of their fate.
  var hasSilentRecords: Bool { self.handlers.count < self.recordCount }

  mutating func stamp(_ id: ProducerID, _ epoch: ProducerEpoch, sequence: Int32) {
    self.sequence = sequence
    self.bytes.withUnsafeMutableReadableBytes {
      RecordBatchHeader.stampProducer($0, id: id, epoch: epoch, baseSequence: sequence)
    }
  }

  /// The sequence that follows `count` records from `sequence`; wraps past Int32.max to 0, as Kafka's does.
  static func sequence(_ sequence: Int32, after count: Int) -> Int32 {
    Int32((Int64(sequence) + Int64(count)) & 0x7FFF_FFFF)
  }

  func complete(_ result: Result<Offset?, MemQError>) {
    guard !self.handlers.isEmpty else { return }
    switch result {
    case .success(let base):
      for (index, handler) in self.handlers {
        handler(
          .success(
            RecordPosition(partition: self.partition, offset: base.map { $0 + Int64(index) })))
      }
    case .failure(let error):
      for (_, handler) in self.handlers { handler(.failure(error)) }
    }
  }

  /// Two batches of half the records each, for a server that finds this one too large.
  ///
  /// - Precondition: there are at least two records.
  func halves(_ compression: Compression) throws(MemQError) -> [ProduceBatch] {
    precondition(self.recordCount > 1)
    let decoded = self.bytes.withUnsafeReadableBytes { bytes in
      Result { () throws(MemQError) in try RecordBatch.records(bytes) }
    }
    let records = try decoded.get()
    let middle = records.count / 2
    let firstBytes = self.chargedBytes * middle / records.count
    return [
      try self.part(records[..<middle], compression, charged: firstBytes),
      try self.part(records[middle...], compression, charged: self.chargedBytes - firstBytes),
    ]
  }

  private func part(
    _ records: ArraySlice<Record>, _ compression: Compression, charged: Int
  ) throws(MemQError) -> ProduceBatch {
    var builder = RecordBatchBuilder(compression: compression)
    for record in records {
      builder.append(
        key: record.key, value: record.value, headers: record.headers, timestamp: record.timestamp)
    }
    let handlers = self.handlers
      .filter { records.indices.contains($0.index) }
      .map { ($0.index - records.startIndex, $0.handler) }
    return ProduceBatch(
      id: self.id, partition: self.partition, recordCount: records.count, chargedBytes: charged,
      createdAt: self.createdAt, bytes: ByteBuffer(bytes: try builder.build()), handlers: handlers)
  }
}
