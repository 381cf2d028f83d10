// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What must be true, kept apart from the system: the records of each partition that were ever committed.
///
/// Values tell who made them: `producer << 32 | sequence`; those of producers that may repeat have the
/// top bit set.
struct Shadow {
  struct Broken: Error {
    var rule: String
    var detail: String
  }

  static let mayRepeat: UInt64 = 1 << 63

  var count: Int { self.committed.count }
  /// By partition and offset.
  private(set) var committed: [[UInt64]]
  /// The batches they came in.
  private(set) var batches: [[BatchSummary]]
  private var nextSequence: [[UInt64: UInt64]]
  private(set) var acknowledgedBatches = 0
  /// By partition: whether records may be lost to an unclean election, and the leader epoch since which what went before doesn't
  /// count; `.none`: there was none yet.
  let mayLose: [Bool]
  private(set) var lostBefore: [LeaderEpoch]

  init(mayLose: [Bool]) {
    let partitions = mayLose.count
    self.mayLose = mayLose
    self.lostBefore = Array(repeating: .none, count: partitions)
    self.committed = Array(repeating: [], count: partitions)
    self.batches = Array(repeating: [], count: partitions)
    self.nextSequence = Array(repeating: [:], count: partitions)
  }

  /// What is committed above `final` may be gone; the leader of `epoch` says what is committed now.
  mutating func lose(_ partition: Int, above final: Int, since epoch: LeaderEpoch) {
    self.lostBefore[partition] = epoch
    self.committed[partition].removeLast(Swift.max(0, self.committed[partition].count - final))
    self.batches[partition].removeAll { $0.endOffset.rawValue > Int64(final) }
  }

  func hasLost(_ partition: Int) -> Bool { self.lostBefore[partition] > .none }

  /// A leader's high watermark covers `values` from `base` on: they must be what was committed before, or
  /// extend it.
  mutating func commit(_ partition: Int, _ batch: SimVolume.Batch) throws(Broken) {
    let (base, values) = (Int(batch.summary.baseOffset.rawValue), batch.values)
    if base == self.committed[partition].count { self.batches[partition].append(batch.summary) }
    for (at, value) in zip(base..., values) {
      if at < self.committed[partition].count {
        guard self.committed[partition][at] == value else {
          throw Broken(
            rule: "a committed record changed", detail: "partition \(partition) offset \(at)")
        }
        continue
      }
      guard at == self.committed[partition].count else {
        throw Broken(rule: "a gap was committed", detail: "partition \(partition) offset \(at)")
      }
      self.committed[partition].append(value)
      try self.checkOrder(of: value, in: partition, at: at)
    }
  }

  /// An idempotent producer's records stand once each, in order, without a gap.
  private mutating func checkOrder(
    of value: UInt64, in partition: Int, at offset: Int
  ) throws(Broken) {
    guard value & Self.mayRepeat == 0, !self.hasLost(partition) else { return }
    let (producer, sequence) = (value >> 32, value & 0xFFFF_FFFF)
    let expected = self.nextSequence[partition][producer] ?? 0
    guard sequence == expected else {
      throw Broken(
        rule: sequence < expected ? "a duplicate was committed" : "a producer's record is missing",
        detail: "partition \(partition) offset \(offset) producer \(producer) sequence \(sequence)"
          + ", expected \(expected)")
    }
    self.nextSequence[partition][producer] = expected + 1
  }

  /// A producer was told that `values` are safe, from `base` on where it was told.
  mutating func acknowledge(
    _ partition: Int, base: Int?, _ values: [UInt64], by leader: LeaderEpoch
  ) throws(Broken) {
    self.acknowledgedBatches += 1
    // An earlier leader's word went with what was lost.
    guard leader >= self.lostBefore[partition] else { return }
    guard let base else {
      if self.hasLost(partition) { return }
      let next = self.nextSequence[partition][values[0] >> 32] ?? 0
      guard values[values.count - 1] & 0xFFFF_FFFF < next else {
        throw Broken(rule: "an acknowledged record is missing", detail: "partition \(partition)")
      }
      return
    }
    for (at, value) in zip(base..., values) {
      guard at < self.committed[partition].count, self.committed[partition][at] == value else {
        throw Broken(
          rule: "an acknowledged record is missing", detail: "partition \(partition) offset \(at)")
      }
    }
  }

  /// A log that claims all below `end` to be committed holds just that.
  func check(
    _ batches: [SimVolume.Batch], of partition: Int, from: Int, below end: Int, rule: String
  )
    throws(Broken)
  {
    guard end <= self.committed[partition].count else {
      throw Broken(
        rule: rule, detail: "partition \(partition): \(end) of \(self.committed[partition].count)")
    }
    var at = from
    var index = SimVolume.index(of: Offset(Int64(from)), in: batches)
    while at < end {
      guard index < batches.count else {
        throw Broken(rule: rule, detail: "partition \(partition): the log ends at \(at)")
      }
      let base = Int(batches[index].summary.baseOffset.rawValue)
      for (place, value) in zip(base..., batches[index].values) where place >= at && place < end {
        guard self.committed[partition][place] == value else {
          throw Broken(rule: rule, detail: "partition \(partition) offset \(place)")
        }
      }
      at = Int(batches[index].summary.endOffset.rawValue)
      index += 1
    }
  }
}
