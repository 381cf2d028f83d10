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
  private var nextSequence: [[UInt64: UInt64]]
  private(set) var acknowledgedBatches = 0

  init(partitions: Int) {
    self.committed = Array(repeating: [], count: partitions)
    self.nextSequence = Array(repeating: [:], count: partitions)
  }

  /// A leader's high watermark covers `values` from `base` on: they must be what was committed before, or
  /// extend it.
  mutating func commit(_ partition: Int, base: Int, _ values: ArraySlice<UInt64>) throws(Broken) {
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
    guard value & Self.mayRepeat == 0 else { return }
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
    _ partition: Int, base: Int?, _ values: [UInt64]
  ) throws(Broken) {
    self.acknowledgedBatches += 1
    guard let base else {
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
