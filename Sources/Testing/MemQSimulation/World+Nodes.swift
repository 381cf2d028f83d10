// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

extension World {
  static let tickInterval = 50 * millisecond

  func start(_ node: Int) throws(Shadow.Broken) {
    guard !self.nodes[node].isUp else { return }
    self.log("node \(node) starts")
    try self.nodes[node].volume.open(at: self.now(node), wall: self.wall(node))
    self.nodes[node].isUp = true
    self.register(node)
    try self.afterDisk(node)
    self.scheduler.schedule(
      .tick(node: node, life: self.nodes[node].life), after: Self.tickInterval)
  }

  func register(_ node: Int) {
    self.nodes[node].epoch = nil
    self.nodes[node].attempt += 1
    self.nodes[node].heardAt = self.scheduler.now
    self.sendRegistration(node)
  }

  private func sendRegistration(_ node: Int) {
    self.sendToMetadata(
      node,
      .register(
        node: node, attempt: self.nodes[node].attempt, isWhole: !self.nodes[node].isVolumeFailed))
  }

  func sendToMetadata(_ node: Int, _ message: Message) {
    self.send(message, from: .node(node), to: .metadata(self.nodes[node].instance))
  }

  /// Nothing was heard of the instance for long, or it isn't the controller: the next one may be.
  private func turnToNextInstance(_ node: Int) {
    self.nodes[node].instance = (self.nodes[node].instance + 1) % Self.instances
    self.nodes[node].heardAt = self.scheduler.now
  }

  func tick(_ node: Int, _ life: Int) throws(Shadow.Broken) {
    guard self.nodes[node].life == life, self.nodes[node].isUp else { return }
    let pause = self.nodes[node].pausedUntil - self.scheduler.now
    guard pause <= 0 else {
      return self.scheduler.schedule(.tick(node: node, life: life), after: pause)
    }
    self.scheduler.schedule(.tick(node: node, life: life), after: Self.tickInterval)
    self.nodes[node].ticks += 1
    let isFourth = self.nodes[node].ticks % 4 == 0
    if isFourth, self.scheduler.now - self.nodes[node].heardAt > 600 * Self.millisecond {
      self.turnToNextInstance(node)
      // A registration on its way may have been lost.
      if self.nodes[node].epoch == nil { self.nodes[node].attempt += 1 }
    }
    guard let epoch = self.nodes[node].epoch else {
      if isFourth { self.sendRegistration(node) }
      return
    }
    if isFourth { try self.sendHeartbeat(node, epoch) }
    if isFourth, self.nodes[node].isVolumeFailed { self.tellFailure(node, epoch) }
    if isFourth { self.tellOfDamage(node, epoch) }
    if isFourth { self.tellLogEnds(node, epoch) }
    guard self.nodes[node].isUp else { return }
    for partition in self.nodes[node].replicas.indices {
      try self.feed(node, partition, .tick)
      if self.nodes[node].ticks % self.nodes[node].heartbeatTicks == 0 {
        self.sendHeartbeats(node, partition)
      }
    }
  }

  func nodeReceived(
    _ node: Int, _ message: Message, from: Address
  ) throws(Shadow.Broken) {
    switch message {
    case .registered(let attempt, let epoch):
      guard attempt == self.nodes[node].attempt, self.nodes[node].epoch == nil else { return }
      self.nodes[node].heardAt = self.scheduler.now
      try self.registered(node, epoch)
    case .fenced(let epoch):
      guard self.nodes[node].epoch == epoch else { return }
      self.register(node)
    case .notController:
      if from == .metadata(self.nodes[node].instance) { self.turnToNextInstance(node) }
    case .deregistered(let epoch):
      guard self.nodes[node].epoch == epoch, self.nodes[node].drainsUntil != nil else { return }
      try self.stopOrderly(node)
    case .image(let view): try self.take(view, node, from: from)
    case .proposalAnswered(let partition, let proposal, let answer):
      try self.feed(node, partition, .leader(.proposalAnswered(proposal, answer)))
    case .open(let partition, let request):
      try self.feed(node, partition, .leader(.opened(request)))
    case .position(let partition, let position):
      self.advancePusher(node, partition, position)
      try self.feed(node, partition, .leader(.positioned(position)))
    case .answer(let partition, let answer):
      guard answer.follower == World.replica(node) else { return }
      try self.feed(node, partition, .follower(.answered(answer)))
    case .push(let partition, let push, let values):
      let token = self.nodes[node].token()
      self.nodes[node].payloads[token] = values
      try self.feed(node, partition, .follower(.pushed(push, token: token)))
      self.nodes[node].payloads[token] = nil
    case .heartbeat(let partition, let heartbeat):
      try self.feed(node, partition, .follower(.heartbeat(heartbeat)))
    case .produce(let client, let partition, let request):
      try self.produce(node, partition, client, request)
    default: break
    }
  }

