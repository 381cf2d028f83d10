// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Limits of one cluster's metadata, each refused beyond with `.limitReached`.
public struct MetadataLimits: Hashable, Sendable {
  /// Each node holds a heartbeat stream and a watch.
  public var nodesMax = 1_000
  public var topicsMax = 10_000
  /// Over all topics: 1 KiB of memory each in every process of the cluster.
  public var partitionsMax = 100_000
  public var groupsMax = 10_000
  /// Partitions that one uploader packs together.
  public var uploadGroupPartitionsMax = Limits.partitionsPerUploadGroupMax

  public init() {}
}

/// What every metadata instance holds in memory: the keys under `i/`, decoded, each with its revision. Changes only by
/// `apply`; commands read it and answer with a plan.
public struct MetadataState: Sendable {
  public let limits: MetadataLimits
  /// Empty outside of the simulator.
  package var weaknesses: MetadataWeaknesses = []
  /// What the other services see. Partitions stand in it while their topic exists and counts them.
  public internal(set) var image: ClusterImage?
  public internal(set) var cluster: Versioned<ClusterRecord>?
  /// Nil: nobody decides at present, or the store has one instance only.
  public internal(set) var controller: Versioned<ControllerRecord>?
  public internal(set) var nodes: SortedMap<NodeID, Versioned<NodeImage>> = [:]
  public internal(set) var topics: SortedMap<TopicID, Versioned<TopicImage>> = [:]
  public internal(set) var names: SortedMap<String, Versioned<TopicNameRecord>> = [:]
  public internal(set) var graves: SortedMap<TopicID, Versioned<GraveRecord>> = [:]
  public internal(set) var partitions: PartitionMap<Versioned<PartitionImage>> = [:]
  /// Replicas on each volume, kept so that a new one needs no look at all partitions; no entry: none.
  var replicaCounts: SortedMap<VolumeID, Int> = [:]
  public internal(set) var uploadGroups: SortedMap<Int32, Versioned<UploadGroupRecord>> = [:]
  public internal(set) var groups: SortedMap<String, Versioned<GroupRecord>> = [:]
  public internal(set) var counters: SortedMap<String, Versioned<CounterRecord>> = [:]
  /// Of the last change of a topic: while it stands, groups have nothing to share anew.
  public internal(set) var topicsRevision = Revision.zero
  /// Of the last change of what `reconcile` rests on: nodes, topics' settings, and partitions but for where their logs begin. While it
  /// stands, reconciling changes nothing that it has not changed before.
  public var settlementRevision: Revision { self.unsettled.latest }
  /// What `reconcile` has to look at.
  var unsettled = UnsettledChanges()
  /// Of the last change applied.
  public internal(set) var revision = Revision.zero

  public init(limits: MetadataLimits = MetadataLimits()) { self.limits = limits }

  // MARK: Looking things up

  public func topic(named name: String) throws(MemQError) -> Versioned<TopicImage> {
    guard let id = self.names[name]?.value.id, let topic = self.topics[id] else {
      throw MemQError(.topicNotFound, "no such topic", subject: name)
    }
    return topic
  }

  public func topic(_ id: TopicID) throws(MemQError) -> Versioned<TopicImage> {
    if let topic = self.topics[id] { return topic }
    if let grave = self.graves[id] {
      throw MemQError(.topicDeleted, "the topic was deleted", subject: grave.value.name)
    }
    throw MemQError(.topicNotFound, "no such topic", subject: id.description)
  }

  /// A partition of a topic that exists.
  public func partition(_ id: TopicPartition) throws(MemQError) -> Versioned<PartitionImage> {
    let topic = try self.topic(id.topic).value
    guard id.partition.rawValue >= 0, Int(id.partition.rawValue) < topic.partitionCount,
      let partition = self.partitions[id]
    else {
      throw MemQError(
        .partitionNotFound, "the topic has fewer partitions", subject: topic.name,
        limit: Int64(topic.partitionCount), actual: Int64(id.partition.rawValue))
    }
    return partition
  }

  /// A topic's partition records by index, uncounted leftovers of a broken creation included.
  func partitions(of topic: TopicID) -> [Versioned<PartitionImage>] {
    self.partitions.values(of: topic)
  }

  /// A node, if it lives under this epoch.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced` for an older epoch or a fenced node.
  public func session(
    _ id: NodeID, _ epoch: NodeEpoch
  ) throws(MemQError) -> Versioned<NodeImage> {
    guard let node = self.nodes[id] else {
      throw MemQError(.nodeUnknown, "the node is not registered", subject: "node \(id)")
    }
    guard node.value.epoch == epoch, node.value.state.isLive else {
      throw MemQError(
        .nodeFenced, "the node's session has ended; it must register again", subject: "node \(id)",
        limit: node.value.epoch.rawValue, actual: epoch.rawValue)
    }
    return node
  }
}
