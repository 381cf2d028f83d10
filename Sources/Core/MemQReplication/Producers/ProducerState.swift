// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The producer table as part of the log: a snapshot, the batches after it, and the table they give.
///
/// When the log is cut, the table is built again from the snapshot and the batches that remain, so it
/// never remembers a record that is gone, nor forgets one that stays.
public struct ProducerState: Sendable {
  private var table: ProducerTable
  private var snapshotBytes: [UInt8] = []
  public private(set) var snapshotOffset: Offset
  /// Idempotent batches at or above `snapshotOffset`, in log order.
  private var batches: [BatchSummary] = []
  private let limits: ProducerLimits

  /// No producer is known at `offset`.
  public init(at offset: Offset, limits: ProducerLimits) {
    self.table = ProducerTable(limits: limits)
    self.snapshotOffset = offset
    self.limits = limits
  }

  /// The state after recovery.
  ///
  /// - Parameters:
  ///   - snapshot: what `snapshot(through:after:)` gave once; nil: none was made.
  ///   - start: where the log begins.
  ///   - batches: all batches after the snapshot in log order, or of the whole log without one.
  /// - Throws: `.logCorrupt` for a damaged snapshot.
  public init(
    snapshot: [UInt8]?, start: Offset, batches: [BatchSummary], limits: ProducerLimits
  ) throws(MemQError) {
    self.init(at: start, limits: limits)
    if let snapshot {
      (self.table, self.snapshotOffset) = try ProducerTable.decode(snapshot, limits: limits)
      self.snapshotBytes = snapshot
    }
    for batch in batches where batch.baseOffset >= self.snapshotOffset { self.apply(batch) }
  }

  /// Idempotent batches held above the snapshot.
  public var batchesAboveSnapshot: Int { self.batches.count }
  public var producerCount: Int { self.table.count }
  /// For checks: what is known of each producer, by id.
  package var contents: [ProducerContents] { self.table.contents }

  public func judge(
    _ id: ProducerID, _ epoch: ProducerEpoch, base: Int32, count: Int64
  ) -> SequenceVerdict {
    self.table.judge(id, epoch, base: base, count: count)
  }

  /// False: nothing is known of records below the log's start.
  var hasSnapshot: Bool { !self.snapshotBytes.isEmpty }

  mutating func apply(_ batch: BatchSummary) {
    // A replica filled anew may have been given a snapshot that covers records still to come.
    guard batch.producerID.rawValue >= 0, batch.baseSequence >= 0,
      batch.baseOffset >= self.snapshotOffset
    else { return }
    self.table.apply(batch)
    self.batches.append(batch)
  }

  /// Forgets the batches at and above `end`. Below the snapshot, which only an unclean election can ask
  /// for, all is forgotten: a producer is then refused as unknown and starts anew.
  mutating func truncate(to end: Offset) {
    guard end >= self.snapshotOffset else {
      self = ProducerState(at: end, limits: self.limits)
      return
    }
    let kept = self.batches.prefix { $0.endOffset <= end }
    guard kept.count < self.batches.count else { return }
    self.batches.removeLast(self.batches.count - kept.count)
    self.table = self.snapshotTable()
    for batch in self.batches { self.table.apply(batch) }
  }

  /// Makes a snapshot of all below `end` once `count` batches lie between the last one and `end`.
  mutating func snapshot(through end: Offset, after count: Int) -> (bytes: [UInt8], at: Offset)? {
    guard self.batches.count >= count, self.batches[count - 1].endOffset <= end else { return nil }
    return self.snapshot(through: end)
  }

  /// Makes a snapshot of all below `end`; the last one again when that one goes as far.
  mutating func snapshot(through end: Offset) -> (bytes: [UInt8], at: Offset) {
    let covered = self.batches.prefix { $0.endOffset <= end }.count
    // A batch that `end` lies in stays whole above it.
    let reach = covered < self.batches.count ? min(end, self.batches[covered].baseOffset) : end
    let offset = max(self.snapshotOffset, reach)
    if offset > self.snapshotOffset || self.snapshotBytes.isEmpty {
      var table = self.snapshotTable()
      for batch in self.batches[..<covered] { table.apply(batch) }
      self.batches.removeFirst(covered)
      self.snapshotBytes = table.encode(at: offset)
      self.snapshotOffset = offset
    }
    return (self.snapshotBytes, offset)
  }

  /// A snapshot of all below `end`, or the last one where that goes further. Changes nothing.
  func peekSnapshot(through end: Offset) -> (bytes: [UInt8], at: Offset) {
    guard end > self.snapshotOffset || self.snapshotBytes.isEmpty else {
      return (self.snapshotBytes, self.snapshotOffset)
    }
    var table = self.snapshotTable()
    for batch in self.batches.prefix(while: { $0.endOffset <= end }) { table.apply(batch) }
    let at = max(end, self.snapshotOffset)
    return (table.encode(at: at), at)
  }

  private func snapshotTable() -> ProducerTable {
    guard !self.snapshotBytes.isEmpty else { return ProducerTable(limits: self.limits) }
    do {
      return try ProducerTable.decode(self.snapshotBytes, limits: self.limits).table
    } catch {
      preconditionFailure("a snapshot that was read or made here reads again: \(error)")
    }
  }
}