  private func registered(_ node: Int, _ epoch: NodeEpoch) throws(Shadow.Broken) {
    self.nodes[node].epoch = epoch
    self.log("node \(node) lives in epoch \(epoch)")
    for partition in self.nodes[node].replicas.indices
    where self.nodes[node].replicas[partition] != nil {
      try self.feed(node, partition, .registered(epoch))
    }
  }

  /// Where the logs of its replicas end that nobody leads, as far as it knows.
  private func tellLogEnds(_ node: Int, _ epoch: NodeEpoch) {
    guard let view = self.lastImages[node], !self.nodes[node].isVolumeFailed else { return }
    var statements: [LogEndStatement] = []
    for partition in view.partitions.indices where view.partitions[partition].leader == nil {
      guard let log = self.nodes[node].replicas[partition]?.core.log, log.isSettled,
        view.partitions[partition].nodeEpoch(of: Self.replica(node)) == epoch,
        self.nodes[node].volume.damagedFrom[partition] == nil
      else { continue }
      statements.append(
        LogEndStatement(
          Self.partition(partition), on: Self.volume(node),
          view.partitions[partition].leaderEpoch,
          LogEnd(log.epochs.lastEpoch, log.durableEnd)))
    }
    guard !statements.isEmpty else { return }
    self.sendToMetadata(node, .logEnds(node: node, epoch, statements))
  }

  // MARK: - What metadata says

  private func take(
    _ view: ClusterView, _ node: Int, from: Address
  ) throws(Shadow.Broken) {
    if from == .metadata(self.nodes[node].instance) {
      self.nodes[node].heardAt = self.scheduler.now
    }
    // One from before this life, or older than what was seen already, is refused.
    guard let epoch = self.nodes[node].epoch, view.epochs[node] == epoch else { return }
    guard view.revision >= self.nodes[node].imageRevision else {
      return try self.tellOlder(view, node)
    }
    self.nodes[node].imageRevision = view.revision
    self.lastImages[node] = view
    for partition in view.partitions.indices { try self.assign(node, partition) }
  }

  /// A replica refuses an older leader by itself, too: a node that took an older image would do no harm by it.
  private func tellOlder(_ view: ClusterView, _ node: Int) throws(Shadow.Broken) {
    for partition in view.partitions.indices {
      let known = self.nodes[node].replicas[partition]?.core.leaderEpoch ?? .none
      guard view.partitions[partition].leaderEpoch < known else { continue }
      try self.feed(node, partition, .assigned(view.partitions[partition]))
    }
  }

  /// Brings a replica in line with the image.
  func assign(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    guard let assignment = self.lastImages[node]?.partitions[partition],
      let epoch = self.nodes[node].epoch, !self.nodes[node].isVolumeFailed
    else { return }
    guard assignment.nodeEpoch(of: World.replica(node)) != nil else {
      guard self.nodes[node].replicas[partition] != nil else { return }
      self.log("node \(node) partition \(partition) is given up")
      try self.feed(node, partition, .retired)
      self.nodes[node].forget(partition)
      self.nodes[node].fresh[partition] = nil
      return try self.file(.drop, node, partition, nil)
    }
    let uploaded = self.lastImages[node]!.uploadedOffsets[partition]
    let first = Swift.max(uploaded, self.lastImages[node]!.logStarts[partition])
    self.nodes[node].wantedStart[partition] = self.lastImages[node]!.logStarts[partition]
    if self.nodes[node].replicas[partition] == nil {
      guard !self.nodes[node].volume.isDropping(partition),
        try !self.dealWithDamage(node, partition)
      else { return }
      if self.nodes[node].volume.holds(partition),
        self.nodes[node].volume.current[partition].end < first
      {
        // What it holds ends below what is final: it is filled anew from there.
        return try self.file(.drop, node, partition, nil)
      }
      try self.makeReplica(node, partition, epoch, from: first)
    }
    if assignment.leader == World.replica(node),
      let core = self.nodes[node].replicas[partition]?.core,
      !core.leads,
      core.end < first
        || !(self.options.mutation?.leadsAnotherHistory ?? false)
          && !core.log.continues(
            uploadedBelow: uploaded, lastEpoch: self.lastImages[node]!.uploadedEpochs[partition])
    {
      // It is to lead and lacks what is final, or holds another history: it goes on behind that.
      return try self.renew(node, partition, at: first)
    }
    if uploaded > self.nodes[node].toldUploaded[partition] {
      self.nodes[node].toldUploaded[partition] = uploaded
      try self.feed(node, partition, .uploadedOffsetMoved(uploaded))
      self.nodes[node].volume.setUploadedOffset(
        uploaded, partition, at: self.now(node), wall: self.wall(node))
      // What moved by it is told at once, whether or not the disk has something to do (seed 36).
      try self.afterDisk(node)
    }
    try self.applyLogStart(node, partition)
    try self.feed(node, partition, .assigned(assignment))
  }

