// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

// Metadata: instances, their store, and what they tell nodes.
extension World {
  static func nodeID(_ node: Int) -> NodeID { NodeID(Int32(node + 1)) }
  static func node(_ id: NodeID) -> Int { Int(id.rawValue) - 1 }
  static func replica(_ node: Int) -> ReplicaID { ReplicaID(Self.nodeID(node), Self.volume(node)) }
  static func node(_ replica: ReplicaID) -> Int { Self.node(replica.node) }
  static func volume(_ node: Int) -> VolumeID {
    VolumeID(UniqueID(high: 9, low: UInt64(node + 1)))
  }
  /// Each partition is a topic of its own, because settings are the topic's.
  static func partition(_ number: Int) -> TopicPartition {
    TopicPartition(TopicID(UniqueID(high: 1, low: UInt64(number + 1))), PartitionIndex(0))
  }
  static func number(_ partition: TopicPartition) -> Int {
    Int(partition.topic.value.low) - 1
  }
  static func registration(_ node: Int, isWhole: Bool = true) -> NodeRegistration {
    NodeRegistration(
      uuid: NodeUUID(UniqueID(high: 5, low: UInt64(node + 1))), service: .replication,
      address: "node-\(node):9092",
      volumes: [VolumeImage(Self.volume(node), isWhole ? .fit : .failed)])
  }

  /// The cluster as it is made before anything runs.
  static func makeCluster(_ shape: Shape) -> SimStore {
    var store = SimStore()
    let record = ClusterRecord(
      id: ClusterID(UniqueID(high: 7, low: 7)), incarnation: Incarnation(1),
      incarnationID: UniqueID(high: 8, low: 8), createdAt: Timestamp(milliseconds: 0))
    _ = store.run { $0.createCluster(record) }
    for node in 0..<shape.nodes {
      _ = store.run { (state) throws(MemQError) in try state.register(Self.registration(node)) }
    }
    for (number, partition) in shape.partitions.enumerated() {
      var settings: SortedMap<String, String> = [:]
      settings["min.insync.replicas"] = String(partition.minISR)
      if shape.mayLose[number] { settings["unclean.leader.election.enable"] = "true" }
      let creation = TopicCreation(
        id: Self.partition(number).topic, name: "topic-\(number)", partitionCount: 1,
        replicationFactor: partition.factor, settings: settings,
        createdAt: Timestamp(milliseconds: 0))
      _ = store.run { (state) throws(MemQError) in try state.createTopic(creation) }
    }
    return store
  }

  /// What metadata has decided on, whoever knows of it.
  func record(_ partition: Int) -> PartitionImage {
    self.store.records[partition]
  }

  /// Who may be elected without losing anything.
  func electable(_ partition: Int) -> [Int] { self.store.electable[partition] }

  // MARK: - The store

  func storeReceived(_ message: Message, from: Address) throws(Shadow.Broken) {
    switch message {
    case .commit(let id, let transactions, let joining, let recovered):
      let before = self.store.revision
      let verdicts = self.store.commit(transactions, at: self.scheduler.now)
      self.send(.committed(id, verdicts), from: .store, to: from)
      if case .committed = verdicts[0] {
        try self.checkJoined(joining)
        for recovery in recovered { try self.checkRecovered(recovery) }
      }
      self.noteLosses()
      if self.store.revision > before { self.tellWatchers(since: before) }
    case .claim(let instance, let sentAt):
      let before = self.store.revision
      let revision = self.store.claim(instance, at: self.scheduler.now)
      self.send(.claimed(revision, sentAt: sentAt), from: .store, to: from)
      if self.store.revision > before { self.tellWatchers(since: before) }
    case .pull(let revision):
      if self.storeRandom.chance(50) {
        // Its history is cut: all is read anew.
        self.send(.snapshot(self.store.memory, self.store.revision), from: .store, to: from)
      } else {
        self.send(
          .changes(
            from: revision, through: self.store.revision, self.store.changes(after: revision)),
          from: .store, to: from)
      }
    default: break
    }
  }

  /// A member joins the ISR in the life in which it was found in sync.
  private func checkJoined(_ joining: [ReplicaMember]) throws(Shadow.Broken) {
    for member in joining {
      let known = self.store.truth.nodes[member.id.node]?.value.epoch ?? .zero
      guard known == member.nodeEpoch else {
        throw Shadow.Broken(
          rule: "a member joined the ISR in a life that had ended",
          detail: "node \(member.id.node) in epoch \(member.nodeEpoch), now \(known)")
      }
    }
  }

