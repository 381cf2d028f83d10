// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
import MemQReplication

/// The rules, checked after every event. All follow from the committed records that the shadow keeps.
extension World {
  /// Whoever may be elected holds every committed record, durably.
  func checkElectable() throws(Shadow.Broken) {
    for partition in 0..<self.shadow.count {
      let committed = Int64(self.shadow.committed[partition].count)
      for node in self.electable(partition) {
        // A damaged one votes with nothing; metadata may not know yet.
        if self.nodes[node].volume.damagedFrom[partition] != nil { continue }
        let (first, end) = self.nodes[node].volume.durableSpan(of: partition)
        let final = self.store.final[partition]
        // What is uploaded or deleted nobody needs to hold.
        guard end.rawValue >= committed && first <= final || final.rawValue >= committed else {
          throw Shadow.Broken(
            rule: "an electable replica lacks committed records",
            detail: "partition \(partition) node \(node): durable from \(first) to \(end), "
              + "committed to \(committed), final below \(final)")
        }
      }
    }
  }

  /// A new leader holds every committed record, unless it learns of an election that is past already.
  func checkNewLeader(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    guard let epoch = self.nodes[node].replicas[partition]?.core.leaderEpoch else { return }
    guard !self.leaders[partition].contains(where: { $0.epoch == epoch }) else {
      throw Shadow.Broken(
        rule: "a leader epoch began twice", detail: "partition \(partition) epoch \(epoch)")
    }
    self.leaders[partition].append((epoch, node))
    guard epoch == self.record(partition).leaderEpoch else { return }
    if self.shadow.hasLost(partition), let known = self.nodes[node].replicas[partition]?.core {
      // What it knew as committed when the others were lost is committed still.
      try self.commit(node, partition, below: known.highWatermark)
    }
    let end = self.shadow.committed[partition].count
    let log = self.nodes[node].volume.current[partition]
    let batches = log.batches
    self.log(
      "node \(node) leads partition \(partition) from \(batches.last?.summary.endOffset ?? .zero)")
    try self.shadow.check(
      batches, of: partition, from: Int(log.first.rawValue), below: end,
      rule: "a new leader lacks committed records")
  }

  /// A leader that takes a follower's open holds all that the follower's log holds: what they are sent next follows the same
  /// records on both.
  func checkAccepted(_ node: Int, _ partition: Int, _ answer: OpenAnswer) throws(Shadow.Broken) {
    guard case .accepted(let from) = answer.result else { return }
    let follower = World.node(answer.follower)
    let theirs = self.nodes[follower].volume.current[partition]
    // Answers to what it asked earlier mean nothing to it any more.
    guard self.nodes[follower].isUp, theirs.end == from,
      let now = self.nodes[follower].replicas[partition]?.core.followerStanding,
      now.number == answer.number, now.phase == .opening,
      self.nodes[follower].replicas[partition]?.core.leaderEpoch == answer.leaderEpoch
    else { return }
    let ours = self.nodes[node].volume.current[partition].batches
    let known = Offset(
      Int64(
        Swift.min(
          self.nodes[node].checked[partition], self.nodes[follower].checked[partition])))
    let first = self.nodes[node].volume.current[partition].first
    let place = SimVolume.index(of: Swift.max(known, first), in: theirs.batches)
    for batch in theirs.batches[place...] {
      let at = SimVolume.index(of: batch.summary.baseOffset, in: ours)
      guard at < ours.count, ours[at].values == batch.values,
        ours[at].summary.leaderEpoch == batch.summary.leaderEpoch
      else {
        throw Shadow.Broken(
          rule: "logs that were found to agree differ",
          detail: "partition \(partition): node \(follower) at \(batch.summary.baseOffset)")
      }
    }
  }

  /// What a leader's watermark covers is committed for ever; a follower's covers nothing else.
  func watermarkMoved(_ node: Int, _ partition: Int, to offset: Offset) throws(Shadow.Broken) {
    self.trace.note(Int64(node), Int64(partition), offset.rawValue)
    self.log("node \(node) partition \(partition) high watermark \(offset)")
    if self.nodes[node].replicas[partition]?.core.leads ?? false {
      try self.commit(node, partition, below: offset)
    }
    self.nodes[node].volume.setHighWatermark(
      offset, partition, at: self.now(node), wall: self.wall(node))
    try self.checkLog(node, partition)
  }