  /// Has a replica let go of what is deleted, as far as it knows it to be committed.
  private func applyLogStart(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    let wanted = self.nodes[node].wantedStart[partition]
    guard wanted > self.nodes[node].appliedStart[partition],
      let replica = self.nodes[node].replicas[partition]
    else { return }
    let offset = Swift.min(wanted, replica.core.highWatermark)
    guard offset > self.nodes[node].appliedStart[partition] else { return }
    self.nodes[node].appliedStart[partition] = offset
    guard offset > replica.core.log.start else { return }
    self.log("node \(node) partition \(partition) begins at \(offset)")
    try self.feed(node, partition, .logStartMoved(offset))
    try self.file(.setLogStart(offset), node, partition, nil)
  }

  /// Gives up a replica's log; the next one begins at the offset.
  private func renew(_ node: Int, _ partition: Int, at offset: Offset) throws(Shadow.Broken) {
    self.log("node \(node) partition \(partition) starts afresh at \(offset)")
    self.counters.freshStarts += 1
    try self.feed(node, partition, .retired)
    let opens = self.nodes[node].replicas[partition]?.core.opens ?? .zero
    self.nodes[node].forget(partition)
    self.nodes[node].fresh[partition] = (offset, opens)
    try self.file(.drop, node, partition, nil)
  }

  private func makeReplica(
    _ node: Int, _ partition: Int, _ epoch: NodeEpoch, from first: Offset
  ) throws(Shadow.Broken) {
    let fresh = self.nodes[node].fresh[partition]
    self.nodes[node].fresh[partition] = nil
    if !self.nodes[node].volume.holds(partition) {
      let start = Swift.max(first, fresh?.start ?? .zero)
      try self.file(.open(at: start), node, partition, nil)
    }
    self.nodes[node].volume.setRetention(
      self.nodes[node].retention, partition, at: self.now(node), wall: self.wall(node))
    let log: ReplicaLog
    do {
      log = try self.nodes[node].volume.recover(partition, self.configuration.producers)
    } catch {
      throw Shadow.Broken(rule: "a volume doesn't recover", detail: "node \(node): \(error)")
    }
    self.nodes[node].replicas[partition] = SimNode.Replica(
      PartitionReplica(
        ReplicaMember(World.replica(node), epoch), log: log, configuration: self.configuration,
        after: fresh?.opens ?? .zero,
        weaknesses: self.options.mutation?.replication ?? []))
    // As the service does: what left the disk before is not told again (seed 500001395).
    if let start = self.nodes[node].volume.localStart(partition) {
      try self.feed(node, partition, .localStartMoved(start))
    }
    try self.checkLog(node, partition)
    try self.checkProducers(node, partition)
  }

  // MARK: - Handing over

  private func sendHeartbeat(_ node: Int, _ epoch: NodeEpoch) throws(Shadow.Broken) {
    guard let until = self.nodes[node].drainsUntil else {
      return self.sendToMetadata(node, .alive(node: node, epoch, .ready))
    }
    let isDone = self.nodes[node].replicas.allSatisfy { $0?.core.leaderStanding == nil }
    if isDone {
      self.sendToMetadata(node, .deregister(node: node, epoch))
    } else {
      self.sendToMetadata(node, .alive(node: node, epoch, .draining))
    }
    if self.scheduler.now > until { try self.stopOrderly(node) }
  }

  /// Tells the cluster, goes on until it leads nothing, and stops.
  func handOver(_ node: Int, for time: Int64) {
    guard self.nodes[node].isUp, self.nodes[node].epoch != nil,
      self.nodes[node].drainsUntil == nil
    else { return }
    self.nodes[node].drainsUntil = self.scheduler.now + 2_000 * Self.millisecond
    self.nodes[node].awayFor = time
  }