  /// Of replicas that all restarted uncleanly and said where their logs end, the one whose log goes furthest leads.
  private func checkRecovered(_ recovery: SimRecovery) throws(Shadow.Broken) {
    let partition = Self.number(recovery.election.partition)
    self.counters.recoveryElections += 1
    func log(_ id: NodeID, _ epoch: NodeEpoch?) -> LogEnd? {
      let node = self.nodes[Self.node(id)]
      guard node.isUp, !node.isVolumeFailed, node.volume.damagedFrom[partition] == nil,
        epoch == nil || node.epoch == epoch,
        let log = node.replicas[partition]?.core.log, log.isSettled
      else { return nil }
      return LogEnd(log.epochs.lastEpoch, log.durableEnd)
    }
    guard let elected = log(recovery.election.leader, nil) else { return }
    for answer in recovery.answered {
      guard let other = log(answer.node, answer.nodeEpoch), elected < other else { continue }
      throw Shadow.Broken(
        rule: "a replica was elected whose log ends before another's that answered",
        detail: "partition \(partition): node \(recovery.election.leader) with \(elected), node "
          + "\(answer.node) with \(other)")
    }
  }

  /// A replica was elected that may lack what was committed, and the history epoch says so: above what is final the partition begins
  /// anew with what the new leader holds. What earlier leaders still say counts no more.
  private func noteLosses() {
    for (partition, epoch) in self.store.takeUncleanElections() {
      guard self.shadow.mayLose[partition] else { continue }
      self.log("partition \(partition): unclean election, epoch \(epoch)")
      let final = Int(self.store.final[partition].rawValue)
      self.shadow.lose(partition, above: final, since: epoch)
      for node in self.nodes {
        node.checked[partition] = Swift.min(node.checked[partition], final)
      }
    }
  }

  private func tellWatchers(since revision: Revision) {
    let changes = self.store.changes(after: revision)
    for change in changes { self.trace.note(change.revision.rawValue) }
    self.logChanges(changes)
    for instance in self.controllers.indices {
      self.send(
        .changes(from: revision, through: self.store.revision, changes), from: .store,
        to: .metadata(instance))
    }
  }

  private func logChanges(_ changes: [StoreChange]) {
    guard self.options.keepsTrace, !changes.isEmpty else { return }
    for number in self.shadow.committed.indices {
      let record = self.record(number)
      guard changes.contains(where: { $0.key == .partition(record.id) }) else { continue }
      self.log(
        "partition \(number): leader \(record.leader.map { "\($0)" } ?? "none") epoch "
          + "\(record.leaderEpoch).\(record.epoch) ISR \(record.inSync) ELR \(record.eligible) of "
          + "\(record.replicas.map(\.node))")
    }
    for node in self.store.truth.nodes.values
    where changes.contains(where: { $0.key == .node(node.value.id) }) {
      self.log("node \(node.value.id): epoch \(node.value.epoch) \(node.value.state)")
    }
  }

  // MARK: - Objects

  /// An uploader announces that all below the range's end is in an object.
  func uploaded(_ partition: Int, _ range: UploadedRange) {
    let (id, offset) = (self.record(partition).uploadGroup, range.end)
    guard let group = self.store.truth.uploadGroups[id],
      let known = group.value.positions[Self.partition(partition)], known.next < offset,
      known.historyEpoch == range.historyEpoch
    else { return }
    var record = group.value
    record.positions[Self.partition(partition)]!.next = offset
    record.positions[Self.partition(partition)]!.lastEpoch = range.lastEpoch
    var transaction = Transaction()
    transaction.replace(.uploadGroup(id), group, with: record)
    let before = self.store.revision
    _ = self.store.commit([transaction], at: self.scheduler.now)
    self.log("partition \(partition) is uploaded below \(offset)")
    self.counters.uploads += 1
    self.tellWatchers(since: before)
  }

  // MARK: - Instances

  func startController(_ instance: Int) {
    guard !self.controllers[instance].isUp else { return }
    self.controllers[instance].isUp = true
    self.controllers[instance].nodes = Liveness(
      at: self.metadataNow, tickGapMax: .milliseconds(500))
    self.send(.pull(.zero), from: .metadata(instance), to: .store)
    self.scheduler.schedule(
      .controllerTick(instance, life: self.controllers[instance].life), after: 0)
  }

  /// Instances go by true time: their clocks' rates differ from the nodes' anyway.
  var metadataNow: MonotonicInstant { MonotonicInstant(nanoseconds: self.scheduler.now) }

