// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import MemQAPI
import MemQModel

/// One member's place in a consumer group.
struct GroupMembership: Sendable {
  let group: String
  let memberID: String
  let epoch: Int64
  let servers: Servers
  let timeout: Duration

  /// Takes the group over: earlier members are fenced.
  static func join(
    _ group: String, topic: String, client: MemQClient, sessionTimeout: Duration
  ) async throws(MemQError) -> GroupMembership {
    var request = Memq_V1_JoinGroupRequest()
    request.group = group
    request.topics = [topic]
    request.clientID = client.configuration.clientID
    request.sessionTimeoutMs = Int32(clamping: sessionTimeout.milliseconds)
    let timeout = client.configuration.requestTimeout
    let response = try await client.servers.call(
      IngestMethods.joinGroup, request, timeout: timeout, retryFor: timeout)
    return GroupMembership(
      group: group, memberID: response.memberID, epoch: response.groupEpoch,
      servers: client.servers, timeout: timeout)
  }

  /// Committed offsets of these partitions; those without one are left out.
  func offsets(of partitions: [TopicPartition]) async throws(MemQError) -> [TopicPartition: Offset]
  {
    var request = Memq_V1_FetchOffsetsRequest()
    request.group = self.group
    request.partitions = partitions.map(\.wire)
    let response = try await self.servers.call(
      IngestMethods.fetchOffsets, request, timeout: self.timeout, retryFor: self.timeout)
    var found: [TopicPartition: Offset] = [:]
    for offset in response.offsets {
      found[TopicPartition(offset.topicPartition)] = Offset(offset.offset)
    }
    return found
  }

  func commit(_ offsets: [(TopicPartition, Offset)]) async throws(MemQError) {
    var request = Memq_V1_CommitOffsetsRequest()
    request.group = self.group
    request.memberID = self.memberID
    request.groupEpoch = self.epoch
    request.offsets = offsets.map { partition, offset in
      var wire = Memq_V1_GroupOffset()
      wire.topicPartition = partition.wire
      wire.offset = offset.rawValue
      return wire
    }
    _ = try await self.servers.call(
      IngestMethods.commitOffsets, request, timeout: self.timeout, retryFor: self.timeout)
  }

  func heartbeat() async throws(MemQError) {
    var request = Memq_V1_HeartbeatGroupRequest()
    request.group = self.group
    request.memberID = self.memberID
    request.groupEpoch = self.epoch
    _ = try await self.servers.call(IngestMethods.heartbeatGroup, request, timeout: .seconds(10))
  }

  /// Says goodbye; when it does not arrive, the session runs out by itself.
  func leave() async {
    var request = Memq_V1_LeaveGroupRequest()
    request.group = self.group
    request.memberID = self.memberID
    request.groupEpoch = self.epoch
    _ = try? await self.servers.call(IngestMethods.leaveGroup, request, timeout: .seconds(5))
  }
}