  private func stopOrderly(_ node: Int) throws(Shadow.Broken) {
    self.log("node \(node) stops")
    self.scheduler.schedule(.restart(node), after: self.nodes[node].awayFor)
    try self.nodes[node].stop(at: self.now(node), wall: self.wall(node))
  }

  private func produce(
    _ node: Int, _ partition: Int, _ client: Int, _ request: ProduceRequest
  ) throws(Shadow.Broken) {
    let token = self.nodes[node].token()
    self.nodes[node].payloads[token] = request.values
    self.nodes[node].waiting[token] = (client, request.attempt)
    guard self.nodes[node].replicas[partition] != nil, !self.nodes[node].volume.isFull else {
      self.nodes[node].waiting[token] = nil
      self.nodes[node].payloads[token] = nil
      self.send(
        .produced(attempt: request.attempt, .refused(.notLeader)), from: .node(node),
        to: .client(client))
      return
    }
    try self.feed(
      node, partition,
      .leader(
        .append(
          AppendRequest(
            token: token, recordCount: Int64(request.values.count),
            producerID: request.producerID,
            producerEpoch: request.producerEpoch,
            baseSequence: request.baseSequence, appendTime: self.wall(node),
            acks: request.acks, leaderEpoch: request.leaderEpoch,
            deadline: self.now(node) + .seconds(2)))))
    self.nodes[node].payloads[token] = nil
  }

  /// The streams between two nodes end; either side hears of it.
  func breakStreams(_ node: Int, _ other: Int) throws(Shadow.Broken) {
    for (follower, leader) in [(node, other), (other, node)] where node != other {
      for partition in self.leaders.indices {
        if self.nodes[follower].replicas[partition]?.core.followerStanding?.leader
          == World.replica(leader)
        {
          try self.feed(follower, partition, .follower(.disconnected))
        }
        let numbers = self.nodes[leader].pushers[partition].filter { $0.node == follower }
          .map(\.number)
        self.nodes[leader].pushers[partition].removeAll { $0.node == follower }
        for number in numbers {
          try self.feed(
            leader, partition, .leader(.closed(World.replica(follower), number)))
        }
      }
    }
  }

  /// Makes a replica anew in the same life of its node. Its open numbers go on, because what was sent to the one before may
  /// still arrive.
  func remakeReplica(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    guard let epoch = self.nodes[node].epoch, self.nodes[node].replicas[partition] != nil else {
      return
    }
    self.log("node \(node) partition \(partition) is made anew")
    let wasLeader = self.nodes[node].replicas[partition]!.core.leaderStanding != nil
    try self.feed(node, partition, .retired)
    self.nodes[node].pushers[partition] = []
    let old = self.nodes[node].replicas[partition]!.core
    self.nodes[node].replicas[partition] = SimNode.Replica(
      PartitionReplica(
        ReplicaMember(World.replica(node), epoch), log: old.log,
        configuration: self.configuration, after: old.opens,
        weaknesses: self.options.mutation?.replication ?? []))
    try self.assign(node, partition)
    guard wasLeader else { return }
    // It can't lead that epoch again; a new session brings an election.
    self.register(node)
  }

  func wall(_ node: Int) -> Timestamp {
    Timestamp(
      milliseconds: 1_700_000_000_000 + self.scheduler.now / Self.millisecond
        + self.nodes[node].clockError)
  }

  func diskWorked(_ node: Int, _ life: Int) throws(Shadow.Broken) {
    guard self.nodes[node].life == life, self.nodes[node].isUp, !self.nodes[node].isVolumeFailed
    else { return }
    let pause = self.nodes[node].pausedUntil - self.scheduler.now
    guard pause <= 0 else {
      return self.scheduler.schedule(.disk(node: node, life: life), after: pause)
    }
    self.nodes[node].scheduledWork -= 1
    let outstanding = self.nodes[node].volume.outstanding
    let index = self.nodes[node].random.number(0..<outstanding)
    try self.nodes[node].volume.perform(index, at: self.now(node), wall: self.wall(node))
    if self.nodes[node].volume.hasFailed { return try self.volumeFailed(node) }
    try self.afterDisk(node)
  }

