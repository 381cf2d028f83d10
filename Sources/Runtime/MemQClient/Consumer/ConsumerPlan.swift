// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where a consumer begins and ends, found out before it reads.
struct ConsumerPlan: Sendable {
  var positions: SortedMap<PartitionIndex, Offset> = [:]
  var ends: SortedMap<PartitionIndex, Offset> = [:]
  var committed: SortedMap<PartitionIndex, Offset> = [:]
  /// Leader epochs of the records before what is committed.
  var epochs: SortedMap<PartitionIndex, LeaderEpoch> = [:]
  var membership: GroupMembership?
  /// More partitions are to come.
  var isWaiting = false
}

extension MemQClient {
  /// Makes a consumer of one topic. With a group it joins it: the members share the partitions.
  ///
  /// - Throws: `.topicNotFound`, `.partitionNotFound`, `.groupNameInvalid`, `.unavailable`.
  public func consumer(
    _ topic: String, configuration: Consumer.Configuration = Consumer.Configuration()
  ) async throws(MemQError) -> Consumer {
    let description = try await self.admin.describeTopic(topic)
    var partitions = try Self.partitions(configuration.partitions, of: description)
    var plan = ConsumerPlan()
    if configuration.stopsAtEnd {
      // Also of those that may come later.
      for (partition, offset) in try await self.admin.offsets(
        topic, partitions: partitions, .latest)
      {
        plan.ends[partition] = offset ?? .zero
      }
    }
    if let group = configuration.group {
      var membership = GroupMembership(group, description, configuration, client: self)
      let place = try await membership.join()
      plan.membership = membership
      plan.isWaiting = place.isWaiting
      partitions = place.assigned
    }
    do throws(MemQError) {
      if let membership = plan.membership {
        (plan.committed, plan.epochs) = try await membership.offsets(of: partitions)
      }
      plan.positions = try await self.admin.begin(
        topic, partitions, configuration.start, plan.committed)
    } catch {
      // Others need not wait for this member's session.
      await plan.membership?.leave()
      throw error
    }
    let consumer = Consumer(description, plan, client: self, configuration: configuration)
    await consumer.startBackground()
    return consumer
  }

  private static func partitions(
    _ wanted: [PartitionIndex]?, of description: TopicDescription
  ) throws(MemQError) -> [PartitionIndex] {
    let count = description.topic.partitionCount
    guard let wanted else { return (0..<Int32(count)).map { PartitionIndex($0) } }
    for partition in wanted where partition.rawValue < 0 || Int(partition.rawValue) >= count {
      throw MemQError(
        .partitionNotFound, "the topic has fewer partitions",
        subject: "\(description.topic.name)/\(partition)", limit: Int64(count) - 1,
        actual: Int64(partition.rawValue))
    }
    return Set(wanted).sorted()
  }
}

extension Admin {
  /// Where to begin: at what is committed, else as `start` says.
  func begin(
    _ topic: String, _ partitions: [PartitionIndex], _ start: Consumer.Start,
    _ committed: SortedMap<PartitionIndex, Offset>
  ) async throws(MemQError) -> SortedMap<PartitionIndex, Offset> {
    var positions = committed
    let open = partitions.filter { positions[$0] == nil }
    guard !open.isEmpty else { return positions }
    switch start {
    case .offset(let offset):
      for partition in open { positions[partition] = offset }
    case .beginning:
      for (partition, offset) in try await self.offsets(topic, partitions: open, .earliest) {
        positions[partition] = offset ?? .zero
      }
    case .end:
      for (partition, offset) in try await self.offsets(topic, partitions: open, .latest) {
        positions[partition] = offset ?? .zero
      }
    case .timestamp(let time):
      let found = try await self.offsets(topic, partitions: open, .timestamp(time))
      let latest = try await self.offsets(topic, partitions: open, .latest)
      for ((partition, offset), (_, end)) in zip(found, latest) {
        positions[partition] = offset ?? end ?? .zero
      }
    }
    for partition in open where positions[partition] == nil {
      throw MemQError(
        .internalError, "the server left a partition out of its answer",
        subject: "\(topic)/\(partition)")
    }
    return positions
  }
}
