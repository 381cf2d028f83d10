// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where a partition's log starts and ends, and its epochs. The same rules apply frames at layout and at recovery.
struct LogState: Hashable, Sendable {
  var logStart: Offset
  /// Exclusive.
  var end: Offset
  /// By epoch, strictly rising; starts never fall.
  var epochs: [EpochStart]

  /// A batch with a new epoch begins that epoch.
  mutating func append(base: Offset, end: Offset, epoch: LeaderEpoch) {
    self.startEpoch(EpochStart(epoch: epoch, start: base))
    self.end = end
  }

  mutating func startEpoch(_ entry: EpochStart) {
    guard entry.epoch > (self.epochs.last?.epoch ?? .none) else { return }
    self.epochs.append(entry)
  }

  mutating func truncate(to end: Offset, epochs: [EpochStart]) {
    self.end = end
    self.epochs = epochs
  }

  /// The epochs that remain where the log is cut at `end` and nobody says otherwise.
  func epochs(below end: Offset) -> [EpochStart] { self.epochs.filter { $0.start < end } }

  mutating func setLogStart(_ start: Offset) {
    self.logStart = start
    if self.end < start { self.end = start }
    // What came before the epoch of the record before the start is history: logs that end at the start are compared by that one.
    let keep = self.epochs.lastIndex { $0.start < start } ?? 0
    if keep > 0 { self.epochs.removeFirst(keep) }
  }
}

/// A partition as of now, for its owner.
public struct PartitionState: Hashable, Sendable {
  public var logStart: Offset
  /// Exclusive; counts accepted appends, durable or not.
  public var end: Offset
  public var epochs: [EpochStart]
  public var highWatermark: Offset
  public var uploadedOffset: Offset
  /// The lowest offset still on this volume: at least the log start.
  public var localStart: Offset
  /// Bytes of frames on this volume, without records that a truncate or the log start passed by whole segments.
  public var localBytes: Int64
}
