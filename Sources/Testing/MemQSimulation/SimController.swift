// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// What a node is told of the cluster.
struct ClusterView {
  var revision: Revision
  /// By the simulator's number of the node.
  var epochs: [NodeEpoch]
  var partitions: [PartitionAssignment]
  var uploadedOffsets: [Offset]
  var uploadedEpochs: [LeaderEpoch]
  var logStarts: [Offset]
  /// Nodes whose replicas are damaged, by partition.
  var damaged: [[NodeID]]
  /// Nodes whose replicas' word counts: in sync, eligible, or leading.
  var trusted: [[NodeID]]
}

/// What a metadata instance is asked to do.
enum Command {
  case register(node: Int, attempt: Int, isWhole: Bool)
  case failVolume(node: Int, NodeEpoch)
  /// Nil: whole again.
  case damageReplica(node: Int, NodeEpoch, Int, from: Offset?)
  case setState(node: Int, NodeEpoch, NodeState)
  case deregister(node: Int, NodeEpoch)
  case fence(NodeID)
  case reconcile
  case alter(node: Int, partition: Int, ISRProposal)
  case transfer(partition: Int, to: Int)
  case reassign(partition: Int, to: [Int])
  case cancelReassignment(partition: Int)
  /// A leader says that its log begins later.
  case raiseLogStart(partition: Int, to: Offset, ReplicaMember, LeaderEpoch)
}

/// One metadata instance: the core's state, fed by a watch that may be late; whoever holds the lease is the controller. The
/// steps are those of the metadata service.
struct SimController {
  /// A command under way: asked of the core, committed, applied, then the next stage.
  struct Running {
    enum Wait {
      case committed
      /// Until the own state has reached the revision; then asked again, or the next stage.
      case applied(Revision, isConflict: Bool)
    }

    let id: UInt64
    let command: Command
    var stage = 0
    var attempts = 0
    var wait = Wait.committed
    /// Where the command goes when this stage's transactions are in.
    var next: Next
    /// The epoch that a registration was given.
    var epoch: NodeEpoch?
    var since: Int64
  }

  enum Next {
    case stage(Int, NodeEpoch? = nil)
    case finished(Message?)
  }

  static let attemptsMax = 20
  static let answerTimeout: Int64 = 1_000_000_000
  static let sessionTimeout: Duration = .milliseconds(1_500)
  static let recoveryWait: Duration = .seconds(2)

  let number: Int
  let weaknesses: MetadataWeaknesses
  var state: MetadataState
  var isUp = false
  /// The store's revision that the state has reached.
  var applied = Revision.zero
  /// The lease key's revision while this instance holds it, as far as it knows.
  var lease: Revision?
  var leaseUntil: Int64 = 0
  /// It holds the lease, and its state may be from before: nothing is decided on yet.
  var isTakingOver = false
  var nodes = Liveness<NodeID>(at: .zero, tickGapMax: .milliseconds(500))
  /// What replicas that nobody leads said of their logs.
  var recovery = RecoveryElections(wait: Self.recoveryWait, at: .zero)
  var now = MonotonicInstant.zero
  /// Elections of the last plan that rest on that.
  var recovered: [SimRecovery] = []
  var running: [Running] = []
  var lastCommand: UInt64 = 0
  /// A command that changes who lives or leads broke off: what follows from it is still to be done.
  var isUnsettled = false
  /// The state's `settlementRevision` whose consequences are drawn.
  var settled = Revision.zero
  var pausedUntil: Int64 = 0
  var ticks = 0
  var life = 0
  var told: (partitions: [PartitionAssignment], offsets: [Offset], damaged: [[NodeID]]) = (
    [], [], []
  )
  /// What `view` made of the state as it is.
  private var seen: ClusterView?

  init(number: Int, weaknesses: MetadataWeaknesses) {
    self.number = number
    self.weaknesses = weaknesses
    self.state = MetadataState()
    self.state.weaknesses = weaknesses
  }

  func isController(at now: Int64) -> Bool {
    self.lease != nil && now < self.leaseUntil && !self.isTakingOver
  }