  func controllerTick(_ instance: Int, _ life: Int) {
    guard self.controllers[instance].isUp, self.controllers[instance].life == life else { return }
    let pause = self.controllers[instance].pausedUntil - self.scheduler.now
    guard pause <= 0 else {
      return self.scheduler.schedule(.controllerTick(instance, life: life), after: pause)
    }
    let interval = 100 * Self.millisecond
    self.scheduler.schedule(.controllerTick(instance, life: life), after: interval)
    self.controllers[instance].ticks += 1
    if self.controllers[instance].ticks % 3 == 1 {
      self.send(
        .claim(instance: instance, sentAt: self.scheduler.now), from: .metadata(instance),
        to: .store)
      self.send(
        .pull(self.controllers[instance].applied), from: .metadata(instance), to: .store)
    }
    self.dropUnanswered(instance)
    let silent = self.controllers[instance].nodes.tick(self.metadataNow)
    guard self.controllers[instance].isController(at: self.scheduler.now) else { return }
    let late = self.controllers[instance].recovery.tick(
      self.metadataNow, self.controllers[instance].state)
    if !late.isEmpty { self.controllers[instance].isUnsettled = true }
    for id in silent {
      self.log("metadata \(instance): node \(id) is silent")
      self.controllers[instance].nodes.forget(id)
      self.begin(.fence(id), instance)
    }
    // As the service does: whoever made the change, and whether or not its answer came (seeds 300002711, 600050668).
    let changed = self.controllers[instance].state.settlementRevision
    if self.controllers[instance].isUnsettled || changed > self.controllers[instance].settled {
      self.controllers[instance].isUnsettled = false
      self.controllers[instance].settled = changed
      self.begin(.reconcile, instance)
    }
  }

  func instanceReceived(_ instance: Int, _ message: Message, from: Address) {
    switch message {
    case .claimed(let revision, let sentAt): self.claimed(instance, revision, sentAt: sentAt)
    case .committed(let id, let verdicts): self.committed(instance, id, verdicts)
    case .changes(let from, let through, let changes):
      guard self.controllers[instance].apply(changes, from: from, through: through) else {
        return self.send(
          .pull(self.controllers[instance].applied), from: .metadata(instance), to: .store)
      }
      self.applied(instance)
    case .snapshot(let entries, let revision):
      self.controllers[instance].reload(entries, at: revision)
      self.applied(instance)
    case .whereIs(_, let partition):
      guard
        let image = self.controllers[instance].state.image?.partitions[
          Self.partition(partition)]
      else { return }
      self.send(
        .leaderIs(node: image.leader.map { Self.node($0) }, image.leaderEpoch),
        from: .metadata(instance), to: from)
    case .alive(let node, let epoch, let state): self.heard(instance, node, epoch, state)
    case .register, .propose, .deregister, .order, .volumeFailed, .replicaDamaged, .logEnds:
      guard self.controllers[instance].isController(at: self.scheduler.now) else {
        if case .order = message { return }
        return self.send(.notController, from: .metadata(instance), to: from)
      }
      switch message {
      case .register(let node, let attempt, let isWhole):
        self.begin(.register(node: node, attempt: attempt, isWhole: isWhole), instance)
      case .volumeFailed(let node, let epoch):
        self.begin(.failVolume(node: node, epoch), instance)
      case .replicaDamaged(let node, let epoch, let partition, let from):
        self.begin(.damageReplica(node: node, epoch, partition, from: from), instance)
      case .logEnds(let node, let epoch, let statements):
        let state = self.controllers[instance].state
        let news = try? self.controllers[instance].recovery.take(
          statements, of: Self.nodeID(node), epoch, state, at: self.metadataNow)
        if news?.isEmpty == false { self.begin(.reconcile, instance) }
      case .propose(let node, let partition, let proposal):
        self.begin(.alter(node: node, partition: partition, proposal), instance)
      case .deregister(let node, let epoch):
        self.controllers[instance].nodes.forget(Self.nodeID(node))
        self.begin(.deregister(node: node, epoch), instance)
      case .order(let command): self.begin(command, instance)
      default: break
      }
    default: break
    }
  }

