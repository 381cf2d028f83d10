// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// Everything of one run: nodes, metadata, clients, network and time, driven by one seed.
final class World {
  enum Event {
    case deliver(from: Address, to: Address, Message)
    case tick(node: Int, life: Int)
    case disk(node: Int, life: Int)
    case volumeWake(node: Int, life: Int, MonotonicInstant)
    case metadataTick
    case client(Int)
    case clientTimeout(Int, attempt: Int)
    case restart(Int)
    case fault
    case endCut(Address, Address)
  }

  static let millisecond: Int64 = 1_000_000

  let options: SimulationOptions
  let configuration: ReplicationConfiguration
  var random: Randomness
  var scheduler = Scheduler<Event>()
  var network: Network
  var nodes: [SimNode]
  var clients: [SimClient]
  var metadata: MetadataOracle
  var shadow: Shadow
  var trace: Trace
  var faults: FaultPlan
  var events = 0
  var crashes = 0
  private var announcedChanges = 0

  init(seed: UInt64, options: SimulationOptions) {
    self.options = options
    self.trace = Trace(isKept: options.keepsTrace)
    self.configuration = Self.replicationConfiguration()
    var random = Randomness(seed: seed)
    let nodeCount = random.pick([1, 2, 3, 3, 3, 3, 4, 5])
    let partitionCount = random.number(1...3)
    let clientCount = partitionCount * 2
    self.network = Network(nodes: nodeCount, clients: clientCount, random: &random)
    self.metadata = MetadataOracle(
      nodes: nodeCount,
      partitions: (0..<partitionCount).map { _ in
        Self.partition(nodes: nodeCount, random: &random)
      })
    self.nodes = (0..<nodeCount).map { SimNode(number: $0, partitions: partitionCount) }
    self.clients = (0..<clientCount).map {
      Self.client($0, partitions: partitionCount, random: &random)
    }
    self.shadow = Shadow(partitions: partitionCount)
    self.faults = FaultPlan(random: &random)
    self.random = random
  }

  private static func partition(
    nodes: Int, random: inout Randomness
  ) -> MetadataOracle.PartitionRecord {
    let factor = Swift.min(nodes, random.pick([1, 2, 3, 3, 3, 3]))
    let first = random.number(0..<nodes)
    let replicas = (0..<factor).map { (first + $0) % nodes }
    let minISR = factor == 1 ? 1 : random.pick([1, 2, 2, 2])
    return .init(replicas: replicas, isr: replicas.sorted(), minISR: minISR)
  }

  private static func client(
    _ number: Int, partitions: Int, random: inout Randomness
  ) -> SimClient {
    let isIdempotent = number < partitions || random.chance(500)
    return SimClient(
      number: number, partition: number % partitions, isIdempotent: isIdempotent,
      acks: isIdempotent ? .all : random.pick([.all, .leader, .none]),
      pauseMax: random.pick([5_000_000, 50_000_000, 300_000_000]))
  }

  /// Shorter times than a real cluster's, so that a run of seconds sees everything several times.
  private static func replicationConfiguration() -> ReplicationConfiguration {
    var configuration = ReplicationConfiguration()
    configuration.replicaLagMax = .seconds(1)
    configuration.rejoinDelay = .milliseconds(100)
    configuration.rejoinDelayMax = .seconds(2)
    configuration.proposalTimeout = .milliseconds(800)
    configuration.proposalPause = .milliseconds(100)
    configuration.openTimeout = .milliseconds(300)
    configuration.silenceMax = .milliseconds(600)
    configuration.snapshotBatches = 20
    return configuration
  }

  var now: MonotonicInstant { MonotonicInstant(nanoseconds: self.scheduler.now) }

  func log(_ text: @autoclosure () -> String) {
    self.trace.line(at: self.scheduler.now, text())
  }

  func send(_ message: Message, from: Address, to: Address) {
    for delay in self.network.delays(
      from, to, now: self.scheduler.now, &self.random)
    {
      self.scheduler.schedule(.deliver(from: from, to: to, message), after: delay)
    }
  }

  func handle(_ event: Event) throws(Shadow.Broken) {
    self.events += 1
    self.trace.note(self.scheduler.now)
    switch event {
    case .deliver(let from, let to, let message):
      try self.deliver(message, from: from, to: to)
    case .tick(let node, let life): try self.tick(node, life)
    case .disk(let node, let life): try self.diskWorked(node, life)
    case .volumeWake(let node, let life, let time): try self.volumeWoke(node, life, time)
    case .metadataTick:
      self.metadata.expireSessions(at: self.scheduler.now)
      self.announce()
      self.scheduler.schedule(.metadataTick, after: 100 * Self.millisecond)
    case .client(let number): self.clientStep(number)
    case .clientTimeout(let number, let attempt): self.clientTimeout(number, attempt)
    case .restart(let node): try self.start(node)
    case .fault: self.injectFault()
    case .endCut(let from, let to): self.network.setCut(from, to, false)
    }
    try self.checkElectable()
  }

  private func deliver(
    _ message: Message, from: Address, to: Address
  ) throws(Shadow.Broken) {
    switch to {
    case .node(let node):
      guard self.nodes[node].isUp else { return }
      let pause = self.nodes[node].pausedUntil - self.scheduler.now
      guard pause <= 0 else {
        self.scheduler.schedule(.deliver(from: from, to: to, message), after: pause)
        return
      }
      self.log("\(message.name) \(from) -> \(to)")
      try self.nodeReceived(node, message, from: from)
    case .metadata:
      self.log("\(message.name) \(from) -> \(to)")
      self.metadataReceived(message, from: from)
    case .client(let number):
      try self.clientReceived(number, message)
    }
  }

  // MARK: - Metadata

  private func metadataReceived(_ message: Message, from: Address) {
    switch message {
    case .register(let node, let attempt):
      guard let epoch = self.metadata.register(node, attempt: attempt, at: self.scheduler.now)
      else { return }
      self.send(.registered(attempt: attempt, epoch), from: .metadata, to: from)
      self.send(.image(self.metadata.assignments), from: .metadata, to: from)
    case .alive(let node, let epoch):
      let isKnown = self.metadata.heard(node, epoch, at: self.scheduler.now)
      let answer = isKnown ? Message.image(self.metadata.assignments) : .fenced(epoch)
      self.send(answer, from: .metadata, to: from)
    case .propose(_, let partition, let proposal):
      let answer = self.metadata.propose(partition, proposal)
      self.log("partition \(partition) ISR proposal \(proposal.isr.map(\.id.node)): \(answer)")
      self.send(.proposalAnswered(partition, proposal, answer), from: .metadata, to: from)
    case .whereIs(_, let partition):
      let record = self.metadata.partitions[partition]
      self.send(.leaderIs(node: record.leader, record.leaderEpoch), from: .metadata, to: from)
    default: break
    }
    self.announce()
  }

  /// Sends the image to every node when it changed.
  func announce() {
    guard self.metadata.changes != self.announcedChanges else { return }
    self.announcedChanges = self.metadata.changes
    let image = self.metadata.assignments
    for (at, assignment) in image.enumerated() {
      self.trace.note(assignment.leaderEpoch.rawValue, assignment.partitionEpoch.rawValue)
      self.log(
        "partition \(at): leader \(assignment.leader.map { "\($0.node)" } ?? "none") epoch "
          + "\(assignment.leaderEpoch).\(assignment.partitionEpoch) ISR \(assignment.isr.map(\.node))"
      )
    }
    for node in self.nodes.indices { self.send(.image(image), from: .metadata, to: .node(node)) }
  }
}
