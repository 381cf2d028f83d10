// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQObjectStore
import MemQRecords
import MemQRPC
import NIOCore
import SwiftProtobuf

/// One call that writes a body: chunks in, durable offsets out. Used by one task.
final class BodyWrite: @unchecked Sendable {
  /// Bytes gathered for one write to the store.
  private static let gatherBytes = 4 << 20

  private let writer: any ObjectBodyWriter
  private let timeout: Duration
  private var gathered: [ByteBuffer] = []
  private var gatheredBytes = 0
  /// Place of the next chunk.
  private(set) var byteCount: Int64

  init(writer: any ObjectBodyWriter, offset: Int64, timeout: Duration) {
    self.writer = writer
    self.byteCount = offset
    self.timeout = timeout
  }

  /// Until the body is whole.
  ///
  /// - Throws: `.uploadOffsetMismatch`, `.chunkChecksumMismatch`, `.messageTooLarge`, `.fileIncomplete` when the caller
  ///   ends before its finish, and what the store throws.
  func run(_ requests: BodyWrites.Requests, _ replies: BodyWrites.Replies) async throws(MemQError) {
    while let request = try await requests.next() {
      switch request.header.part {
      case .chunkHeader(let chunk):
        try self.take(request.payload, chunk)
        if chunk.endOfPart {
          try await self.write()
          try await self.writer.sync(timeout: self.timeout)
          // Not what was written: a store may keep the last bytes back until they are a part of their own.
          let durable = await self.writer.durableByteCount
          try await replies.send(.with { $0.durableBelow = durable })
        } else if self.gatheredBytes >= Self.gatherBytes {
          try await self.write()
        }
      case .finish(let finish):
        try await self.write()
        try await self.writer.finish(byteCount: finish.size, timeout: self.timeout)
        try await replies.send(
          .with {
            $0.durableBelow = finish.size
            $0.complete = true
          })
        return
      case .start, nil:
        throw MemQError(.invalidArgument, "a body goes on with chunks and ends with its finish")
      }
    }
    throw MemQError(
      .fileIncomplete, "the body ended before its finish; what is durable can be taken up again",
      subject: self.writer.key.text, actual: self.byteCount, isRetriable: true)
  }

  private func take(_ payload: RPCMessage, _ chunk: Memq_V1_WriteBodyChunk) throws(MemQError) {
    guard chunk.offset == self.byteCount else {
      throw MemQError(
        .uploadOffsetMismatch, "the chunk does not follow the bytes before it",
        subject: self.writer.key.text, limit: self.byteCount, actual: chunk.offset)
    }
    guard payload.byteCount <= Limits.fileChunkBytesMax else {
      throw MemQError(
        .messageTooLarge, "a chunk is not so large", subject: self.writer.key.text,
        limit: Int64(Limits.fileChunkBytesMax), actual: Int64(payload.byteCount))
    }
    var crc = CRC32C()
    for index in 0..<payload.sliceCount {
      payload.slice(index).withUnsafeReadableBytes { crc.update($0) }
    }
    guard crc.value == chunk.crc32C else {
      throw MemQError(
        .chunkChecksumMismatch, "the chunk was damaged on its way", subject: self.writer.key.text,
        limit: Int64(chunk.crc32C), actual: Int64(crc.value))
    }
    for index in 0..<payload.sliceCount where payload.slice(index).readableBytes > 0 {
      self.gathered.append(payload.slice(index))
    }
    self.gatheredBytes += payload.byteCount
    self.byteCount += Int64(payload.byteCount)
  }

  private func write() async throws(MemQError) {
    guard !self.gathered.isEmpty else { return }
    let bytes = self.gathered
    self.gathered = []
    self.gatheredBytes = 0
    try await self.writer.write(bytes, timeout: self.timeout)
  }
}