  private func claimed(_ instance: Int, _ revision: Revision?, sentAt: Int64) {
    guard revision != self.controllers[instance].lease else {
      self.controllers[instance].leaseUntil = Swift.max(
        self.controllers[instance].leaseUntil, sentAt + SimStore.leaseNanoseconds)
      return
    }
    // An answer from before the last one means nothing.
    guard sentAt + SimStore.leaseNanoseconds > self.controllers[instance].leaseUntil else { return }
    self.controllers[instance].lease = revision
    self.controllers[instance].running = []
    self.controllers[instance].isTakingOver = revision != nil
    guard revision != nil else { return }
    self.controllers[instance].leaseUntil = sentAt + SimStore.leaseNanoseconds
    self.takeOver(instance)
  }

  /// Once its state has reached the lease: what the one before left undone is in it.
  private func takeOver(_ instance: Int) {
    guard self.controllers[instance].isTakingOver, let lease = self.controllers[instance].lease,
      self.controllers[instance].applied >= lease
    else { return }
    self.controllers[instance].isTakingOver = false
    self.log("metadata \(instance) is the controller")
    // Everybody known gets a full timeout to be heard.
    var nodes = Liveness<NodeID>(at: self.metadataNow, tickGapMax: .milliseconds(500))
    for node in self.controllers[instance].state.nodes.values where node.value.state.isLive {
      nodes.expect(node.value.id, at: self.metadataNow, timeout: SimController.sessionTimeout)
    }
    self.controllers[instance].nodes = nodes
    self.controllers[instance].recovery = RecoveryElections(
      wait: SimController.recoveryWait, at: self.metadataNow)
    let state = self.controllers[instance].state
    self.controllers[instance].settled = state.settlementRevision
    self.controllers[instance].recovery.beginAnew(state, at: self.metadataNow)
    self.begin(.reconcile, instance)
  }

  private func heard(_ instance: Int, _ node: Int, _ epoch: NodeEpoch, _ state: NodeState) {
    guard self.controllers[instance].isController(at: self.scheduler.now) else {
      return self.send(.notController, from: .metadata(instance), to: .node(node))
    }
    do throws(MemQError) {
      let known = try self.controllers[instance].state.session(Self.nodeID(node), epoch).value
      self.controllers[instance].nodes.heard(
        Self.nodeID(node), at: self.metadataNow, timeout: SimController.sessionTimeout)
      self.tell(instance, node)
      if known.state != state { self.begin(.setState(node: node, epoch, state), instance) }
    } catch {
      // Its registration may not have reached this instance's state yet.
      let known = self.controllers[instance].state.nodes[Self.nodeID(node)]?.value.epoch ?? .zero
      guard known >= epoch else { return }
      self.send(.fenced(epoch), from: .metadata(instance), to: .node(node))
    }
  }

  private func tell(_ instance: Int, _ node: Int) {
    guard
      let view = self.controllers[instance].view(
        nodes: self.nodes.count, partitions: self.shadow.count)
    else { return }
    self.send(.image(view), from: .metadata(instance), to: .node(node))
  }

  /// The state moved on: commands that waited for it go on, and nodes hear of it.
  private func applied(_ instance: Int) {
    self.takeOver(instance)
    if let view = self.controllers[instance].view(
      nodes: self.nodes.count, partitions: self.shadow.count)
    {
      let offsets = view.uploadedOffsets + view.logStarts
      if view.partitions != self.controllers[instance].told.partitions
        || offsets != self.controllers[instance].told.offsets
        || view.damaged != self.controllers[instance].told.damaged
      {
        self.controllers[instance].told = (view.partitions, offsets, view.damaged)
        for node in self.nodes.indices {
          self.send(.image(view), from: .metadata(instance), to: .node(node))
        }
      }
    }
    while let at = self.controllers[instance].running.firstIndex(where: {
      if case .applied(let revision, _) = $0.wait {
        return revision <= self.controllers[instance].applied
      }
      return false
    }) {
      var command = self.controllers[instance].running.remove(at: at)
      guard case .applied(_, let isConflict) = command.wait else { continue }
      if isConflict {
        command.attempts += 1
        guard command.attempts < SimController.attemptsMax else {
          self.failed(instance, command)
          continue
        }
        self.step(instance, command)
      } else {
        self.goOn(instance, command)
      }
    }
  }

  // MARK: - Commands

  func begin(_ command: Command, _ instance: Int) {
    self.controllers[instance].lastCommand += 1
    self.step(
      instance,
      SimController.Running(
        id: self.controllers[instance].lastCommand, command: command, next: .stage(0),
        since: self.scheduler.now))
  }

