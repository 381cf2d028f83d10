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

// Consumer groups and their offsets.
extension MetadataNode {
  func registerGroupCalls(on router: inout RPCRouter) {
    router.handle(MetadataMethods.joinGroup) { request, _ in try await self.joinGroup(request) }
    router.handle(MetadataMethods.heartbeatGroup) { request, _ in
      try await self.instance().controller.heartbeatGroup(
        GroupSession(
          group: request.group, memberID: request.memberID, epoch: request.groupEpoch))
      return Memq_V1_HeartbeatGroupResponse()
    }
    router.handle(MetadataMethods.leaveGroup) { request, _ in
      try await self.instance().controller.leaveGroup(
        GroupSession(
          group: request.group, memberID: request.memberID, epoch: request.groupEpoch))
      return Memq_V1_LeaveGroupResponse()
    }
    router.handle(MetadataMethods.commitOffsets) { request, _ in
      try await self.commitOffsets(request)
      return Memq_V1_CommitOffsetsResponse()
    }
    router.handle(MetadataMethods.fetchOffsets) { request, _ in
      try await self.fetchOffsets(request)
    }
    router.handle(MetadataMethods.listGroups) { request, _ in
      try await self.listGroups(request)
    }
    router.handle(MetadataMethods.deleteGroup) { request, _ in
      try await self.deleteGroup(request.group)
      return Memq_V1_DeleteGroupResponse()
    }
  }

  private func joinGroup(
    _ request: Memq_V1_JoinGroupRequest
  ) async throws(MemQError) -> Memq_V1_JoinGroupResponse {
    let place = try await self.instance().controller.joinGroup(
      GroupJoin(
        group: request.group, topics: request.topics, clientID: request.clientID,
        sessionTimeout: .milliseconds(Int64(request.sessionTimeoutMs)),
        nonce: self.entropy.identifier(NodeUUID.self).value))
    return .with {
      $0.memberID = place.memberID
      $0.groupEpoch = place.epoch
      $0.assigned = place.assigned.map(\.wire)
    }
  }

  private func commitOffsets(_ request: Memq_V1_CommitOffsetsRequest) async throws(MemQError) {
    let instance = try self.instance()
    let session = GroupSession(
      group: request.group, memberID: request.memberID, epoch: request.groupEpoch)
    var commits: [OffsetCommit] = []
    for offset in request.offsets {
      commits.append(
        OffsetCommit(
          partition: try TopicPartition(offset.topicPartition), offset: Offset(offset.offset),
          metadata: offset.metadata))
    }
    let offsets = commits
    let chunks = try instance.cell.read { (state) throws(MemQError) in
      try state.chunks(of: offsets)
    }
    let now = self.clock.wall
    _ = try await instance.runner.run(
      "commit-offsets",
      reading: { (_: Int) throws(MemQError) in
        try await Self.readChunks(chunks, of: session.group, from: instance.store)
      }
    ) { state, known throws(MemQError) in
      try state.commitOffsets(session, offsets, known: known, at: now)
    }
  }

  private static func readChunks(
    _ chunks: [OffsetChunkID], of group: String, from store: any MetadataStore
  ) async throws(MemQError) -> SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>> {
    var known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>> = [:]
    var rest = chunks[...]
    while !rest.isEmpty {
      let page = rest.prefix(StoreLimits.keysPerGetMax)
      rest = rest.dropFirst(page.count)
      let entries = try await store.get(
        page.map { .offsets(group, $0.topic, chunk: $0.chunk) })
      for (id, entry) in zip(page, entries) {
        if let entry { known[id] = try Versioned<OffsetChunkRecord>(entry) }
      }
    }
    return known
  }

  /// Committed offsets of a group, of topics that exist, in order.
  private func offsets(
    of group: String, in instance: MetadataInstance
  ) async throws(MemQError) -> [Memq_V1_GroupOffset] {
    var found: [Memq_V1_GroupOffset] = []
    var rest = KeyRange(prefix: .offsets(group))
    while true {
      let page = try await instance.store.range(rest, limit: 1_000)
      for entry in page.entries {
        let chunk = try OffsetChunkRecord(entry)
        guard instance.cell.read({ $0.topics[chunk.topic] }) != nil else { continue }
        found += chunk.offsets.map { partition, offset in
          .with {
            $0.topicPartition = TopicPartition(chunk.topic, partition).wire
            $0.offset = offset.offset.rawValue
            $0.metadata = offset.metadata
            $0.committedAtMs = offset.committedAt.milliseconds
          }
        }
      }
      guard page.hasMore, let last = page.entries.last else { return found }
      rest = rest.after(last.key)
    }
  }

  private func fetchOffsets(
    _ request: Memq_V1_FetchOffsetsRequest
  ) async throws(MemQError) -> Memq_V1_FetchOffsetsResponse {
    try MetadataState.checkGroupName(request.group)
    let wanted = Set(request.partitions)
    var offsets = try await self.offsets(of: request.group, in: try self.instance())
    if !wanted.isEmpty {
      offsets = offsets.filter { wanted.contains($0.topicPartition) }
    }
    return .with { [offsets] in $0.offsets = offsets }
  }

  private func listGroups(
    _ request: Memq_V1_ListGroupsRequest
  ) async throws(MemQError) -> Memq_V1_ListGroupsResponse {
    let instance = try self.instance()
    let limit = try pageSize(request.limit, default: 1_000, max: 10_000)
    let groups = instance.cell.read { state in
      state.groups.values.map(\.value).filter {
        $0.name.utf8.starts(with: request.prefix.utf8)
          && (request.after.isEmpty || $0.name > request.after)
      }
    }
    var page = PageFill<Memq_V1_GroupDescription>(limit: limit)
    for group in groups {
      var description = Memq_V1_GroupDescription()
      description.group = group.name
      description.groupEpoch = group.epoch
      description.memberID = group.member?.id ?? ""
      description.clientID = group.member?.clientID ?? ""
      description.topics = group.member?.topics ?? []
      description.offsets = try await self.offsets(of: group.name, in: instance)
      guard page.add(description) else {
        return .with { [page] in
          $0.groups = page.entries
          $0.more = true
        }
      }
    }
    return .with { [page] in $0.groups = page.entries }
  }

  private func deleteGroup(_ name: String) async throws(MemQError) {
    let instance = try self.instance()
    _ = try await instance.runner.run(
      "delete-group",
      reading: { (_: Int) throws(MemQError) in
        var keys: [StoreKey] = []
        var rest = KeyRange(prefix: .offsets(name))
        while true {
          let page = try await instance.store.range(rest, limit: 1_000)
          keys += page.entries.map(\.key)
          guard page.hasMore, let last = page.entries.last else { return keys }
          rest = rest.after(last.key)
        }
      }
    ) { (state: MetadataState, keys: [StoreKey]) throws(MemQError) in
      try state.deleteGroup(name, offsets: keys)
    }
    self.logger.info("Group deleted", metadata: ["group": "\(name)"])
  }
}
