// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRecords
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf

/// Get, stat, list and delete.
struct FileReads: Sendable {
  static let chunkBytes = Limits.fileChunkBytesMax
  /// One ranged read of a body: large enough that the request costs little.
  static let readBytes: Int64 = 8 << 20
  static let readTimeout: Duration = .seconds(60)
  static let pageFiles: Int32 = 1_000

  let topics: TopicFinder
  let uploads: UploadCalls
  let reader: LogReader
  let store: any ObjectStore
  let appender: Appender
  let cluster: any IngestCluster
  let clock: any MemQClock
  let metrics: IngestMetrics

  func stat(_ request: Memq_V1_StatRequest) async throws(MemQError) -> Memq_V1_FileInfo {
    let topic = try await self.topics.find(request.topic)
    let entry = try await self.entry(topic, request.name, request.version)
    return Memq_V1_FileInfo(entry, topic: topic.name)
  }

  private func entry(
    _ topic: TopicImage, _ name: String, _ version: Int64
  ) async throws(MemQError) -> Memq_V1_FileEntry {
    try FileRules.check(name: name)
    guard version >= 0 else {
      throw MemQError(
        .invalidArgument, "a version is 1 or more, 0 for the latest", subject: "version", limit: 0,
        actual: version)
    }
    return try await self.uploads.file(topic.id, name, version: version)
  }

  func list(
    _ request: Memq_V1_ListRequest, _ writer: TypedWriter<Memq_V1_ListResponse>
  ) async throws(MemQError) {
    let topic = try await self.topics.find(request.topic)
    var after = ""
    while true {
      let page = try await self.cluster.metadata.call(
        MetadataMethods.listFiles,
        .with {
          $0.topicID = topic.id.wire
          $0.prefix = request.prefix
          $0.after = after
          $0.limit = Self.pageFiles
        }, timeout: .seconds(30))
      if !page.files.isEmpty {
        try await writer.send(
          .with { $0.files = page.files.map { Memq_V1_FileInfo($0, topic: topic.name) } })
      }
      guard page.more, let last = page.files.last else { return }
      after = last.name
    }
  }

  /// The record says first that the file is gone, then metadata; the body goes after both.
  func delete(_ request: Memq_V1_DeleteRequest) async throws(MemQError) {
    let topic = try await self.topics.find(request.topic)
    let entry = try await self.entry(topic, request.name, 0)
    let tombstone = try FileRecordMaker.tombstone(entry.name, at: self.clock.wall)
    _ = try await self.appender.append(
      tombstone, to: TopicPartition(topic.id, PartitionIndex(entry.partition)),
      isIdempotent: false, timeout: .seconds(30))
    _ = try await self.cluster.metadata.call(
      MetadataMethods.removeFile,
      .with {
        $0.topicID = topic.id.wire
        $0.name = entry.name
        // A put that came meanwhile is another file.
        $0.upToVersion = entry.version
      }, timeout: .seconds(10))
  }

  // MARK: Get

  func get(
    _ request: Memq_V1_GetRequest, _ writer: TypedWriter<Hot<Memq_V1_GetResponse>>
  ) async throws(MemQError) {
    let topic = try await self.topics.find(request.topic)
    let entry = try await self.entry(topic, request.name, request.version)
    let range = try Self.range(request, entry)
    var first = Memq_V1_GetResponse()
    first.file = Memq_V1_FileInfo(entry, topic: topic.name)
    first.offset = range.lowerBound
    var sender = ChunkSender(writer: writer, first: first, entry: entry, range: range)
    if entry.bodyKey.isEmpty {
      try await self.sendInline(
        entry, TopicPartition(topic.id, PartitionIndex(entry.partition)), &sender)
    } else {
      try await self.sendBody(try ObjectKey(entry.bodyKey), &sender)
    }
    try await sender.finish()
    self.metrics.got(bytes: Int(range.count))
  }

  static func range(
    _ request: Memq_V1_GetRequest, _ entry: Memq_V1_FileEntry
  ) throws(MemQError) -> Range<Int64> {
    func invalid(_ actual: Int64) -> MemQError {
      MemQError(
        .rangeInvalid, "the range lies outside the file", subject: entry.name, limit: entry.size,
        actual: actual)
    }
    guard request.offset >= 0, request.offset <= entry.size else { throw invalid(request.offset) }
    guard request.length > 0 else {
      guard request.length == 0 else { throw invalid(request.length) }
      return request.offset..<entry.size
    }
    let (end, overflow) = request.offset.addingReportingOverflow(request.length)
    guard !overflow, end <= entry.size else { throw invalid(overflow ? .max : end) }
    return request.offset..<end
  }

