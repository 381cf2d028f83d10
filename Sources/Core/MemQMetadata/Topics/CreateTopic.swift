// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A topic to make.
public struct TopicCreation: Hashable, Sendable {
  public var id: TopicID
  public var name: String
  /// 0: one.
  public var partitionCount: Int
  /// 0: three, or as many as there are replication nodes when those are fewer.
  public var replicationFactor: Int
  public var settings: SortedMap<String, String>
  public var createdAt: Timestamp

  public init(
    id: TopicID, name: String, partitionCount: Int, replicationFactor: Int,
    settings: SortedMap<String, String>, createdAt: Timestamp
  ) {
    self.id = id
    self.name = name
    self.partitionCount = partitionCount
    self.replicationFactor = replicationFactor
    self.settings = settings
    self.createdAt = createdAt
  }
}

/// Replication factor of a topic that names none, in a cluster that has the nodes.
private let replicationFactorWished = 3
private let partitionsPerTransaction = 100
/// With their upload groups and the nodes they claim; two keys of the topic may be added.
private let operationsPerTransaction = 120

extension MetadataState {
  /// Makes a topic. Partitions come first and are seen by nobody; the topic's record makes them visible.
  ///
  /// - Throws: `.topicExists`, `.topicNameInvalid`, `.partitionCountInvalid`, `.replicationFactorInvalid`, `.limitReached` (of
  ///   numbers, and of what the volumes have room for), and what `TopicSettings` throws.
  public func createTopic(_ creation: TopicCreation) throws(MemQError) -> Plan<TopicImage> {
    try Self.checkTopicName(creation.name)
    guard self.names[creation.name] == nil else {
      throw MemQError(.topicExists, "a topic of that name exists", subject: creation.name)
    }
    let count = creation.partitionCount == 0 ? 1 : creation.partitionCount
    try self.checkPartitionCount(creation.name, count, existing: 0)
    let nodes = self.placeable
    let factor =
      creation.replicationFactor == 0 ? self.replicationFactorDefault : creation.replicationFactor
    guard factor >= 1, factor <= nodes.count else {
      throw MemQError(
        .replicationFactorInvalid, "there are not so many live replication nodes",
        subject: creation.name, limit: Int64(nodes.count), actual: Int64(factor))
    }
    guard self.topics.count < self.limits.topicsMax else {
      throw MemQError(
        .limitReached, "the cluster has its largest number of topics", subject: creation.name,
        limit: Int64(self.limits.topicsMax), actual: Int64(self.topics.count + 1))
    }
    let topic = try TopicImage(
      id: creation.id, name: creation.name, partitionCount: count, replicationFactor: factor,
      given: creation.settings, createdAt: creation.createdAt)
    var transactions = try self.newPartitions(of: topic, from: 0)
    var last = transactions.popLast() ?? Transaction()
    last.create(.topic(topic.id), topic)
    last.create(.topicName(topic.name), TopicNameRecord(id: topic.id))
    return Plan(transactions + [last], outcome: topic)
  }

