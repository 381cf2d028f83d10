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
      try await self.heartbeatGroup(request)
    }
    router.handle(MetadataMethods.leaveGroup) { request, _ in
      try await self.instance().controller.groups.leave(
        GroupSession(
          group: request.group, memberID: request.memberID, epoch: request.memberEpoch,
          instanceID: request.instanceID))
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
    router.handle(MetadataMethods.describeGroup) { request, _ in
      try await self.describeGroup(request.group)
    }
    router.handle(MetadataMethods.deleteGroup) { request, _ in
      try await self.deleteGroup(request.group)
      return Memq_V1_DeleteGroupResponse()
    }
  }

  private func joinGroup(
    _ request: Memq_V1_JoinGroupRequest
  ) async throws(MemQError) -> Memq_V1_JoinGroupResponse {
    var join = GroupJoin(
      group: request.group, topics: request.topics, clientID: request.clientID,
      sessionTimeout: .milliseconds(Int64(request.sessionTimeoutMs)),
      nonce: self.entropy.identifier(NodeUUID.self).value)
    join.memberID = request.memberID
    join.instanceID = request.instanceID
    join.host = request.host
    join.rebalanceTimeout = .milliseconds(Int64(request.rebalanceTimeoutMs))
    join.only = try partitions(request.only)
    let place = try await self.instance().controller.groups.join(join)
    return .with {
      $0.memberID = place.memberID
      $0.memberEpoch = place.epoch
      $0.assigned = place.assigned.map(\.wire)
      $0.waiting = place.isWaiting
    }
  }

  private func heartbeatGroup(
    _ request: Memq_V1_HeartbeatGroupRequest
  ) async throws(MemQError) -> Memq_V1_HeartbeatGroupResponse {
    let groups = try self.instance().controller.groups
    let session = GroupSession(
      group: request.group, memberID: request.memberID, epoch: request.memberEpoch,
      instanceID: request.instanceID)
    if request.brokeOff {
      await groups.brokeOff(session, number: request.number)
      return Memq_V1_HeartbeatGroupResponse()
    }
    let reading = request.hasReading ? try partitions(request.reading.partitions) : nil
    let (place, isNews, next) = try await groups.heartbeat(
      GroupBeat(
        session: session, reading: reading, waitMax: .milliseconds(Int64(request.waitMaxMs)),
        number: request.number))
    return .with {
      $0.memberEpoch = place.epoch
      $0.waiting = place.isWaiting
      if isNews { $0.assigned.partitions = place.assigned.map(\.wire) }
      $0.nextMs = Int32(clamping: next.milliseconds)
    }
  }

  private func commitOffsets(_ request: Memq_V1_CommitOffsetsRequest) async throws(MemQError) {
    let instance = try self.instance()
    let session = GroupSession(
      group: request.group, memberID: request.memberID, epoch: request.memberEpoch,
      instanceID: request.instanceID)
    var commits: [OffsetCommit] = []
    for offset in request.offsets {
      commits.append(
        OffsetCommit(
          partition: try TopicPartition(offset.topicPartition), offset: Offset(offset.offset),
          metadata: offset.metadata,
          leaderEpoch: offset.hasLeaderEpoch && offset.leaderEpoch >= 0
            ? LeaderEpoch(offset.leaderEpoch) : nil))
    }
    let offsets = commits
    _ = try instance.cell.read { (state) throws(MemQError) in try state.chunks(of: offsets) }
    try await instance.controller.offsets.commit(
      OffsetCommitRequest(session: session, commits: offsets))
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
            if let epoch = offset.leaderEpoch { $0.leaderEpoch = epoch.rawValue }
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
      guard page.add(try await self.description(of: group, in: instance)) else {
        return .with { [page] in
          $0.groups = page.entries
          $0.more = true
        }
      }
    }
    return .with { [page] in $0.groups = page.entries }
  }

  private func describeGroup(
    _ name: String
  ) async throws(MemQError) -> Memq_V1_GroupDescription {
    let instance = try self.instance()
    guard let group = instance.cell.read({ $0.groups[name]?.value }) else {
      throw MemQError(.groupNotFound, "there is no such group", subject: name)
    }
    return try await self.description(of: group, in: instance)
  }

  private func description(
    of group: GroupRecord, in instance: MetadataInstance
  ) async throws(MemQError) -> Memq_V1_GroupDescription {
    let offsets = try await self.offsets(of: group.name, in: instance)
    return .with {
      $0.group = group.name
      $0.groupEpoch = group.epoch
      $0.state =
        switch group.phase {
        case .empty: .empty
        case .reconciling: .reconciling
        case .stable: .stable
        }
      $0.members = group.members.values.map(\.wire)
      $0.offsets = offsets
    }
  }

  private func deleteGroup(_ name: String) async throws(MemQError) {
    let instance = try self.instance()
    @Sendable func offsets(_: Int) async throws(MemQError) -> [StoreKey] {
      var keys: [StoreKey] = []
      var rest = KeyRange(prefix: .offsets(name))
      while true {
        let page = try await instance.store.range(rest, limit: 1_000)
        keys += page.entries.map(\.key)
        guard page.hasMore, let last = page.entries.last else { return keys }
        rest = rest.after(last.key)
      }
    }
    _ = try await instance.runner.run("delete-group", reading: offsets) {
      (state: MetadataState, keys: [StoreKey]) throws(MemQError) in
      try state.deleteGroup(name, offsets: keys)
    }
    // A commit may have come between the reading and the deletion.
    _ = try await instance.runner.run("delete-group", reading: offsets) {
      (state: MetadataState, keys: [StoreKey]) throws(MemQError) in
      state.clearDeletedGroup(name, offsets: keys)
    }
    self.logger.info("Group deleted", metadata: ["group": "\(name)"])
  }
}

extension GroupRecord.Member {
  fileprivate var wire: Memq_V1_GroupMember {
    let assigned = self.assigned
    let has = Set(assigned)
    return .with {
      $0.memberID = self.id
      $0.instanceID = self.instanceID
      $0.clientID = self.clientID
      $0.host = self.host
      $0.memberEpoch = self.epoch
      $0.topics = self.topics
      $0.assigned = assigned.map(\.wire)
      $0.revoking = self.revoking.map(\.wire)
      $0.waiting = self.target.filter { !has.contains($0) }.map(\.wire)
      $0.sessionTimeoutMs = Int32(clamping: self.sessionTimeout.milliseconds)
    }
  }
}

private func partitions(
  _ wire: [Memq_V1_TopicPartition]
) throws(MemQError) -> [TopicPartition] {
  var partitions: [TopicPartition] = []
  for partition in wire { partitions.append(try TopicPartition(partition)) }
  return partitions
}
