// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Something for each of many partitions, iterated in their order.
///
/// Kept by topic: in one sorted array of a hundred thousand, each partition that comes in the middle would move megabytes, and a
/// change of a copy would copy all of them. Here both cost what the topic has.
public struct PartitionMap<Value> {
  private var topics: SortedMap<TopicID, SortedMap<TopicPartition, Value>> = [:]
  public private(set) var count = 0

  public init() {}

  public var isEmpty: Bool { self.count == 0 }

  public var values: some BidirectionalCollection<Value> {
    self.topics.values.lazy.map(\.values).joined()
  }

  public var keys: some BidirectionalCollection<TopicPartition> {
    self.topics.values.lazy.map(\.keys).joined()
  }

  /// Of one topic, by index.
  public func values(of topic: TopicID) -> [Value] { self.topics[topic]?.values ?? [] }

  public subscript(id: TopicPartition) -> Value? {
    get { self.topics[id.topic]?[id] }
    set {
      let before = self.topics[id.topic]?.count ?? 0
      guard newValue != nil || before > 0 else { return }
      self.topics[id.topic, default: [:]][id] = newValue
      let after = self.topics[id.topic]?.count ?? 0
      self.count += after - before
      if after == 0 { self.topics[id.topic] = nil }
    }
  }

  /// Takes out all of a topic.
  public mutating func removeAll(of topic: TopicID) {
    self.count -= self.topics.removeValue(forKey: topic)?.count ?? 0
  }
}

extension PartitionMap: ExpressibleByDictionaryLiteral {
  public init(dictionaryLiteral elements: (TopicPartition, Value)...) {
    for (id, value) in elements { self[id] = value }
  }
}

extension PartitionMap: Sendable where Value: Sendable {}
extension PartitionMap: Equatable where Value: Equatable {}
extension PartitionMap: Hashable where Value: Hashable {}
