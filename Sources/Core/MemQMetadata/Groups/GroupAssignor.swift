// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A topic that members of a group read, as the group's target counts it.
public struct GroupTopic: Hashable, Sendable {
  public var name: String
  public var id: TopicID
  public var partitionCount: Int

  public init(name: String, id: TopicID, partitionCount: Int) {
    self.name = name
    self.id = id
    self.partitionCount = partitionCount
  }
}

/// Shares the partitions of a group among its members, on the server, as in KIP-848.
///
/// Partitions that the same members may read form a class; within a class, counts differ by at most one. A partition stays with
/// the member that has it unless that member is over its share, so the fewest partitions move (KIP-54's stickiness). The same
/// input gives the same answer everywhere.
public enum GroupAssignor {
  /// What a member wants to read.
  public struct Subscriber: Hashable, Sendable {
    /// By name.
    public var topics: [String]
    /// Only these partitions of its topics; empty: all. A partition that somebody names goes to those who name it.
    public var only: [TopicPartition]

    public init(topics: [String], only: [TopicPartition] = []) {
      self.topics = topics
      self.only = only
    }
  }

  /// Partitions that the same subscribers may read.
  private struct ShareClass {
    let readers: [Int]
    var partitions: [TopicPartition] = []
  }

  /// - Parameters:
  ///   - subscribers: in an order that is the same for the same members.
  ///   - topics: those that exist, by name.
  ///   - holder: who has a partition now, by index.
  /// - Returns: each subscriber's partitions, ascending. A partition that nobody may read stands nowhere.
  public static func assign(
    _ subscribers: [Subscriber], _ topics: [GroupTopic],
    holder: (TopicPartition) -> Int?
  ) -> [[TopicPartition]] {
    var shares = [[TopicPartition]](repeating: [], count: subscribers.count)
    let classes = Self.classes(subscribers, topics)
    // Who has little choice first: wider classes even out what those leave uneven.
    let order = classes.indices.sorted {
      let (a, b) = (classes[$0].readers.count, classes[$1].readers.count)
      return a != b ? a < b : $0 < $1
    }
    for index in order { Self.share(classes[index], holder, into: &shares) }
    for index in shares.indices { shares[index].sort() }
    return shares
  }

  private static func classes(
    _ subscribers: [Subscriber], _ topics: [GroupTopic]
  ) -> [ShareClass] {
    // Look-ups only; the order is that of the partitions.
    var named: [TopicPartition: [Int]] = [:]
    for (index, subscriber) in subscribers.enumerated() {
      for partition in subscriber.only { named[partition, default: []].append(index) }
    }
    var places: [[Int]: Int] = [:]
    var classes: [ShareClass] = []
    func add(_ partition: TopicPartition, _ readers: [Int]) {
      guard !readers.isEmpty else { return }
      if places[readers] == nil {
        places[readers] = classes.count
        classes.append(ShareClass(readers: readers))
      }
      classes[places[readers]!].partitions.append(partition)
    }
    for topic in topics {
      let readers = subscribers.indices.filter {
        subscribers[$0].only.isEmpty && subscribers[$0].topics.contains(topic.name)
      }
      for index in 0..<topic.partitionCount {
        let partition = TopicPartition(topic.id, PartitionIndex(Int32(index)))
        let namers = (named[partition] ?? []).filter { subscribers[$0].topics.contains(topic.name) }
        add(partition, namers.isEmpty ? readers : namers)
      }
    }
    return classes
  }

  private static func share(
    _ group: ShareClass, _ holder: (TopicPartition) -> Int?, into shares: inout [[TopicPartition]]
  ) {
    var places: [Int: Int] = [:]
    for (place, reader) in group.readers.enumerated() { places[reader] = place }
    var held = [[TopicPartition]](repeating: [], count: group.readers.count)
    var free: [TopicPartition] = []
    for partition in group.partitions {
      if let reader = holder(partition), let place = places[reader] {
        held[place].append(partition)
      } else {
        free.append(partition)
      }
    }
    // Everybody's share, and one more for as many as the remainder: for those who have more anyhow, then for who has least of
    // other classes.
    let (share, remainder) = group.partitions.count.quotientAndRemainder(
      dividingBy: group.readers.count)
    var quotas = [Int](repeating: share, count: group.readers.count)
    let favoured = group.readers.indices.sorted { a, b in
      let (aHasMore, bHasMore) = (held[a].count > share, held[b].count > share)
      if aHasMore != bHasMore { return aHasMore }
      let (aLoad, bLoad) = (shares[group.readers[a]].count, shares[group.readers[b]].count)
      return aLoad != bLoad ? aLoad < bLoad : a < b
    }
    for place in favoured.prefix(remainder) { quotas[place] += 1 }

    var freed: [TopicPartition] = []
    for place in held.indices where held[place].count > quotas[place] {
      // What stays is spread over what there was: neighbouring topics and partitions are not torn off as a block.
      let (count, quota) = (held[place].count, quotas[place])
      var kept: [TopicPartition] = []
      for (index, partition) in held[place].enumerated() {
        if kept.count < quota, index == kept.count * count / quota {
          kept.append(partition)
        } else {
          freed.append(partition)
        }
      }
      held[place] = kept
    }
    free = (free + freed).sorted()
    var place = 0
    for partition in free {
      while held[place].count >= quotas[place] { place = (place + 1) % held.count }
      held[place].append(partition)
      place = (place + 1) % held.count
    }
    for (place, partitions) in held.enumerated() { shares[group.readers[place]] += partitions }
  }
}
