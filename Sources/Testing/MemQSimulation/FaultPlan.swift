// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// One fault of a run: what, when, where and for how long. The whole list follows from the seed before anything runs, so
/// that one fault can be left out and the others stay.
public struct Fault: Hashable, Sendable, CustomStringConvertible {
  public enum Kind: String, CaseIterable, Sendable {
    /// One node's power goes, or its process ends.
    case crash
    case crashAll = "crash-all"
    case cutOneWay = "cut-one-way"
    case cutBothWays = "cut-both-ways"
    /// A node hears nobody and nobody hears it.
    case isolate
    case isolateFromMetadata = "isolate-from-metadata"
    /// A stopped process: nothing is taken in, nothing is said.
    case pause
    case slowDisk = "slow-disk"
    case clockJump = "clock-jump"
    case moveLeader = "move-leader"
    /// The streams between two nodes end.
    case breakStreams = "break-streams"
    /// A leader says nothing of itself, though it pushes.
    case starveHeartbeats = "starve-heartbeats"
    /// A node makes its replica anew from its disk, in the same life.
    case remakeReplica = "remake-replica"
    /// A node stops in an orderly way and comes back.
    case handOver = "hand-over"
    /// A metadata instance's process ends.
    case crashMetadata = "crash-metadata"
    /// A metadata instance stands still: it may not know that its lease has ended.
    case pauseMetadata = "pause-metadata"
    /// A metadata instance and the store don't hear each other.
    case isolateStore = "isolate-store"
    /// A partition's replicas are to stand elsewhere.
    case reassign
    case cancelReassignment = "cancel-reassignment"
    /// What is committed goes to the object tier, and is announced a while later.
    case upload
    /// Committed records are deleted.
    case trim
    /// No further segment file finds room.
    case fullDisk = "full-disk"
    /// A write or sync fails; the volume is out of use until the node restarts.
    case failDisk = "fail-disk"
    /// A bit of the disk flips; the node restarts.
    case corrupt

    /// Kinds that are drawn apart from the others: what a seed did before they were there it does still.
    static let apart: [Kind] = [.upload, .trim, .fullDisk, .failDisk, .corrupt]
  }

  /// From 0, in the order of time.
  public var number: Int
  public var kind: Kind
  /// Virtual nanoseconds.
  public var at: Int64
  public var duration: Int64
  public var node: Int
  public var other: Int
  /// What else there is to choose.
  public var choice: UInt64

  public var description: String {
    "\(self.number): \(self.kind.rawValue) at \(Trace.seconds(self.at)) s, node \(self.node)"
      + (self.hasOther ? " and \(self.other)" : "")
      + (self.duration > 0 ? ", for \(Trace.seconds(self.duration)) s" : "")
  }

  private var hasOther: Bool {
    self.kind == .cutOneWay || self.kind == .cutBothWays || self.kind == .breakStreams
  }
}

/// Which faults a run has and how often; drawn from the seed, so that runs differ in kind.
struct FaultPlan {
  static let begin: Int64 = 500_000_000

  let faults: [Fault]

  init(seed: UInt64, nodes: Int, until end: Int64) {
    var random = Randomness(seed: seed, stream: 1)
    let kinds = Fault.Kind.allCases.filter {
      !Fault.Kind.apart.contains($0) && random.chance(500)
    }
    let intervalMax = random.pick([300_000_000, 1_000_000_000, 3_000_000_000])
    let durationMax = random.pick([200_000_000, 2_000_000_000, 6_000_000_000])
    var faults: [Fault] = []
    var at = Self.begin
    while at < end, !kinds.isEmpty {
      faults.append(
        Fault(
          number: faults.count, kind: random.pick(kinds), at: at,
          duration: Int64(random.number(0..<durationMax)), node: random.number(0..<nodes),
          other: random.number(0..<nodes), choice: random.next()))
      at += Int64(random.number(0..<intervalMax))
    }
    faults += Self.leaderMoves(seed, nodes, until: end, from: faults.count)
    faults += Self.apart(seed, nodes, until: end, from: faults.count)
    faults.sort { ($0.at, $0.number) < ($1.at, $1.number) }
    for number in faults.indices { faults[number].number = number }
    self.faults = faults
  }

