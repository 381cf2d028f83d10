// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where a consumer begins and ends, found out before it reads.
struct ConsumerPlan: Sendable {
  var positions: SortedMap<PartitionIndex, Offset> = [:]
  var ends: SortedMap<PartitionIndex, Offset> = [:]
  var committed: SortedMap<PartitionIndex, Offset> = [:]
  var membership: GroupMembership?
}

extension MemQClient {
  /// Makes a consumer of one topic. With a group it joins it: earlier members are fenced.
  ///
  /// - Throws: `.topicNotFound`, `.partitionNotFound`, `.groupNameInvalid`, `.unavailable`.
  public func consumer(
    _ topic: String, configuration: Consumer.Configuration = Consumer.Configuration()
  ) async throws(MemQError) -> Consumer {
    let description = try await self.admin.describeTopic(topic)
    let partitions = try Self.partitions(configuration.partitions, of: description)
    var plan = ConsumerPlan()
    if let group = configuration.group {
      let membership = try await GroupMembership.join(
        group, topic: topic, client: self, sessionTimeout: configuration.sessionTimeout)
      plan.membership = membership
      let id = description.topic.id
      let offsets = try await membership.offsets(of: partitions.map { TopicPartition(id, $0) })
      for (partition, offset) in offsets { plan.committed[partition.partition] = offset }
    }
    if configuration.stopsAtEnd {
      for (partition, offset) in try await self.admin.offsets(
        topic, partitions: partitions, .latest)
      {
        plan.ends[partition] = offset ?? .zero
      }
    }
    plan.positions = try await self.begin(topic, partitions, configuration.start, plan)
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

  private func begin(
    _ topic: String, _ partitions: [PartitionIndex], _ start: Consumer.Start, _ plan: ConsumerPlan
  ) async throws(MemQError) -> SortedMap<PartitionIndex, Offset> {
    var positions = plan.committed
    let open = partitions.filter { positions[$0] == nil }
    guard !open.isEmpty else { return positions }
    switch start {
    case .offset(let offset):
      for partition in open { positions[partition] = offset }
    case .beginning:
      for (partition, offset) in try await self.admin.offsets(topic, partitions: open, .earliest) {
        positions[partition] = offset ?? .zero
      }
    case .end:
      for (partition, offset) in try await self.admin.offsets(topic, partitions: open, .latest) {
        positions[partition] = offset ?? .zero
      }
    case .timestamp(let time):
      let found = try await self.admin.offsets(topic, partitions: open, .timestamp(time))
      let latest = try await self.admin.offsets(topic, partitions: open, .latest)
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