  /// The process ends: all it knew is gone.
  mutating func crash() {
    var fresh = SimController(number: self.number, weaknesses: self.weaknesses)
    fresh.life = self.life + 1
    // Numbers go on, so that answers to the earlier life's commits mean nothing.
    fresh.lastCommand = self.lastCommand
    self = fresh
  }

  mutating func reload(_ entries: [StoredEntry], at revision: Revision) {
    guard revision > self.applied else { return }
    self.state = MetadataState()
    self.state.weaknesses = self.weaknesses
    self.take(entries.map { StoreChange(key: $0.key, value: $0.value, revision: $0.revision) })
    self.applied = revision
  }

  /// False: something is missing in between.
  mutating func apply(_ changes: [StoreChange], from: Revision, through: Revision) -> Bool {
    guard from <= self.applied else { return false }
    guard through > self.applied else { return true }
    self.take(changes)
    self.applied = through
    return true
  }

  private mutating func take(_ changes: [StoreChange]) {
    self.seen = nil
    do {
      _ = try self.state.apply(changes)
    } catch {
      preconditionFailure("what the core wrote, it reads: \(error)")
    }
  }

  // MARK: - What nodes are told

  mutating func view(nodes: Int, partitions: Int) -> ClusterView? {
    if self.seen == nil { self.seen = self.makeView(nodes: nodes, partitions: partitions) }
    return self.seen
  }

  private func makeView(nodes: Int, partitions: Int) -> ClusterView? {
    guard let image = self.state.image else { return nil }
    let assignments = (0..<partitions).compactMap { number -> PartitionAssignment? in
      guard let partition = image.partitions[World.partition(number)],
        let topic = image.topics[partition.id.topic]
      else { return nil }
      func replica(_ node: NodeID) -> ReplicaID? { partition.replicas.first { $0.node == node } }
      return PartitionAssignment(
        leaderEpoch: partition.leaderEpoch, partitionEpoch: partition.epoch,
        leader: partition.leader.flatMap(replica),
        replicas: partition.replicas.map {
          ReplicaMember($0, image.nodes[$0.node]?.epoch ?? .zero)
        },
        isr: partition.inSync.compactMap(replica), minISR: topic.settings.minInSyncReplicas)
    }
    guard assignments.count == partitions else { return nil }
    return ClusterView(
      revision: self.state.revision,
      epochs: (0..<nodes).map { image.nodes[World.nodeID($0)]?.epoch ?? .zero },
      partitions: assignments,
      uploadedOffsets: (0..<partitions).map {
        image.partitions[World.partition($0)]?.uploadedOffset ?? .zero
      },
      uploadedEpochs: (0..<partitions).map {
        image.partitions[World.partition($0)]?.uploadedEpoch ?? .none
      },
      logStarts: (0..<partitions).map {
        image.partitions[World.partition($0)]?.logStart ?? .zero
      },
      damaged: (0..<partitions).map {
        image.partitions[World.partition($0)]?.damaged.map(\.node) ?? []
      },
      trusted: (0..<partitions).map {
        guard let partition = image.partitions[World.partition($0)] else { return [] }
        return partition.inSync + partition.eligible + [partition.leader].compactMap(\.self)
      })
  }

  // MARK: - Commands

