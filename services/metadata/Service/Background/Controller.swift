// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQSystem

/// Judges who lives, by what it hears, and has the core act on it. Owns the sessions of nodes and leases; none of that is stored.
actor Controller {
  private let configuration: MetadataNode.Configuration
  private let runner: CommandRunner
  /// This instance's own node; it can't fall silent to itself.
  private let nodeID: NodeID
  private let clock: any MemQClock
  private let metrics: MetadataMetrics
  private let logger: Logger
  private var nodes: Liveness<NodeID>
  private var leases: Liveness<Int32>
  /// Nodes that said something since this instance began.
  private var heardNodes: Set<NodeID> = []
  private var fencedSince: SortedMap<NodeID, MonotonicInstant> = [:]
  /// Nodes whose heartbeats broke off without a goodbye, and that were not heard since.
  private var brokenOff: SortedMap<NodeID, NodeEpoch> = [:]
  private let refusesConnections: MetadataNode.RefusesConnections
  /// Nodes that do not live, since when: one that may come back is waited for before an unclean election.
  private var lostSince: SortedMap<NodeID, MonotonicInstant> = [:]
  /// When an unclean election that waits is looked at again.
  private var recoveryUntil: MonotonicInstant?
  /// What replicas that restarted uncleanly said of their logs, and how long the others are waited for.
  private var recovery: RecoveryElections
  /// Partitions of which something new was said, or for which nobody is waited any more.
  private var toElect: SortedMap<TopicPartition, UInt64> = [:]
  /// Of the last entry.
  private var toElectNumber: UInt64 = 0
  private var isTicking = false
  /// The state's `settlementRevision` whose consequences are drawn. A settling that broke off is made up for by the next tick, and
  /// so is one of a change whose outcome was not known and that came to be later.
  private var settled = Revision.zero
  /// Two at once would take turns in refusing each other's writes; a node with tens of thousands of replicas needs hundreds of them.
  private var isSettling = false
  private var settlingWaiters: [CheckedContinuation<Void, Never>] = []
  /// Raised when there is something to clear away.
  let remains = Signal()
  /// Sessions of group members: as those of nodes, they are the controller's alone.
  let groups: GroupCoordinator
  let offsets: OffsetWriter

  init(
    _ configuration: MetadataNode.Configuration, runner: CommandRunner, nodeID: NodeID,
    clock: any MemQClock, metrics: MetadataMetrics, logger: Logger,
    refusesConnections: @escaping MetadataNode.RefusesConnections
  ) {
    self.configuration = configuration
    self.runner = runner
    self.nodeID = nodeID
    self.clock = clock
    self.metrics = metrics
    self.logger = logger
    self.refusesConnections = refusesConnections
    self.groups = GroupCoordinator(
      configuration, runner: runner, clock: clock, metrics: metrics, logger: logger)
    self.offsets = OffsetWriter(runner: runner, clock: clock, metrics: metrics)
    let gap = max(configuration.tickInterval * 5, configuration.sessionTimeout / 3)
    self.nodes = Liveness(at: clock.monotonic, tickGapMax: gap)
    self.leases = Liveness(at: clock.monotonic, tickGapMax: gap)
    self.recovery = RecoveryElections(
      wait: configuration.electionRecoveryWait, at: clock.monotonic, tickGapMax: gap)
    self.heardNodes = [nodeID]
  }

  /// Takes over: everybody known gets time to be heard.
  func begin() async throws(MemQError) {
    let wall = self.clock.wall
    try await self.runner.run("bury-orphans") { $0.buryOrphans(at: wall) }
    // Nobody knows for how long they have been away.
    self.awaitEverybody()
    try await self.settle()
    self.giveEverybodyTime()
    await self.groups.begin()
  }

  private func awaitEverybody() {
    let now = self.clock.monotonic
    let lost = self.runner.cell.read { state in
      self.recovery.beginAnew(state, at: now)
      return state.nodes.values.filter { !$0.value.state.isLive }.map(\.value.id)
    }
    for id in lost { self.lostSince[id] = now }
  }

  /// As no node could be heard until now.
  func giveEverybodyTime() {
    self.awaitEverybody()
    let now = self.clock.monotonic
    let configuration = self.configuration
    let (live, fenced, held) = self.runner.cell.read { state in
      (
        state.nodes.values.filter { $0.value.state.isLive }.map(\.value.id),
        state.nodes.values.filter { !$0.value.state.isLive }.map(\.value.id),
        state.uploadGroups.values.filter { $0.value.group.holder != nil }.map(\.value.group.id)
      )
    }
    let grace = max(configuration.startGrace, configuration.sessionTimeout)
    for id in live where id != self.nodeID { self.nodes.heard(id, at: now, timeout: grace) }
    for id in fenced { self.fencedSince[id] = now }
    for id in held { self.leases.heard(id, at: now, timeout: configuration.leaseTimeout) }
  }

  // MARK: Nodes

  func register(_ registration: NodeRegistration) async throws(MemQError) -> NodeImage {
    try self.runner.cell.read { (state) throws(MemQError) in
      try state.checkRegistration(registration)
    }
    let earlier = try await self.runner.run("fence-predecessors") {
      $0.fencePredecessors(of: registration)
    }
    for id in earlier {
      self.nodes.forget(id)
      self.lostSince[id] = self.clock.monotonic
    }
    if !earlier.isEmpty { try await self.settle() }
    let node = try await self.runner.run("register-node") { (state) throws(MemQError) in
      try state.register(registration)
    }
    self.heard(node.id)
    self.logger.info(
      "Node registered",
      metadata: [
        "node.id": "\(node.id)", "node.epoch": "\(node.epoch)", "service": "\(node.service.name)",
        "address": "\(node.address)",
      ])
    try await self.settle()
    return node
  }

  /// Takes in a sign of life.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced`.
  func heartbeat(_ id: NodeID, _ epoch: NodeEpoch, _ state: NodeState) async throws(MemQError) {
    let known = try self.runner.cell.read { (cell) throws(MemQError) in
      try cell.session(id, epoch).value
    }
    self.heard(id)
    guard known.state != state else { return }
    try await self.runner.run("set-state") { (cell) throws(MemQError) in
      try cell.setState(of: id, epoch, to: state)
    }
    if known.service == .replication { try await self.settle() }
  }

  private func heard(_ id: NodeID) {
    self.heardNodes.insert(id)
    self.fencedSince[id] = nil
    self.lostSince[id] = nil
    self.brokenOff[id] = nil
    self.nodes.heard(id, at: self.clock.monotonic, timeout: self.configuration.sessionTimeout)
  }

  /// A node's heartbeats ended, and it did not say goodbye. One that is about to leave does that next; another may be on its way
  /// back, or its process is gone: the next tick finds out.
  func brokeOff(_ id: NodeID, _ epoch: NodeEpoch) {
    let node = self.runner.cell.read { $0.nodes[id]?.value }
    guard let node, node.epoch == epoch, node.state == .ready else { return }
    self.brokenOff[id] = epoch
  }

  func deregister(_ id: NodeID, _ epoch: NodeEpoch) async throws(MemQError) {
    try await self.runner.run("deregister-node") { (state) throws(MemQError) in
      try state.deregister(id, epoch)
    }
    self.nodes.forget(id)
    self.lostSince[id] = self.clock.monotonic
    self.heardNodes.remove(id)
    self.brokenOff[id] = nil
    self.logger.info("Node left", metadata: ["node.id": "\(id)"])
    try await self.settle()
  }

  /// A node says where its volumes stand; what that means for partitions has happened when it returns.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced`, `.invalidArgument`.
  func reportVolumes(
    _ id: NodeID, _ epoch: NodeEpoch, _ volumes: [VolumeImage]
  ) async throws(MemQError) {
    let failed = try await self.runner.run("report-volumes") { (state) throws(MemQError) in
      try state.reportVolumes(of: id, epoch, volumes)
    }
    for volume in failed {
      self.logger.error(
        "A volume failed; its replicas are fenced",
        metadata: [
          "node.id": "\(id)", "volume": "\(volume.id)", "error": "\(volume.problem)",
        ])
    }
    // Asked again it is no news, but the one before may not have come so far.
    try await self.settle()
  }

  /// A node says which of its replicas are damaged, or whole again.
  ///
  /// - Returns: one entry for each; nil where it was taken over.
  /// - Throws: `.nodeUnknown`, `.nodeFenced`.
  func reportReplicas(
    _ id: NodeID, _ epoch: NodeEpoch, _ reports: [ReplicaReport]
  ) async throws(MemQError) -> [MemQError?] {
    var errors: [MemQError?] = []
    for report in reports {
      do throws(MemQError) {
        let isNews = try await self.runner.run("report-replica") { (state) throws(MemQError) in
          try state.reportReplica(report, of: id, epoch)
        }
        errors.append(nil)
        if isNews { self.log(report, of: id) }
      } catch {
        switch error.code {
        case .partitionNotFound, .topicNotFound, .topicDeleted, .invalidArgument:
          errors.append(error)
        default: throw error
        }
      }
    }
    try await self.settle()
    return errors
  }

  /// A node says where the logs of replicas end that nobody leads.
  ///
  /// - Throws: `.nodeUnknown`, `.nodeFenced`.
  func reportLogEnds(
    _ id: NodeID, _ epoch: NodeEpoch, _ statements: [LogEndStatement]
  ) async throws(MemQError) {
    let now = self.clock.monotonic
    let news = try self.runner.cell.read { (state) throws(MemQError) in
      try self.recovery.take(statements, of: id, epoch, state, at: now)
    }
    guard !news.isEmpty else { return }
    self.lookAgain(at: news)
    try await self.settle()
  }

  private func lookAgain(at partitions: [TopicPartition]) {
    self.toElectNumber += 1
    for partition in partitions { self.toElect[partition] = self.toElectNumber }
  }

  private func log(_ report: ReplicaReport, of id: NodeID) {
    guard let from = report.damagedFrom else {
      self.logger.notice(
        "A damaged replica is whole again",
        metadata: ["node.id": "\(id)", "partition": "\(report.partition)"])
      return
    }
    self.logger.error(
      "A replica is damaged",
      metadata: [
        "node.id": "\(id)", "partition": "\(report.partition)", "damaged.from": "\(from)",
      ])
  }

  /// Whether the node has been heard of by this instance: what the store says of others may be from before.
  func hasHeard(_ ids: [NodeID]) -> [NodeID] { ids.filter { self.heardNodes.contains($0) } }

  // MARK: Consequences

  /// Partitions and leases of nodes that are gone pass on. One at a time; who comes meanwhile waits, and does what is left.
  func settle() async throws(MemQError) {
    let asked = self.runner.cell.read { $0.settlementRevision }
    while self.isSettling {
      await withCheckedContinuation { self.settlingWaiters.append($0) }
    }
    guard self.settled < asked || self.isRecoveryOver || !self.toElect.isEmpty else { return }
    self.isSettling = true
    defer {
      self.isSettling = false
      let waiters = self.settlingWaiters
      self.settlingWaiters = []
      for waiter in waiters { waiter.resume() }
    }
    let through = self.runner.cell.read { $0.settlementRevision }
    let (toElect, number) = (self.toElect.keys, self.toElectNumber)
    // What waits is not among the changes.
    try await self.reconcile(
      since: self.recoveryUntil == nil ? self.settled : .zero, also: toElect)
    // Of some more may have been said meanwhile.
    for id in toElect where self.toElect[id].map({ $0 <= number }) ?? false {
      self.toElect[id] = nil
    }
    while try await self.runner.run(
      "release-leases",
      { state in
        let nodes = state.nodes
        return state.releaseLeases { !(nodes[$0]?.value.state.isLive ?? false) }
      }) > 0
    {}
    self.settled = max(self.settled, through)
  }

  /// Until nothing changes any more.
  private func reconcile(
    since: Revision, also: [TopicPartition]
  ) async throws(MemQError) {
    while true {
      let now = self.clock.monotonic
      let wait = self.configuration.electionRecoveryWait
      let lost = self.lostSince.filter { now - $0.1 < wait }
      self.lostSince = [:]
      for (id, since) in lost { self.lostSince[id] = since }
      let returning = Set(lost.map(\.0))
      let recovery = self.recovery
      let summary = try await self.runner.run("reconcile") { state in
        state.reconcile(since: since, also: also, recovery: recovery, at: now) {
          returning.contains($0)
        }
      }
      self.recovery.note(summary.elected, at: self.clock.monotonic)
      self.log(summary.recovered)
      if since == .zero || !summary.awaiting.isEmpty {
        self.noteAwaiting(summary.awaiting, until: lost.map(\.1).min().map { $0 + wait })
      }
      guard summary.changed > 0 else { return }
      self.metrics.elections.increment(by: summary.elected.count)
      self.metrics.uncleanElections.increment(by: summary.unclean.count)
      for partition in summary.elected.prefix(20) {
        self.logger.notice(
          "Partition has another leader",
          metadata: [
            "partition": "\(partition.id)",
            "leader": "\(partition.leader.map { "\($0)" } ?? "none")",
            "leader.epoch": "\(partition.leaderEpoch)",
          ])
      }
      if summary.elected.count > 20 {
        self.logger.notice(
          "More partitions have another leader",
          metadata: ["count": "\(summary.elected.count - 20)"])
      }
      for partition in summary.unclean {
        self.logger.error(
          "Unclean election: committed records of the partition may be lost",
          metadata: ["partition": "\(partition)"])
      }
    }
  }

  private func log(_ elections: [RecoveryElection]) {
    self.metrics.recoveryElections.increment(by: elections.count)
    for election in elections.prefix(20) {
      self.logger.log(
        level: election.answers < election.candidates ? .warning : .notice,
        "All candidates restarted uncleanly: the one whose log goes furthest leads",
        metadata: [
          "partition": "\(election.partition)", "leader": "\(election.leader)",
          "log.epoch": "\(election.log.lastEpoch)", "log.end": "\(election.log.end)",
          "answers": "\(election.answers)", "candidates": "\(election.candidates)",
        ])
    }
    if elections.count > 20 {
      self.logger.notice(
        "More elections among candidates that all restarted uncleanly",
        metadata: ["count": "\(elections.count - 20)"])
    }
  }

  /// Partitions for which nobody is waited any more: who has answered by now leads.
  private func recoveriesDue(at now: MonotonicInstant) -> [TopicPartition] {
    self.runner.cell.read { self.recovery.tick(now, $0) }
  }

  /// Says who stays without a leader although nobody is waited for any more.
  private func log(stillLeaderless partitions: [TopicPartition]) {
    let left = self.runner.cell.read { state in
      partitions.filter { id in state.partitions[id].map { $0.value.leader == nil } ?? false }
    }
    guard let first = left.first else { return }
    self.logger.error(
      "Partitions have no leader: no replica that holds all that was committed has come back and said where its log ends",
      metadata: [
        "partitions": "\(left.count)", "first": "\(first)",
        "waited.ms": "\(self.configuration.electionRecoveryWait.milliseconds)",
      ])
  }

  /// Who was waited for before an unclean election has been away for long enough.
  private var isRecoveryOver: Bool {
    self.recoveryUntil.map { self.clock.monotonic >= $0 } ?? false
  }

  private func noteAwaiting(_ partitions: [TopicPartition], until time: MonotonicInstant?) {
    guard !partitions.isEmpty else {
      self.recoveryUntil = nil
      return
    }
    if self.recoveryUntil == nil {
      self.logger.warning(
        "Unclean elections wait for replicas that may come back with all that was committed",
        metadata: [
          "partitions": "\(partitions.count)", "first": "\(partitions[0])",
          "wait.ms": "\(self.configuration.electionRecoveryWait.milliseconds)",
        ])
    }
    self.recoveryUntil = time
  }

  // MARK: Leases

  func acquireLeases(_ request: LeaseRequest) async throws(MemQError) -> [UploadGroupRecord] {
    let now = self.clock.monotonic
    let leases = self.leases
    let groups = try await self.runner.run("acquire-leases") { (state) throws(MemQError) in
      try state.acquireLeases(request) { leases.hasRunOut($0, at: now) }
    }
    for group in groups {
      self.leases.heard(
        group.group.id, at: self.clock.monotonic, timeout: self.configuration.leaseTimeout)
    }
    return groups
  }

  // MARK: Time

  /// Acts on silence. One at a time; a tick that comes while one acts is left out.
  func tick() async {
    guard !self.isTicking else { return }
    self.isTicking = true
    defer { self.isTicking = false }
    let now = self.clock.monotonic
    let silentNodes = self.nodes.tick(now)
    _ = self.leases.tick(now)
    do {
      for id in silentNodes { try await self.fence(id) }
      try await self.fenceRefusing()
    } catch {
      self.logger.warning("Could not act on silence", metadata: ["error": "\(error)"])
    }
    let due = self.recoveriesDue(at: now)
    if !due.isEmpty { self.lookAgain(at: due) }
    // Even when not all could be fenced: those that were may be leaders.
    // Silence is looked for while much is being settled, too.
    guard !self.isSettling,
      self.isRecoveryOver || !self.toElect.isEmpty
        || self.runner.cell.read({ $0.settlementRevision }) > self.settled
    else { return }
    do {
      try await self.settle()
      self.log(stillLeaderless: due)
    } catch {
      self.logger.warning(
        "Could not have leaderships and leases pass on; the next tick tries again",
        metadata: ["error": "\(error)"])
    }
  }

  private func fence(_ id: NodeID) async throws(MemQError) {
    // It may have been heard while another was fenced.
    guard self.nodes.isSilent(id, at: self.clock.monotonic) else { return }
    let isNew = try await self.runner.run("fence-node") { $0.fence(id) }
    guard self.nodes.isSilent(id, at: self.clock.monotonic) || isNew else { return }
    self.fenced(id)
    guard isNew else { return }
    self.metrics.fencedNodes.increment()
    self.logger.notice(
      "Node fell silent and is fenced",
      metadata: [
        "node.id": "\(id)", "timeout.ms": "\(self.configuration.sessionTimeout.milliseconds)",
      ])
  }

  private func fenced(_ id: NodeID) {
    self.nodes.forget(id)
    self.heardNodes.remove(id)
    self.brokenOff[id] = nil
    self.fencedSince[id] = self.clock.monotonic
    self.lostSince[id] = self.clock.monotonic
  }

  /// Who broke off and refuses connections is not there any more: nobody needs to wait for its silence.
  private func fenceRefusing() async throws(MemQError) {
    guard !self.brokenOff.isEmpty else { return }
    let nodes = self.runner.cell.read { $0.nodes }
    let asked = self.brokenOff.compactMap { id, epoch in
      nodes[id].map { (id: id, epoch: epoch, address: $0.value.address) }
    }
    let timeout = self.configuration.refusalTimeout
    let refuses = self.refusesConnections
    let refusing = await withTaskGroup(of: NodeID?.self) { tasks in
      for node in asked {
        tasks.addTask { await refuses(node.address, timeout) ? node.id : nil }
      }
      return await tasks.reduce(into: Set<NodeID>()) { found, id in
        if let id { found.insert(id) }
      }
    }
    // Those heard meanwhile stand there no more.
    for node in asked where self.brokenOff[node.id] == node.epoch {
      self.brokenOff[node.id] = nil
      guard refusing.contains(node.id) else { continue }
      let isNew = try await self.runner.run("fence-node") { $0.fence(node.id, node.epoch) }
      guard isNew else { continue }
      self.fenced(node.id)
      self.metrics.fencedNodes.increment()
      self.logger.notice(
        "Node broke off, refuses connections and is fenced",
        metadata: ["node.id": "\(node.id)", "address": "\(node.address)"])
    }
  }

  /// Nodes fenced for so long that they may be forgotten.
  func forgottenNodes() -> [NodeID] {
    let now = self.clock.monotonic
    let due = self.fencedSince.filter { now - $0.1 >= self.configuration.nodeMemory }.map(\.0)
    for id in due { self.fencedSince[id] = nil }
    return due
  }
}
