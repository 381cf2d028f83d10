// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Logging
import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import NIOCore
import Synchronization

/// One put under one upload id: as many streams as it takes until the file is published.
struct FilePut {
  private typealias Stream = TypedStream<Hot<Memq_V1_PutRequest>, Memq_V1_PutResponse>

  /// What the replies of one stream have told.
  private struct Heard {
    var beginAt: Int64?
    var durableBelow: Int64 = 0
    var waiter: UnsafeContinuation<Void, Never>?
    var isOver = false
  }

  /// Half the largest chunk: two are on their way while a third is read.
  private static let chunkBytes = Limits.fileChunkBytesMax / 2

  private let source: any PutSource
  private let topic: String
  private let name: String
  private let options: FileClient.PutOptions
  private let servers: Servers
  private let logger: Logger
  private let progress: (@Sendable (Int64) -> Void)?
  private let uploadID = SystemEntropy().identifier(UploadID.self)
  private var hash = SHA256()
  private var hashedBelow: Int64 = 0

  init(
    source: any PutSource, topic: String, name: String, options: FileClient.PutOptions,
    servers: Servers, logger: Logger, progress: (@Sendable (Int64) -> Void)?
  ) {
    self.source = source
    self.topic = topic
    self.name = name
    self.options = options
    self.servers = servers
    self.logger = logger
    self.progress = progress
  }

  mutating func run() async throws(MemQError) -> FileInfo {
    try await self.servers.reach()
    var backoff = Backoff()
    var lastMove = ContinuousClock.now
    var furthest: Int64 = 0
    var isResume = false
    while true {
      let (address, channel) = self.servers.channel(.bodies)
      let heard = Replies(Heard())
      do throws(MemQError) {
        return try await self.attempt(channel, isResume, heard)
      } catch {
        guard Self.goesOn(error) else { throw self.naming(error, address) }
        let durable = heard.value.withLock { $0.durableBelow }
        if durable > furthest {
          (furthest, lastMove) = (durable, .now)
          backoff.reset()
        }
        let end = lastMove + self.options.resumeTimeout
        guard ContinuousClock.now < end else { throw self.naming(error, address) }
        if Servers.isAbsence(error) { self.servers.failed(address) }
        self.logger.debug(
          "Put broken: going on", metadata: ["file": "\(self.name)", "error": "\(error)"])
        try await backoff.wait(until: end)
        isResume = true
      }
    }
  }

  /// Whether the same put may go on after this error.
  private static func goesOn(_ error: MemQError) -> Bool {
    switch error.code {
    case .scanHeld: false
    case .chunkChecksumMismatch, .uploadOffsetMismatch: true
    default: error.isRetriable
    }
  }

  private func naming(_ error: MemQError, _ address: String) -> MemQError {
    var error = Servers.naming(error, address)
    if error.subject.isEmpty { error.subject = self.name }
    return error
  }

  /// One stream. The replies are read by a task of their own; this one sends.
  private mutating func attempt(
    _ channel: any RPCChannel, _ isResume: Bool, _ heard: Replies
  ) async throws(MemQError) -> FileInfo {
    let stream = try await channel.openHot(FileMethods.put)
    let replies = Task { await Self.listen(stream, heard) }
    let stalls = StallWatch(
      stallTimeout: self.options.stallTimeout, resumeTimeout: self.options.resumeTimeout)
    let watching = stalls.run { stream.cancel() }
    defer { watching.cancel() }
    let sent: MemQError?
    do throws(MemQError) {
      try await self.send(on: stream, isResume, heard, stalls)
      sent = nil
    } catch {
      sent = error
      // What the server said weighs more than that the stream is over. Our own failure ends the stream.
      if !heard.value.withLock({ $0.isOver }) { stream.cancel() }
    }
    let limit = self.options.publishTimeout + .seconds(30)
    let watch = Task {
      try await Task.sleep(for: limit)
      stream.cancel()
    }
    defer { watch.cancel() }
    let result = await withTaskCancellationHandler {
      await replies.value
    } onCancel: {
      stream.cancel()
    }
    switch result {
    case .success(let info): return info
    case .failure(let error):
      if Task.isCancelled { throw MemQError(.cancelled, "the put was cancelled") }
      guard error.code == .cancelled else { throw error }
      throw sent ?? MemQError(.deadlineExceeded, "the server did not publish the file in time")
    }
  }

