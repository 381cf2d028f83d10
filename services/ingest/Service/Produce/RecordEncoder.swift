// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import NIOCore

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// A batch ready for its leader.
struct PreparedBatch: Sendable {
  var message: RPCMessage
  var recordCount: Int32
  var isIdempotent: Bool
}

/// Turns a produce request's content into one record batch v2: encodes plain records, checks encoded ones.
struct RecordEncoder: Sendable {
  /// Records of one request sent in plain form.
  static let plainRecordsMax = 10_000

  let settings: TopicSettings
  let topic: String
  /// Whether encoded batches are walked record by record, as Kafka does: a malformed one would stop every reader.
  let checksRecords: Bool

  /// - Throws: `.invalidArgument`, `.recordBatchTooLarge`, `.recordBatchInvalid`, `.recordBatchChecksumMismatch`, `.feature`.
  func prepare(
    _ request: Hot<Memq_V1_ProduceRequest>, now: Timestamp
  ) throws(MemQError) -> PreparedBatch {
    switch (request.header.records.isEmpty, request.payload.isEmpty) {
    case (true, false): return try self.check(request.payload)
    case (false, true): return try self.encode(request.header, now: now)
    case (true, true): throw self.invalid("a request has records or a batch, this one has neither")
    case (false, false): throw self.invalid("a request has records or a batch, not both")
    }
  }

  private func invalid(_ message: String) -> MemQError {
    MemQError(.invalidArgument, message, subject: self.topic)
  }

  private func encode(
    _ request: Memq_V1_ProduceRequest, now: Timestamp
  ) throws(MemQError) -> PreparedBatch {
    guard request.records.count <= Self.plainRecordsMax else {
      throw MemQError(
        .invalidArgument, "a request has up to 10,000 plain records", subject: self.topic,
        limit: Int64(Self.plainRecordsMax), actual: Int64(request.records.count))
    }
    var builder = try self.builder(for: request)
    for record in request.records {
      let time = record.timestampMs == 0 ? now : Timestamp(milliseconds: record.timestampMs)
      builder.append(record, timestamp: time)
    }
    let count = Int32(builder.recordCount)
    let bytes = try builder.build()
    guard bytes.count <= self.settings.messageBytesMax else {
      throw MemQError(
        .recordBatchTooLarge, "the records make a larger batch than max.message.bytes allows",
        subject: self.topic, limit: Int64(self.settings.messageBytesMax), actual: Int64(bytes.count)
      )
    }
    return PreparedBatch(
      message: RPCMessage(ByteBuffer(bytes: bytes)), recordCount: count,
      isIdempotent: request.producerID > 0)
  }

  private func builder(
    for request: Memq_V1_ProduceRequest
  ) throws(MemQError) -> RecordBatchBuilder {
    let compression = Compression(name: self.settings.compression.rawValue) ?? .none
    guard request.producerID > 0 else { return RecordBatchBuilder(compression: compression) }
    guard let epoch = Int16(exactly: request.producerEpoch), epoch >= 0, request.baseSequence >= 0
    else { throw self.invalid("producer_epoch or base_sequence is out of range") }
    guard request.producerID < Int64(1) << 62 else {
      throw self.invalid("producer ids from 2^62 up belong to files")
    }
    return RecordBatchBuilder(
      compression: compression, producerID: ProducerID(request.producerID),
      producerEpoch: ProducerEpoch(epoch), baseSequence: request.baseSequence)
  }

  private func check(_ batch: RPCMessage) throws(MemQError) -> PreparedBatch {
    let maxBytes = self.settings.messageBytesMax
    let header: RecordBatchHeader
    do throws(MemQError) {
      header = try batch.withPrefix(RecordBatchHeader.byteCount) { bytes throws(MemQError) in
        try RecordBatchHeader.validateStructure(batch.byteCount, bytes, maxBytes: maxBytes)
      }
      try header.check(batch.crc32c(from: RecordBatchHeader.checksummedFrom))
      if self.checksRecords {
        try batch.contiguous().withBytes { bytes throws(MemQError) in
          try RecordBatch.validateRecords(bytes)
        }
      }
    } catch {
      var named = error
      named.subject = self.topic
      throw named
    }
    guard !header.attributes.isControl, !header.attributes.isTransactional else {
      throw MemQError(
        .feature, "transactional and control batches are not taken by this version",
        subject: self.topic)
    }
    guard header.producerID.rawValue < Int64(1) << 62 else {
      throw self.invalid("producer ids from 2^62 up belong to files")
    }
    return PreparedBatch(
      message: batch, recordCount: header.recordCount, isIdempotent: header.isIdempotent)
  }
}

extension RecordBatchBuilder {
  fileprivate mutating func append(_ record: Memq_V1_Record, timestamp: Timestamp) {
    let headers = record.headers.map {
      RecordHeader(name: $0.name, value: $0.hasValue ? [UInt8]($0.value) : nil)
    }
    withRaw(record.hasKey ? record.key : nil) { key in
      withRaw(record.hasValue ? record.value : nil) { value in
        self.append(rawKey: key, rawValue: value, headers: headers, timestamp: timestamp)
      }
    }
  }
}

/// Empty data has no address, but is not null.
private func withRaw(_ data: Data?, _ body: (UnsafeRawBufferPointer?) -> Void) {
  if let data { data.withUnsafeBytes { body($0) } } else { body(nil) }
}