  private func goOn(_ instance: Int, _ done: SimController.Running) {
    var command = done
    switch command.next {
    case .stage(let stage, let epoch):
      command.stage = stage
      command.epoch = epoch ?? command.epoch
      command.attempts = 0
      self.step(instance, command)
    case .finished(let reply): self.finished(instance, command, reply)
    }
  }

  private func step(_ instance: Int, _ asked: SimController.Running) {
    var command = asked
    let transactions: [Transaction]
    self.controllers[instance].now = self.metadataNow
    do throws(MemQError) {
      (transactions, command.next) = try self.controllers[instance].plan(
        command.command, command.stage, command.epoch)
    } catch {
      return self.refused(instance, command, error)
    }
    guard !transactions.isEmpty else {
      if case .reassign(let partition, _) = command.command, command.stage == 0,
        self.record(partition).reassignment != nil
      {
        self.counters.hit(.replicasSameWish)
      }
      return self.goOn(instance, command)
    }
    command.wait = .committed
    self.controllers[instance].lastCommand += 1
    let id = self.controllers[instance].lastCommand
    self.controllers[instance].running.append(
      SimController.Running(
        id: id, command: command.command, stage: command.stage, attempts: command.attempts,
        next: command.next, epoch: command.epoch, since: command.since))
    self.send(
      .commit(
        id, transactions.map { self.conditional($0, instance) },
        joining: self.joining(command.command), recovered: self.controllers[instance].recovered),
      from: .metadata(instance), to: .store)
  }

  private func joining(_ command: Command) -> [ReplicaMember] {
    guard case .alter(_, let partition, let proposal) = command else { return [] }
    return proposal.isr.filter { !self.record(partition).inSync.contains($0.id.node) }
  }

  /// Every write of a controller holds only while its lease does.
  private func conditional(_ transaction: Transaction, _ instance: Int) -> Transaction {
    let mutation = self.options.mutation
    var transaction =
      mutation?.skipsConditions ?? false ? Transaction([], transaction.operations) : transaction
    if let lease = self.controllers[instance].lease, !(mutation?.skipsLease ?? false) {
      transaction.require(.revision(SimStore.leaseKey, lease))
    }
    return transaction
  }

  private func committed(_ instance: Int, _ id: UInt64, _ verdicts: [CommitVerdict]) {
    guard let at = self.controllers[instance].running.firstIndex(where: { $0.id == id }),
      case .committed = self.controllers[instance].running[at].wait
    else { return }
    var wait = SimController.Running.Wait.applied(.zero, isConflict: false)
    for verdict in verdicts {
      switch verdict {
      case .committed(let revision): wait = .applied(revision, isConflict: false)
      case .conflict(let revision): wait = .applied(revision, isConflict: true)
      case .skipped: break
      }
    }
    self.controllers[instance].running[at].wait = wait
    self.applied(instance)
  }

  /// No answer of the store: what was asked for may have happened.
  private func dropUnanswered(_ instance: Int) {
    let late = self.scheduler.now - SimController.answerTimeout
    for command in self.controllers[instance].running where command.since < late {
      self.failed(instance, command)
    }
    self.controllers[instance].running.removeAll { $0.since < late }
  }

  private func failed(_ instance: Int, _ command: SimController.Running) {
    // Nobody is told anything; but what it left undone must not stay so.
    self.controllers[instance].isUnsettled = true
  }

  private func refused(_ instance: Int, _ command: SimController.Running, _ error: MemQError) {
    guard case .alter(let node, let partition, let proposal) = command.command else { return }
    self.log("metadata \(instance) refuses an ISR of partition \(partition): \(error.message)")
    self.send(
      .proposalAnswered(partition, proposal, .refused), from: .metadata(instance),
      to: .node(node))
  }

  private func finished(_ instance: Int, _ command: SimController.Running, _ reply: Message?) {
    switch command.command {
    case .register(let node, _, _):
      self.controllers[instance].nodes.heard(
        Self.nodeID(node), at: self.metadataNow, timeout: SimController.sessionTimeout)
      if let reply { self.send(reply, from: .metadata(instance), to: .node(node)) }
      self.tell(instance, node)
    case .alter(let node, _, _):
      if let reply { self.send(reply, from: .metadata(instance), to: .node(node)) }
      // It may complete a reassignment, or free a leader that drains.
      self.begin(.reconcile, instance)
    case .deregister(let node, _):
      if let reply { self.send(reply, from: .metadata(instance), to: .node(node)) }
    case .setState, .fence, .reconcile, .transfer, .reassign, .cancelReassignment, .raiseLogStart,
      .failVolume, .damageReplica:
      break
    }
  }
}
