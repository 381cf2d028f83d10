// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore
import SwiftProtobuf

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// Takes puts whose bytes are all there to their end: judged, published or not. Every step is a compare-and-set in
/// metadata, so whoever drives a put, or takes it over halfway, ends at the same place.
struct UploadDriver: Sendable {
  /// An append of a file's record, tries included. Leaders remember its producer for ten minutes more.
  static let publishTimeout: Duration = .seconds(60)
  /// Between two looks for a scanner.
  static let scannerPause: Duration = .milliseconds(250)
  /// Conflicts met in one drive before it is left to a later one.
  static let conflictsMax = 5

  let uploads: UploadCalls
  let scans: ScanCalls
  let appender: Appender
  let cluster: any IngestCluster
  let clock: any MemQClock
  let logger: Logger

  /// Drives a put as far as it goes.
  ///
  /// - Parameters:
  ///   - upload: as metadata has it; an inline body may be left out, it is fetched when needed.
  ///   - patience: how long to wait for a scanner when none is there, before the put is held.
  /// - Returns: the record, published.
  /// - Throws: `.scanHeld` (somebody tries again later), `.infected`, `.notScanned`, `.uploadAbandoned`, `.fileTooLarge`, and
  ///   what metadata, scanners and leaders throw.
  func drive(
    _ upload: Memq_V1_UploadRecord, patience: Duration = .zero
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    let waitEnd = self.clock.monotonic + patience
    var upload = upload
    var conflicts = 0
    while true {
      guard let stage = upload.stage else {
        throw MemQError(.internalError, "a put of unknown state", subject: upload.label)
      }
      if stage == .published { return upload }
      do throws(MemQError) {
        upload = try await self.step(upload, stage, waitEnd)
      } catch {
        guard error.code == .revisionConflict, conflicts < Self.conflictsMax else { throw error }
        conflicts += 1
        upload = try await self.reload(upload)
      }
    }
  }

  private func reload(
    _ upload: Memq_V1_UploadRecord
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    let id = try UploadID(wire: upload.uploadID, "upload_id")
    guard let fresh = try await self.uploads.get(id) else {
      throw MemQError(.uploadNotFound, "the put is not known any more", subject: upload.label)
    }
    return fresh
  }

  private func settings(of upload: Memq_V1_UploadRecord) throws(MemQError) -> TopicSettings {
    let topic = try TopicID(wire: upload.topicID, "topic_id")
    guard let known = self.cluster.image.topics[topic] else {
      throw MemQError(.topicDeleted, "the topic was deleted meanwhile", subject: "\(topic)")
    }
    return known.settings
  }

  private func step(
    _ upload: Memq_V1_UploadRecord, _ stage: UploadStage, _ waitEnd: MonotonicInstant
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    let settings = try self.settings(of: upload)
    var next = UploadPlan.next(stage, size: upload.offset, settings: settings)
    var upload = upload
    if next == .scan {
      var answer = await self.scan(&upload, settings)
      while answer.isNobodyThere, self.clock.monotonic < waitEnd {
        try await pause(Self.scannerPause)
        answer = await self.scan(&upload, settings)
      }
      upload.verdict = answer.verdict
      next = UploadPlan.after(answer.outcome, settings: settings)
    }
    switch next {
    case .scan, .published: return upload
    case .judge(let judgement):
      upload.state = .judged
      upload.verdict = judgement.verdict(scanned: upload.verdict)
      return try await self.advance(upload)
    case .beginPublishing:
      upload.state = .publishing
      return try await self.advance(upload)
    case .append: return try await self.publish(upload)
    case .hold(let reason):
      throw MemQError(
        .scanHeld, "the file is held: \(reason); it is published by itself once it is judged",
        subject: upload.name)
    case .quarantine:
      upload.state = .quarantined
      upload.driver = 0
      throw Self.quarantined(try await self.advance(upload))
    case .refuse(let error): throw try await self.refuse(upload, stage, error)
    }
  }

