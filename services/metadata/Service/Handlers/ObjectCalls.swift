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

// The object tier: leases, commits, the collector.
extension MetadataNode {
  func registerObjectCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.acquireUploadLeases) { request, _ in
      try await self.acquireLeases(request)
    }
    router.handle(MetadataMethods.commitObject) { request, _ in
      try await self.commitObject(request)
    }
    router.handle(MetadataMethods.listObjects) { request, _ in
      try await self.listObjects(request)
    }
    router.handle(MetadataMethods.barObject) { request, _ in
      let id = try ObjectID(wire: request.objectID, "object_id")
      let isLive = try await self.objectCommand("bar-object", id) {
        state, known throws(MemQError) in
        state.barObject(id, group: request.groupID, known: known)
      }
      return .with { $0.live = isLive }
    }
    router.handle(MetadataMethods.removeObject) { request, _ in
      try await self.removeObject(request)
      return Memq_V1_RemoveObjectResponse()
    }
  }

  private func acquireLeases(
    _ request: Memq_V1_AcquireUploadLeasesRequest
  ) async throws(MemQError) -> Memq_V1_AcquireUploadLeasesResponse {
    let groups = try await self.instance().controller.acquireLeases(
      LeaseRequest(
        node: NodeID(request.nodeID), nodeEpoch: NodeEpoch(request.nodeEpoch), held: request.held,
        moreMax: Int(request.moreMax), release: request.release))
    return .with {
      $0.leases = groups.map { group in
        .with {
          $0.groupID = group.group.id
          $0.leaseEpoch = group.group.leaseEpoch.rawValue
          $0.positions = group.positions.map { Memq_V1_UploadPosition($0.0, $0.1) }
        }
      }
      $0.ttlMs = Int32(self.configuration.leaseTimeout.milliseconds)
    }
  }

  /// A command that turns on what became of an object id.
  @discardableResult
  private func objectCommand<Outcome: Sendable>(
    _ name: String, _ id: ObjectID,
    _ plan: (MetadataState, ObjectIDRecord?) throws(MemQError) -> Plan<Outcome>
  ) async throws(MemQError) -> Outcome {
    let instance = try self.instance()
    return try await instance.runner.run(
      name,
      reading: { (_: Int) throws(MemQError) in
        try await instance.store.get([.objectID(id)])[0].map { entry throws(MemQError) in
          try ObjectIDRecord(entry)
        }
      }, plan
    ).outcome
  }

  private func removeObject(_ request: Memq_V1_RemoveObjectRequest) async throws(MemQError) {
    let id = try ObjectID(wire: request.objectID, "object_id")
    let instance = try self.instance()
    let keys = [StoreKey.objectID(id), .object(request.groupID, request.sequence)]
    _ = try await instance.runner.run(
      "remove-object",
      reading: { (_: Int) throws(MemQError) in
        let found = try await instance.store.get(keys)
        return (
          try found[0].map { entry throws(MemQError) in try ObjectIDRecord(entry) },
          try found[1].map { entry throws(MemQError) in try ObjectRecord(entry) }
        )
      }
    ) { state, found throws(MemQError) in
      try state.removeObject(
        id, group: request.groupID, sequence: request.sequence, known: found.0, object: found.1)
    }
  }

  private func commitObject(
    _ request: Memq_V1_CommitObjectRequest
  ) async throws(MemQError) -> Memq_V1_CommitObjectResponse {
    var ranges: [UploadedRange] = []
    for range in request.ranges {
      ranges.append(
        UploadedRange(
          partition: try TopicPartition(range.topicPartition), base: Offset(range.baseOffset),
          end: Offset(range.endOffset), historyEpoch: HistoryEpoch(range.historyEpoch),
          lastEpoch: range.hasLastLeaderEpoch ? LeaderEpoch(range.lastLeaderEpoch) : .none))
    }
    var object = try ObjectRecord(request.object)
    object.announcedAt = self.clock.wall
    let commit = ObjectCommit(
      node: NodeID(request.nodeID), nodeEpoch: NodeEpoch(request.nodeEpoch),
      object: object, ranges: ranges,
      billedRequests: request.billedRequests)
    let outcome = try await self.objectCommand("commit-object", commit.object.id) {
      state, known throws(MemQError) in
      try state.commitObject(commit, known: known)
    }
    if !outcome.refused.isEmpty {
      self.logger.warning(
        "Ranges of an object do not continue what is uploaded",
        metadata: [
          "object.id": "\(commit.object.id)", "upload.group": "\(commit.object.group)",
          "refused": "\(outcome.refused.count)", "ranges": "\(ranges.count)",
        ])
    }
    return .with {
      $0.sequence = outcome.sequence
      $0.refused = outcome.refused
      $0.positions = outcome.positions.map { Memq_V1_UploadPosition($0.0, $0.1) }
    }
  }

  private func listObjects(
    _ request: Memq_V1_ListObjectsRequest
  ) async throws(MemQError) -> Memq_V1_ListObjectsResponse {
    let limit = try pageSize(request.limit, default: 1_000, max: 10_000)
    let after = StoreKey.object(request.groupID, max(request.afterSequence, 0))
    let page = try await self.instance().store.page(
      KeyRange(prefix: .objects(request.groupID)).after(after), limit: limit
    ) { entry throws(MemQError) in try ObjectRecord(entry).wire }
    return .with {
      $0.objects = page.entries
      $0.more = page.hasMore
    }
  }
}

extension Memq_V1_UploadPosition {
  init(_ partition: TopicPartition, _ position: UploadPosition) {
    self.init()
    self.topicPartition = partition.wire
    self.nextOffset = position.next.rawValue
    self.historyEpoch = position.historyEpoch.rawValue
  }
}

extension ObjectRecord {
  init(_ wire: Memq_V1_ObjectRecord) throws(MemQError) {
    self.init(
      id: try ObjectID(wire: wire.objectID, "object_id"), group: wire.groupID,
      sequence: wire.sequence, key: wire.key, byteCount: wire.size, footerBytes: wire.footerBytes,
      minTimestamp: Timestamp(milliseconds: wire.minTimestampMs),
      maxTimestamp: Timestamp(milliseconds: wire.maxTimestampMs),
      leaseEpoch: LeaseEpoch(wire.leaseEpoch),
      announcedAt: Timestamp(milliseconds: wire.announcedAtMs))
  }
  var wire: Memq_V1_ObjectRecord {
    .with {
      $0.objectID = self.id.wire
      $0.groupID = self.group
      $0.sequence = self.sequence
      $0.key = self.key
      $0.size = self.byteCount
      $0.footerBytes = self.footerBytes
      $0.minTimestampMs = self.minTimestamp.milliseconds
      $0.maxTimestampMs = self.maxTimestamp.milliseconds
      $0.leaseEpoch = self.leaseEpoch.rawValue
      $0.announcedAtMs = self.announcedAt.milliseconds
    }
  }
}
