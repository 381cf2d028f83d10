// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRecords
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf
import Synchronization

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

typealias PutReader = TypedReader<Hot<Memq_V1_PutRequest>>
typealias PutWriter = TypedWriter<Memq_V1_PutResponse>

/// What all puts share.
struct PutContext: Sendable {
  let cluster: any IngestCluster
  let topics: TopicFinder
  let uploads: UploadCalls
  let driver: UploadDriver
  let active: ActiveUploads
  let service: ServiceState
  let configuration: IngestConfiguration
  let metrics: IngestMetrics
}

/// One put stream. Small files are gathered and made known to metadata only once they are whole; larger ones pass
/// through to an uploader while metadata keeps what is durable.
struct PutCall: Sendable {
  let context: PutContext
  let reader: PutReader
  let writer: PutWriter
  let silence: Silence

  /// Since when the put waits for its client; time that the client waits for us is not its silence.
  final class Silence: Sendable {
    /// Nanoseconds; `max`: nobody waits.
    private let since = Atomic<Int64>(.max)

    fileprivate func began(_ now: MonotonicInstant) {
      self.since.store(now.nanoseconds, ordering: .relaxed)
    }
    fileprivate func ended() { self.since.store(.max, ordering: .relaxed) }

    /// How long the client has kept the put waiting.
    func lasts(_ now: MonotonicInstant) -> Duration {
      let since = self.since.load(ordering: .relaxed)
      return since == .max ? .zero : now - MonotonicInstant(nanoseconds: since)
    }
  }

  init(_ context: PutContext, _ reader: PutReader, _ writer: PutWriter) {
    self.context = context
    self.reader = reader
    self.writer = writer
    self.silence = Silence()
  }

  /// A start that was looked at and found right.
  struct Start: Sendable {
    let topic: TopicImage
    let id: UploadID
    let name: String
    let size: Int64
    let contentType: String
    let attributes: [String: String]

    /// The put as metadata is told of it first.
    func record(_ state: Memq_V1_UploadState) -> Memq_V1_UploadRecord {
      .with {
        $0.uploadID = self.id.wire
        $0.topicID = self.topic.id.wire
        $0.name = self.name
        $0.state = state
        $0.declaredSize = self.size
        $0.contentType = self.contentType
        $0.attributes = self.attributes
        $0.partition =
          FileRules.partition(of: self.name, among: self.topic.partitionCount).rawValue
        $0.recordOffset = -1
      }
    }

    var inlineBytesMax: Int {
      FileRecordMaker.inlineBytesMax(messageBytesMax: self.topic.settings.messageBytesMax)
    }
  }

  func run() async throws(MemQError) {
    if let refusal = self.context.service.refusal { throw refusal }
    guard let first = try await self.next(), case .start(let start)? = first.header.part else {
      throw MemQError(.invalidArgument, "a put begins with a start", subject: "part")
    }
    let checked = try await self.check(start)
    try self.context.active.begin(checked.id)
    let began = self.context.service.clock.monotonic
    self.context.metrics.putStarted(self.context.active.count)
    do throws(MemQError) {
      try await self.put(checked)
    } catch {
      self.context.metrics.putFailed(error.code)
      self.ended(checked.id, began)
      throw error
    }
    self.ended(checked.id, began)
  }

  private func ended(_ id: UploadID, _ began: MonotonicInstant) {
    self.context.active.end(id)
    self.context.metrics.putEnded(
      self.context.active.count, took: self.context.service.clock.monotonic - began)
  }

  private func check(_ start: Memq_V1_PutStart) async throws(MemQError) -> Start {
    try FileRules.check(name: start.name)
    try FileRules.check(contentType: start.contentType, attributes: start.attributes)
    try FileRules.check(declaredSize: start.size)
    let id = try UploadID(wire: start.uploadID, "upload_id")
    let topic = try await self.context.topics.find(start.topic)
    try UploadPlan.checkDeclared(size: start.size, settings: topic.settings)
    return Start(
      topic: topic, id: id, name: start.name, size: start.size, contentType: start.contentType,
      attributes: start.attributes)
  }