  /// Asks the core what a command's stage wants written.
  mutating func plan(
    _ command: Command, _ stage: Int, _ epoch: NodeEpoch?
  ) throws(MemQError) -> ([Transaction], Next) {
    self.recovered = []
    switch command {
    case .register(let node, let attempt, let isWhole):
      return try self.planRegistration(
        World.registration(node, isWhole: isWhole), attempt, stage, epoch)
    case .damageReplica(let node, let epoch, let partition, let from):
      if stage > 0 { return self.planReconcile(stage, then: .finished(nil)) }
      let report = ReplicaReport(
        World.partition(partition), on: World.volume(node), damagedFrom: from)
      let plan = try self.state.reportReplica(report, of: World.nodeID(node), epoch)
      return (plan.transactions, .stage(1))
    case .failVolume(let node, let epoch):
      if stage > 0 { return self.planReconcile(stage, then: .finished(nil)) }
      let plan = try self.state.reportVolumes(
        of: World.nodeID(node), epoch, [VolumeImage(World.volume(node), .failed)])
      return (plan.transactions, .stage(1))
    case .setState(let node, let epoch, let state):
      if stage > 0 { return self.planReconcile(stage, then: .finished(nil)) }
      let plan = try self.state.setState(of: World.nodeID(node), epoch, to: state)
      return (plan.transactions, .stage(1))
    case .deregister(let node, let epoch):
      let done = Next.finished(.deregistered(epoch))
      if stage > 0 { return self.planReconcile(stage, then: done) }
      let plan = try self.state.deregister(World.nodeID(node), epoch)
      return (plan.transactions, .stage(1))
    case .fence(let id):
      if stage > 0 { return self.planReconcile(stage, then: .finished(nil)) }
      return (self.state.fence(id).transactions, .stage(1))
    case .reconcile: return self.planReconcile(stage, then: .finished(nil))
    case .alter(_, let partition, let proposal):
      return try self.planAlter(partition, proposal)
    case .transfer(let partition, let node):
      let plan = try self.state.transferLeadership(
        of: World.partition(partition), to: World.nodeID(node))
      return (plan.transactions, .finished(nil))
    case .reassign(let partition, let nodes):
      if stage > 0 { return self.planReconcile(stage, then: .finished(nil)) }
      let plan = try self.state.reassign(
        World.partition(partition), to: nodes.map { ReplicaWish(World.nodeID($0)) })
      return (plan.transactions, .stage(1))
    case .raiseLogStart(let partition, let offset, let leader, let epoch):
      let plan = try self.state.raiseLogStart(
        of: World.partition(partition), to: offset, node: leader.id.node,
        nodeEpoch: leader.nodeEpoch, leaderEpoch: epoch)
      return (plan.transactions, .finished(nil))
    case .cancelReassignment(let partition):
      let plan = try self.state.cancelReassignment(of: World.partition(partition))
      return (plan.transactions, .finished(nil))
    }
  }

  /// Fence the life before, settle what follows, register, settle.
  private mutating func planRegistration(
    _ registration: NodeRegistration, _ attempt: Int, _ stage: Int, _ epoch: NodeEpoch?
  ) throws(MemQError) -> ([Transaction], Next) {
    switch stage {
    case 0:
      return (self.state.fencePredecessors(of: registration).transactions, .stage(1))
    case 1:
      return self.planReconcile(stage, then: .stage(2))
    case 2:
      let plan = try self.state.register(registration)
      return (plan.transactions, .stage(3, plan.outcome.epoch))
    default:
      return self.planReconcile(
        stage, then: .finished(.registered(attempt: attempt, epoch ?? .zero)))
    }
  }

  /// Until nothing changes any more.
  private mutating func planReconcile(_ stage: Int, then next: Next) -> ([Transaction], Next) {
    let plan = self.state.reconcile(recovery: self.recovery, at: self.now)
    self.recovery.note(plan.outcome.elected, at: self.now)
    self.recovered = plan.outcome.recovered.compactMap { election in
      self.state.partitions[election.partition].map { partition in
        let members = partition.value.inSync + partition.value.eligible
        // Uncleanly, anybody may be elected.
        let isClean = members.contains(election.leader)
        return SimRecovery(
          election: election,
          answered: self.recovery.logs(of: partition.value, in: self.state).filter {
            !isClean || members.contains($0.node)
          })
      }
    }
    return plan.transactions.isEmpty ? ([], next) : (plan.transactions, .stage(stage, nil))
  }

  private func planAlter(
    _ partition: Int, _ proposal: ISRProposal
  ) throws(MemQError) -> ([Transaction], Next) {
    let plan = try self.state.alterPartition(
      InSyncProposal(
        partition: World.partition(partition), node: proposal.leader.id.node,
        nodeEpoch: proposal.leader.nodeEpoch, leaderEpoch: proposal.leaderEpoch,
        partitionEpoch: proposal.base,
        members: proposal.isr.map { .init($0.id.node, $0.nodeEpoch) }))
    let altered = plan.outcome.partition
    let isr = altered.replicas.filter { altered.inSync.contains($0.node) }.sorted()
    let answer = ISRAnswer.accepted(
      altered.epoch, isr: isr, minISR: plan.outcome.minInSyncReplicas)
    return (plan.transactions, .finished(.proposalAnswered(partition, proposal, answer)))
  }
}
