// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
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

/// Keeps copies of record batches that were refused for malware, beside quarantined files, for a person to look at.
///
/// A copy is named after its bytes: a producer that sends the same batch again makes no second one. What can't be copied is
/// refused all the same.
struct RecordQuarantine: Sendable {
  /// Copies made at a time.
  static let copiesMax = 4
  /// Batches that wait for their copy, each held in memory meanwhile; beyond, a flood of malware is refused without copies.
  static let waitingMax = 16
  /// How long the producer's answer waits for it, and an uploader may take.
  static let timeout: Duration = .seconds(10)

  let cluster: any IngestCluster
  let uploads: UploadCalls
  let permits: Permits
  let metrics: IngestMetrics

  init(cluster: any IngestCluster, metrics: IngestMetrics) {
    self.cluster = cluster
    self.uploads = UploadCalls(cluster: cluster)
    self.permits = Permits(
      Self.copiesMax, waitersMax: Self.waitingMax, what: "copies for quarantine")
    self.metrics = metrics
  }

  /// - Parameter name: "topic/partition".
  /// - Returns: the entry's id; nil when no copy could be made.
  func keep(
    _ batch: RPCMessage, of partition: TopicPartition, name: String, verdict: Memq_V1_Verdict
  ) async -> UploadID? {
    let outcome = Outcome<UploadID?>()
    // Not a child: the answer does not wait longer for a copy than it may.
    RPCScope.beyondCall {
      Task {
        do throws(MemQError) {
          let id = try await self.permits.with { () async throws(MemQError) in
            try await self.copy(batch, partition, name, verdict)
          }
          self.metrics.quarantined("copied")
          outcome.set(id)
        } catch {
          self.metrics.quarantined("failed")
          outcome.set(nil)
        }
      }
    }
    return await outcome.wait(Self.timeout) ?? nil
  }

  private func copy(
    _ batch: RPCMessage, _ partition: TopicPartition, _ name: String, _ verdict: Memq_V1_Verdict
  ) async throws(MemQError) -> UploadID {
    let bytes = Array(batch.contiguous().readableBytesView)
    let digest = SHA256.digest(of: bytes)
    var place = SHA256()
    place.update(Array("\(partition)".utf8))
    place.update(digest)
    guard let id = UploadID(bytes: place.digest().prefix(16)) else {
      preconditionFailure("an id has 16 bytes")
    }
    if let known = try await self.uploads.get(id) {
      guard known.state == .quarantined else {
        throw MemQError(.quarantineEntryNotFound, "somebody has deleted the copy", subject: "\(id)")
      }
      return id
    }
    var upload = Memq_V1_UploadRecord()
    upload.uploadID = id.wire
    upload.topicID = partition.topic.wire
    upload.name = "records/\(name)/\(id)"
    upload.state = .quarantined
    upload.contentType = QuarantinedRecords.contentType
    upload.declaredSize = Int64(bytes.count)
    upload.offset = Int64(bytes.count)
    upload.sha256 = Data(digest)
    upload.partition = partition.partition.rawValue
    upload.recordOffset = -1
    upload.verdict = verdict
    if bytes.count <= Limits.inlineFileBytesMax {
      upload.inlineBody = Data(bytes)
    } else {
      upload.bodyKey = ObjectKey.body(id, topic: partition.topic).text
      try await self.store(batch, upload)
    }
    _ = try await self.uploads.create(upload)
    return id
  }

  private func store(
    _ batch: RPCMessage, _ upload: Memq_V1_UploadRecord
  ) async throws(MemQError) {
    let stream = try await BodyStream.open(
      upload, at: 0, digest: SHA256(), cluster: self.cluster)
    let limit = Task {
      try? await Task.sleep(for: Self.timeout)
      stream.cancel()
    }
    defer { limit.cancel() }
    try await stream.write(batch)
    try await stream.finish(size: Int64(batch.byteCount))
    while case .part = try await stream.nextDurable() {}
  }
}