  private func scan(
    _ upload: inout Memq_V1_UploadRecord, _ settings: TopicSettings
  ) async -> ScanCalls.Answer {
    guard upload.bodyKey.isEmpty else {
      return await self.scans.body(
        .with {
          $0.bodyKey = upload.bodyKey
          $0.size = upload.offset
          $0.name = upload.name
          $0.sha256 = upload.sha256
          $0.maxBytes = settings.scanBytesMax
        })
    }
    do throws(MemQError) {
      try await self.loadInline(&upload)
    } catch {
      return ScanCalls.Answer(notScanned: "engine error: \(error.message)")
    }
    return await self.scans.bytes(
      RPCMessage(ByteBuffer(bytes: upload.inlineBody)), name: upload.name)
  }

  /// Lists and steps leave the inline body out; only a get has it.
  private func loadInline(_ upload: inout Memq_V1_UploadRecord) async throws(MemQError) {
    guard upload.bodyKey.isEmpty, upload.inlineBody.isEmpty, upload.offset > 0 else { return }
    upload.inlineBody = try await self.reload(upload).inlineBody
  }

  private func publish(
    _ upload: Memq_V1_UploadRecord
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    var upload = upload
    try await self.loadInline(&upload)
    let partition = TopicPartition(
      try TopicID(wire: upload.topicID, "topic_id"), PartitionIndex(upload.partition))
    let batch = try FileRecordMaker.publication(of: upload, at: self.clock.wall)
    let reply = try await self.appender.append(
      batch, to: partition, isIdempotent: true, timeout: Self.publishTimeout)
    guard let base = reply.base else {
      throw MemQError(
        .outcomeUnknown, "the file's record was appended, its offset is not known yet; retry",
        subject: upload.name)
    }
    upload.state = .published
    upload.recordOffset = base.rawValue
    return try await self.advance(upload)
  }

  /// A step; the inline body stays behind and is put back into the answer, which leaves it out.
  private func advance(
    _ upload: Memq_V1_UploadRecord
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    var bare = upload
    bare.inlineBody = Data()
    var moved = try await self.uploads.advance(bare)
    if moved.state != .published { moved.inlineBody = upload.inlineBody }
    return moved
  }

  private static func quarantined(_ upload: Memq_V1_UploadRecord) -> MemQError {
    guard upload.verdict.kind == .infected else {
      return MemQError(
        .notScanned,
        "the file could not be scanned (\(upload.verdict.reason)) and is in quarantine",
        subject: upload.name)
    }
    return MemQError(
      .infected, "malware was found: \(upload.verdict.signature); the file is in quarantine",
      subject: upload.name)
  }

  /// What a put in a final state, or one the rules refuse, answers.
  private func refuse(
    _ upload: Memq_V1_UploadRecord, _ stage: UploadStage, _ error: MemQError
  ) async throws(MemQError) -> MemQError {
    switch stage {
    case .quarantined: return Self.quarantined(upload)
    case .open, .sealed, .judged, .publishing, .published:
      await self.abandon(upload, reason: error.message)
    case .abandoned: break
    }
    var named = error
    named.subject = upload.name
    return named
  }

  /// Gives a put up and deletes its body. Best effort: the finisher comes back for what failed.
  func abandon(_ upload: Memq_V1_UploadRecord, reason: String) async {
    var upload = upload
    upload.state = .abandoned
    upload.reason = String(decoding: reason.utf8.prefix(1_000), as: UTF8.self)
    upload.driver = 0
    do throws(MemQError) {
      _ = try await self.advance(upload)
    } catch {
      self.logger.warning(
        "Put could not be given up",
        metadata: ["upload": "\(upload.label)", "error": "\(error)"])
      return
    }
    await self.uploads.deleteBody(upload)
  }
}

extension UploadPlan.Judgement {
  func verdict(scanned: Memq_V1_Verdict) -> Memq_V1_Verdict {
    switch self {
    case .scanned: scanned
    case .off: .with { $0.kind = .off }
    case .tooLarge:
      .with {
        $0.kind = .notScanned
        $0.reason = "too large"
      }
    }
  }
}
