// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel

/// The core with a store of a few lines: plans run at once, nothing else happens.
struct PureCluster {
  var state = MetadataState()
  var entries: SortedMap<StoreKey, StoredEntry> = [:]
  var revision = Revision.zero
  var deltas: [ImageDelta] = []
  /// What replicas said of their logs, and the time that passes only where a test says so.
  var recovery = RecoveryElections(wait: .seconds(10), at: .zero, tickGapMax: .seconds(20))
  var now = MonotonicInstant.zero
  private var nextID: UInt64 = 100

  init(limits: MetadataLimits = MetadataLimits()) throws {
    self.state = MetadataState(limits: limits)
    try self.run {
      $0.createCluster(
        ClusterRecord(
          id: ClusterID(test: 1), incarnation: Incarnation(1),
          incarnationID: UniqueID(high: 0, low: 2), createdAt: Timestamp(milliseconds: 0)))
    }
    self.deltas = []
  }

  /// Runs a command; its transactions must go through.
  @discardableResult
  mutating func run<Outcome>(
    _ command: (MetadataState) throws(MemQError) -> Plan<Outcome>
  ) throws(MemQError) -> Outcome {
    let plan = try command(self.state)
    for transaction in plan.transactions {
      precondition(
        transaction.conditions.count <= Transaction.plannedConditionsMax,
        "no room for the controller's condition")
      try self.commit(transaction)
    }
    return plan.outcome
  }

  mutating func commit(_ transaction: Transaction) throws(MemQError) {
    try transaction.checkSize()
    for condition in transaction.conditions {
      let holds =
        switch condition {
        case .revision(let key, let revision): (self.entries[key]?.revision ?? .zero) == revision
        case .exists(let key): self.entries[key] != nil
        }
      guard holds else { throw MemQError(.revisionConflict, "\(condition)") }
    }
    let keys = transaction.operations.map(\.key)
    precondition(Set(keys).count == keys.count, "a key stands in two operations")
    self.revision = self.revision.next
    var changes: [StoreChange] = []
    for operation in transaction.operations {
      switch operation {
      case .put(let key, let value, _):
        self.entries[key] = StoredEntry(key: key, value: value, revision: self.revision)
        changes.append(StoreChange(key: key, value: value, revision: self.revision))
      case .delete(let key):
        self.entries[key] = nil
        changes.append(StoreChange(key: key, value: nil, revision: self.revision))
      }
    }
    let held = changes.filter { $0.key.hasPrefix(.memory) }
    if !held.isEmpty, let delta = try self.state.apply(held) { self.deltas.append(delta) }
  }

  func find<Record: StoredRecord>(_ key: StoreKey) throws(MemQError) -> Versioned<Record>? {
    try self.entries[key].map { entry throws(MemQError) in try Versioned<Record>(entry) }
  }

  func keys(_ prefix: StoreKey) -> [StoreKey] { self.entries.keys.filter { $0.hasPrefix(prefix) } }

  // MARK: Stories begin with

  /// Registers a node as the service does, and states it ready.
  @discardableResult
  mutating func join(
    _ service: ServiceKind, uuid: UInt64, rack: String = "", volumes: [UInt64] = [],
    capacityBytes: Int64 = 0
  ) throws(MemQError) -> NodeImage {
    let registration = NodeRegistration(
      uuid: NodeUUID(test: uuid), service: service, address: "host\(uuid):1", rack: rack,
      volumes: volumes.map {
        VolumeImage(VolumeID(test: $0), capacityBytes: capacityBytes)
      })
    try self.run { $0.fencePredecessors(of: registration) }
    try self.settle()
    let node = try self.run { (state) throws(MemQError) in try state.register(registration) }
    try self.settle()
    try self.run { (state) throws(MemQError) in
      try state.setState(of: node.id, node.epoch, to: .ready)
    }
    try self.settle()
    return self.state.nodes[node.id]!.value
  }

  /// Replication nodes 1… with one volume each.
  mutating func joinReplicas(_ count: Int, racks: [String] = []) throws(MemQError) {
    for index in 1...count {
      try self.join(
        .replication, uuid: UInt64(index), rack: racks.isEmpty ? "" : racks[index - 1],
        volumes: [UInt64(1_000 + index)])
    }
  }

  @discardableResult
  mutating func makeTopic(
    _ name: String, partitions: Int = 1, replicas: Int = 1,
    settings: SortedMap<String, String> = [:]
  ) throws(MemQError) -> TopicImage {
    self.nextID += 1
    let id = TopicID(test: self.nextID)
    return try self.run { (state) throws(MemQError) in
      try state.createTopic(
        TopicCreation(
          id: id, name: name, partitionCount: partitions, replicationFactor: replicas,
          settings: settings, createdAt: Timestamp(milliseconds: 5)))
    }
  }

  /// A node falls silent.
  mutating func fence(_ id: Int32) throws(MemQError) {
    try self.run { $0.fence(NodeID(id)) }
    try self.settle()
  }

  /// As the controller does after each change.
  @discardableResult
  mutating func settle() throws(MemQError) -> ReconcileSummary {
    let (recovery, now) = (self.recovery, self.now)
    let summary = try self.run { $0.reconcile(recovery: recovery, at: now) }
    self.recovery.note(summary.elected, at: now)
    return summary
  }

  /// A node says where the log of its replica ends; by default in its present life, and after the partition's last election.
  ///
  /// - Returns: whether it is news.
  @discardableResult
  mutating func tell(
    _ topic: TopicImage, by node: Int32, _ lastEpoch: Int64, end: Int64, life: NodeEpoch? = nil,
    leaderEpoch: LeaderEpoch? = nil, volume: VolumeID? = nil
  ) throws(MemQError) -> Bool {
    let partition = self.partition(topic)
    let replica = partition.replicas.first { $0.node == NodeID(node) }!
    let statement = LogEndStatement(
      partition.id, on: volume ?? replica.volume, leaderEpoch ?? partition.leaderEpoch,
      LogEnd(LeaderEpoch(lastEpoch), Offset(end)))
    let news = try self.recovery.take(
      [statement], of: NodeID(node), life ?? self.state.nodes[NodeID(node)]!.value.epoch,
      self.state, at: self.now)
    if !news.isEmpty { try self.settle() }
    return news == [partition.id]
  }

  func partition(_ topic: TopicImage, _ index: Int32 = 0) -> PartitionImage {
    self.state.image!.partitions[TopicPartition(topic.id, PartitionIndex(index))]!
  }
}

/// The leader proposes these members, each in its present life.
func proposal(
  _ partition: PartitionImage, _ cluster: PureCluster, inSync: [Int32]
) -> InSyncProposal {
  InSyncProposal(
    partition: partition.id, node: partition.leader!,
    nodeEpoch: cluster.state.nodes[partition.leader!]!.value.epoch,
    leaderEpoch: partition.leaderEpoch, partitionEpoch: partition.epoch,
    members: inSync.map { id in
      .init(NodeID(id), cluster.state.nodes[NodeID(id)]!.value.epoch)
    })
}
