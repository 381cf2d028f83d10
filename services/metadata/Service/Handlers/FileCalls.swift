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

// Published files, bodies to drop, quarantine.
extension MetadataNode {
  func registerFileCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.listFiles) { request, _ in try await self.listFiles(request) }
    router.handle(MetadataMethods.getFile) { request, _ in try await self.getFile(request) }
    router.handle(MetadataMethods.removeFile) { request, _ in
      try await self.removeFile(request)
      return Memq_V1_RemoveFileResponse()
    }
    router.handle(MetadataMethods.listDroppingBodies) { request, _ in
      try await self.listDroppingBodies(request)
    }
    router.handle(MetadataMethods.forgetBody) { request, _ in
      try await self.instance().runner.run("forget-body") { $0.forgetBody(request.bodyKey) }
      return Memq_V1_ForgetBodyResponse()
    }
    router.handle(MetadataMethods.listQuarantine) { request, _ in
      try await self.listQuarantine(request)
    }
    router.handle(MetadataMethods.resolveQuarantine) { request, _ in
      try await self.resolveQuarantine(request)
    }
  }

  // MARK: Files

  private func listFiles(
    _ request: Memq_V1_ListFilesRequest
  ) async throws(MemQError) -> Memq_V1_ListFilesResponse {
    let instance = try self.instance()
    let topic = try TopicID(wire: request.topicID, "topic_id")
    try instance.cell.read { (state) throws(MemQError) in _ = try state.topic(topic) }
    let limit = try pageSize(request.limit, default: 1_000, max: 10_000)
    var range = KeyRange(prefix: .files(topic, prefix: request.prefix))
    if !request.after.isEmpty { range = range.after(.file(topic, request.after)) }
    let page = try await instance.store.page(range, limit: limit) { entry throws(MemQError) in
      try FileRecord(entry).wire
    }
    return .with {
      $0.files = page.entries
      $0.more = page.hasMore
    }
  }

  private func getFile(
    _ request: Memq_V1_GetFileRequest
  ) async throws(MemQError) -> Memq_V1_FileEntry {
    let instance = try self.instance()
    let topic = try TopicID(wire: request.topicID, "topic_id")
    try instance.cell.read { (state) throws(MemQError) in _ = try state.topic(topic) }
    let keys = [
      StoreKey.file(topic, request.name), .fileVersion(topic, request.name, request.version),
    ]
    for entry in try await instance.store.get(keys) {
      guard let entry else { continue }
      let file = try FileRecord(entry)
      if request.version == 0 || request.version == file.version { return file.wire }
    }
    throw MemQError(.fileNotFound, "no such file in the topic", subject: request.name)
  }

  private func removeFile(_ request: Memq_V1_RemoveFileRequest) async throws(MemQError) {
    let instance = try self.instance()
    let topic = try TopicID(wire: request.topicID, "topic_id")
    let now = self.clock.wall
    let reading = UploadReading(instance)
    _ = try await instance.runner.run(
      "remove-file",
      reading: { (_: Int) throws(MemQError) -> (Versioned<FileRecord>?, [FileRecord]) in
        let latest = try await reading.file(topic, request.name)
        var earlier: [FileRecord] = []
        var rest = KeyRange(prefix: .fileVersions(topic, request.name))
        while true {
          let page = try await instance.store.range(rest, limit: 1_000)
          for entry in page.entries { earlier.append(try FileRecord(entry)) }
          guard page.hasMore, let last = page.entries.last else { return (latest, earlier) }
          rest = rest.after(last.key)
        }
      }
    ) { state, found throws(MemQError) in
      try state.removeFile(
        topic, request.name, upTo: request.upToVersion == 0 ? .max : request.upToVersion,
        latest: found.0, earlier: found.1, at: now)
    }
    self.logger.info(
      "File removed", metadata: ["file": "\(request.name)", "topic.id": "\(topic)"])
  }

  private func listDroppingBodies(
    _ request: Memq_V1_ListDroppingBodiesRequest
  ) async throws(MemQError) -> Memq_V1_ListDroppingBodiesResponse {
    let limit = try pageSize(request.limit, default: 100, max: 1_000)
    let prefix = StoreKey.droppingBodies
    var range = KeyRange(prefix: prefix)
    if !request.after.isEmpty { range = range.after(.droppingBody(request.after)) }
    let page = try await self.instance().store.range(range, limit: limit)
    return .with {
      $0.bodyKeys = page.entries.map { entry in
        String(decoding: entry.key.bytes.dropFirst(prefix.bytes.count), as: UTF8.self)
      }
    }
  }

  // MARK: Quarantine

  private func listQuarantine(
    _ request: Memq_V1_ListQuarantineRequest
  ) async throws(MemQError) -> Memq_V1_ListQuarantineResponse {
    let instance = try self.instance()
    let limit = try pageSize(request.limit, default: 1_000, max: 10_000)
    let topic = request.topicID.isEmpty ? nil : try TopicID(wire: request.topicID, "topic_id")
    // One more than asked for tells whether there are more.
    var oldest = OldestUploads(limit: limit + 1)
    if !request.afterUploadID.isEmpty {
      oldest.begin(
        after: Timestamp(milliseconds: request.afterUpdatedAtMs),
        try UploadID(wire: request.afterUploadID, "after_upload_id"))
    }
    var rest = KeyRange(prefix: .quarantinedUploads)
    while true {
      let page = try await instance.store.range(rest, limit: 1_000)
      for entry in page.entries {
        let upload = try UploadRecord(entry)
        if topic == nil || upload.topic == topic { oldest.add(upload) }
      }
      guard page.hasMore, let last = page.entries.last else { break }
      rest = rest.after(last.key)
    }
    let answer = boundedPage(oldest.uploads, limit: limit, \.wire)
    return .with {
      $0.entries = answer.entries
      $0.more = answer.hasMore
    }
  }

  private func resolveQuarantine(
    _ request: Memq_V1_ResolveQuarantineRequest
  ) async throws(MemQError) -> Memq_V1_ResolveQuarantineResponse {
    let instance = try self.instance()
    let id = try UploadID(wire: request.uploadID, "upload_id")
    let now = self.clock.wall
    let reading = UploadReading(instance)
    let done = try await instance.runner.run(
      "resolve-quarantine", reading: { (_: Int) throws(MemQError) in try await reading.stored(id) }
    ) { state, known throws(MemQError) in
      try state.resolveQuarantine(
        id, known, release: request.release, actor: request.actor, reason: request.reason, at: now)
    }
    instance.uploads.keep(done.outcome, done.revision)
    self.logger.notice(
      "Quarantine was decided",
      metadata: [
        "file": "\(done.outcome.name)", "upload.id": "\(id)", "release": "\(request.release)",
        "actor": "\(request.actor)", "reason": "\(request.reason)",
      ])
    return .with { $0.upload = done.outcome.wire }
  }
}