  func volumeWoke(_ node: Int, _ life: Int, _ time: MonotonicInstant) throws(Shadow.Broken) {
    guard self.nodes[node].life == life, self.nodes[node].isUp, !self.nodes[node].isVolumeFailed,
      self.nodes[node].scheduledWake == time
    else { return }
    let pause = self.nodes[node].pausedUntil - self.scheduler.now
    guard pause <= 0 else {
      return self.scheduler.schedule(.volumeWake(node: node, life: life, time), after: pause)
    }
    self.nodes[node].scheduledWake = nil
    try self.nodes[node].volume.tick(at: self.now(node), wall: self.wall(node))
    try self.afterDisk(node)
  }

  /// Tells the replicas what became durable, and gives new disk work its time.
  func afterDisk(_ node: Int) throws(Shadow.Broken) {
    for (partition, number) in try self.nodes[node].volume.takeDurable() {
      try self.feed(node, partition, .durable(through: number))
    }
    for (partition, offset) in self.nodes[node].volume.takeLocalStarts() {
      self.log("node \(node) partition \(partition) lets go of what is below \(offset)")
      try self.feed(node, partition, .localStartMoved(offset))
    }
    for partition in self.nodes[node].volume.takeSnapshotsWanted() {
      try self.feed(node, partition, .snapshotWanted)
    }
    for partition in self.nodes[node].replicas.indices
    where self.nodes[node].replicas[partition] == nil { try self.assign(node, partition) }
    self.scheduleDisk(node)
  }

  private func scheduleDisk(_ node: Int) {
    let life = self.nodes[node].life
    while self.nodes[node].scheduledWork < self.nodes[node].volume.outstanding {
      self.nodes[node].scheduledWork += 1
      let delay = Int64(50_000 + self.nodes[node].random.number(0..<self.nodes[node].diskMax))
      self.scheduler.schedule(.disk(node: node, life: life), after: delay)
    }
    // One that was given is no longer shown: the same time again is another.
    guard let wake = self.nodes[node].volume.wake, wake != self.nodes[node].scheduledWake else {
      return
    }
    self.nodes[node].scheduledWake = wake
    self.scheduler.schedule(
      .volumeWake(node: node, life: life, wake),
      after: Swift.max(
        1_000, wake.nanoseconds / self.nodes[node].clockRate * 1_000 + 1_000 - self.scheduler.now))
  }

  /// Asks the rules and carries out what they say. Nothing comes between.
  func feed(
    _ node: Int, _ partition: Int, _ event: PartitionReplica.Event
  ) throws(Shadow.Broken) {
    guard let replica = self.nodes[node].replicas[partition] else { return }
    var effects: [ReplicationEffect] = []
    let before = ReplicaStanding(&replica.core, event)
    replica.core.handle(event, at: self.now(node), into: &effects)
    let step = StepReader(
      before: before, after: ReplicaStanding(&replica.core, event), event: event, effects: effects)
    // A mutation may well leave the tables.
    if self.options.mutation == nil {
      try step.read(into: &self.counters)
    } else {
      try? step.read(into: &self.counters)
    }
    // What an effect says of the high watermark must stand before replies are judged.
    for effect in effects { try self.perform(effect, node, partition) }
    if let at = self.nodes[node].renewal[partition] {
      self.nodes[node].renewal[partition] = nil
      return try self.renew(node, partition, at: at)
    }
    try self.push(node, partition)
    try self.applyLogStart(node, partition)
    self.scheduleDisk(node)
  }