  private func sendInline(
    _ entry: Memq_V1_FileEntry, _ partition: TopicPartition, _ sender: inout ChunkSender
  ) async throws(MemQError) {
    let wanted = Offset(entry.offset)
    var found: [UInt8]?
    try await self.reader.read(partition, from: wanted, maxBytes: 1, wait: .zero) {
      piece throws(MemQError) in
      found = try Self.inlineBody(piece.batches, at: wanted)
      return found == nil
    }
    guard let body = found, Int64(body.count) == entry.size else {
      throw MemQError(
        .objectCorrupt, "the file's record does not hold its bytes", subject: entry.name,
        limit: entry.size, actual: Int64(found?.count ?? 0))
    }
    let range = sender.range
    let bytes = body[Int(range.lowerBound)..<Int(range.upperBound)]
    try await sender.send(ByteBuffer(bytes: bytes))
  }

  private static func inlineBody(
    _ batches: RPCMessage, at offset: Offset
  ) throws(MemQError) -> [UInt8]? {
    var walk = RecordBatchIterator(Array(batches.contiguous().readableBytesView))
    while let batch = try walk.next(checksum: true) {
      guard batch.header.baseOffset <= offset, offset < batch.header.endOffset else { continue }
      for record in try walk.records(of: batch) where record.offset == offset {
        guard let value = record.value, case .inline(let body) = try FileRecord(value).body else {
          return nil
        }
        return body
      }
    }
    return nil
  }

  /// Reads one piece ahead of what is being sent.
  private func sendBody(_ key: ObjectKey, _ sender: inout ChunkSender) async throws(MemQError) {
    let range = sender.range
    let store = self.store
    @Sendable func read(_ at: Int64) async -> Result<ByteBuffer, MemQError> {
      await Result { () async throws(MemQError) in
        let end = min(at + Self.readBytes, range.upperBound)
        guard at < end else { return ByteBuffer() }
        return try await store.get(key, range: at..<end, timeout: Self.readTimeout)
      }
    }
    var at = range.lowerBound
    var current = await read(at)
    while at < range.upperBound {
      let piece = try current.get()
      let next = at + Int64(piece.readableBytes)
      async let ahead = read(next)
      do throws(MemQError) {
        try await sender.send(piece)
      } catch {
        _ = await ahead
        throw error
      }
      current = await ahead
      at = next
    }
  }
}

/// Sends a file's bytes in chunks of up to 1 MiB and checks the digest of a whole one in passing.
struct ChunkSender {
  let writer: TypedWriter<Hot<Memq_V1_GetResponse>>
  let range: Range<Int64>
  private let entry: Memq_V1_FileEntry
  private var next: Memq_V1_GetResponse
  private var offset: Int64
  private var hasSent = false
  private var digest = SHA256()

  init(
    writer: TypedWriter<Hot<Memq_V1_GetResponse>>, first: Memq_V1_GetResponse,
    entry: Memq_V1_FileEntry, range: Range<Int64>
  ) {
    self.writer = writer
    self.range = range
    self.entry = entry
    self.next = first
    self.offset = range.lowerBound
  }

  private var isWhole: Bool { self.range == 0..<self.entry.size }

  mutating func send(_ bytes: ByteBuffer) async throws(MemQError) {
    var rest = bytes
    while let chunk = rest.readSlice(length: min(rest.readableBytes, FileReads.chunkBytes)),
      chunk.readableBytes > 0
    {
      let crc = chunk.withUnsafeReadableBytes { bytes in
        if self.isWhole { self.digest.update(bytes) }
        return CRC32C.checksum(bytes)
      }
      self.next.offset = self.offset
      self.next.crc32C = crc
      try await self.writer.send(Hot(self.next, payload: RPCMessage(chunk)))
      self.hasSent = true
      self.next = Memq_V1_GetResponse()
      self.offset += Int64(chunk.readableBytes)
    }
  }

  /// - Throws: `.objectCorrupt` when a whole file's bytes don't have the digest they were published with.
  mutating func finish() async throws(MemQError) {
    if !self.hasSent { try await self.writer.send(Hot(self.next)) }
    guard self.isWhole else { return }
    let digest = self.digest.digest()
    guard self.entry.sha256.elementsEqual(digest) else {
      throw MemQError(
        .objectCorrupt,
        "the bytes read have SHA-256 \(hexText(digest)), published was \(hexText(self.entry.sha256))",
        subject: self.entry.name)
    }
  }
}
