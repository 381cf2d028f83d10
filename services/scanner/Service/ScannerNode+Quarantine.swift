// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import SwiftProtobuf
import MemQRuntime

extension ScannerNode {
  func registerQuarantine(on router: inout RPCRouter) {
    router.handle(ScannerMethods.listQuarantine) { request, context in
      let topic = try self.topicID(request.topic)
      var after = Memq_V1_ListQuarantineRequest()
      after.topicID = .init(topic?.bytes ?? [])
      after.limit = 10_000
      if !request.afterID.isEmpty {
        after.afterUploadID = .init(try self.entryID(request.afterID).bytes)
        after.afterUpdatedAtMs = request.afterQuarantinedAtMs
      }
      let answer = try await self.cluster.metadata.call(
        MetadataMethods.listQuarantine, after, timeout: context.remaining ?? .seconds(10))
      return .with {
        $0.entries = answer.entries.map(self.entry)
        $0.more = answer.more
      }
    }
    router.handle(ScannerMethods.releaseQuarantine) { request, context in
      try await self.resolve(request, release: true, context)
    }
    router.handle(ScannerMethods.deleteQuarantine) { request, context in
      try await self.resolve(request, release: false, context)
    }
  }

  private func topicID(_ name: String) throws(MemQError) -> TopicID? {
    guard !name.isEmpty else { return nil }
    guard let topic = self.cluster.image.topic(named: name) else {
      throw MemQError(.topicNotFound, "there is no such topic", subject: name)
    }
    return topic.id
  }

  private func entryID(_ text: String) throws(MemQError) -> UploadID {
    guard let id = UploadID(text) else {
      throw MemQError(
        .quarantineEntryNotFound, "an entry is named by its id, as `quarantine list` shows it",
        subject: text)
    }
    return id
  }

  private func resolve(
    _ request: Memq_V1_QuarantineActionRequest, release: Bool, _ context: RPCContext
  ) async throws -> Memq_V1_QuarantineActionResponse {
    let id = try self.entryID(request.id)
    let answer = try await self.cluster.metadata.call(
      MetadataMethods.resolveQuarantine,
      .with {
        $0.uploadID = .init(id.bytes)
        $0.release = release
        $0.actor = request.actor
        $0.reason = request.reason
      }, timeout: context.remaining ?? .seconds(10))
    self.logger.notice(
      "Quarantine entry resolved",
      metadata: [
        "entry": "\(id)", "name": "\(answer.upload.name)",
        "action": "\(release ? "released" : "deleted")", "actor": "\(request.actor)",
        "reason": "\(request.reason)",
      ])
    return .with { $0.entry = self.entry(answer.upload) }
  }

  private func entry(_ upload: Memq_V1_UploadRecord) -> Memq_V1_QuarantineEntry {
    .with {
      $0.id = UploadID(bytes: upload.uploadID)?.description ?? ""
      if let topic = TopicID(bytes: upload.topicID) {
        // A topic that is gone is named by its id.
        $0.topic = self.cluster.image.topics[topic]?.name ?? topic.description
      }
      $0.name = upload.name
      $0.size = upload.offset
      $0.sha256 = upload.sha256
      $0.verdict = upload.verdict
      $0.quarantinedAtMs = upload.updatedAtMs
    }
  }
}