  private static func apart(
    _ seed: UInt64, _ nodes: Int, until end: Int64, from first: Int
  ) -> [Fault] {
    var random = Randomness(seed: seed, stream: 5)
    let kinds = Fault.Kind.apart.filter { _ in random.chance(250) }
    let intervalMax = random.pick([300_000_000, 1_000_000_000, 3_000_000_000])
    let durationMax = random.pick([200_000_000, 2_000_000_000, 6_000_000_000])
    var faults: [Fault] = []
    var at = Self.begin
    while at < end, !kinds.isEmpty {
      faults.append(
        Fault(
          number: first + faults.count, kind: random.pick(kinds), at: at,
          duration: Int64(random.number(0..<durationMax)), node: random.number(0..<nodes),
          other: 0, choice: random.next()))
      at += Int64(random.number(0..<intervalMax))
    }
    return faults
  }

  /// In some runs leaderships move all the time, and leave behind what was not passed on yet. Drawn apart: without them a
  /// seed's other faults are the same.
  private static func leaderMoves(
    _ seed: UInt64, _ nodes: Int, until end: Int64, from first: Int
  ) -> [Fault] {
    var random = Randomness(seed: seed, stream: 4)
    guard random.chance(300) else { return [] }
    let intervalMax = random.pick([100_000_000, 300_000_000, 1_000_000_000])
    var faults: [Fault] = []
    var at = Self.begin + Int64(random.number(0..<intervalMax))
    while at < end {
      faults.append(
        Fault(
          number: first + faults.count, kind: .moveLeader, at: at, duration: 0,
          node: random.number(0..<nodes), other: 0, choice: random.next()))
      at += Int64(random.number(0..<intervalMax))
    }
    return faults
  }
}

extension World {
  func inject(_ fault: Fault) throws(Shadow.Broken) {
    self.log("fault \(fault)")
    let (node, other, time) = (fault.node, fault.other, fault.duration)
    var random = Randomness(seed: fault.choice)
    switch fault.kind {
    case .crash: self.crash(node, for: time)
    case .crashAll:
      for node in self.nodes.indices {
        self.crash(node, for: random.chance(500) ? time : Int64(random.number(0...Int(time))))
      }
    case .cutOneWay: self.cut(.node(node), .node(other), for: time)
    case .cutBothWays:
      self.cut(.node(node), .node(other), for: time)
      self.cut(.node(other), .node(node), for: time)
      try self.breakStreams(node, other)
    case .isolate:
      for other in self.everybody where other != .node(node) {
        self.cut(.node(node), other, for: time)
        self.cut(other, .node(node), for: time)
      }
    case .isolateFromMetadata:
      for instance in self.controllers.indices {
        if random.chance(700) { self.cut(.node(node), .metadata(instance), for: time) }
        if random.chance(700) { self.cut(.metadata(instance), .node(node), for: time) }
      }
    case .pause: self.nodes[node].pausedUntil = self.scheduler.now + time
    case .slowDisk: self.nodes[node].diskMax = random.pick([500_000, 10_000_000, 200_000_000])
    case .clockJump: self.nodes[node].clockError = Int64(random.number(-3_600_000...3_600_000))
    case .moveLeader:
      let partition = random.number(0..<self.shadow.count)
      let inSync = self.record(partition).inSync
      self.order(.transfer(partition: partition, to: Self.node(random.pick(inSync))))
    case .handOver: self.handOver(node, for: time)
    case .crashMetadata:
      let instance = random.number(0..<Self.instances)
      guard self.controllers[instance].isUp else { return }
      self.controllers[instance].crash()
      self.scheduler.schedule(.startController(instance), after: time)
    case .pauseMetadata:
      self.controllers[random.number(0..<Self.instances)].pausedUntil = self.scheduler.now + time
    case .isolateStore:
      let instance = random.number(0..<Self.instances)
      if random.chance(700) { self.cut(.store, .metadata(instance), for: time) }
      if random.chance(700) { self.cut(.metadata(instance), .store, for: time) }
    case .reassign:
      let partition = random.number(0..<self.shadow.count)
      let count =
        self.record(partition).reassignment?.target.count ?? self.record(partition).replicas.count
      var rest = Array(self.nodes.indices)
      let chosen = (0..<count).map { _ in rest.remove(at: random.number(0..<rest.count)) }
      self.order(.reassign(partition: partition, to: chosen))
    case .fullDisk:
      self.counters.diskFulls += 1
      try self.fillDisk(node, &random, for: time)
    case .failDisk: self.failDisk(node, for: time)
    case .corrupt: self.corrupt(node, &random, for: time)
    case .upload:
      let partition = random.number(0..<self.shadow.count)
      guard let (leader, offset) = self.committedOffset(partition, &random, mayLose: true) else {
        return
      }
      let log = self.nodes[leader].replicas[partition]!.core.log
      self.scheduler.schedule(
        .uploaded(
          partition,
          UploadedRange(
            partition: World.partition(partition), base: .zero, end: offset,
            historyEpoch: self.record(partition).historyEpoch,
            lastEpoch: log.epochs.epoch(at: Offset(offset.rawValue - 1)))), after: time)
    case .trim:
      let partition = random.number(0..<self.shadow.count)
      guard let (leader, offset) = self.committedOffset(partition, &random),
        let member = self.nodes[leader].replicas[partition]?.core.leader?.member,
        let epoch = self.nodes[leader].replicas[partition]?.core.leaderEpoch
      else { return }
      self.order(.raiseLogStart(partition: partition, to: offset, member, epoch))
    case .cancelReassignment:
      self.order(.cancelReassignment(partition: random.number(0..<self.shadow.count)))
    case .breakStreams: try self.breakStreams(node, other)
    case .starveHeartbeats: self.nodes[node].quietUntil = self.scheduler.now + time
    case .remakeReplica: try self.remakeReplica(node, random.number(0..<self.shadow.count))
    }
  }

