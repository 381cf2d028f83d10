// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQReplication
import MemQRuntime
import MemQStorage
import MemQSystem
import SwiftProtobuf
import Synchronization

/// Numbers the readers of this process.
private let lastReader = Atomic<UInt64>(0)

extension ReplicationNode {
  private static let readBytesMax = 64 << 20
  private static let readWaitMax: Duration = .seconds(60)
  /// One message: small enough to interleave with others on the connection, and any batch fits.
  private static let messageBytes = 1 << 20

  /// Sends committed batches from an offset on, once there are enough of them or the wait is over.
  func read(
    _ request: Memq_V1_ReadRequest, to writer: TypedWriter<Hot<Memq_V1_ReadResponse>>
  ) async throws(MemQError) {
    let plan = try ReadPlan(request, now: self.clock.monotonic, Self.readBytesMax, Self.readWaitMax)
    var offset = plan.offset
    var sent = 0
    var view = try await self.view(plan, from: offset, lastEpoch: plan.lastEpoch)
    if let truncation = view.truncation {
      return try await writer.send(Hot(view.response(truncation)))
    }
    var stuckAt: Offset?
    while true {
      while offset < view.highWatermark && sent < plan.bytesMax {
        let result = try await self.read(
          view, plan.partition, from: offset,
          maxBytes: Swift.min(plan.bytesMax - sent, Self.messageBytes))
        guard result.nextOffset > offset else {
          // Once may be a log that is just being cut: what does its leader say now?
          guard stuckAt != offset else { throw Self.missing(offset, view) }
          stuckAt = offset
          view = try await self.view(plan, from: offset)
          continue
        }
        offset = result.nextOffset
        let payload = RPCMessage(slices: result.slices)
        sent += payload.byteCount
        self.metrics.read(bytes: payload.byteCount)
        try await writer.send(Hot(view.response(next: offset), payload: payload))
      }
      let isEnough = sent >= plan.bytesMin || sent >= plan.bytesMax
      if isEnough || self.clock.monotonic >= plan.deadline { break }
      view = try await self.view(plan, from: offset)
    }
    if sent == 0 { try await writer.send(Hot(view.response(next: offset))) }
  }

  /// Reads from the volume; what is damaged is told so that the reader finds it elsewhere, where it can be found.
  private func read(
    _ view: PartitionView, _ partition: TopicPartition, from offset: Offset, maxBytes: Int
  ) async throws(MemQError) -> Volume.ReadResult {
    do throws(MemQError) {
      return try await view.volume.read(
        partition, from: offset, below: view.highWatermark, maxBytes: maxBytes)
    } catch {
      guard error.code == .logCorrupt, let shard = self.shard(of: partition) else { throw error }
      throw await Self.ask(shard) { shard in
        shard.partitions[partition]?.damageError(error, at: offset) ?? shard.missing(partition)
      }
    }
  }

  private static func missing(_ offset: Offset, _ view: PartitionView) -> MemQError {
    MemQError(
      .logCorrupt,
      "the log has nothing at offset \(offset), below its high watermark; repair this replica from another one",
      subject: view.name, limit: view.highWatermark.rawValue, actual: offset.rawValue)
  }

  /// The leader's positions once there is something at `offset`, or the wait is over.
  private func view(
    _ plan: ReadPlan, from offset: Offset, lastEpoch: LeaderEpoch? = nil
  ) async throws(MemQError) -> PartitionView {
    let shard = try self.requireShard(of: plan.partition)
    let id = lastReader.wrappingAdd(1, ordering: .relaxed).newValue
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let reader = PartitionReader(
          id: id, offset: offset, leaderEpoch: plan.leaderEpoch, lastEpoch: lastEpoch,
          deadline: plan.deadline, continuation)
        shard.mailbox.post(
          .run { shard in
            guard let owner = shard.partitions[plan.partition] else {
              return reader.resume(shard.damaged(plan.partition, offset))
            }
            owner.add(reader)
          })
      }
    } onCancel: {
      shard.mailbox.post(.run { $0.partitions[plan.partition]?.endWait(id) })
    }
    if Task.isCancelled { throw MemQError(.cancelled, "the reader is gone") }
    return try result.get()
  }
}

/// A read request, checked.
private struct ReadPlan: Sendable {
  let partition: TopicPartition
  let offset: Offset
  let bytesMax: Int
  let bytesMin: Int
  let deadline: MonotonicInstant
  let leaderEpoch: LeaderEpoch?
  let lastEpoch: LeaderEpoch?

  init(
    _ request: Memq_V1_ReadRequest, now: MonotonicInstant, _ bytesMax: Int, _ waitMax: Duration
  ) throws(MemQError) {
    func check(_ name: String, _ value: Int32, _ limit: Int64) throws(MemQError) {
      guard value >= 0, Int64(value) <= limit else {
        throw MemQError(
          .invalidArgument, "\(name) is out of range", subject: name, limit: limit,
          actual: Int64(value))
      }
    }
    try check("max_bytes", request.maxBytes, Int64(bytesMax))
    try check("min_bytes", request.minBytes, Int64(bytesMax))
    try check("wait_max_ms", request.waitMaxMs, waitMax.milliseconds)
    self.partition = try TopicPartition(request.topicPartition)
    self.offset = Offset(request.offset)
    self.bytesMax = request.maxBytes == 0 ? 1 << 20 : Int(request.maxBytes)
    self.bytesMin = Swift.max(1, Int(request.minBytes))
    self.deadline = now + .milliseconds(request.waitMaxMs)
    self.leaderEpoch = request.leaderEpoch < 0 ? nil : LeaderEpoch(request.leaderEpoch)
    self.lastEpoch = request.hasLastEpoch ? LeaderEpoch(request.lastEpoch) : nil
  }
}

extension PartitionView {
  fileprivate func response(next: Offset) -> Memq_V1_ReadResponse {
    .with {
      $0.highWatermark = self.highWatermark.rawValue
      $0.logStartOffset = self.logStart.rawValue
      $0.localStartOffset = self.localStart.rawValue
      $0.nextOffset = next.rawValue
      if let epoch = self.epochs.epoch(before: next) { $0.lastEpoch = epoch.rawValue }
    }
  }

  fileprivate func response(_ truncation: LogTruncation) -> Memq_V1_ReadResponse {
    .with {
      $0.highWatermark = self.highWatermark.rawValue
      $0.logStartOffset = self.logStart.rawValue
      $0.localStartOffset = self.localStart.rawValue
      $0.nextOffset = truncation.resume.rawValue
      $0.truncation = Memq_V1_LogTruncation(truncation)
    }
  }
}

extension PartitionShard {
  /// For a reader of a partition that has no owner.
  fileprivate func damaged(
    _ partition: TopicPartition, _ offset: Offset
  ) -> Result<PartitionView, MemQError> {
    do throws(MemQError) {
      let view = try self.damagedView(partition)
      guard offset < view.logEnd else { throw self.missing(partition) }
      try view.check(offset, view.name)
      return .success(view)
    } catch {
      return .failure(error)
    }
  }
}