  private func commit(
    _ node: Int, _ partition: Int, below offset: Offset
  ) throws(Shadow.Broken) {
    guard self.counts(node, partition) else { return }
    let batches = self.nodes[node].volume.current[partition].batches
    let known = self.nodes[node].checked[partition]
    for batch in batches[SimVolume.index(of: Offset(Int64(known)), in: batches)...] {
      guard batch.summary.endOffset <= offset else { break }
      try self.shadow.commit(partition, batch)
    }
    self.nodes[node].checked[partition] = Int(offset.rawValue)
  }

  /// False: it speaks of what an unclean election gave up.
  private func counts(_ node: Int, _ partition: Int) -> Bool {
    self.nodes[node].replicas[partition].map {
      $0.core.leaderEpoch >= self.shadow.lostBefore[partition]
    } ?? false
  }

  /// Logs are equal below their watermarks.
  func checkLog(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    let end = Int(self.nodes[node].replicas[partition]?.core.highWatermark.rawValue ?? 0)
    guard self.counts(node, partition) else { return }
    let first = Int(self.nodes[node].volume.current[partition].first.rawValue)
    let from = Swift.max(first, Swift.min(self.nodes[node].checked[partition], end))
    try self.shadow.check(
      self.nodes[node].volume.current[partition].batches, of: partition, from: from, below: end,
      rule: "a log differs below its high watermark")
    self.nodes[node].checked[partition] = end
  }

  /// The memory of producers is a function of the log: a replica that cut or recovered knows what one knows that only
  /// ever appended these batches.
  func checkProducers(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    // A cut below what a snapshot covers, which only an unclean election asks for, makes all producers unknown.
    guard !self.shadow.hasLost(partition),
      let replica = self.nodes[node].replicas[partition]?.core
    else { return }
    // What the leader told of records still to come, or has yet to tell, is no function of what is here.
    guard !replica.log.needsHistory, replica.log.producers.snapshotOffset <= replica.log.end else {
      return
    }
    let log = self.nodes[node].volume.current[partition]
    // What it let go of counts as it was here: above where it was opened it may still have to be cut.
    let below = self.shadow.batches[partition].prefix { $0.endOffset <= log.opened }
    let batches = below + log.released + log.batches.map(\.summary)
    let known = replica.log.producers.contents
    let expected: [ProducerContents]
    do {
      expected = try ProducerState(
        snapshot: nil, start: .zero, batches: Array(batches), limits: self.configuration.producers
      ).contents
    } catch {
      throw Shadow.Broken(rule: "a producer table can't be built", detail: "\(error)")
    }
    guard known == expected else {
      let difference =
        expected.first { !known.contains($0) } ?? known.first { !expected.contains($0) }
      throw Shadow.Broken(
        rule: "a replica's memory of producers differs from its log",
        detail: "node \(node) partition \(partition): \(String(describing: difference))")
    }
  }

  /// After healing: every partition led, every replica in sync and equal, everything committed.
  func unsettled() -> String? {
    for at in self.shadow.committed.indices {
      let record = self.record(at)
      guard record.reassignment == nil else { return "partition \(at): replicas still move" }
      guard let leads = record.leader,
        let leader = self.nodes[Self.node(leads)].replicas[at]?.core.leader
      else { return "partition \(at) has no leader" }
      guard record.inSync.sorted() == record.replicas.map(\.node).sorted() else {
        return "partition \(at): in sync are \(record.inSync) of \(record.replicas.map(\.node))"
      }
      guard leader.highWatermark == leader.log.end else {
        return "partition \(at): committed to \(leader.highWatermark) of \(leader.log.end)"
      }
      for follower in record.replicas.map({ Self.node($0) }) {
        // One that led until now may have to cut what nobody committed.
        guard let known = self.nodes[follower].replicas[at]?.core,
          known.highWatermark == leader.log.end, known.end == leader.log.end
        else { return "partition \(at): node \(follower) is behind, or has to cut" }
      }
    }
    let late = self.clients.first { $0.pending != nil }
    return late.map { "client \($0.number) waits for an answer" }
  }

  /// At the very end: every durable log holds exactly what was committed.
  func checkEnd() throws(Shadow.Broken) {
    for at in self.shadow.committed.indices {
      for node in self.record(at).replicas.map({ Self.node($0) }) {
        let log = self.nodes[node].volume.current[at]
        try self.shadow.check(
          log.batches, of: at, from: Int(log.first.rawValue), below: Int(log.end.rawValue),
          rule: "the logs differ at the end")
        guard Int(log.end.rawValue) == self.shadow.committed[at].count else {
          throw Shadow.Broken(rule: "the logs differ at the end", detail: "partition \(at)")
        }
      }
    }
  }
}
