// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRuntime
import SwiftProtobuf

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

// Conversions of what concerns files. From the wire they are checked.

extension UploadState {
  init(_ wire: Memq_V1_UploadState) throws(MemQError) {
    guard let state = UInt8(exactly: wire.rawValue).flatMap(Self.init(rawValue:)) else {
      throw MemQError(
        .invalidArgument, "no such upload state", subject: "state", actual: Int64(wire.rawValue))
    }
    self = state
  }
  var wire: Memq_V1_UploadState {
    switch self {
    case .open: .open
    case .sealed: .sealed
    case .judged: .judged
    case .publishing: .publishing
    case .published: .published
    case .abandoned: .abandoned
    case .quarantined: .quarantined
    }
  }
}

extension VerdictRecord {
  init(_ wire: Memq_V1_Verdict) throws(MemQError) {
    guard let kind = UInt8(exactly: wire.kind.rawValue).flatMap(VerdictKind.init(rawValue:)) else {
      throw MemQError(
        .invalidArgument, "no such verdict", subject: "verdict.kind",
        actual: Int64(wire.kind.rawValue))
    }
    self.init(
      kind: kind, signature: wire.signature, reason: wire.reason, engine: wire.engine,
      databaseVersion: wire.databaseVersion, sha256: Array(wire.sha256),
      duration: .milliseconds(wire.durationMs))
  }
  var wire: Memq_V1_Verdict {
    .with {
      switch self.kind {
      case .clean: $0.kind = .clean
      case .infected: $0.kind = .infected
      case .notScanned: $0.kind = .notScanned
      case .off: $0.kind = .off
      }
      $0.signature = self.signature
      $0.reason = self.reason
      $0.engine = self.engine
      $0.databaseVersion = self.databaseVersion
      $0.sha256 = Data(self.sha256)
      $0.durationMs = self.duration.milliseconds
    }
  }
}

extension UploadRecord {
  /// All but the inline body.
  init(_ wire: Memq_V1_UploadRecord) throws(MemQError) {
    self.init(
      id: try UploadID(wire: wire.uploadID, "upload_id"),
      topic: try TopicID(wire: wire.topicID, "topic_id"), name: wire.name,
      state: try UploadState(wire.state), declaredSize: wire.declaredSize, offset: wire.offset,
      digestState: Array(wire.digestState), sha256: Array(wire.sha256),
      contentType: wire.contentType, attributes: sorted(wire.attributes), bodyKey: wire.bodyKey,
      verdict: wire.hasVerdict ? try VerdictRecord(wire.verdict) : nil,
      producerID: ProducerID(wire.producerID), partition: PartitionIndex(wire.partition),
      recordOffset: Offset(wire.recordOffset), version: wire.version,
      updatedAt: Timestamp(milliseconds: wire.updatedAtMs),
      createdAt: Timestamp(milliseconds: wire.createdAtMs), reason: wire.reason,
      driver: wire.driver == 0 ? nil : NodeID(wire.driver))
  }
  var wire: Memq_V1_UploadRecord {
    .with {
      $0.uploadID = self.id.wire
      $0.topicID = self.topic.wire
      $0.name = self.name
      $0.state = self.state.wire
      $0.declaredSize = self.declaredSize
      $0.offset = self.offset
      $0.digestState = Data(self.digestState)
      $0.sha256 = Data(self.sha256)
      $0.contentType = self.contentType
      for (name, value) in self.attributes { $0.attributes[name] = value }
      $0.bodyKey = self.bodyKey
      if let verdict = self.verdict { $0.verdict = verdict.wire }
      $0.producerID = self.producerID.rawValue
      $0.partition = self.partition.rawValue
      $0.recordOffset = self.recordOffset.rawValue
      $0.version = self.version
      $0.updatedAtMs = self.updatedAt.milliseconds
      $0.reason = self.reason
      $0.driver = self.driver?.rawValue ?? 0
      $0.createdAtMs = self.createdAt.milliseconds
    }
  }
}

extension FileRecord {
  var wire: Memq_V1_FileEntry {
    .with {
      $0.topicID = self.topic.wire
      $0.name = self.name
      $0.version = self.version
      $0.size = self.byteCount
      $0.sha256 = Data(self.sha256)
      $0.contentType = self.contentType
      if let verdict = self.verdict { $0.verdict = verdict.wire }
      $0.partition = self.partition.rawValue
      $0.offset = self.offset.rawValue
      $0.bodyKey = self.bodyKey
      $0.publishedAtMs = self.publishedAt.milliseconds
      for (name, value) in self.attributes { $0.attributes[name] = value }
      $0.uploadID = self.upload.wire
    }
  }
}
