// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Which object holds an offset: the live runs of one upload group, folded from its objects in commit order.
///
/// Metadata accepts a run only where the partition's upload stands, so accepted runs follow each other without a gap;
/// an object may also carry runs that were refused. Those are told apart by rank: a run with a higher (history epoch,
/// lease epoch) ends everything lower from its base offset on, and a run that does not go on where its partition stands
/// is dead bytes.
public struct RunIndex: Sendable {
  public struct Entry: Hashable, Sendable {
    public let baseOffset: Offset
    /// Exclusive.
    public let endOffset: Offset
    public let historyEpoch: HistoryEpoch
    public let leaseEpoch: LeaseEpoch
    public let maxTimestamp: Timestamp
    /// The object's number in the group.
    public let sequence: Int64
  }

  private var entries: SortedMap<TopicPartition, [Entry]> = [:]
  /// Number of the last object folded in; 0: none.
  public private(set) var lastSequence: Int64 = 0
  /// Live runs in all.
  public private(set) var count = 0

  public init() {}

  /// Takes the next object's runs. Objects come in commit order; one that is gone may be left out (`skip`).
  public mutating func add(_ runs: [ObjectRun], sequence: Int64) {
    precondition(sequence > self.lastSequence)
    self.lastSequence = sequence
    for run in runs { self.add(run, sequence) }
  }

  /// Passes over an object whose bytes are gone: everything in it was below its partition's log start.
  public mutating func skip(sequence: Int64) {
    precondition(sequence > self.lastSequence)
    self.lastSequence = sequence
  }

  /// Forgets an object that was collected.
  public mutating func remove(sequence: Int64) {
    for partition in self.entries.keys {
      guard let list = self.entries[partition], list.contains(where: { $0.sequence == sequence })
      else { continue }
      let kept = list.filter { $0.sequence != sequence }
      self.count -= list.count - kept.count
      self.entries[partition] = kept.isEmpty ? nil : kept
    }
  }

  private mutating func add(_ run: ObjectRun, _ sequence: Int64) {
    let entry = Entry(
      baseOffset: run.baseOffset, endOffset: run.endOffset, historyEpoch: run.historyEpoch,
      leaseEpoch: run.leaseEpoch, maxTimestamp: run.maxTimestamp, sequence: sequence)
    var list = self.entries[run.partition] ?? []
    let before = list.count
    if let last = list.last, run.baseOffset < last.endOffset {
      guard last.isOutranked(by: entry) else { return }
      // Committed history changed: what the higher run claims is no longer what the lower ones say.
      while let last = list.last, last.baseOffset >= run.baseOffset { list.removeLast() }
      if let last = list.last, last.endOffset > run.baseOffset {
        list[list.count - 1] = last.cut(at: run.baseOffset)
      }
    }
    list.append(entry)
    self.count += list.count - before
    self.entries[run.partition] = list
  }

  /// The live run that holds the offset; nil when none of the objects folded in does.
  public func entry(_ partition: TopicPartition, holding offset: Offset) -> Entry? {
    guard let entry = self.entry(partition, endingAbove: offset), entry.baseOffset <= offset else {
      return nil
    }
    return entry
  }

  /// The first live run that ends above the offset: where a reader goes on after a gap.
  public func entry(_ partition: TopicPartition, endingAbove offset: Offset) -> Entry? {
    guard let list = self.entries[partition] else { return nil }
    var low = 0
    var high = list.count
    while low < high {
      let middle = (low + high) / 2
      if list[middle].endOffset <= offset { low = middle + 1 } else { high = middle }
    }
    return low < list.count ? list[low] : nil
  }

  /// The first live run with a record of this timestamp or a later one.
  public func entry(_ partition: TopicPartition, atOrAfter timestamp: Timestamp) -> Entry? {
    self.entries[partition]?.first { $0.maxTimestamp >= timestamp }
  }

  /// Numbers of the objects between which one that holds the offset must stand, if there is one: those of the live runs
  /// before and behind it, both exclusive.
  public func gap(
    _ partition: TopicPartition, around offset: Offset
  ) -> (after: Int64, before: Int64) {
    let list = self.entries[partition] ?? []
    let after = list.last { $0.endOffset <= offset }?.sequence ?? 0
    let before = list.first { $0.baseOffset > offset }?.sequence ?? .max
    return (after, before)
  }

  /// Where the objects' copy of the partition ends; nil when they hold nothing of it.
  public func endOffset(_ partition: TopicPartition) -> Offset? {
    self.entries[partition]?.last?.endOffset
  }

  /// The live runs of a partition, by offset.
  public func entries(of partition: TopicPartition) -> [Entry] { self.entries[partition] ?? [] }
}

extension RunIndex.Entry {
  fileprivate func isOutranked(by other: Self) -> Bool {
    self.historyEpoch != other.historyEpoch
      ? self.historyEpoch < other.historyEpoch : self.leaseEpoch < other.leaseEpoch
  }

  fileprivate func cut(at end: Offset) -> Self {
    Self(
      baseOffset: self.baseOffset, endOffset: end, historyEpoch: self.historyEpoch,
      leaseEpoch: self.leaseEpoch, maxTimestamp: self.maxTimestamp, sequence: self.sequence)
  }
}