  static func checkTopicName(_ name: String) throws(MemQError) {
    let size = name.utf8.count
    guard size >= 1, size <= Limits.topicNameBytesMax else {
      throw MemQError(
        .topicNameInvalid, "a topic's name has 1 to 249 bytes", subject: name,
        limit: Int64(Limits.topicNameBytesMax), actual: Int64(size))
    }
    let isLegal = name.utf8.allSatisfy { byte in
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
        UInt8(ascii: "-"):
        true
      default: false
      }
    }
    guard isLegal, name != ".", name != ".." else {
      throw MemQError(
        .topicNameInvalid, "a topic's name is made of a-z A-Z 0-9 . _ - and is not . or ..",
        subject: name)
    }
  }

  private func checkPartitionCount(
    _ name: String, _ count: Int, existing: Int
  ) throws(MemQError) {
    guard count >= 1, count <= Limits.partitionsPerTopicMax else {
      throw MemQError(
        .partitionCountInvalid, "a topic has 1 to 10,000 partitions", subject: name,
        limit: Int64(Limits.partitionsPerTopicMax), actual: Int64(count))
    }
    let total = self.partitions.count + count - existing
    guard total <= self.limits.partitionsMax else {
      throw MemQError(
        .limitReached, "the cluster has its largest number of partitions", subject: name,
        limit: Int64(self.limits.partitionsMax), actual: Int64(total))
    }
  }

  /// Nodes that are away for a moment count: a topic made meanwhile must not have fewer copies for ever, unseen. Who wants it
  /// nevertheless names the factor.
  private var replicationFactorDefault: Int {
    let known = self.nodes.values.count {
      $0.value.service == .replication && !$0.value.volumes.isEmpty
    }
    return max(1, min(replicationFactorWished, known))
  }

  /// Replication nodes that may be given new replicas.
  private var placeable: [NodeImage] {
    self.nodes.values.map(\.value).filter {
      $0.service == .replication && !$0.placeableVolumes.isEmpty
        && ($0.state == .ready || $0.state == .starting)
    }
  }

  // MARK: Partitions

  /// The records of a topic's partitions from index `first` on, in as many transactions as they need.
  private func newPartitions(
    of topic: TopicImage, from first: Int
  ) throws(MemQError) -> [Transaction] {
    var placement = ReplicaPlacement(
      nodes: self.placeable, load: self.replicaCounts, claims: VolumeClaims(self, with: topic))
    var allotment = UploadGroupAllotment(self)
    var claims = NodeClaims(self)
    var transactions: [Transaction] = []
    var current = Transaction()
    var partitions = 0
    func close() {
      allotment.flush(into: &current)
      claims.flush(into: &current)
      transactions.append(current)
      current = Transaction()
      partitions = 0
    }
    for index in first..<topic.partitionCount {
      let id = TopicPartition(topic.id, PartitionIndex(Int32(index)))
      // Left over by a creation that broke off: it has its place already.
      guard self.partitions[id] == nil else { continue }
      let replicas = try placement.place(
        count: topic.replicationFactor, turn: self.partitions.count + index - first,
        claim: topic.settings.claimBytes, "\(topic.name)/\(index)")
      // Itself, and its upload group.
      let added = 2 + claims.added(by: replicas)
      let count = current.operations.count + allotment.touchedCount + claims.pendingCount
      if count > 0, count + added > operationsPerTransaction { close() }
      claims.take(replicas)
      let partition = PartitionImage(
        id: id, leader: replicas[0].node, leaderEpoch: LeaderEpoch(0), epoch: PartitionEpoch(0),
        replicas: replicas, inSync: replicas.map(\.node), uploadGroup: allotment.take(id))
      current.create(.partition(id), partition)
      partitions += 1
      if partitions == partitionsPerTransaction { close() }
    }
    allotment.flush(into: &current)
    claims.flush(into: &current)
    return transactions + [current]
  }

  // MARK: Change

  /// Sets and unsets settings, and adds partitions.
  ///
  /// - Throws: as `createTopic`, and `.topicNotFound`; retriable `.unavailable` for a higher `min.insync.replicas` while it does not yet
  ///   hold everywhere that it was lowered: leaders may have committed by the lower one what those who were eligible before don't have.
  public func alterTopic(
    _ name: String, set: SortedMap<String, String>, unset: [String], partitionCount: Int
  ) throws(MemQError) -> Plan<TopicImage> {
    let known = try self.topic(named: name)
    var given = known.value.given
    for setting in unset {
      guard set[setting] == nil else {
        throw MemQError(.topicSettingInvalid, "set and unset at once", subject: setting)
      }
      try Self.checkSettingName(setting)
      given[setting] = nil
    }
    for (setting, value) in set { given[setting] = value }
    let count = partitionCount == 0 ? known.value.partitionCount : partitionCount
    guard count >= known.value.partitionCount else {
      throw MemQError(
        .partitionCountInvalid, "partitions can only be added", subject: name,
        limit: Int64(known.value.partitionCount), actual: Int64(count))
    }
    let topic = try TopicImage(
      id: known.value.id, name: name, partitionCount: count,
      replicationFactor: known.value.replicationFactor, given: given,
      createdAt: known.value.createdAt)
    guard topic != known.value else { return Plan(outcome: topic) }
    let minimum = known.value.settings.minInSyncReplicas
    if topic.settings.minInSyncReplicas > minimum,
      let unsettled = self.partitions(of: topic.id).first(where: {
        !$0.value.eligible.isEmpty && $0.value.inSync.count >= minimum
      })
    {
      throw MemQError(
        .unavailable, "a lower min.insync.replicas is still being applied; try again",
        subject: "\(name)/\(unsettled.value.id.partition)", limit: Int64(minimum),
        actual: Int64(topic.settings.minInSyncReplicas))
    }
    if topic.settings.claimBytes > known.value.settings.claimBytes {
      try VolumeClaims(self, with: topic).check(topic, in: self)
    }
    var transactions: [Transaction] = []
    if count > known.value.partitionCount {
      try self.checkPartitionCount(name, count, existing: known.value.partitionCount)
      guard self.placeable.count >= topic.replicationFactor else {
        throw MemQError(
          .replicationFactorInvalid, "there are not so many live replication nodes", subject: name,
          limit: Int64(self.placeable.count), actual: Int64(topic.replicationFactor))
      }
      transactions = try self.newPartitions(of: topic, from: known.value.partitionCount)
    }
    var last = transactions.popLast() ?? Transaction()
    last.replace(.topic(topic.id), known, with: topic)
    return Plan(transactions + [last], outcome: topic)
  }

  private static func checkSettingName(_ name: String) throws(MemQError) {
    let names = TopicSettings().effective.map(\.name) + ["cleanup.policy", "storage.class"]
    guard names.contains(name) else {
      throw MemQError(.topicSettingUnknown, "no such topic setting", subject: name)
    }
  }
}

