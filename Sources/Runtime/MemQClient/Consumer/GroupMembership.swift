// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import MemQAPI
import MemQModel
import MemQRPC

/// One member's place in a consumer group, and its calls.
struct GroupMembership: Sendable {
  struct Place: Sendable {
    var epoch: Int64
    /// Nil: as it was told with this epoch.
    var assigned: [PartitionIndex]?
    var isWaiting: Bool
    /// When to call again.
    var next: Duration
  }

  let group: String
  let topic: String
  let topicID: TopicID
  let instanceID: String
  let clientID: String
  let only: [PartitionIndex]
  let sessionTimeout: Duration
  let rebalanceTimeout: Duration
  let servers: Servers
  let timeout: Duration
  private(set) var memberID = ""
  /// The latest that was told.
  var epoch: Int64 = 0
  /// Of the latest heartbeat.
  private var number: Int64 = 0

  init(
    _ group: String, _ description: TopicDescription, _ configuration: Consumer.Configuration,
    client: MemQClient
  ) {
    self.group = group
    self.topic = description.topic.name
    self.topicID = description.topic.id
    self.instanceID = configuration.instanceID ?? ""
    self.clientID = client.configuration.clientID
    self.only = configuration.partitions ?? []
    self.sessionTimeout = configuration.sessionTimeout
    self.rebalanceTimeout = configuration.rebalanceTimeout
    self.servers = client.servers
    self.timeout = client.configuration.requestTimeout
  }

  /// How long a heartbeat may be held: a few fit into one session.
  var heartbeatWait: Duration { min(self.sessionTimeout / 4, .seconds(5)) }

  /// Becomes a member, another one than before.
  mutating func join() async throws(MemQError) -> (assigned: [PartitionIndex], isWaiting: Bool) {
    var request = Memq_V1_JoinGroupRequest()
    request.group = self.group
    request.topics = [self.topic]
    request.clientID = self.clientID
    request.instanceID = self.instanceID
    // Its own name: a join that is sent again must not leave a second member behind.
    request.memberID =
      "\(self.instanceID.isEmpty ? self.clientID : self.instanceID)-\(Self.nonce())"
    request.only = self.only.map { TopicPartition(self.topicID, $0).wire }
    request.sessionTimeoutMs = Int32(clamping: self.sessionTimeout.milliseconds)
    request.rebalanceTimeoutMs = Int32(clamping: self.rebalanceTimeout.milliseconds)
    let response = try await self.servers.call(
      IngestMethods.joinGroup, request, timeout: self.timeout, retryFor: self.timeout)
    self.memberID = response.memberID
    self.epoch = response.memberEpoch
    return (self.mine(response.assigned), response.waiting)
  }

  private static func nonce() -> String {
    var text = ""
    for _ in 0..<2 {
      let digits = String(UInt64.random(in: .min ... .max), radix: 16)
      text += String(repeating: "0", count: 16 - digits.count) + digits
    }
    return text
  }

  private func mine(_ wire: [Memq_V1_TopicPartition]) -> [PartitionIndex] {
    wire.map { TopicPartition($0) }.filter { $0.topic == self.topicID }.map(\.partition).sorted()
  }

  /// Committed offsets of these partitions, and the leader epochs of the records before them as far as they are known; those without an offset
  /// are left out.
  func offsets(
    of partitions: [PartitionIndex]
  ) async throws(MemQError) -> (
    offsets: SortedMap<PartitionIndex, Offset>, epochs: SortedMap<PartitionIndex, LeaderEpoch>
  ) {
    guard !partitions.isEmpty else { return ([:], [:]) }
    var request = Memq_V1_FetchOffsetsRequest()
    request.group = self.group
    request.partitions = partitions.map { TopicPartition(self.topicID, $0).wire }
    let response = try await self.servers.call(
      IngestMethods.fetchOffsets, request, timeout: self.timeout, retryFor: self.timeout)
    var found: SortedMap<PartitionIndex, Offset> = [:]
    var epochs: SortedMap<PartitionIndex, LeaderEpoch> = [:]
    for offset in response.offsets {
      let partition = TopicPartition(offset.topicPartition).partition
      found[partition] = Offset(offset.offset)
      if offset.hasLeaderEpoch { epochs[partition] = LeaderEpoch(offset.leaderEpoch) }
    }
    return (found, epochs)
  }

  /// - Parameter offsets: each with the leader epoch of the record before it, where that is known.
  func commit(_ offsets: [(PartitionIndex, Offset, LeaderEpoch?)]) async throws(MemQError) {
    var request = Memq_V1_CommitOffsetsRequest()
    request.group = self.group
    request.memberID = self.memberID
    request.memberEpoch = self.epoch
    request.instanceID = self.instanceID
    request.offsets = offsets.map { partition, offset, epoch in
      var wire = Memq_V1_GroupOffset()
      wire.topicPartition = TopicPartition(self.topicID, partition).wire
      wire.offset = offset.rawValue
      if let epoch { wire.leaderEpoch = epoch.rawValue }
      return wire
    }
    _ = try await self.servers.call(
      IngestMethods.commitOffsets, request, timeout: self.timeout, retryFor: self.timeout)
  }

  /// The next heartbeat.
  ///
  /// - Parameter reading: nil: as it said before.
  mutating func nextHeartbeat(reading: [PartitionIndex]?) -> Memq_V1_HeartbeatGroupRequest {
    self.number += 1
    var request = Memq_V1_HeartbeatGroupRequest()
    request.group = self.group
    request.memberID = self.memberID
    request.memberEpoch = self.epoch
    request.instanceID = self.instanceID
    request.number = self.number
    request.waitMaxMs = Int32(clamping: self.heartbeatWait.milliseconds)
    if let reading {
      request.reading.partitions = reading.map { TopicPartition(self.topicID, $0).wire }
    }
    return request
  }

  func send(_ request: Memq_V1_HeartbeatGroupRequest) async throws(MemQError) -> Place {
    let response = try await self.servers.call(
      IngestMethods.heartbeatGroup, request, timeout: self.heartbeatWait + .seconds(10))
    return Place(
      epoch: response.memberEpoch,
      assigned: response.hasAssigned ? self.mine(response.assigned.partitions) : nil,
      isWaiting: response.waiting, next: .milliseconds(Int64(response.nextMs)))
  }

  /// Says goodbye; when it does not arrive, the session runs out by itself.
  func leave() async {
    var request = Memq_V1_LeaveGroupRequest()
    request.group = self.group
    request.memberID = self.memberID
    request.memberEpoch = self.epoch
    request.instanceID = self.instanceID
    _ = try? await self.servers.call(IngestMethods.leaveGroup, request, timeout: .seconds(5))
  }
}
