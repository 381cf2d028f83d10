// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

// Disks that are full or fail.
extension World {
  /// No further segment file finds room on a node's disk, for a time.
  func fillDisk(_ node: Int, _ random: inout Randomness, for time: Int64) throws(Shadow.Broken) {
    try self.setRoom(node, random.number(0...2))
    self.scheduler.schedule(.diskHasRoom(node), after: time)
  }

  func setRoom(_ node: Int, _ room: Int?) throws(Shadow.Broken) {
    self.log("node \(node): \(room.map { "room for \($0) segments more" } ?? "room again")")
    try self.nodes[node].volume.setRoom(room, at: self.now(node), wall: self.wall(node))
    if self.nodes[node].isUp { try self.afterDisk(node) }
  }

  /// The next write or sync of a node's disk fails. The node goes on without it until it restarts.
  func failDisk(_ node: Int, for time: Int64) {
    guard self.nodes[node].isUp, !self.nodes[node].isVolumeFailed else { return }
    self.nodes[node].volume.failNext()
    self.nodes[node].failsFor = time
  }

  /// The first failed write or sync is final: nobody knows what the disk holds of what it did not confirm. All replicas on it end,
  /// and metadata is told until it knows.
  func volumeFailed(_ node: Int) throws(Shadow.Broken) {
    self.log("node \(node): its volume failed")
    self.counters.volumeFailures += 1
    for (partition, number) in try self.nodes[node].volume.takeDurable() {
      try self.feed(node, partition, .durable(through: number))
    }
    self.nodes[node].isVolumeFailed = true
    self.scheduler.schedule(
      .restartFailed(node, life: self.nodes[node].life), after: self.nodes[node].failsFor)
    for partition in self.nodes[node].replicas.indices
    where self.nodes[node].replicas[partition] != nil {
      try self.feed(node, partition, .retired)
      self.nodes[node].forget(partition)
      self.nodes[node].fresh[partition] = nil
    }
    self.nodes[node].loseVolume()
    if let epoch = self.nodes[node].epoch { self.tellFailure(node, epoch) }
  }

  func tellFailure(_ node: Int, _ epoch: NodeEpoch) {
    self.sendToMetadata(node, .volumeFailed(node: node, epoch))
  }

  // MARK: - Damage

  /// A bit of a node's disk flips, and its node restarts. Only where others hold what that takes away: damage of all copies is loss,
  /// whoever deals with it.
  func corrupt(_ node: Int, _ random: inout Randomness, for time: Int64) {
    guard self.nodes[node].isUp, self.damagedNode ?? node == node else { return }
    // What does not read may be of any of them.
    let partitions = (0..<self.shadow.count).filter { partition in
      self.record(partition).replicas.contains { Self.node($0.node) == node }
    }
    guard !partitions.isEmpty,
      partitions.allSatisfy({ partition in
        self.minISR(partition) > 1 && self.electable(partition).contains { $0 != node }
      })
    else { return }
    self.damagedNode = node
    self.counters.corruptions += 1
    self.crash(node, for: time)
    self.nodes[node].volume.corrupt(random.pick(partitions), &random)
  }

  private func minISR(_ partition: Int) -> Int {
    self.store.truth.topics[Self.partition(partition).topic]?.value.settings.minInSyncReplicas ?? 1
  }

  /// What a node found damaged it does not serve: once metadata knows and nobody counts on what is here, it is filled anew. So is one
  /// that metadata knows as damaged and that nobody here can say is whole.
  ///
  /// - Returns: whether the partition is damaged here, or being dropped.
  func dealWithDamage(_ node: Int, _ partition: Int) throws(Shadow.Broken) -> Bool {
    let isDamaged = self.nodes[node].volume.damagedFrom[partition] != nil
    guard let view = self.lastImages[node], view.damaged[partition].contains(Self.nodeID(node)),
      isDamaged || !self.nodes[node].isKnownWhole[partition]
    else { return isDamaged }
    guard self.nodes[node].volume.holds(partition) else {
      self.nodes[node].isKnownWhole[partition] = true
      return false
    }
    guard
      !view.trusted[partition].contains(Self.nodeID(node))
        || self.options.mutation?.refillsTrusted ?? false,
      view.partitions[partition].leader != nil
    else {
      // All of it was read at the start.
      if !isDamaged { self.nodes[node].isKnownWhole[partition] = true }
      return isDamaged
    }
    self.log("node \(node) partition \(partition) is damaged and filled anew")
    self.counters.repairs += 1
    self.nodes[node].isKnownWhole[partition] = true
    try self.file(.drop, node, partition, nil)
    return true
  }

  private func tellDamage(_ node: Int, _ partition: Int, _ epoch: NodeEpoch, _ from: Offset?) {
    self.sendToMetadata(node, .replicaDamaged(node: node, epoch, partition, from: from))
  }

  /// Says again what the image does not show.
  func tellOfDamage(_ node: Int, _ epoch: NodeEpoch) {
    guard !self.nodes[node].isVolumeFailed, let view = self.lastImages[node] else { return }
    for partition in self.nodes[node].replicas.indices {
      let isMarked = view.damaged[partition].contains(Self.nodeID(node))
      if let from = self.nodes[node].volume.damagedFrom[partition] {
        if !isMarked { self.tellDamage(node, partition, epoch, from) }
      } else if isMarked, self.nodes[node].isKnownWhole[partition] {
        self.tellDamage(node, partition, epoch, nil)
      }
    }
  }

  func restartFailed(_ node: Int, _ life: Int) {
    guard self.nodes[node].life == life, self.nodes[node].isVolumeFailed else { return }
    self.crash(node, for: 100 * Self.millisecond)
  }
}
