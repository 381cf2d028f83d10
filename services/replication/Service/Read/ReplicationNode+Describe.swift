// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQLog
import MemQModel
import MemQRecords
import MemQReplication
import MemQRuntime
import MemQStorage
import NIOCore
import SwiftProtobuf

extension ReplicationNode {
  /// Partitions one request may name.
  private static let partitionsMax = 10_000

  func listOffsets(
    _ request: Memq_V1_ListOffsetsRequest
  ) async throws(MemQError) -> Memq_V1_ListOffsetsResponse {
    try Self.check(request.partitions.count)
    var response = Memq_V1_ListOffsetsResponse()
    for wire in request.partitions {
      var entry = Memq_V1_PartitionOffset()
      entry.topicPartition = wire
      entry.offset = -1
      entry.leaderEpoch = -1
      do throws(MemQError) {
        try await self.fill(&entry, try TopicPartition(wire), request)
      } catch {
        entry.error = Memq_V1_ErrorDetail(error)
      }
      response.offsets.append(entry)
    }
    return response
  }

  private static func check(_ count: Int) throws(MemQError) {
    guard count <= Self.partitionsMax else {
      throw MemQError(
        .invalidArgument, "too many partitions in one request", subject: "partitions",
        limit: Int64(Self.partitionsMax), actual: Int64(count))
    }
  }

  private func fill(
    _ entry: inout Memq_V1_PartitionOffset, _ partition: TopicPartition,
    _ request: Memq_V1_ListOffsetsRequest
  ) async throws(MemQError) {
    let view = try await self.leaderView(partition, request.spec)
    entry.leaderEpoch = view.leaderEpoch.rawValue
    entry.highWatermark = view.highWatermark.rawValue
    entry.logStartOffset = view.logStart.rawValue
    switch request.spec {
    case .earliest: entry.offset = view.logStart.rawValue
    case .localStart: entry.offset = view.localStart.rawValue
    case .latest:
      // An end told once must never go back.
      guard view.isHighWatermarkCurrent else {
        throw MemQError(
          .leaderNotAvailable, "the new leader doesn't know the committed end yet",
          subject: view.name)
      }
      entry.offset = view.highWatermark.rawValue
    case .timestamp:
      let found = try await view.offset(
        at: Timestamp(milliseconds: request.timestampMs), of: partition)
      entry.offset = found?.rawValue ?? -1
    case .unspecified, .UNRECOGNIZED:
      throw MemQError(
        .invalidArgument, "no such offset specification", subject: "spec",
        actual: Int64(request.spec.rawValue))
    }
  }

  private func leaderView(
    _ partition: TopicPartition, _ spec: Memq_V1_OffsetSpec
  ) async throws(MemQError) -> PartitionView {
    let shard = try self.requireShard(of: partition)
    let result = await Self.ask(shard) { shard -> Result<PartitionView, MemQError> in
      do throws(MemQError) {
        guard let owner = shard.partitions[partition] else {
          // Where its records end, a damaged log doesn't know.
          guard spec != .latest else { throw shard.missing(partition) }
          return .success(try shard.damagedView(partition))
        }
        return .success(try owner.leaderView(epoch: nil))
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

  func describe(
    _ request: Memq_V1_DescribeReplicasRequest
  ) async throws(MemQError) -> Memq_V1_DescribeReplicasResponse {
    try Self.check(request.partitions.count)
    var wanted: Set<TopicPartition> = []
    for wire in request.partitions { wanted.insert(try TopicPartition(wire)) }
    let filter = wanted
    var replicas: [Memq_V1_ReplicaDescription] = []
    for shard in self.allShards {
      replicas += await Self.ask(shard) { shard in
        shard.partitions.values.filter { filter.isEmpty || filter.contains($0.id) }
          .map(\.description)
      }
    }
    replicas.sort {
      ($0.topicPartition.topicID.lexicographicallyPrecedes($1.topicPartition.topicID))
        || $0.topicPartition.topicID == $1.topicPartition.topicID
          && $0.topicPartition.partition < $1.topicPartition.partition
    }
    return .with {
      $0.replicas = replicas
      $0.volumes = self.allVolumes.map { open in
        let stats = open.volume.stats
        return .with {
          $0.volumeID = open.volume.id.wire
          $0.path = open.volume.path
          $0.capacityBytes =
            Int64(stats.log.segmentsUsed + stats.log.segmentsFree) * stats.segmentBytes
          $0.usedBytes = Int64(stats.log.segmentsUsed) * stats.segmentBytes
          $0.healthy = open.problem == nil
        }
      }
      $0.volumes += self.closedVolumes.map { closed in
        .with {
          $0.volumeID = closed.id.wire
          $0.path = closed.path
        }
      }
    }
  }
}

extension PartitionOwner {
  fileprivate var description: Memq_V1_ReplicaDescription {
    let log = self.core.log
    let local = self.lane.volume.localBytes(self.id)
    return .with {
      $0.topicPartition = self.id.wire
      $0.leader = self.core.leader != nil
      $0.leaderEpoch = self.core.leaderEpoch.rawValue
      $0.logStartOffset = self.logStart.rawValue
      $0.localStartOffset = log.localStart.rawValue
      $0.logEndOffset = log.end.rawValue
      $0.highWatermark = log.highWatermark.rawValue
      $0.localBytes = local.bytes
      $0.volumeID = self.lane.volume.id.wire
      $0.uploadedOffset = log.uploadedOffset.rawValue
    }
  }
}

extension PartitionView {
  /// The first committed record with this timestamp or a later one; nil: there is none on this volume.
  fileprivate func offset(
    at time: Timestamp, of partition: TopicPartition
  ) async throws(MemQError) -> Offset? {
    guard var offset = try await self.volume.offset(partition, forTimestamp: time) else {
      return nil
    }
    while offset < self.highWatermark {
      let result = try await self.volume.read(
        partition, from: offset, below: self.highWatermark, maxBytes: 1)
      var bytes: [UInt8] = []
      for slice in result.slices { bytes.append(contentsOf: slice.readableBytesView) }
      var batches = RecordBatchIterator(bytes)
      while let batch = try batches.next() {
        guard batch.header.maxTimestamp >= time else { continue }
        let records = try batches.records(of: batch)
        if let found = records.first(where: { $0.timestamp >= time }) { return found.offset }
      }
      guard result.nextOffset > offset else { return nil }
      offset = result.nextOffset
    }
    return nil
  }
}
