// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQPacking
import MemQRecords
import MemQRPC
import MemQRuntime
import MemQSystem
import Metrics
import NIOCore
import SwiftProtobuf

/// One object on its way: planned, put, announced. Transient failures are tried again for ever, until the lease is lost
/// (the task is cancelled then); the same bytes go under the same key each time.
struct ObjectUpload: Sendable {
  struct Commit: Sendable {
    /// Indices of refused ranges.
    var refused: [Int]
    var positions: [UploadPacker.Position]
  }

  let id: ObjectID
  let group: Int32
  let leaseEpoch: LeaseEpoch
  let runs: [RunBuilder]
  /// All runs' bytes in the order of their partitions.
  let batches: [ByteBuffer]
  let ranges: [UploadPacker.Range]
  let context: UploaderContext

  func run() async throws(MemQError) -> Commit {
    let started = self.context.clock.monotonic
    let image = self.context.cluster.image
    let plan = try ObjectPlan(
      identity: ObjectIdentity(
        clusterID: image.clusterID, incarnation: image.incarnation,
        incarnationID: image.incarnationID, objectID: self.id, groupID: self.group,
        leaseEpoch: self.leaseEpoch), runs: self.runs)
    try await self.put(plan)
    let commit = try await self.commit(plan)
    self.note(plan, commit, since: started)
    if commit.refused.count == self.ranges.count { await self.discard() }
    return commit
  }

  private var key: ObjectKey { .object(self.id, group: self.group) }

  private func put(_ plan: ObjectPlan) async throws(MemQError) {
    let slices = [ByteBuffer(bytes: plan.head)] + self.batches + [ByteBuffer(bytes: plan.tail)]
    var crc = CRC32C()
    for slice in slices { slice.withUnsafeReadableBytes { crc.update($0) } }
    let (source, checksum) = (ObjectSource(slices: slices), crc.value)
    try await self.forEver(.put) { () async throws(MemQError) in
      try await self.context.store.put(
        self.key, source, crc32c: checksum, timeout: self.context.configuration.putTimeout)
    }
  }

  private func commit(_ plan: ObjectPlan) async throws(MemQError) -> Commit {
    let billed = self.context.takeBilled()
    let request = self.request(plan, billed)
    do throws(MemQError) {
      let response = try await self.forEver(.commit) { () async throws(MemQError) in
        // A node that had to register again holds no lease of its earlier life.
        try await self.context.cluster.metadata.call(
          MetadataMethods.commitObject, request, timeout: .seconds(10))
      }
      var positions: [UploadPacker.Position] = []
      for position in response.positions { positions.append(try UploadPacker.Position(position)) }
      return Commit(refused: response.refused.map(Int.init), positions: positions)
    } catch {
      // Nobody knows whether it counted; counting twice is the lesser evil than never.
      self.context.giveBackBilled(billed)
      throw error
    }
  }

  private func request(_ plan: ObjectPlan, _ billed: Int64) -> Memq_V1_CommitObjectRequest {
    .with {
      $0.nodeID = self.context.cluster.nodeID.rawValue
      $0.nodeEpoch = self.context.cluster.nodeEpoch.rawValue
      $0.object.objectID = self.id.wire
      $0.object.groupID = self.group
      $0.object.key = self.key.text
      $0.object.size = plan.byteCount
      $0.object.footerBytes = plan.footer.footerByteCount
      $0.object.minTimestampMs = plan.footer.minTimestamp.milliseconds
      $0.object.maxTimestampMs = plan.footer.maxTimestamp.milliseconds
      $0.object.leaseEpoch = self.leaseEpoch.rawValue
      $0.ranges = self.ranges.map { range in
        .with {
          $0.topicPartition = range.partition.wire
          $0.baseOffset = range.baseOffset.rawValue
          $0.endOffset = range.endOffset.rawValue
          $0.historyEpoch = range.historyEpoch.rawValue
          if let last = plan.footer.run(of: range.partition)?.epochStarts.last {
            $0.lastLeaderEpoch = last.epoch.rawValue
          }
        }
      }
      $0.billedRequests = billed
    }
  }

  /// Tries again, with longer and longer waits, what may succeed later.
  private func forEver<Value: Sendable>(
    _ step: UploaderMetrics.Step, _ body: () async throws(MemQError) -> Value
  ) async throws(MemQError) -> Value {
    var backoff = JitteredBackoff(max: .seconds(30), entropy: self.context.entropy)
    while true {
      do throws(MemQError) {
        return try await body()
      } catch {
        // A lost lease is retriable for who asks again with a new one; not for this object.
        guard error.isRetriable, error.code != .leaseLost, !Task.isCancelled else { throw error }
        self.context.metrics.failed(step)
        let wait = backoff.next()
        self.context.logger.warning(
          "A step of an upload failed; it is tried again",
          metadata: [
            "step": "\(step.rawValue)", "upload.group": "\(self.group)", "object": "\(self.id)",
            "error": "\(error)", "wait.ms": "\(wait.milliseconds)",
          ])
        guard (try? await Task.sleep(for: wait)) != nil else { throw error }
      }
    }
  }

  private func note(_ plan: ObjectPlan, _ commit: Commit, since started: MonotonicInstant) {
    let metrics = self.context.metrics
    let accepted = self.ranges.indices.filter { !commit.refused.contains($0) }
    metrics.refusedRanges.increment(by: commit.refused.count)
    metrics.uploadDuration.recordNanoseconds(
      (self.context.clock.monotonic - started).nanoseconds)
    guard !accepted.isEmpty else { return }
    let records = accepted.reduce(0) {
      $0 + (self.ranges[$1].endOffset - self.ranges[$1].baseOffset)
    }
    metrics.objects.increment()
    metrics.objectBytes.increment(by: plan.byteCount)
    metrics.records.increment(by: records)
    self.context.logger.debug(
      "Object announced",
      metadata: [
        "object": "\(self.id)", "upload.group": "\(self.group)", "bytes": "\(plan.byteCount)",
        "records": "\(records)", "partitions": "\(accepted.count)",
        "refused": "\(commit.refused.count)",
      ])
  }

  /// An object none of whose ranges counted is not in the list: its bytes go at once.
  private func discard() async {
    do throws(MemQError) {
      try await Orphans.remove(self.id, group: self.group, self.context)
    } catch {
      // The search for orphans finds it.
      self.context.metrics.failed(.collect)
    }
  }
}

extension UploadPacker.Position {
  init(_ wire: Memq_V1_UploadPosition) throws(MemQError) {
    self.init(
      partition: try TopicPartition(wire.topicPartition), nextOffset: Offset(wire.nextOffset),
      historyEpoch: HistoryEpoch(wire.historyEpoch))
  }
}
