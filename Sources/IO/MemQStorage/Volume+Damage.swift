// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
public import MemQLog
public import MemQModel
import MemQSystem

extension Volume {
  /// A partition of which something below what was durable does not read.
  public struct DamagedPartition: Hashable, Sendable {
    public var partition: TopicPartition
    /// Records below are whole and are served.
    public var from: Offset
    /// What is damaged, with its place.
    public var error: MemQError
    /// What stands at `from` did not read; otherwise the damage lies somewhere behind.
    public var isPlaceKnown = true
    /// The open found it; otherwise a read did, and reads find it again.
    var isKnownSinceOpen = false
  }

  /// What the open, and reads since, found damaged: to be fetched again from another replica or the object tier, from `from` on.
  public var damagedPartitions: [DamagedPartition] {
    self.engine.monitor.withLock { state in
      state.damaged.values.sorted { $0.partition < $1.partition }
    }
  }

  /// Damage that the open went on in spite of, each with its place.
  public var damages: [MemQError] { self.foundDamages }

  /// Called on a thread of the volume when a read finds a partition damaged that was not known to be, or further down than known.
  public var onDamage: (@Sendable (DamagedPartition) -> Void)? {
    get { self.engine.monitor.withLock { $0.onDamage } }
    set { self.engine.monitor.withLock { $0.onDamage = newValue } }
  }

  /// Says that what a read, or the cleaner, found is no matter any more: the partition reads again, or nobody will read that here.
  ///
  /// - Parameter reads: the cleaner may carry it again.
  public func forgetDamage(_ partition: TopicPartition, reads: Bool = true) {
    self.engine.update { state, now, wall in
      guard let damaged = state.damaged[partition], !damaged.isKnownSinceOpen else { return }
      state.damaged[partition] = nil
      guard reads else { return }
      state.core.handle(.carryAgain(partition), at: now, wall: wall, into: &state.effects)
    }
  }

  /// Keeps a partition as damaged from `offset` on that is to be here and is gone with what named it, until it is dropped.
  ///
  /// Precondition: the volume has no log of it.
  public func noteMissing(
    _ partition: TopicPartition, from offset: Offset
  ) -> RecoveredPartition {
    let error = MemQError(
      .logCorrupt, "frames at the volume's end were lost, and with them the partition's log",
      subject: "\(partition) on volume \(self.id)")
    self.engine.monitor.withLock { state in
      precondition(state.core.state(of: partition) == nil, "the partition is here")
      state.damaged[partition] = DamagedPartition(
        partition: partition, from: offset, error: error, isKnownSinceOpen: true)
    }
    var missing = RecoveredPartition(
      partition: partition, logStart: offset, end: offset, localStart: offset, epochs: [],
      highWatermark: offset, uploadedOffset: offset, producerSnapshot: nil,
      producerSnapshotEnd: offset, batchesAfterSnapshot: [])
    missing.damage = error
    missing.damagedFrom = offset
    return missing
  }

  /// Says that no partition of those that are to be on this volume is missing, or that others know which: from the next open on, one that
  /// the volume does not hold was never there.
  ///
  /// - Throws: `.volumeFailed`, `.shuttingDown`.
  public func settleUnnamedPartitions() async throws(MemQError) {
    guard self.unnamedLosses.contains(.partitions) else { return }
    let (disk, path) = (self.engine.disk, self.path)
    try await self.readers.run { () throws(MemQError) in
      try disk.changeVolumeFile(path) { $0.unnamed.remove(.partitions) }
    }
  }

  /// Keeps what a read found.
  func note(_ error: MemQError, _ partition: TopicPartition, from offset: Offset) {
    let damaged = DamagedPartition(partition: partition, from: offset, error: error)
    let body = self.engine.monitor.withLock { state -> (@Sendable (DamagedPartition) -> Void)? in
      if let known = state.damaged[partition], known.from <= offset { return nil }
      state.damaged[partition] = damaged
      return state.onDamage
    }
    self.engine.logger.error(
      "Records are damaged",
      metadata: [
        "volume": "\(self.id)", "partition": "\(partition)", "offset": "\(offset)",
        "error": "\(error)",
      ])
    body?(damaged)
  }
}

extension VolumeEngine.State {
  /// How far a read of the partition may go.
  ///
  /// - Throws: the damage, where nothing whole stands between `from` and it.
  func limit(
    _ partition: TopicPartition, from: Offset, below: Offset
  ) throws(MemQError) -> Offset {
    guard let damaged = self.damaged[partition], damaged.isKnownSinceOpen else { return below }
    guard from < damaged.from else { throw damaged.error }
    return min(below, damaged.from)
  }

  /// The log was cut: what is damaged behind the cut is no part of it any more.
  mutating func forgetDamage(_ partition: TopicPartition, from end: Offset) {
    if let damaged = self.damaged[partition], damaged.from >= end {
      self.damaged[partition] = nil
    }
  }
}
