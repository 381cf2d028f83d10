// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQStore
import MemQSystem
import SwiftProtobuf

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

// File puts.
extension MetadataNode {
  func registerUploadCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.createUpload) { request, _ in
      try await self.createUpload(request.upload)
    }
    router.handle(MetadataMethods.getUpload) { request, _ in
      try await self.getUpload(try UploadID(wire: request.uploadID, "upload_id"))
    }
    router.handle(MetadataMethods.advanceUpload) { request, _ in
      try await self.advanceUpload(request.upload)
    }
    router.handle(MetadataMethods.listUploads) { request, _ in
      try await self.listUploads(request)
    }
  }

  private func createUpload(
    _ wire: Memq_V1_UploadRecord
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    let instance = try self.instance()
    let upload = try UploadRecord(wire)
    let body = [UInt8](wire.inlineBody)
    let now = self.clock.wall
    let reading = UploadReading(instance)
    let producer = try await instance.producers.next(.fileProducers)
    // A put's id is new, nearly always: whether it is, the transaction's conditions say.
    let done = try await instance.runner.run(
      "create-upload",
      reading: { attempt throws(MemQError) in
        attempt == 0 ? nil : try await reading.stored(upload.id)?.value
      }
    ) { state, known throws(MemQError) in
      try state.createUpload(
        upload, inlineBody: body, known: known, producer: producer, at: now)
    }
    instance.uploads.keep(done.outcome, done.revision)
    return done.outcome.wire
  }

  private func getUpload(_ id: UploadID) async throws(MemQError) -> Memq_V1_UploadRecord {
    let instance = try self.instance()
    guard let upload = try await UploadReading(instance).stored(id)?.value else {
      throw Self.unknownUpload(id)
    }
    var wire = upload.wire
    if upload.bodyKey.isEmpty, upload.state.shelf != .done,
      let entry = try await instance.store.get([.uploadBody(id)])[0]
    {
      wire.inlineBody = Data(try InlineBodyRecord(entry).bytes)
    }
    return wire
  }

  private static func unknownUpload(_ id: UploadID) -> MemQError {
    MemQError(.uploadNotFound, "no such upload, or it is over for long", subject: "\(id)")
  }

  private func advanceUpload(
    _ wire: Memq_V1_UploadRecord
  ) async throws(MemQError) -> Memq_V1_UploadRecord {
    let instance = try self.instance()
    let next = try UploadRecord(wire)
    let body = [UInt8](wire.inlineBody)
    if let known = instance.uploads.find(next.id), known.value.version == next.version,
      let done = try await self.step(known, to: next, body, in: instance)
    {
      return done
    }
    instance.uploads.forget(next.id)
    guard let done = try await self.step(nil, to: next, body, in: instance) else {
      preconditionFailure("without a remembered put every attempt reads")
    }
    return done
  }

  /// Moves a put on.
  ///
  /// - Parameter remembered: tried first, without reading; nil comes back when the store knows better.
  private func step(
    _ remembered: Versioned<UploadRecord>?, to next: UploadRecord, _ body: [UInt8],
    in instance: MetadataInstance
  ) async throws(MemQError) -> Memq_V1_UploadRecord? {
    let reading = UploadReading(instance)
    let now = self.clock.wall
    let done = try await instance.runner.run(
      "advance-upload",
      reading: { attempt throws(MemQError) -> (Versioned<UploadRecord>, Versioned<FileRecord>?)? in
        if let remembered {
          // That no file of the name exists is likely, and checked by the transaction.
          return attempt == 0 ? (remembered, nil) : nil
        }
        guard let known = try await reading.stored(next.id) else {
          throw Self.unknownUpload(next.id)
        }
        let latest =
          next.state == .published ? try await reading.file(next.topic, next.name) : nil
        return (known, latest)
      }
    ) { state, found throws(MemQError) in
      guard let (known, latest) = found else {
        return Plan<UploadRecord?>(outcome: nil)
      }
      let plan = try state.advanceUpload(
        known, to: next, inlineBody: body, latest: latest, at: now)
      return Plan<UploadRecord?>(plan.transactions, outcome: plan.outcome)
    }
    guard let upload = done.outcome else { return nil }
    instance.uploads.keep(upload, done.revision)
    self.note(upload)
    return upload.wire
  }

  private func note(_ upload: UploadRecord) {
    switch upload.state {
    case .quarantined:
      self.logger.notice(
        "File went into quarantine",
        metadata: [
          "file": "\(upload.name)", "upload.id": "\(upload.id)",
          "signature": "\(upload.verdict?.signature ?? "")",
        ])
    case .abandoned:
      self.logger.info(
        "Put was abandoned",
        metadata: [
          "file": "\(upload.name)", "upload.id": "\(upload.id)", "reason": "\(upload.reason)",
        ])
    case .open, .sealed, .judged, .publishing, .published: break
    }
  }

  // MARK: Lists

  private func listUploads(
    _ request: Memq_V1_ListUploadsRequest
  ) async throws(MemQError) -> Memq_V1_ListUploadsResponse {
    let instance = try self.instance()
    let limit = try pageSize(request.limit, default: 100, max: 1_000)
    let topic = request.topicID.isEmpty ? nil : try TopicID(wire: request.topicID, "topic_id")
    var states: [UploadState] = []
    for state in request.states { states.append(try UploadState(state)) }
    if states.isEmpty { states = UploadState.allCases }
    let newest = self.clock.wall.milliseconds - max(request.idleMs, 0)
    // One more than asked for tells whether there are more.
    var oldest = OldestUploads(limit: limit + 1)
    if !request.afterUploadID.isEmpty {
      oldest.begin(
        after: Timestamp(milliseconds: request.afterUpdatedAtMs),
        try UploadID(wire: request.afterUploadID, "after_upload_id"))
    }
    for shelf in UploadShelf.allCases where states.contains(where: { $0.shelf == shelf }) {
      var rest = KeyRange(prefix: shelf.prefix)
      while true {
        let page = try await instance.store.range(rest, limit: 1_000)
        for entry in page.entries {
          let upload = try UploadRecord(entry)
          guard states.contains(upload.state), upload.updatedAt.milliseconds <= newest,
            topic == nil || upload.topic == topic
          else { continue }
          oldest.add(upload)
        }
        guard page.hasMore, let last = page.entries.last else { break }
        rest = rest.after(last.key)
      }
    }
    let answer = boundedPage(oldest.uploads, limit: limit, \.wire)
    return .with {
      $0.uploads = answer.entries
      $0.more = answer.hasMore
    }
  }
}

/// Of many puts those whose last change is longest ago, oldest first.
struct OldestUploads {
  private let limit: Int
  private var kept: SortedMap<Key, UploadRecord> = [:]
  private var after: Key?

  private struct Key: Comparable {
    let at: Timestamp
    let id: UploadID
    static func < (a: Self, b: Self) -> Bool { a.at != b.at ? a.at < b.at : a.id < b.id }
  }

  init(limit: Int) { self.limit = limit }

  var uploads: [UploadRecord] { self.kept.values }

  /// Only what comes behind this one.
  mutating func begin(after time: Timestamp, _ id: UploadID) {
    self.after = Key(at: time, id: id)
  }

  mutating func add(_ upload: UploadRecord) {
    let key = Key(at: upload.updatedAt, id: upload.id)
    if let after = self.after, key <= after { return }
    if self.kept.count == self.limit, let last = self.kept.last?.key {
      guard key < last else { return }
      self.kept[last] = nil
    }
    self.kept[key] = upload
  }
}
