// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization

extension FakeServer {
  /// What the scanner of this server finds.
  static let malware = Array("malware".utf8)

  func addFiles(_ router: inout RPCRouter) {
    router.handleHotBidirectional(FileMethods.put) { requests, _, writer in
      try await self.put(requests, writer)
    }
    router.handleHotServerStream(FileMethods.get) { request, _, writer in
      try await self.get(request, writer)
    }
    router.handleServerStream(FileMethods.list) { request, _, writer in
      let files = self.state.withLock { $0.files.values.map(\.info) }.sorted { $0.name < $1.name }
      for file in files where file.name.hasPrefix(request.prefix) {
        var page = Memq_V1_ListResponse()
        page.files = [file]
        try await writer.send(page)
      }
    }
  }

  private func put(
    _ requests: TypedReader<Hot<Memq_V1_PutRequest>>, _ writer: TypedWriter<Memq_V1_PutResponse>
  ) async throws {
    let stream = self.state.withLock { state in
      state.putStreams += 1
      return state.putStreams
    }
    guard let first = try await requests.next(), case .start(let start) = first.header.part else {
      throw MemQError(.invalidArgument, "a put begins with a start")
    }
    let id = Array(start.uploadID)
    var upload = self.state.withLock { $0.uploads[id] } ?? Upload()
    // What was not durable when the stream broke is gone.
    upload.bytes.removeLast(upload.bytes.count - upload.durable)
    try await writer.send(.with { $0.beginAt = Int64(upload.durable) })
    if self.stalls(stream) { try await Task.sleep(for: .seconds(3_600)) }
    var chunks = 0
    while let request = try await requests.next() {
      if let limit = self.putBreak(stream), chunks >= limit {
        throw RPCStatus(.unavailable, "the connection broke")
      }
      switch request.header.part {
      case .chunkHeader(let chunk):
        try Self.check(chunk, request.payload, upload)
        upload.bytes += Array(buffer: request.payload.contiguous())
        chunks += 1
        // Every second chunk ends a part.
        if chunks % 2 == 0 {
          upload.durable = upload.bytes.count
          self.state.withLock { [upload] in $0.uploads[id] = upload }
          try await writer.send(.with { $0.durableBelow = Int64(upload.durable) })
        }
      case .finish(let finish):
        let info = try self.publish(start, finish, upload)
        return try await writer.send(.with { $0.published = info })
      case .start, nil: throw MemQError(.invalidArgument, "not a chunk")
      }
    }
  }

  private static func check(
    _ chunk: Memq_V1_PutChunk, _ bytes: RPCMessage, _ upload: Upload
  ) throws {
    guard chunk.offset == Int64(upload.bytes.count) else {
      throw MemQError(
        .uploadOffsetMismatch, "not here", limit: Int64(upload.bytes.count), actual: chunk.offset)
    }
    let crc = bytes.contiguous().withUnsafeReadableBytes { CRC32C.checksum($0) }
    guard crc == chunk.crc32C else { throw MemQError(.chunkChecksumMismatch, "damaged") }
  }

  private func publish(
    _ start: Memq_V1_PutStart, _ finish: Memq_V1_PutFinish, _ upload: Upload
  ) throws -> Memq_V1_FileInfo {
    guard Int64(upload.bytes.count) == start.size else {
      throw MemQError(
        .fileIncomplete, "too short", limit: start.size, actual: Int64(upload.bytes.count))
    }
    guard SHA256.digest(of: upload.bytes) == Array(finish.sha256) else {
      throw MemQError(.digestMismatch, "another digest")
    }
    guard upload.bytes != Self.malware else {
      throw MemQError(.infected, "Test.Signature was found", subject: start.name)
    }
    return self.state.withLock { state in
      let info = Memq_V1_FileInfo.with {
        $0.topic = start.topic
        $0.name = start.name
        $0.version = (state.files[start.name]?.info.version ?? 0) + 1
        $0.size = start.size
        $0.sha256 = finish.sha256
        $0.verdict.kind = .clean
        $0.contentType = start.contentType
      }
      state.files[start.name] = (info, upload.bytes)
      return info
    }
  }

  private func get(
    _ request: Memq_V1_GetRequest, _ writer: TypedWriter<Hot<Memq_V1_GetResponse>>
  ) async throws {
    let (stream, file) = self.state.withLock { state in
      state.getStreams += 1
      return (state.getStreams, state.files[request.name])
    }
    guard let file else {
      throw MemQError(.fileNotFound, "there is no such file", subject: request.name)
    }
    var position = Int(request.offset)
    let end =
      request.length == 0 ? file.bytes.count : min(file.bytes.count, position + Int(request.length))
    try await writer.send(Hot(.with { $0.file = file.info }))
    if self.stalls(stream) { try await Task.sleep(for: .seconds(3_600)) }
    var chunks = 0
    while position < end {
      if let limit = self.getBreak(stream), chunks >= limit {
        throw RPCStatus(.unavailable, "the connection broke")
      }
      let bytes = Array(file.bytes[position..<min(end, position + 100_000)])
      let header = Memq_V1_GetResponse.with {
        $0.offset = Int64(position)
        $0.crc32C = CRC32C.checksum(bytes)
      }
      try await writer.send(Hot(header, payload: RPCMessage(bytes: bytes)))
      position += bytes.count
      chunks += 1
    }
  }
}
