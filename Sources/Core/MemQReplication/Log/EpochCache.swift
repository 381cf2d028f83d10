// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The leader epochs of one log and where each begins.
///
/// Two logs that hold a batch of one epoch at one offset are equal up to its end, because an epoch has
/// one leader and a leader appends in order. So logs are compared by (epoch, end offset) alone.
///
/// Invariants: epochs rise strictly, starts never fall. An epoch without records stays in the list.
/// Source: KIP-101, KIP-279.
public struct EpochCache: Hashable, Sendable {
  public private(set) var entries: [EpochStart] = []

  public init() {}

  /// - Throws: `.logCorrupt` when epochs or starts are out of order.
  public init(_ entries: [EpochStart]) throws(MemQError) {
    for (earlier, later) in zip(entries, entries.dropFirst()) {
      guard earlier.epoch < later.epoch, earlier.start <= later.start else {
        throw MemQError(
          .logCorrupt,
          "leader epoch \(later.epoch) at \(later.start) follows \(earlier.epoch) at \(earlier.start)"
        )
      }
    }
    self.entries = entries
  }

  public var last: EpochStart? { self.entries.last }
  public var lastEpoch: LeaderEpoch { self.entries.last?.epoch ?? .none }

  /// Adds an epoch. It must be above the last one and begin no lower.
  public mutating func begin(_ epoch: LeaderEpoch, at start: Offset) {
    if let last = self.entries.last {
      precondition(last.epoch < epoch, "leader epochs rise")
      precondition(last.start <= start, "epoch starts never fall")
    }
    self.entries.append(EpochStart(epoch: epoch, start: start))
  }

  /// The largest epoch not above `epoch`, and where it ends; nil when all are above (or there are none).
  public func end(of epoch: LeaderEpoch, logEnd: Offset) -> EpochEnd? {
    guard let at = self.entries.lastIndex(where: { $0.epoch <= epoch }) else { return nil }
    let end = at + 1 < self.entries.count ? self.entries[at + 1].start : logEnd
    return EpochEnd(epoch: self.entries[at].epoch, end: end)
  }

  /// The epoch of the record at `offset`; `.none` below the first start.
  public func epoch(at offset: Offset) -> LeaderEpoch {
    self.entries.last { $0.start <= offset }?.epoch ?? .none
  }

  /// Forgets epochs above `lastEpoch` and those that begin above `end`.
  public mutating func truncate(to end: Offset, lastEpoch: LeaderEpoch) {
    while let last = self.entries.last, last.epoch > lastEpoch || last.start > end {
      self.entries.removeLast()
    }
  }

  /// The log now begins at `start`. The epoch of the record before it stays, as the first: a log that ends there, or goes on from there
  /// in another epoch, is compared by it.
  public mutating func trim(to start: Offset) {
    guard let first = self.entries.lastIndex(where: { $0.start < start }) else { return }
    self.entries.removeFirst(first)
    self.entries[0].start = start
  }
}