  /// The end of a batch that the leader knows to be committed.
  private func committedOffset(
    _ partition: Int, _ random: inout Randomness, mayLose: Bool = false
  ) -> (Int, Offset)? {
    guard mayLose || !self.shadow.mayLose[partition],
      let node = self.record(partition).leader.map({ Self.node($0) }),
      let leader = self.nodes[node].replicas[partition]?.core.leader
    else { return nil }
    let known =
      self.options.mutation?.uploadsUncommitted ?? false ? leader.log.end : leader.highWatermark
    let batches = self.nodes[node].volume.current[partition].batches
    let count = SimVolume.index(of: known, in: batches)
    guard count > 0 else { return nil }
    return (node, batches[random.number(0..<count)].summary.endOffset)
  }

  /// Somebody asks whoever is the controller.
  private func order(_ command: Command) {
    for instance in self.controllers.indices where self.controllers[instance].isUp {
      self.instanceReceived(instance, .order(command), from: .store)
    }
  }

  func crash(_ node: Int, for time: Int64) {
    guard self.nodes[node].isUp else { return }
    self.counters.crashes += 1
    self.nodes[node].crash()
    self.scheduler.schedule(.restart(node), after: time)
  }

  private func cut(_ from: Address, _ to: Address, for time: Int64) {
    self.network.setCut(from, to, true)
    self.scheduler.schedule(.endCut(from, to), after: time)
  }

  /// Ends all faults: the network delivers, disks are fast, and every node is or comes up.
  func heal() throws(Shadow.Broken) {
    self.log("heal")
    self.isHealed = true
    self.network.heal()
    for instance in self.controllers.indices {
      self.controllers[instance].pausedUntil = 0
      self.startController(instance)
    }
    for node in self.nodes.indices {
      self.nodes[node].pausedUntil = 0
      self.nodes[node].quietUntil = 0
      self.nodes[node].diskMax = 1_000_000
      self.nodes[node].volume.makeLarge()
      try self.setRoom(node, nil)
      self.nodes[node].volume.heal()
      if self.nodes[node].isVolumeFailed { self.crash(node, for: 0) }
      self.scheduler.schedule(.restart(node), after: 0)
    }
  }
}
