// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRecords
import MemQRuntime
import NIOCore
import SwiftProtobuf

/// One record batch with its bytes.
struct GatheredBatch: Sendable {
  let header: RecordBatchHeader
  let bytes: ByteBuffer
}

/// Reads committed batches of one partition from its leader.
struct RangeReader: Sendable {
  let cluster: any UploaderCluster
  let timeout: Duration

  /// Whole batches from the one that holds `offset` on, each checked; empty when nothing is committed there.
  ///
  /// - Parameter maxBytes: at least one batch comes, however large.
  /// - Throws: what the leader says; `.recordBatchInvalid`, `.recordBatchChecksumMismatch` for damage on the way.
  func read(
    _ partition: TopicPartition, from offset: Offset, maxBytes: Int
  ) async throws(MemQError) -> [GatheredBatch] {
    guard let leader = self.cluster.image.partitions[partition]?.leader else {
      throw MemQError(.leaderNotAvailable, "nobody leads the partition", subject: "\(partition)")
    }
    let replies = try await self.cluster.channel(to: leader, lane: .read).streamHot(
      ReplicationMethods.read,
      .with {
        $0.topicPartition = partition.wire
        $0.offset = offset.rawValue
        $0.maxBytes = Int32(clamping: maxBytes)
        $0.leaderEpoch = -1
      }, RPCCallOptions(timeout: self.timeout))
    var batches: [GatheredBatch] = []
    while let reply = try await replies.next() {
      try Self.cut(reply.payload.contiguous(), into: &batches)
    }
    return batches
  }

  private static func cut(
    _ bytes: ByteBuffer, into batches: inout [GatheredBatch]
  ) throws(MemQError) {
    var rest = bytes
    while rest.readableBytes > 0 {
      let header = try rest.reading { bytes throws(MemQError) in
        let header = try RecordBatchHeader(parsing: bytes)
        guard header.batchLength <= bytes.count else {
          throw MemQError(
            .recordBatchInvalid, "the last batch of a read is cut", limit: Int64(bytes.count),
            actual: Int64(header.batchLength))
        }
        return try RecordBatchHeader.validate(
          UnsafeRawBufferPointer(rebasing: bytes[..<header.batchLength]), maxBytes: .max)
      }
      batches.append(
        GatheredBatch(header: header, bytes: rest.readSlice(length: header.batchLength)!))
    }
  }
}

extension ByteBuffer {
  /// `withUnsafeReadableBytes` with a typed error.
  func reading<R>(
    _ body: (UnsafeRawBufferPointer) throws(MemQError) -> R
  ) throws(MemQError) -> R {
    try self.withUnsafeReadableBytes { bytes in
      Result { () throws(MemQError) in try body(bytes) }
    }.get()
  }
}