/// Gives new partitions their upload group: the lowest with room, else a new one.
private struct UploadGroupAllotment {
  private let state: MetadataState
  private var records: SortedMap<Int32, UploadGroupRecord> = [:]
  private var touched: [Int32] = []
  /// Groups written by an earlier transaction of the plan are closed: their revision is not known.
  private var closed: [Int32] = []
  private var candidate: Int32 = 1

  init(_ state: MetadataState) { self.state = state }

  mutating func take(_ partition: TopicPartition) -> Int32 {
    while true {
      var record =
        self.records[self.candidate] ?? self.state.uploadGroups[self.candidate]?.value
        ?? UploadGroupRecord(group: UploadGroupImage(id: self.candidate))
      guard record.positions.count < self.state.limits.uploadGroupPartitionsMax,
        !self.closed.contains(self.candidate)
      else {
        self.candidate += 1
        continue
      }
      record.positions[partition] = UploadPosition()
      self.records[self.candidate] = record
      if !self.touched.contains(self.candidate) { self.touched.append(self.candidate) }
      return self.candidate
    }
  }

  /// Groups that the next flush writes.
  var touchedCount: Int { self.touched.count }

  mutating func flush(into transaction: inout Transaction) {
    for id in self.touched {
      transaction.replace(
        .uploadGroup(id), self.state.uploadGroups[id], with: self.records[id]!)
    }
    self.closed += self.touched
    self.touched = []
  }
}

/// Writes the records of nodes that get replicas again as they are, in the transaction that names them first: a node that leaves in the
/// same moment is forgotten only while no partition names it, and whichever comes second is asked anew. One claim is enough for a plan:
/// from then on a partition names the node.
private struct NodeClaims {
  private let state: MetadataState
  private var claimed: [NodeID] = []
  private var pending: [NodeID] = []

  init(_ state: MetadataState) { self.state = state }

  /// Nodes that the next flush writes.
  var pendingCount: Int { self.pending.count }

  func added(by replicas: [ReplicaID]) -> Int {
    replicas.count { !self.claimed.contains($0.node) }
  }

  mutating func take(_ replicas: [ReplicaID]) {
    for replica in replicas where !self.claimed.contains(replica.node) {
      self.claimed.append(replica.node)
      self.pending.append(replica.node)
    }
  }

  mutating func flush(into transaction: inout Transaction) {
    for id in self.pending {
      guard let node = self.state.nodes[id] else { continue }
      transaction.replace(.node(id), node, with: node.value)
    }
    self.pending = []
  }
}