  /// The client's next message.
  func next() async throws(MemQError) -> Hot<Memq_V1_PutRequest>? {
    self.silence.began(self.context.service.clock.monotonic)
    defer { self.silence.ended() }
    return try await self.reader.next()
  }

  private func put(_ start: Start) async throws(MemQError) {
    let isSmall = start.size >= 0 && start.size <= start.inlineBytesMax
    if isSmall {
      // A file that is whole in one go needs no look at metadata first: making it known tells whether it is new.
      try await self.tell(.beginAt(0))
      return try await self.gather(start)
    }
    if let known = try await self.context.uploads.get(start.id) {
      return try await self.resume(start, known)
    }
    guard start.size < 0 else { return try await self.openBody(start, gathered: RPCMessage()) }
    try await self.tell(.beginAt(0))
    try await self.gather(start)
  }

  func tell(_ part: Memq_V1_PutResponse.OneOf_Part) async throws(MemQError) {
    try await self.writer.send(.with { $0.part = part })
  }

  // MARK: Small files

  /// Gathers bytes up to the inline limit; beyond it the put goes on as a body.
  private func gather(_ start: Start) async throws(MemQError) {
    var progress = PutProgress(declaredSize: start.size, begin: 0)
    var bytes: [UInt8] = []
    if start.size > 0 { bytes.reserveCapacity(Int(start.size)) }
    while true {
      switch try await self.chunkOrFinish(&progress) {
      case .chunk(let chunk):
        if bytes.count + chunk.byteCount > start.inlineBytesMax {
          var all = RPCMessage(ByteBuffer(bytes: bytes))
          all.append(chunk)
          return try await self.openBody(start, gathered: all)
        }
        for index in 0..<chunk.sliceCount {
          bytes.append(contentsOf: chunk.slice(index).readableBytesView)
        }
      case .finish(let finish):
        return try await self.publishInline(start, bytes, finish)
      }
    }
  }

  enum Piece: Sendable {
    case chunk(RPCMessage)
    case finish(Memq_V1_PutFinish)
  }

  /// The next chunk, checked, or the finish.
  func chunkOrFinish(_ progress: inout PutProgress) async throws(MemQError) -> Piece {
    guard let message = try await self.next() else {
      throw MemQError(
        .fileIncomplete, "the put ended without a finish; start again to go on",
        limit: progress.declaredSize >= 0 ? progress.declaredSize : nil, actual: progress.offset)
    }
    switch message.header.part {
    case .chunkHeader(let header):
      try progress.chunk(at: header.offset, byteCount: message.payload.byteCount)
      let crc = message.payload.crc32c().value
      guard crc == header.crc32C else {
        throw MemQError(
          .chunkChecksumMismatch, "the chunk's CRC-32C is wrong: it was damaged on its way; resend",
          subject: "offset \(header.offset)", limit: Int64(header.crc32C), actual: Int64(crc))
      }
      self.context.metrics.put(bytes: message.payload.byteCount)
      return .chunk(message.payload)
    case .finish(let finish):
      try progress.finish()
      return .finish(finish)
    case .start, nil:
      throw MemQError(
        .invalidArgument, "after the start come chunks and a finish", subject: "part")
    }
  }

  private func publishInline(
    _ start: Start, _ bytes: [UInt8], _ finish: Memq_V1_PutFinish
  ) async throws(MemQError) {
    let digest = SHA256.digest(of: bytes)
    try Self.compare(digest, finish)
    var upload = start.record(.sealed)
    upload.offset = Int64(bytes.count)
    upload.sha256 = Data(digest)
    upload.inlineBody = Data(bytes)
    upload.driver = self.context.cluster.nodeID.rawValue
    try await self.judge(&upload, start.topic.settings)
    let known = try await self.context.uploads.create(upload)
    try self.checkSame(known, start, digest)
    guard known.stage != .open else {
      throw MemQError(
        .uploadInProgress, "another stream began this put; retry in a moment", subject: known.label)
    }
    // Metadata's answer leaves the inline body out.
    var current = known
    if current.inlineBody.isEmpty { current.inlineBody = upload.inlineBody }
    try await self.complete(current, finish)
  }

