// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

extension World {
  static let tickInterval = 50 * millisecond

  func start(_ node: Int) throws(Shadow.Broken) {
    guard !self.nodes[node].isUp else { return }
    self.log("node \(node) starts")
    try self.nodes[node].volume.open(at: self.now, wall: self.wall(node))
    self.nodes[node].isUp = true
    self.register(node)
    try self.afterDisk(node)
    self.scheduler.schedule(
      .tick(node: node, life: self.nodes[node].life), after: Self.tickInterval)
  }

  private func register(_ node: Int) {
    self.nodes[node].attempt += 1
    self.sendRegistration(node)
  }

  private func sendRegistration(_ node: Int) {
    self.send(
      .register(node: node, attempt: self.nodes[node].attempt), from: .node(node), to: .metadata)
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
    guard let epoch = self.nodes[node].epoch else {
      if isFourth { self.sendRegistration(node) }
      return
    }
    if isFourth { self.send(.alive(node: node, epoch), from: .node(node), to: .metadata) }
    for partition in self.nodes[node].replicas.indices {
      try self.feed(node, partition, .tick)
      if self.nodes[node].ticks % 2 == 0 { self.sendHeartbeats(node, partition) }
    }
  }

  func nodeReceived(
    _ node: Int, _ message: Message, from: Address
  ) throws(Shadow.Broken) {
    switch message {
    case .registered(let attempt, let epoch): try self.registered(node, attempt, epoch)
    case .fenced(let epoch):
      guard self.nodes[node].epoch == epoch else { return }
      self.nodes[node].epoch = nil
      self.register(node)
    case .image(let assignments):
      for (partition, assignment) in assignments.enumerated() {
        try self.feed(node, partition, .assigned(assignment))
      }
    case .proposalAnswered(let partition, let proposal, let answer):
      try self.feed(node, partition, .leader(.proposalAnswered(proposal, answer)))
    case .open(let partition, let request):
      try self.feed(node, partition, .leader(.opened(request)))
    case .position(let partition, let position):
      self.advancePusher(node, partition, position)
      try self.feed(node, partition, .leader(.positioned(position)))
    case .answer(let partition, let answer):
      guard answer.follower == MetadataOracle.replica(node) else { return }
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
    case .register, .alive, .propose, .whereIs, .leaderIs, .produced: break
    }
  }

  private func registered(
    _ node: Int, _ attempt: Int, _ epoch: NodeEpoch
  ) throws(Shadow.Broken) {
    guard attempt == self.nodes[node].attempt, self.nodes[node].epoch == nil else { return }
    self.nodes[node].epoch = epoch
    self.log("node \(node) lives in epoch \(epoch)")
    for (partition, record) in self.metadata.partitions.enumerated()
    where record.replicas.contains(node) {
      if self.nodes[node].replicas[partition] != nil {
        try self.feed(node, partition, .registered(epoch))
        continue
      }
      if !self.nodes[node].volume.holds(partition) { try self.file(.open, node, partition, nil) }
      let log: ReplicaLog
      do {
        log = try self.nodes[node].volume.recover(partition, self.configuration.producers)
      } catch {
        throw Shadow.Broken(rule: "a volume doesn't recover", detail: "node \(node): \(error)")
      }
      self.nodes[node].replicas[partition] = PartitionReplica(
        ReplicaMember(MetadataOracle.replica(node), epoch), log: log,
        configuration: self.configuration, weaknesses: self.options.mutation.weaknesses)
      try self.checkLog(node, partition)
      try self.checkProducers(node, partition)
    }
  }

