// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Which faults a run has and how often; drawn from the seed, so that runs differ in kind.
struct FaultPlan {
  enum Fault: CaseIterable {
    case crash, crashAll, cutOneWay, cutBothWays, isolateFromMetadata, pause, slowDisk, clockJump
    case moveLeader
  }

  var kinds: [Fault]
  /// Nanoseconds between faults, at most.
  var intervalMax: Int
  var downMax: Int

  init(random: inout Randomness) {
    self.kinds = Fault.allCases.filter { _ in random.chance(600) }
    self.intervalMax = random.pick([300_000_000, 1_000_000_000, 3_000_000_000])
    self.downMax = random.pick([200_000_000, 2_000_000_000, 6_000_000_000])
  }
}

extension World {
  func injectFault() {
    self.scheduler.schedule(.fault, after: Int64(self.random.number(0..<self.faults.intervalMax)))
    guard !self.faults.kinds.isEmpty else { return }
    let node = self.random.number(0..<self.nodes.count)
    let time = Int64(self.random.number(0..<self.faults.downMax))
    let fault = self.random.pick(self.faults.kinds)
    self.log("fault \(fault) node \(node)")
    switch fault {
    case .crash: self.crash(node, for: time)
    case .crashAll: for node in self.nodes.indices { self.crash(node, for: time) }
    case .cutOneWay, .cutBothWays:
      let other = self.random.number(0..<self.nodes.count)
      self.cut(.node(node), .node(other), for: time)
      if fault == .cutBothWays { self.cut(.node(other), .node(node), for: time) }
    case .isolateFromMetadata:
      if self.random.chance(700) { self.cut(.node(node), .metadata, for: time) }
      if self.random.chance(700) { self.cut(.metadata, .node(node), for: time) }
    case .pause: self.nodes[node].pausedUntil = self.scheduler.now + time
    case .slowDisk: self.nodes[node].diskMax = self.random.pick([500_000, 10_000_000, 200_000_000])
    case .clockJump:
      self.nodes[node].clockError = Int64(self.random.number(-3_600_000...3_600_000))
    case .moveLeader:
      self.metadata.moveLeader(self.random.number(0..<self.metadata.partitions.count))
      self.announce()
    }
  }

  private func crash(_ node: Int, for time: Int64) {
    guard self.nodes[node].isUp else { return }
    self.crashes += 1
    self.nodes[node].crash(&self.random)
    self.scheduler.schedule(.restart(node), after: time)
  }

  private func cut(_ from: Address, _ to: Address, for time: Int64) {
    self.network.setCut(from, to, true)
    self.scheduler.schedule(.endCut(from, to), after: time)
  }

  /// Ends all faults: the network delivers, disks are fast, and every node is or comes up.
  func heal() {
    self.log("heal")
    self.faults.kinds = []
    self.network.heal()
    for node in self.nodes.indices {
      self.nodes[node].pausedUntil = 0
      self.nodes[node].diskMax = 1_000_000
      self.scheduler.schedule(.restart(node), after: 0)
    }
  }
}