  private static func listen(
    _ stream: Stream, _ heard: Replies
  ) async -> Result<FileInfo, MemQError> {
    defer { heard.update { $0.isOver = true } }
    do throws(MemQError) {
      while let reply = try await stream.responses.next() {
        switch reply.part {
        case .beginAt(let offset):
          heard.update {
            $0.beginAt = offset
            $0.durableBelow = max($0.durableBelow, offset)
          }
        case .durableBelow(let offset): heard.update { $0.durableBelow = offset }
        case .published(let info): return .success(FileInfo(info))
        case nil: throw MemQError(.corruptMessage, "the server sent an empty reply to a put")
        }
      }
      return .failure(MemQError(.unavailable, "the server ended the put without a result"))
    } catch {
      return .failure(error)
    }
  }

  private mutating func send(
    on stream: Stream, _ isResume: Bool, _ heard: Replies, _ stalls: StallWatch
  ) async throws(MemQError) {
    var start = Memq_V1_PutStart()
    start.topic = self.topic
    start.name = self.name
    start.uploadID = Data(self.uploadID.bytes)
    start.size = self.source.byteCount
    start.contentType = self.options.contentType
    start.attributes = self.options.attributes
    try await stream.send(Self.request(.start(start)))
    // A new upload begins at 0: nothing to wait for.
    var position: Int64 = 0
    if isResume {
      guard let told = try await stalls.wait(for: { await heard.beginAt() }) else { return }
      position = told
    }
    guard position <= self.source.byteCount else {
      throw MemQError(
        .internalError, "the server has more bytes than the file", subject: self.name,
        limit: self.source.byteCount, actual: position)
    }
    try await self.digest(below: position)
    while position < self.source.byteCount {
      let count = Int(min(Int64(Self.chunkBytes), self.source.byteCount - position))
      let bytes = try await self.source.read(at: position, count: count)
      self.feed(bytes, at: position)
      let chunk = Self.chunk(bytes, at: position)
      try await stalls.wait { () throws(MemQError) in try await stream.send(chunk) }
      position += Int64(count)
      self.progress?(position)
    }
    try await self.source.check()
    var finish = Memq_V1_PutFinish()
    finish.sha256 = Data(self.hash.digest())
    finish.waitMaxMs = Int32(clamping: self.options.publishTimeout.milliseconds)
    try await stream.send(Self.request(.finish(finish)))
    try await stream.halfClose()
  }

  private static func request(_ part: Memq_V1_PutRequest.OneOf_Part) -> Hot<Memq_V1_PutRequest> {
    var request = Memq_V1_PutRequest()
    request.part = part
    return Hot(request)
  }

  private static func chunk(_ bytes: ByteBuffer, at position: Int64) -> Hot<Memq_V1_PutRequest> {
    var header = Memq_V1_PutChunk()
    header.offset = position
    header.crc32C = bytes.withUnsafeReadableBytes { CRC32C.checksum($0) }
    var request = Self.request(.chunkHeader(header))
    request.payload = RPCMessage(bytes)
    return request
  }

  /// Takes bytes into the digest, once each.
  private mutating func feed(_ bytes: ByteBuffer, at position: Int64) {
    let end = position + Int64(bytes.readableBytes)
    guard end > self.hashedBelow else { return }
    let known = Int(max(0, self.hashedBelow - position))
    bytes.withUnsafeReadableBytes {
      self.hash.update(UnsafeRawBufferPointer(rebasing: $0[known...]))
    }
    self.hashedBelow = end
  }

  /// The server has bytes that this value has not read.
  private mutating func digest(below end: Int64) async throws(MemQError) {
    while self.hashedBelow < end {
      let count = Int(min(Int64(Self.chunkBytes), end - self.hashedBelow))
      self.feed(
        try await self.source.read(at: self.hashedBelow, count: count), at: self.hashedBelow)
    }
  }

  /// `Heard`, shared by the two tasks of a stream.
  private final class Replies: Sendable {
    let value: Mutex<Heard>

    init(_ heard: Heard) { self.value = Mutex(heard) }

    func update(_ body: (inout Heard) -> Void) {
      let waiter = self.value.withLock { heard -> UnsafeContinuation<Void, Never>? in
        body(&heard)
        guard heard.beginAt != nil || heard.isOver else { return nil }
        return heard.waiter.take()
      }
      waiter?.resume()
    }

    /// Where the server wants the put to go on; nil when the stream ended before it said so.
    func beginAt() async -> Int64? {
      await withUnsafeContinuation { continuation in
        let isThere = self.value.withLock { heard in
          if heard.beginAt != nil || heard.isOver { return true }
          heard.waiter = continuation
          return false
        }
        if isThere { continuation.resume() }
      }
      return self.value.withLock { $0.beginAt }
    }
  }
}
