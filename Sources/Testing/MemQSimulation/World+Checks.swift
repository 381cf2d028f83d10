// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// The rules, checked after every event. All follow from the committed records that the shadow keeps.
extension World {
  /// Whoever may be elected holds every committed record, durably.
  func checkElectable() throws(Shadow.Broken) {
    for partition in self.metadata.partitions.indices {
      let committed = Int64(self.shadow.committed[partition].count)
      for node in self.metadata.electable(partition) {
        let end = self.nodes[node].volume.durable[partition].end
        guard end.rawValue >= committed else {
          throw Shadow.Broken(
            rule: "an electable replica lacks committed records",
            detail: "partition \(partition) node \(node): durable to \(end) of \(committed)")
        }
      }
    }
  }

  /// A new leader holds every committed record, unless it learns of an election that is past already.
  func checkNewLeader(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    let epoch = self.nodes[node].replicas[partition]?.leaderEpoch
    guard epoch == self.metadata.partitions[partition].leaderEpoch else { return }
    let end = self.shadow.committed[partition].count
    let batches = self.nodes[node].volume.current[partition].batches
    self.log(
      "node \(node) leads partition \(partition) from \(batches.last?.summary.endOffset ?? .zero)")
    try self.shadow.check(
      batches, of: partition, from: 0, below: end, rule: "a new leader lacks committed records")
  }

  /// What a leader's watermark covers is committed for ever; a follower's covers nothing else.
  func watermarkMoved(_ node: Int, _ partition: Int, to offset: Offset) throws(Shadow.Broken) {
    self.trace.note(Int64(node), Int64(partition), offset.rawValue)
    self.log("node \(node) partition \(partition) high watermark \(offset)")
    let end = Int(offset.rawValue)
    if self.nodes[node].replicas[partition]?.leader != nil {
      let batches = self.nodes[node].volume.current[partition].batches
      let known = self.nodes[node].checked[partition]
      for batch in batches[SimVolume.index(of: Offset(Int64(known)), in: batches)...] {
        guard batch.summary.endOffset <= offset else { break }
        try self.shadow.commit(
          partition, base: Int(batch.summary.baseOffset.rawValue), batch.values[...])
      }
      self.nodes[node].checked[partition] = end
    }
    self.nodes[node].volume.setHighWatermark(
      offset, partition, at: self.now, wall: self.wall(node))
    try self.checkLog(node, partition)
  }

  /// Logs are equal below their watermarks.
  func checkLog(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    let end = Int(self.nodes[node].replicas[partition]?.highWatermark.rawValue ?? 0)
    let from = Swift.min(self.nodes[node].checked[partition], end)
    try self.shadow.check(
      self.nodes[node].volume.current[partition].batches, of: partition, from: from, below: end,
      rule: "a log differs below its high watermark")
    self.nodes[node].checked[partition] = end
  }

  /// The memory of producers is a function of the log: a replica that cut or recovered knows what one knows that only
  /// ever appended these batches.
  func checkProducers(_ node: Int, _ partition: Int) throws(Shadow.Broken) {
    guard let replica = self.nodes[node].replicas[partition] else { return }
    let batches = self.nodes[node].volume.current[partition].batches.map(\.summary)
    let known = replica.log.producers.contents
    let expected: [ProducerContents]
    do {
      expected = try ProducerState(
        snapshot: nil, start: .zero, batches: batches, limits: self.configuration.producers
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
    for (at, record) in self.metadata.partitions.enumerated() {
      guard let node = record.leader, let leader = self.nodes[node].replicas[at]?.leader else {
        return "partition \(at) has no leader"
      }
      guard record.isr == record.replicas.sorted() else {
        return "partition \(at): in sync are \(record.isr) of \(record.replicas)"
      }
      guard leader.highWatermark == leader.log.end else {
        return "partition \(at): committed to \(leader.highWatermark) of \(leader.log.end)"
      }
      for follower in record.replicas {
        guard self.nodes[follower].replicas[at]?.highWatermark == leader.log.end else {
          return "partition \(at): node \(follower) is behind"
        }
      }
    }
    let late = self.clients.first { $0.pending != nil }
    return late.map { "client \($0.number) waits for an answer" }
  }

  /// At the very end: every durable log holds exactly what was committed.
  func checkEnd() throws(Shadow.Broken) {
    for (at, record) in self.metadata.partitions.enumerated() {
      for node in record.replicas {
        let log = self.nodes[node].volume.current[at]
        try self.shadow.check(
          log.batches, of: at, from: 0, below: Int(log.end.rawValue),
          rule: "the logs differ at the end")
        guard Int(log.end.rawValue) == self.shadow.committed[at].count else {
          throw Shadow.Broken(rule: "the logs differ at the end", detail: "partition \(at)")
        }
      }
    }
  }
}
