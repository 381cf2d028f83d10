// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQSystem
import SwiftProtobuf
import Synchronization

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// Puts and files by metadata's rules: compare-and-set on the version, an entry when a put is published.
final class FakeMetadata: Sendable {
  private struct State {
    var uploads: [Data: Memq_V1_UploadRecord] = [:]
    var files: [String: [Memq_V1_FileEntry]] = [:]
    var nextProducer = Int64(1) << 62
    var calls: [String: Int] = [:]
    var beats: [Memq_V1_HeartbeatGroupRequest] = []
    var isBeatCancelled = false
  }

  private let state = Mutex(State())
  /// Nobody answers what only metadata knows.
  let isAway = Atomic<Bool>(false)
  private let removing = Mutex<(@Sendable () async throws -> Void)?>(nil)

  /// Does something just before a file is taken out.
  func beforeRemoving(_ body: @escaping @Sendable () async throws -> Void) {
    self.removing.withLock { $0 = body }
  }

  /// Heartbeats of group members, and notices of broken ones.
  var beats: [Memq_V1_HeartbeatGroupRequest] { self.state.withLock { $0.beats } }
  /// Whether a held one was cancelled.
  var isBeatCancelled: Bool { self.state.withLock { $0.isBeatCancelled } }
  var uploads: [Memq_V1_UploadRecord] { self.state.withLock { Array($0.uploads.values) } }
  func calls(_ name: String) -> Int { self.state.withLock { $0.calls[name] ?? 0 } }
  func change(_ id: Data, _ body: (inout Memq_V1_UploadRecord) -> Void) {
    self.state.withLock {
      body(&$0.uploads[id]!)
      $0.uploads[id]!.version += 1
    }
  }

  func register(on router: inout RPCRouter) {
    router.handle(MetadataMethods.heartbeatGroup) { request, _ in
      self.state.withLock { $0.beats.append(request) }
      if request.waitMaxMs > 0, !request.brokeOff {
        try await withTaskCancellationHandler {
          try await Task.sleep(for: .seconds(600))
        } onCancel: {
          self.state.withLock { $0.isBeatCancelled = true }
        }
      }
      return Memq_V1_HeartbeatGroupResponse()
    }
    router.handle(MetadataMethods.createUpload) { request, _ in
      self.state.withLock { state in
        state.calls["create", default: 0] += 1
        if let known = state.uploads[request.upload.uploadID] { return known.bare }
        var upload = request.upload
        upload.version = 1
        upload.producerID = state.nextProducer
        upload.updatedAtMs = SystemClock().wall.milliseconds
        state.nextProducer += 1
        state.uploads[upload.uploadID] = upload
        return upload.bare
      }
    }
    router.handle(MetadataMethods.getUpload) { request, _ in
      guard let known = self.state.withLock({ $0.uploads[request.uploadID] }) else {
        throw MemQError(.uploadNotFound, "no such put")
      }
      return known
    }
    router.handle(MetadataMethods.advanceUpload) { request, _ in try self.advance(request.upload) }
    router.handle(MetadataMethods.listUploads) { request, _ in
      let now = SystemClock().wall.milliseconds
      func key(_ time: Int64, _ id: Data) -> (Int64, String) { (time, id.base64EncodedString()) }
      let after = key(request.afterUpdatedAtMs, request.afterUploadID)
      let found = self.uploads.filter { upload in
        request.states.contains(upload.state) && now - upload.updatedAtMs >= request.idleMs
          && (request.afterUploadID.isEmpty || key(upload.updatedAtMs, upload.uploadID) > after)
      }.sorted { key($0.updatedAtMs, $0.uploadID) < key($1.updatedAtMs, $1.uploadID) }
      return .with {
        $0.uploads = found.prefix(Int(request.limit)).map(\.bare)
        $0.more = found.count > Int(request.limit)
      }
    }
    router.handle(MetadataMethods.getFile) { request, _ in
      let versions = self.state.withLock { $0.files[request.name] ?? [] }
      guard
        let file = request.version == 0
          ? versions.last : versions.first(where: { $0.version == request.version })
      else { throw MemQError(.fileNotFound, "no such file", subject: request.name) }
      return file
    }
    router.handle(MetadataMethods.listFiles) { request, _ in
      let names = self.state.withLock { state in state.files.keys.sorted() }
      let page = names.filter { $0.hasPrefix(request.prefix) && $0 > request.after }
      return .with { response in
        response.files = page.prefix(2).map { name in
          self.state.withLock { $0.files[name]!.last! }
        }
        response.more = page.count > 2
      }
    }
    router.handle(MetadataMethods.removeFile) { request, _ in
      try await self.removing.withLock { $0.take() }?()
      self.state.withLock { state in
        let newer = state.files[request.name, default: []].filter {
          request.upToVersion > 0 && $0.version > request.upToVersion
        }
        state.files[request.name] = newer.isEmpty ? nil : newer
      }
      return Memq_V1_RemoveFileResponse()
    }
    router.handle(MetadataMethods.describeTopic) { request, _ in
      guard !self.isAway.load(ordering: .relaxed) else {
        throw MemQError(.unavailable, "metadata is away")
      }
      throw MemQError(.topicNotFound, "no topic of this name", subject: request.name)
    }
    router.handle(MetadataMethods.listObjects) { _, _ in Memq_V1_ListObjectsResponse() }
  }

  private func advance(
    _ wanted: Memq_V1_UploadRecord
  ) throws(MemQError) -> Memq_V1_UploadRecord {
    let result: Result<Memq_V1_UploadRecord, MemQError> = self.state.withLock { state in
      state.calls["advance", default: 0] += 1
      guard let known = state.uploads[wanted.uploadID] else {
        return .failure(MemQError(.uploadNotFound, "no such put"))
      }
      guard known.version == wanted.version else {
        return .failure(MemQError(.revisionConflict, "it has moved", limit: known.version))
      }
      var next = wanted
      next.version += 1
      next.updatedAtMs = SystemClock().wall.milliseconds
      if next.inlineBody.isEmpty { next.inlineBody = known.inlineBody }
      if next.state == .published {
        next.inlineBody = Data()
        let version = Int64(state.files[next.name]?.count ?? 0) + 1
        state.files[next.name, default: []].append(.init(next, version: version))
      }
      state.uploads[next.uploadID] = next
      return .success(next.bare)
    }
    return try result.get()
  }
}

extension Memq_V1_UploadRecord {
  fileprivate var bare: Self {
    var copy = self
    copy.inlineBody = Data()
    return copy
  }
}

extension Memq_V1_FileEntry {
  fileprivate init(_ upload: Memq_V1_UploadRecord, version: Int64) {
    self.init()
    self.topicID = upload.topicID
    self.name = upload.name
    self.version = version
    self.size = upload.offset
    self.sha256 = upload.sha256
    self.verdict = upload.verdict
    self.partition = upload.partition
    self.offset = upload.recordOffset
    self.bodyKey = upload.bodyKey
    self.uploadID = upload.uploadID
    self.attributes = upload.attributes
  }
}
