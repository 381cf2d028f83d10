// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What the rules know of a replica's own log: positions, epochs, producers, and the writes on their way
/// to the volume. It passes from role to role when leadership moves.
///
/// Invariants: `start` ≤ `durableEnd` ≤ `end`; `highWatermark` ≤ `end`; the producers' snapshot covers
/// nothing above the high watermark, so no legal truncation reaches below it.
public struct ReplicaLog: Sendable {
  public private(set) var start: Offset
  /// The lowest offset still on the volume; at or above `start` where older records were uploaded.
  public private(set) var localStart: Offset
  public private(set) var end: Offset
  /// All below is durable on this replica's volume.
  public private(set) var durableEnd: Offset
  public private(set) var highWatermark: Offset
  /// Below it the object tier is the log; no replica cuts there.
  public private(set) var uploadedOffset: Offset
  public private(set) var epochs: EpochCache
  public private(set) var producers: ProducerState

  private var pending: [PendingWrite] = []
  private var pendingHead = 0
  private var lastWrite = WriteNumber.zero

  private struct PendingWrite: Sendable {
    var number: WriteNumber
    /// The durable end once this write is durable.
    var end: Offset
  }

  /// The state after recovery: all of it is durable.
  public init(
    start: Offset, end: Offset, highWatermark: Offset, uploadedOffset: Offset, epochs: EpochCache,
    producers: ProducerState
  ) {
    precondition(start <= end, "a log ends at or above its start")
    self.start = start
    self.localStart = start
    self.end = end
    self.durableEnd = end
    self.highWatermark = Swift.max(start, Swift.min(highWatermark, end))
    self.uploadedOffset = uploadedOffset
    self.epochs = epochs
    self.producers = producers
  }

  /// An empty log that begins at `start`.
  public init(emptyAt start: Offset, limits: ProducerLimits) {
    self.init(
      start: start, end: start, highWatermark: start, uploadedOffset: start, epochs: EpochCache(),
      producers: ProducerState(at: start, limits: limits))
  }

  public var isSettled: Bool { self.pendingHead == self.pending.count }

  mutating func append(_ batch: BatchSummary) -> WriteNumber {
    precondition(batch.baseOffset == self.end, "a batch follows the log's end")
    if batch.leaderEpoch > self.epochs.lastEpoch {
      self.epochs.begin(batch.leaderEpoch, at: batch.baseOffset)
    }
    self.end = batch.endOffset
    self.producers.apply(batch)
    return self.file(end: batch.endOffset)
  }

  mutating func begin(_ epoch: LeaderEpoch) -> WriteNumber {
    self.epochs.begin(epoch, at: self.end)
    return self.file(end: self.end)
  }

  mutating func truncate(
    to end: Offset, lastEpoch: LeaderEpoch, keepsProducers: Bool = false
  ) -> WriteNumber {
    precondition(end <= self.end && end >= self.start, "a cut lies inside the log")
    self.end = end
    self.durableEnd = Swift.min(self.durableEnd, end)
    self.highWatermark = Swift.min(self.highWatermark, end)
    self.epochs.truncate(to: end, lastEpoch: lastEpoch)
    if !keepsProducers { self.producers.truncate(to: end) }
    // Writes filed earlier become durable first; what the cut removes must not count then.
    for at in self.pendingHead..<self.pending.count {
      self.pending[at].end = Swift.min(self.pending[at].end, end)
    }
    return self.file(end: end)
  }

  /// Takes note that the volume made all writes up to `number` durable. True when `durableEnd` moved.
  mutating func settle(through number: WriteNumber) -> Bool {
    let before = self.durableEnd
    while self.pendingHead < self.pending.count, self.pending[self.pendingHead].number <= number {
      self.durableEnd = Swift.max(self.durableEnd, self.pending[self.pendingHead].end)
      self.pendingHead += 1
    }
    if self.pendingHead == self.pending.count || self.pendingHead > 1_024 {
      self.pending.removeFirst(self.pendingHead)
      self.pendingHead = 0
    }
    precondition(self.durableEnd <= self.end, "nothing durable lies above the end")
    return self.durableEnd != before
  }

