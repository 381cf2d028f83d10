// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel

/// The metadata store: linearizable, by compare-and-set on revisions, with one lease for the controller. What reaches it and
/// what it answers goes through the faulty network.
struct SimStore {
  /// Every write of a controller is conditional on this key, as it stood when the lease was granted.
  static let leaseKey = StoreKey("l/controller")
  static let leaseNanoseconds: Int64 = 1_500_000_000

  private var entries: SortedMap<StoreKey, StoredEntry> = [:]
  /// Changes below `i/`, oldest first.
  private var history: [StoreChange] = []
  private var lease: (holder: Int, until: Int64)?
  private(set) var revision = Revision.zero
  /// What all the records amount to, for the checks.
  private(set) var truth = MetadataState()
  /// Its partitions, by the simulator's number, and the nodes that may be elected for each.
  private(set) var records: [PartitionImage] = []
  private(set) var electable: [[Int]] = []
  /// Below it everything is uploaded or deleted.
  private(set) var final: [Offset] = []
  var counters = Counters()
  private var uncleanElections: [(partition: Int, epoch: LeaderEpoch)] = []

  // MARK: - Transactions

  mutating func commit(_ transactions: [Transaction], at now: Int64) -> [CommitVerdict] {
    if let lease, lease.until < now { self.endLease() }
    var verdicts: [CommitVerdict] = []
    for transaction in transactions {
      guard verdicts.allSatisfy({ if case .committed = $0 { true } else { false } }) else {
        verdicts.append(.skipped)
        continue
      }
      guard transaction.conditions.allSatisfy({ self.holds($0) }) else {
        verdicts.append(.conflict(self.revision))
        continue
      }
      self.apply(transaction)
      verdicts.append(.committed(self.revision))
    }
    return verdicts
  }

  private func holds(_ condition: Condition) -> Bool {
    switch condition {
    case .revision(let key, let revision): (self.entries[key]?.revision ?? .zero) == revision
    case .exists(let key): self.entries[key] != nil
    }
  }

  private mutating func apply(_ transaction: Transaction) {
    self.revision = self.revision.next
    var changes: [StoreChange] = []
    for operation in transaction.operations {
      var value: [UInt8]?
      if case .put(_, let bytes, _) = operation { value = bytes }
      self.entries[operation.key] = value.map {
        StoredEntry(key: operation.key, value: $0, revision: self.revision)
      }
      guard operation.key.hasPrefix(.memory) else { continue }
      changes.append(StoreChange(key: operation.key, value: value, revision: self.revision))
    }
    guard !changes.isEmpty else { return }
    self.history += changes
    let (before, nodes) = (self.truth.partitions, self.truth.nodes)
    do {
      _ = try self.truth.apply(changes)
    } catch {
      preconditionFailure("what the core wrote, it reads: \(error)")
    }
    self.records = self.truth.partitions.values.map(\.value)
    self.final = self.records.map {
      let group = self.truth.uploadGroups[$0.uploadGroup]?.value
      return Swift.max($0.logStart, group?.positions[$0.id]?.next ?? .zero)
    }
    self.electable = self.records.map { ($0.inSync + $0.eligible).map(World.node) }
    for partition in self.truth.partitions.values {
      guard let old = before[partition.value.id]?.value else { continue }
      let new = partition.value
      if old != new { self.read(old, new) }
    }
    for node in self.truth.nodes.values {
      guard let old = nodes[node.value.id]?.value, old.state != node.value.state else { continue }
      switch node.value.state {
      case .starting: self.counters.hit(.nodeRegisters)
      case .ready: self.counters.hit(.nodeReady)
      case .draining: self.counters.hit(.nodeDrains)
      case .fenced: self.counters.hit(.nodeFenced)
      case .gone: self.counters.hit(.nodeGone)
      }
    }
  }

  /// Which rows of metadata's tables a change took.
  private mutating func read(_ old: PartitionImage, _ new: PartitionImage) {
    if old.leaderEpoch != new.leaderEpoch {
      self.counters.elections += 1
      if let leader = new.leader {
        self.counters.hit(
          old.historyEpoch != new.historyEpoch
            ? .leaderElectedUncleanly
            : old.inSync.contains(leader) ? .leaderElectedInSync : .leaderElectedEligible)
      } else {
        self.counters.hit(.leaderLost)
      }
    }
    if old.historyEpoch != new.historyEpoch {
      self.counters.uncleanElections += 1
      self.uncleanElections.append((World.number(new.id), new.leaderEpoch))
    }
    if old.inSync != new.inSync { self.counters.isrChanges += 1 }
    for node in old.inSync where !new.inSync.contains(node) {
      self.counters.hit(new.eligible.contains(node) ? .memberLeavesToELR : .memberLeaves)
    }
    switch (old.reassignment, new.reassignment) {
    case (nil, .some): self.counters.hit(.replicasGrow)
    case (.some(let running), nil):
      self.counters.hit(
        new.replicas == running.target ? .replicasCompleted : .replicasCancelled)
    case (nil, nil):
      if old.replicas != new.replicas { self.counters.hit(.replicasReordered) }
    case (.some, .some): break
    }
  }

  mutating func takeUncleanElections() -> [(partition: Int, epoch: LeaderEpoch)] {
    guard !self.uncleanElections.isEmpty else { return [] }
    defer { self.uncleanElections = [] }
    return self.uncleanElections
  }

  /// Runs a plan at once, before anybody is there: how the cluster comes to be.
  mutating func run<Outcome>(
    _ plan: (MetadataState) throws(MemQError) -> Plan<Outcome>
  ) -> Outcome {
    do {
      let planned = try plan(self.truth)
      _ = self.commit(planned.transactions, at: 0)
      return planned.outcome
    } catch {
      preconditionFailure("the cluster can't be made: \(error)")
    }
  }

  // MARK: - The lease

  /// Grants the lease, or renews it; nil: another one holds it.
  mutating func claim(_ instance: Int, at now: Int64) -> Revision? {
    if let lease, lease.until < now { self.endLease() }
    if let lease, lease.holder != instance { return nil }
    if self.lease == nil {
      self.revision = self.revision.next
      self.entries[Self.leaseKey] = StoredEntry(
        key: Self.leaseKey, value: [UInt8(instance)], revision: self.revision)
    }
    self.lease = (instance, now + Self.leaseNanoseconds)
    return self.entries[Self.leaseKey]?.revision
  }

  private mutating func endLease() {
    self.lease = nil
    self.revision = self.revision.next
    self.entries[Self.leaseKey] = nil
  }

  // MARK: - Watching

  /// Changes after a revision.
  func changes(after revision: Revision) -> [StoreChange] {
    var first = self.history.count
    while first > 0, self.history[first - 1].revision > revision { first -= 1 }
    return Array(self.history[first...])
  }

  /// All that instances hold in memory.
  var memory: [StoredEntry] { self.entries.values.filter { $0.key.hasPrefix(.memory) } }
}
