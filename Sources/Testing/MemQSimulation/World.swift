// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// Everything of one run: nodes, metadata, clients, network and time, driven by one seed.
final class World {
  enum Event {
    case deliver(from: Address, to: Address, Message)
    case tick(node: Int, life: Int)
    case disk(node: Int, life: Int)
    case volumeWake(node: Int, life: Int, MonotonicInstant)
    case controllerTick(Int, life: Int)
    case startController(Int)
    case client(Int)
    case clientTimeout(Int, attempt: Int)
    case restart(Int)
    case fault(Fault)
    case endCut(Address, Address)
    case uploaded(Int, UploadedRange)
    case diskHasRoom(Int)
    case restartFailed(Int, life: Int)
  }

  static let millisecond: Int64 = 1_000_000
  /// Metadata instances.
  static let instances = 2

  let options: SimulationOptions
  let configuration: ReplicationConfiguration
  var scheduler = Scheduler<Event>()
  var network: Network
  var nodes: [SimNode]
  var clients: [SimClient]
  var store: SimStore
  var controllers: [SimController]
  var storeRandom: Randomness
  var shadow: Shadow
  var trace: Trace
  var counters = Counters()
  var isHealed = false
  /// The only node whose disk may be damaged: others hold what it loses.
  var damagedNode: Int?
  /// What each node was told last.
  var lastImages: [ClusterView?]
  /// Who led which partition's epochs, in the order they were seen: one leader each.
  var leaders: [[(epoch: LeaderEpoch, node: Int)]]

  /// What a seed's cluster looks like.
  struct Shape {
    var nodes: Int
    var partitions: [(factor: Int, minISR: Int)]
    /// Partitions whose topic lets a replica lead that may lack committed records.
    var mayLose: [Bool]
    var clientCount: Int { self.partitions.count * 2 }

    init(seed: UInt64) {
      var random = Randomness(seed: seed, stream: 0)
      let nodes = random.pick([1, 2, 3, 3, 3, 3, 4, 5])
      self.nodes = nodes
      self.partitions = (0..<random.number(1...3)).map { _ in
        let factor = Swift.min(nodes, random.pick([1, 2, 3, 3, 3, 3]))
        return (factor, factor == 1 ? 1 : random.pick([1, 2, 2, 2]))
      }
      var apart = Randomness(seed: seed, stream: 6)
      self.mayLose = self.partitions.map { _ in apart.chance(120) }
    }
  }

  /// The faults of a run.
  static func faults(_ seed: UInt64, _ options: SimulationOptions) -> [Fault] {
    let plan = FaultPlan(
      seed: seed, nodes: Shape(seed: seed).nodes,
      until: Int64(options.faultSeconds) * 1_000 * Self.millisecond)
    return plan.faults.filter {
      (options.faults?.contains($0.number) ?? true) && !options.without.contains($0.kind)
    }
  }

  /// The producers of a run.
  static func clients(_ seed: UInt64, _ options: SimulationOptions) -> [Int] {
    (0..<Shape(seed: seed).clientCount).filter { options.clients?.contains($0) ?? true }
  }

  init(seed: UInt64, options: SimulationOptions) {
    self.options = options
    self.trace = Trace(isKept: options.keepsTrace)
    self.configuration = Self.replicationConfiguration()
    let shape = Shape(seed: seed)
    let count = shape.partitions.count
    self.network = Network(
      nodes: shape.nodes, clients: shape.clientCount, seed: seed, without: options.calm)
    self.store = Self.makeCluster(shape)
    self.controllers = (0..<Self.instances).map {
      SimController(number: $0, weaknesses: options.mutation?.metadata ?? [])
    }
    self.storeRandom = Randomness(seed: seed, stream: 3)
    let isOrdered = !self.network.reorders
    self.nodes = (0..<shape.nodes).map {
      SimNode(
        number: $0, partitions: count, seed: seed, isOrdered: isOrdered, options: options)
    }
    self.clients = (0..<shape.clientCount).map {
      Self.client($0, partitions: count, seed: seed, options)
    }
    self.lastImages = Array(repeating: nil, count: shape.nodes)
    self.leaders = Array(repeating: [], count: count)
    self.shadow = Shadow(mayLose: shape.mayLose)
    for fault in Self.faults(seed, options) {
      self.scheduler.schedule(.fault(fault), after: fault.at)
    }
  }

  private static func client(
    _ number: Int, partitions: Int, seed: UInt64, _ options: SimulationOptions
  ) -> SimClient {
    var random = Randomness(seed: seed, stream: 200 + UInt64(number))
    let isIdempotent = number < partitions || random.chance(500)
    var client = SimClient(
      number: number, partition: number % partitions, isIdempotent: isIdempotent,
      acks: isIdempotent ? .all : random.pick([.all, .leader, .none]),
      pauseMax: random.pick([5_000_000, 50_000_000, 300_000_000]), random: random)
    client.isStopped = !(options.clients?.contains(number) ?? true)
    return client
  }

  var everybody: [Address] {
    [.store] + self.controllers.indices.map { .metadata($0) } + self.nodes.indices.map { .node($0) }
      + self.clients.indices.map { .client($0) }
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

  /// A node's own clock, which runs a little faster or slower than the others'.
  func now(_ node: Int) -> MonotonicInstant {
    MonotonicInstant(nanoseconds: self.scheduler.now / 1_000 * self.nodes[node].clockRate)
  }

  func log(_ text: @autoclosure () -> String) {
    self.trace.line(at: self.scheduler.now, text())
  }

  func send(_ message: Message, from: Address, to: Address) {
    guard let (first, again) = self.network.delays(from, to, now: self.scheduler.now) else {
      return
    }
    self.scheduler.schedule(.deliver(from: from, to: to, message), after: first)
    // A call has one answer, and what was proposed is asked for once: a copy's refusal would pass for it (seed 600044697).
    if case .propose = message { return }
    if let again {
      self.scheduler.schedule(.deliver(from: from, to: to, message), after: again)
    }
  }

  func handle(_ event: Event) throws(Shadow.Broken) {
    self.counters.events += 1
    self.trace.note(self.scheduler.now)
    switch event {
    case .deliver(let from, let to, let message):
      try self.deliver(message, from: from, to: to)
    case .tick(let node, let life): try self.tick(node, life)
    case .disk(let node, let life): try self.diskWorked(node, life)
    case .volumeWake(let node, let life, let time): try self.volumeWoke(node, life, time)
    case .controllerTick(let instance, let life): self.controllerTick(instance, life)
    case .startController(let instance): self.startController(instance)
    case .client(let number): self.clientStep(number)
    case .clientTimeout(let number, let attempt): self.clientTimeout(number, attempt)
    case .restart(let node): try self.start(node)
    case .fault(let fault): try self.inject(fault)
    case .endCut(let from, let to): self.network.setCut(from, to, false)
    case .uploaded(let partition, let range): self.uploaded(partition, range)
    case .diskHasRoom(let node): try self.setRoom(node, nil)
    case .restartFailed(let node, let life): self.restartFailed(node, life)
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
    case .metadata(let instance):
      guard self.controllers[instance].isUp else { return }
      let pause = self.controllers[instance].pausedUntil - self.scheduler.now
      guard pause <= 0 else {
        self.scheduler.schedule(.deliver(from: from, to: to, message), after: pause)
        return
      }
      self.log("\(message.name) \(from) -> \(to)")
      self.instanceReceived(instance, message, from: from)
    case .store:
      self.log("\(message.name) \(from) -> \(to)")
      try self.storeReceived(message, from: from)
    case .client(let number):
      try self.clientReceived(number, message)
    }
  }
}