  /// True when it differs from before.
  mutating func setHighWatermark(_ offset: Offset) -> Bool {
    precondition(offset <= self.end, "the high watermark lies inside the log")
    guard offset != self.highWatermark else { return false }
    self.highWatermark = offset
    return true
  }

  mutating func setStart(_ offset: Offset) {
    guard offset > self.start, offset <= self.end else { return }
    self.start = offset
    self.epochs.trim(to: offset)
    self.highWatermark = Swift.max(self.highWatermark, offset)
    self.setLocalStart(offset)
  }

  mutating func setLocalStart(_ offset: Offset) {
    self.localStart = Swift.max(self.localStart, Swift.min(offset, self.end))
  }

  mutating func setUploadedOffset(_ offset: Offset) {
    self.uploadedOffset = Swift.max(self.uploadedOffset, offset)
  }

  /// A new producer snapshot when enough was committed since the last one.
  mutating func takeSnapshot(batches: Int) -> (bytes: [UInt8], at: Offset)? {
    self.producers.snapshot(through: self.highWatermark, after: batches)
  }

  /// The producers of all that is committed, whatever was taken before.
  mutating func takeSnapshot() -> (bytes: [UInt8], at: Offset) {
    self.producers.snapshot(through: self.highWatermark)
  }

  /// Elected uncleanly, a replica may know the producers of records it never got: those records are gone.
  mutating func forgetProducersAboveEnd() {
    if self.producers.snapshotOffset > self.end { self.producers.truncate(to: self.end) }
  }

  /// Elected uncleanly, a replica may know records as committed that it has not made durable, and that now nobody has. A member of
  /// the ISR, or an eligible one, knows none such. True: it did.
  mutating func limitHighWatermark() -> Bool {
    self.setHighWatermark(
      Swift.max(self.start, Swift.min(self.highWatermark, self.durableEnd)))
  }

  /// True while what came before the log's start is unknown here.
  package var needsHistory: Bool { self.start > .zero && !self.producers.hasSnapshot }

  /// What a replica whose log ends at `end` must know of the records it doesn't hold. The logs agree below.
  func history(below end: Offset) -> LogHistory {
    let snapshot = self.producers.peekSnapshot(through: end)
    return LogHistory(
      epochs: self.epochs.entries.filter { $0.start <= end }, producers: snapshot.bytes,
      producersEnd: snapshot.at)
  }

  /// Takes over what a leader, whose log agrees with this one, remembers. Nothing is cut.
  ///
  /// - Throws: `.logCorrupt` when it doesn't hold together.
  mutating func adopt(
    _ history: LogHistory, limits: ProducerLimits
  ) throws(MemQError) -> WriteNumber {
    let epochs = try EpochCache(history.epochs)
    guard epochs.lastEpoch >= self.epochs.lastEpoch, (epochs.last?.start ?? .zero) <= self.end,
      history.producersEnd >= self.end
    else {
      throw MemQError(.logCorrupt, "the leader's history ends below what is known here")
    }
    self.producers =
      history.producers.isEmpty
      ? ProducerState(at: self.end, limits: limits)
      : try ProducerState(
        snapshot: history.producers, start: self.end, batches: [], limits: limits)
    self.epochs = epochs
    return self.file(end: self.end)
  }

  /// False: what was uploaded below `offset`, whose last record is of `epoch`, is another history than what is here, so that nothing here
  /// may follow it. One record of the same epoch at the same offset means that all before are the same (see EpochCache). A log that
  /// doesn't hold that record says nothing, nor does an epoch of `.none`, which is not known.
  public func continues(uploadedBelow offset: Offset, lastEpoch epoch: LeaderEpoch) -> Bool {
    guard epoch != .none, offset > self.start, offset <= self.end else { return true }
    let own = self.epochs.epoch(at: Offset(offset.rawValue - 1))
    return own == .none || own == epoch
  }

  private mutating func file(end: Offset) -> WriteNumber {
    self.lastWrite = self.lastWrite.next
    self.pending.append(PendingWrite(number: self.lastWrite, end: end))
    return self.lastWrite
  }
}