  private func produce(
    _ node: Int, _ partition: Int, _ client: Int, _ request: ProduceRequest
  ) throws(Shadow.Broken) {
    let token = self.nodes[node].token()
    self.nodes[node].payloads[token] = request.values
    self.nodes[node].waiting[token] = (client, request.attempt)
    guard self.nodes[node].replicas[partition] != nil else {
      self.nodes[node].waiting[token] = nil
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
            producerEpoch: request.producerID == .none ? .none : ProducerEpoch(0),
            baseSequence: request.baseSequence, appendTime: self.wall(node),
            acks: request.acks, leaderEpoch: request.leaderEpoch,
            deadline: self.now + .seconds(2)))))
    self.nodes[node].payloads[token] = nil
  }

  func wall(_ node: Int) -> Timestamp {
    Timestamp(
      milliseconds: 1_700_000_000_000 + self.scheduler.now / Self.millisecond
        + self.nodes[node].clockError)
  }

  func diskWorked(_ node: Int, _ life: Int) throws(Shadow.Broken) {
    guard self.nodes[node].life == life, self.nodes[node].isUp else { return }
    self.nodes[node].scheduledWork -= 1
    let index = self.random.number(0..<self.nodes[node].volume.outstanding)
    try self.nodes[node].volume.perform(index, at: self.now, wall: self.wall(node))
    try self.afterDisk(node)
  }

  func volumeWoke(_ node: Int, _ life: Int, _ time: MonotonicInstant) throws(Shadow.Broken) {
    guard self.nodes[node].life == life, self.nodes[node].isUp,
      self.nodes[node].scheduledWake == time
    else { return }
    self.nodes[node].scheduledWake = nil
    self.nodes[node].lastWake = time
    try self.nodes[node].volume.tick(at: self.now, wall: self.wall(node))
    try self.afterDisk(node)
  }

  /// Tells the replicas what became durable, and gives new disk work its time.
  private func afterDisk(_ node: Int) throws(Shadow.Broken) {
    for (partition, number) in try self.nodes[node].volume.takeDurable() {
      try self.feed(node, partition, .durable(through: number))
    }
    self.scheduleDisk(node)
  }

  private func scheduleDisk(_ node: Int) {
    let life = self.nodes[node].life
    while self.nodes[node].scheduledWork < self.nodes[node].volume.outstanding {
      self.nodes[node].scheduledWork += 1
      let delay = Int64(50_000 + self.random.number(0..<self.nodes[node].diskMax))
      self.scheduler.schedule(.disk(node: node, life: life), after: delay)
    }
    guard let wake = self.nodes[node].volume.wake, wake != self.nodes[node].scheduledWake,
      wake != self.nodes[node].lastWake
    else { return }
    self.nodes[node].scheduledWake = wake
    self.scheduler.schedule(
      .volumeWake(node: node, life: life, wake),
      after: Swift.max(0, wake.nanoseconds - self.scheduler.now))
  }

  /// Asks the rules and carries out what they say. Nothing comes between.
  func feed(
    _ node: Int, _ partition: Int, _ event: PartitionReplica.Event
  ) throws(Shadow.Broken) {
    guard self.nodes[node].replicas[partition] != nil else { return }
    var effects: [ReplicationEffect] = []
    self.nodes[node].replicas[partition]!.handle(event, at: self.now, into: &effects)
    // What an effect says of the high watermark must stand before replies are judged.
    for effect in effects { try self.perform(effect, node, partition) }
    try self.push(node, partition)
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
      self.log("node \(node) partition \(partition) cuts to \(end)")
      try self.file(.truncate(to: end, epochs: epochs), node, partition, number)
      self.nodes[node].checked[partition] = Swift.min(
        self.nodes[node].checked[partition], Int(end.rawValue))
      try self.checkProducers(node, partition)
    case .highWatermark(let offset):
      try self.watermarkMoved(node, partition, to: offset)
    case .producerSnapshot(let bytes, let at):
      self.nodes[node].volume.setSnapshot(
        bytes, partition, at: at, now: self.now, wall: self.wall(node))
    case .reply(let token, let outcome):
      guard let waiting = self.nodes[node].waiting.removeValue(forKey: token) else { return }
      self.send(
        .produced(attempt: waiting.attempt, outcome), from: .node(node), to: .client(waiting.client)
      )
    case .answer(let answer):
      let follower = MetadataOracle.node(answer.follower)
      if case .accepted(let from) = answer.result {
        self.nodes[node].pushers[partition].append(
          SimNode.Pusher(node: follower, number: answer.number, next: from, acknowledged: from))
      }
      self.send(.answer(partition, answer), from: .node(node), to: .node(follower))
    case .stopPushing(let replica):
      let follower = MetadataOracle.node(replica)
      self.nodes[node].pushers[partition].removeAll { $0.node == follower }
    case .open(let request):
      self.sendToLeader(.open(partition, request), node, partition)
    case .position(let position):
      self.sendToLeader(.position(partition, position), node, partition)
    case .startAfresh(let at):
      throw Shadow.Broken(
        rule: "a replica must start afresh", detail: "node \(node) partition \(partition) at \(at)")
    case .propose(let proposal):
      self.send(
        .propose(node: node, partition: partition, proposal), from: .node(node), to: .metadata)
    case .refuseLeadership(let epoch):
      self.log("node \(node) partition \(partition) refuses to lead epoch \(epoch) again")
    }
  }

  private func file(
    _ write: SimVolume.Write, _ node: Int, _ partition: Int, _ number: WriteNumber?
  ) throws(Shadow.Broken) {
    try self.nodes[node].volume.file(
      write, partition, number, at: self.now, wall: self.wall(node))
  }

  private func sendToLeader(_ message: Message, _ node: Int, _ partition: Int) {
    guard let leader = self.nodes[node].replicas[partition]?.follower?.leader else { return }
    self.send(message, from: .node(node), to: .node(MetadataOracle.node(leader)))
  }

  private func advancePusher(_ node: Int, _ partition: Int, _ position: FollowerPosition) {
    let follower = MetadataOracle.node(position.follower.id)
    for at in self.nodes[node].pushers[partition].indices
    where self.nodes[node].pushers[partition][at].node == follower
      && self.nodes[node].pushers[partition][at].number == position.number
    {
      let known = self.nodes[node].pushers[partition][at].acknowledged
      self.nodes[node].pushers[partition][at].acknowledged = Swift.max(known, position.durableEnd)
    }
  }

  private func push(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    guard let leader = self.nodes[node].replicas[partition]?.leader else { return }
    for at in self.nodes[node].pushers[partition].indices {
      while true {
        let pusher = self.nodes[node].pushers[partition][at]
        guard pusher.next < leader.log.end, pusher.next - pusher.acknowledged < SimNode.window,
          let batch = try self.nodes[node].volume.batch(partition, at: pusher.next)
        else { break }
        self.nodes[node].pushers[partition][at].next = batch.summary.endOffset
        let push = Push(
          leaderEpoch: leader.epoch, number: pusher.number, batch: batch.summary,
          highWatermark: leader.highWatermark)
        self.send(
          .push(partition, push, batch.values), from: .node(node), to: .node(pusher.node))
      }
    }
  }

  private func sendHeartbeats(_ node: Int, _ partition: Int) {
    guard let leader = self.nodes[node].replicas[partition]?.leader else { return }
    for pusher in self.nodes[node].pushers[partition] {
      self.send(
        .heartbeat(partition, leader.heartbeat(pusher.number, pushedThrough: pusher.next)),
        from: .node(node), to: .node(pusher.node))
    }
  }
}
