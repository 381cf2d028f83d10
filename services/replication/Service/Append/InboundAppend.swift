// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRecords
import MemQReplication
import NIOCore
import SwiftProtobuf

/// One batch on its way in: checked, not yet decided on.
struct InboundAppend: Sendable {
  let stream: AppendStream
  let requestID: UInt64
  let partition: TopicPartition
  /// Nil: the sender doesn't say.
  let leaderEpoch: LeaderEpoch?
  let acks: Acks
  let deadline: MonotonicInstant
  let receivedAt: MonotonicInstant
  let header: RecordBatchHeader
  let batch: [ByteBuffer]
  /// Of the whole message: its flow-control credit.
  let messageBytes: Int

  /// The last moment at which a batch that nobody decided on is refused: the sender must hear of it before it gives up and knows
  /// nothing.
  var parkedUntil: MonotonicInstant {
    let timeout = self.deadline - self.receivedAt
    let margin = Swift.max(
      Self.answerTimeMin, Swift.min(Self.answerTimeMax, .nanoseconds(timeout.nanoseconds / 10)))
    return self.receivedAt + (timeout - margin)
  }

  /// Two ticks of a shard at least, so that a busy node answers in time.
  private static let answerTimeMin: Duration = .milliseconds(250)
  private static let answerTimeMax: Duration = .milliseconds(500)

  static let timeoutDefault: Duration = .seconds(30)
  static let timeoutMax: Duration = .seconds(600)

  func response(_ error: MemQError) -> Memq_V1_AppendResponse {
    .with {
      $0.requestID = self.requestID
      $0.baseOffset = -1
      $0.endOffset = -1
      $0.error = Memq_V1_ErrorDetail(error)
    }
  }
}

/// Checks a batch's bytes by Kafka's rules, all but the topic's own limit.
enum BatchCheck {
  /// - Throws: `.recordBatchTooLarge`, `.recordBatchInvalid`, `.recordBatchChecksumMismatch`, `.feature`.
  static func header(of batch: [ByteBuffer], byteCount: Int) throws(MemQError) -> RecordBatchHeader
  {
    let head = self.head(of: batch)
    let header = try withReadableBytes(head) { bytes throws(MemQError) in
      try RecordBatchHeader.validateStructure(
        byteCount, bytes, maxBytes: Limits.recordBatchBytesMax)
    }
    var crc = CRC32C()
    var skip = RecordBatchHeader.checksummedFrom
    for slice in batch {
      slice.withUnsafeReadableBytes { bytes in
        guard skip < bytes.count else {
          skip -= bytes.count
          return
        }
        crc.update(UnsafeRawBufferPointer(rebasing: bytes[skip...]))
        skip = 0
      }
    }
    try header.check(crc)
    guard !header.attributes.isTransactional, !header.attributes.isControl else {
      throw MemQError(.feature, "transactions are not supported: send the batch without them")
    }
    return header
  }

  /// The first slice, or a copy of the header's bytes where it stands in several.
  private static func head(of batch: [ByteBuffer]) -> ByteBuffer {
    guard let first = batch.first else { return ByteBuffer() }
    guard first.readableBytes < RecordBatchHeader.byteCount else { return first }
    var head = ByteBuffer()
    for slice in batch where head.readableBytes < RecordBatchHeader.byteCount {
      let missing = RecordBatchHeader.byteCount - head.readableBytes
      var part = slice.slice()
      if let taken = part.readSlice(length: Swift.min(missing, part.readableBytes)) {
        head.writeImmutableBuffer(taken)
      }
    }
    return head
  }
}

/// `withUnsafeReadableBytes` keeps no typed throws; this does.
private func withReadableBytes<T>(
  _ buffer: ByteBuffer, _ body: (UnsafeRawBufferPointer) throws(MemQError) -> T
) throws(MemQError) -> T {
  let result = buffer.withUnsafeReadableBytes { bytes -> Result<T, MemQError> in
    do throws(MemQError) { return .success(try body(bytes)) } catch { return .failure(error) }
  }
  return try result.get()
}