  private func perform(
    _ effect: ReplicationEffect, _ node: Int, _ partition: Int
  ) throws(Shadow.Broken) {
    switch effect {
    case .startEpoch(let number, let start):
      try self.file(.startEpoch(start), node, partition, number)
      try self.checkNewLeader(node, partition)
    case .write(let number, let summary, let token):
      let values = self.nodes[node].payloads[token] ?? []
      try self.file(
        .append(SimVolume.Batch(summary: summary, values: values)), node, partition, number)
    case .truncate(let number, let end, let epochs):
      guard
        end
          >= Swift.min(
            self.nodes[node].toldUploaded[partition], self.nodes[node].volume.current[partition].end
          )
      else {
        throw Shadow.Broken(
          rule: "a replica cuts what is uploaded",
          detail: "node \(node) partition \(partition) to \(end)")
      }
      self.log("node \(node) partition \(partition) cuts to \(end)")
      try self.file(.truncate(to: end, epochs: epochs), node, partition, number)
      self.nodes[node].checked[partition] = Swift.min(
        self.nodes[node].checked[partition], Int(end.rawValue))
      try self.checkProducers(node, partition)
    case .highWatermark(let offset):
      try self.watermarkMoved(node, partition, to: offset)
    case .producerSnapshot(let bytes, let at):
      self.nodes[node].volume.setSnapshot(
        bytes, partition, at: at, now: self.now(node), wall: self.wall(node))
    case .reply(let token, let outcome):
      guard let waiting = self.nodes[node].waiting.removeValue(forKey: token) else { return }
      self.send(
        .produced(attempt: waiting.attempt, outcome), from: .node(node), to: .client(waiting.client)
      )
    case .answer(let answer):
      let follower = World.node(answer.follower)
      try self.checkAccepted(node, partition, answer)
      if case .accepted(let from) = answer.result {
        self.nodes[node].pushers[partition].append(
          SimNode.Pusher(node: follower, number: answer.number, next: from, acknowledged: from))
      }
      self.send(.answer(partition, answer), from: .node(node), to: .node(follower))
    case .stopPushing(let replica):
      let follower = World.node(replica)
      self.nodes[node].pushers[partition].removeAll { $0.node == follower }
    case .open(let request):
      self.sendToLeader(.open(partition, request), node, partition)
    case .position(let position):
      self.sendToLeader(.position(partition, position), node, partition)
    case .startAfresh(let at):
      self.nodes[node].renewal[partition] = at
    case .propose(let proposal):
      self.sendToMetadata(node, .propose(node: node, partition: partition, proposal))
    case .refuseLeadership(let epoch):
      self.log("node \(node) partition \(partition) refuses to lead epoch \(epoch) again")
    }
  }

  func file(
    _ write: SimVolume.Write, _ node: Int, _ partition: Int, _ number: WriteNumber?
  ) throws(Shadow.Broken) {
    try self.nodes[node].volume.file(
      write, partition, number, at: self.now(node), wall: self.wall(node))
    self.scheduleDisk(node)
  }

  private func sendToLeader(_ message: Message, _ node: Int, _ partition: Int) {
    guard let leader = self.nodes[node].replicas[partition]?.core.follower?.leader else { return }
    self.send(message, from: .node(node), to: .node(World.node(leader)))
  }

  private func advancePusher(_ node: Int, _ partition: Int, _ position: FollowerPosition) {
    let follower = World.node(position.follower.id)
    for at in self.nodes[node].pushers[partition].indices
    where self.nodes[node].pushers[partition][at].node == follower
      && self.nodes[node].pushers[partition][at].number == position.number
    {
      let known = self.nodes[node].pushers[partition][at].acknowledged
      self.nodes[node].pushers[partition][at].acknowledged = Swift.max(known, position.durableEnd)
    }
  }

  private func push(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    let sender = self.nodes[node]
    guard !sender.pushers[partition].isEmpty, let replica = sender.replicas[partition],
      let (epoch, localStart, end, highWatermark) = replica.core.pushing
    else { return }
    var gone: [OpenNumber] = []
    for at in sender.pushers[partition].indices {
      while true {
        let pusher = sender.pushers[partition][at]
        guard pusher.next < end, pusher.next - pusher.acknowledged < sender.window,
          let batch = try sender.volume.batch(partition, at: pusher.next)
        else {
          // What it lacks is gone here: it hears no more of this open, and asks again.
          if pusher.next < localStart { gone.append(pusher.number) }
          break
        }
        sender.pushers[partition][at].next = batch.summary.endOffset
        let push = Push(
          leaderEpoch: epoch, number: pusher.number, batch: batch.summary,
          highWatermark: highWatermark)
        self.send(
          .push(partition, push, batch.values), from: .node(node), to: .node(pusher.node))
      }
    }
    if !gone.isEmpty { sender.pushers[partition].removeAll { gone.contains($0.number) } }
    if !gone.isEmpty {
      self.nodes[node].pushers[partition].removeAll { gone.contains($0.number) }
    }
  }

  private func sendHeartbeats(_ node: Int, _ partition: Int) {
    guard self.nodes[node].quietUntil <= self.scheduler.now,
      let replica = self.nodes[node].replicas[partition]
    else { return }
    for pusher in self.nodes[node].pushers[partition] {
      guard let heartbeat = replica.core.heartbeat(pusher.number, pushedThrough: pusher.next) else {
        return
      }
      self.send(.heartbeat(partition, heartbeat), from: .node(node), to: .node(pusher.node))
    }
  }
}