  /// Judges a file before metadata knows it, so that a clean one is made known when its record may be appended at once.
  private func judge(
    _ upload: inout Memq_V1_UploadRecord, _ settings: TopicSettings
  ) async throws(MemQError) {
    var step = UploadPlan.next(.sealed, size: upload.offset, settings: settings)
    if step == .scan {
      let answer = await self.context.driver.scans.bytes(
        RPCMessage(ByteBuffer(bytes: upload.inlineBody)), name: upload.name)
      step = UploadPlan.after(answer.outcome, settings: settings)
      upload.verdict = answer.verdict
    }
    switch step {
    case .judge(let judgement):
      upload.state = .publishing
      upload.verdict = judgement.verdict(scanned: upload.verdict)
    case .quarantine(let judgement):
      upload.state = .quarantined
      upload.driver = 0
      upload.verdict = judgement.verdict(scanned: upload.verdict)
    case .refuse(let error): throw error
    case .hold, .scan, .beginPublishing, .append, .published:
      // It waits as "sealed", in the open.
      upload.clearVerdict()
    }
  }

  static func compare(_ digest: [UInt8], _ finish: Memq_V1_PutFinish) throws(MemQError) {
    guard !finish.sha256.isEmpty, !finish.sha256.elementsEqual(digest) else { return }
    throw MemQError(
      .digestMismatch,
      "the bytes have SHA-256 \(hexText(digest)), declared was \(hexText(finish.sha256))")
  }

  /// An upload id stands for one file for ever.
  func checkSame(
    _ known: Memq_V1_UploadRecord, _ start: Start, _ digest: [UInt8]? = nil
  ) throws(MemQError) {
    guard known.topicID == start.topic.id.wire, known.name == start.name else {
      throw MemQError(
        .invalidArgument, "the upload id belongs to another file", subject: "upload_id")
    }
    guard known.declaredSize == start.size else {
      throw MemQError(
        .invalidArgument, "the put was begun with another declared size", subject: "size",
        limit: known.declaredSize, actual: start.size)
    }
    guard let digest, !known.sha256.isEmpty, !known.sha256.elementsEqual(digest) else { return }
    throw MemQError(
      .digestMismatch,
      "the upload id belongs to bytes with SHA-256 \(hexText(known.sha256)), these have \(hexText(digest))"
    )
  }

  // MARK: The end of every put

  /// Drives a whole put to its end and tells the client, no longer than it wants to wait. The drive goes on without it.
  func complete(
    _ upload: Memq_V1_UploadRecord, _ finish: Memq_V1_PutFinish
  ) async throws(MemQError) {
    let id = try UploadID(wire: upload.uploadID, "upload_id")
    let wait =
      finish.waitMaxMs > 0
      ? Duration.milliseconds(Int64(min(finish.waitMaxMs, 3_600_000))) : .seconds(60)
    let outcome = Outcome<Result<Memq_V1_FileEntry, MemQError>>()
    let driver = self.context.driver
    // What is held is told as long as the client waits for it.
    let patience = min(self.context.configuration.scannerPatience, wait * 0.8)
    let active = self.context.active
    active.hold(id)
    // Not a child: it must not stop when the client goes.
    RPCScope.beyondCall {
      Task {
        defer { active.end(id) }
        let result: Result<Memq_V1_FileEntry, MemQError>
        do throws(MemQError) {
          let published = try await driver.drive(upload, patience: patience)
          result = .success(try await driver.uploads.file(of: published))
        } catch {
          result = .failure(error)
        }
        outcome.set(result)
      }
    }
    guard let result = await outcome.wait(wait) else {
      throw MemQError(
        .outcomeUnknown, "the file is not published yet; it is published by itself, look again",
        subject: upload.name)
    }
    let entry = try result.get()
    let topic = self.context.cluster.image.topics[try TopicID(wire: entry.topicID, "topic_id")]
    try await self.tell(.published(Memq_V1_FileInfo(entry, topic: topic?.name ?? "")))
  }
}
