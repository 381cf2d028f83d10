// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

/// A node's log disk: writes take effect at once, become durable in order with the next sync, and a crash
/// keeps what is durable plus a seeded prefix of the rest.
struct SimVolume {
  struct Batch {
    var summary: BatchSummary
    var values: [UInt64]
  }

  struct Log {
    var batches: [Batch] = []
    var epochs: [EpochStart] = []
    var highWatermark = Offset.zero
    var snapshot: (bytes: [UInt8], at: Offset)?
    var end: Offset { self.batches.last?.summary.endOffset ?? .zero }
  }

  enum Write {
    case append(Batch)
    case startEpoch(EpochStart)
    case truncate(to: Offset, epochs: [EpochStart])
    case highWatermark(Offset)
    case snapshot([UInt8], at: Offset)
  }

  private struct Queued {
    var partition: Int
    var number: WriteNumber?
    var write: Write
  }

  private(set) var current: [Log]
  private(set) var durable: [Log]
  private var queue: [Queued] = []
  /// Queued writes that the running sync covers.
  private var syncing: Int?

  init(partitions: Int) {
    self.current = Array(repeating: Log(), count: partitions)
    self.durable = self.current
  }

  var needsSync: Bool { self.syncing == nil && !self.queue.isEmpty }

  mutating func file(_ write: Write, _ partition: Int, _ number: WriteNumber?) {
    Self.apply(write, to: &self.current[partition])
    self.queue.append(Queued(partition: partition, number: number, write: write))
  }

  mutating func beginSync() { self.syncing = self.queue.count }

  /// The last durable write of each partition that has one, by partition.
  mutating func endSync() -> [(partition: Int, number: WriteNumber)] {
    let count = self.syncing ?? 0
    self.syncing = nil
    var last = [WriteNumber?](repeating: nil, count: self.durable.count)
    for queued in self.queue[..<count] {
      Self.apply(queued.write, to: &self.durable[queued.partition])
      last[queued.partition] = queued.number ?? last[queued.partition]
    }
    self.queue.removeFirst(count)
    return last.enumerated().compactMap { at, number in number.map { (at, $0) } }
  }

  mutating func crash(_ random: inout Randomness) {
    let kept = random.number(0...self.queue.count)
    for queued in self.queue[..<kept] {
      Self.apply(queued.write, to: &self.durable[queued.partition])
    }
    self.queue = []
    self.syncing = nil
    self.current = self.durable
  }

  /// The log as a node finds it at start.
  func recover(_ partition: Int, _ limits: ProducerLimits) throws(MemQError) -> ReplicaLog {
    let log = self.durable[partition]
    let covered = log.snapshot?.at ?? .zero
    return ReplicaLog(
      start: .zero, end: log.end, highWatermark: log.highWatermark, uploadedOffset: .zero,
      epochs: try EpochCache(log.epochs),
      producers: try ProducerState(
        snapshot: log.snapshot?.bytes, start: .zero,
        batches: log.batches.map(\.summary).filter { $0.baseOffset >= covered }, limits: limits))
  }

  /// The batch that begins at `offset`.
  func batch(_ partition: Int, at offset: Offset) -> Batch? {
    let batches = self.current[partition].batches
    let at = Self.index(of: offset, in: batches)
    guard at < batches.count, batches[at].summary.baseOffset == offset else { return nil }
    return batches[at]
  }

  static func index(of offset: Offset, in batches: [Batch]) -> Int {
    var (low, high) = (0, batches.count)
    while low < high {
      let middle = (low + high) / 2
      if batches[middle].summary.endOffset <= offset { low = middle + 1 } else { high = middle }
    }
    return low
  }

  private static func apply(_ write: Write, to log: inout Log) {
    switch write {
    case .append(let batch):
      precondition(batch.summary.baseOffset == log.end, "appends follow the end")
      if batch.summary.leaderEpoch > log.epochs.last?.epoch ?? .none {
        log.epochs.append(
          EpochStart(epoch: batch.summary.leaderEpoch, start: batch.summary.baseOffset))
      }
      log.batches.append(batch)
    case .startEpoch(let epoch):
      log.epochs.append(epoch)
    case .truncate(let end, let epochs):
      while let last = log.batches.last, last.summary.endOffset > end {
        precondition(last.summary.baseOffset >= end, "a cut lies between batches")
        log.batches.removeLast()
      }
      log.epochs = epochs
      log.highWatermark = Swift.min(log.highWatermark, end)
      if let snapshot = log.snapshot, snapshot.at > end { log.snapshot = nil }
    case .highWatermark(let offset): log.highWatermark = offset
    case .snapshot(let bytes, let at): log.snapshot = (bytes, at)
    }
  }
}
