// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import SwiftProtobuf

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// Metadata's calls about puts and files.
struct UploadCalls: Sendable {
  let cluster: any IngestCluster
  let timeout: Duration = .seconds(10)

  func create(_ upload: Memq_V1_UploadRecord) async throws(MemQError) -> Memq_V1_UploadRecord {
    try await self.cluster.metadata.call(
      MetadataMethods.createUpload, .with { $0.upload = upload }, timeout: self.timeout)
  }

  /// Nil when metadata does not know it.
  func get(_ id: UploadID) async throws(MemQError) -> Memq_V1_UploadRecord? {
    do throws(MemQError) {
      return try await self.cluster.metadata.call(
        MetadataMethods.getUpload, .with { $0.uploadID = id.wire }, timeout: self.timeout)
    } catch {
      guard error.code == .uploadNotFound else { throw error }
      return nil
    }
  }

  func advance(_ upload: Memq_V1_UploadRecord) async throws(MemQError) -> Memq_V1_UploadRecord {
    try await self.cluster.metadata.call(
      MetadataMethods.advanceUpload, .with { $0.upload = upload }, timeout: self.timeout)
  }

  /// - Parameter last: goes on behind this one.
  func list(
    _ states: [Memq_V1_UploadState], idle: Duration, after last: Memq_V1_UploadRecord? = nil,
    limit: Int
  ) async throws(MemQError) -> (uploads: [Memq_V1_UploadRecord], hasMore: Bool) {
    let request = Memq_V1_ListUploadsRequest.with {
      $0.states = states
      $0.idleMs = idle.milliseconds
      $0.limit = Int32(limit)
      if let last {
        $0.afterUpdatedAtMs = last.updatedAtMs
        $0.afterUploadID = last.uploadID
      }
    }
    let page = try await self.cluster.metadata.call(
      MetadataMethods.listUploads, request, timeout: self.timeout)
    return (page.uploads, page.more)
  }

  func file(
    _ topic: TopicID, _ name: String, version: Int64 = 0
  ) async throws(MemQError) -> Memq_V1_FileEntry {
    let request = Memq_V1_GetFileRequest.with {
      $0.topicID = topic.wire
      $0.name = name
      $0.version = version
    }
    return try await self.cluster.metadata.call(
      MetadataMethods.getFile, request, timeout: self.timeout)
  }

  /// The entry that a put made: the newest of its name, unless others came after it.
  func file(of upload: Memq_V1_UploadRecord) async throws(MemQError) -> Memq_V1_FileEntry {
    let topic = try TopicID(wire: upload.topicID, "topic_id")
    var entry = try await self.file(topic, upload.name)
    var looked = 1
    while entry.uploadID != upload.uploadID, entry.version > 1, looked < 8 {
      entry = try await self.file(topic, upload.name, version: entry.version - 1)
      looked += 1
    }
    guard entry.uploadID == upload.uploadID else {
      throw MemQError(
        .fileNotFound, "the file was published, and replaced or deleted meanwhile",
        subject: upload.name)
    }
    return entry
  }

  /// Deletes an unfinished or refused body; what can't be reached now is left to the collector.
  func deleteBody(_ upload: Memq_V1_UploadRecord) async {
    guard !upload.bodyKey.isEmpty else { return }
    let request = Memq_V1_DeleteBodyRequest.with {
      $0.uploadID = upload.uploadID
      $0.bodyKey = upload.bodyKey
    }
    do throws(MemQError) {
      let channel = try self.cluster.channel(.uploader, lane: .control)
      _ = try await channel.call(UploaderMethods.deleteBody, request, timeout: self.timeout)
    } catch {
      // The collector deletes what no put and no file names.
      return
    }
  }
}

extension Memq_V1_UploadRecord {
  /// For logs and errors.
  var label: String { UploadID(bytes: self.uploadID)?.description ?? "?" }

  var stage: UploadStage? { UploadStage(rawValue: self.state.rawValue) }
}

extension Memq_V1_FileInfo {
  init(_ entry: Memq_V1_FileEntry, topic: String) {
    self.init()
    self.topic = topic
    self.name = entry.name
    self.version = entry.version
    self.size = entry.size
    self.sha256 = entry.sha256
    self.contentType = entry.contentType
    if entry.hasVerdict { self.verdict = entry.verdict }
    self.partition = entry.partition
    self.offset = entry.offset
    self.publishedAtMs = entry.publishedAtMs
    self.attributes = entry.attributes
  }
}
