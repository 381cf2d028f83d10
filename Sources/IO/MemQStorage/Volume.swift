// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
public import MemQLog
public import MemQModel
import MemQSystem
import Synchronization

/// One SSD log: all partitions of a disk in one stream of group commits, each durable before it is answered.
///
/// Writes never block: they are accepted or refused at once, and completed on a thread of the volume once durable, in
/// order. Reads suspend while a thread of the volume reads. The first failed write or sync is final: everything that
/// waits fails, `onFailure` is called, nothing more is taken.
///
/// Close it: `close()` drains and leaves a clean end, so that the next open need not cut the log.
public final class Volume: Sendable {
  let engine: VolumeEngine
  let readers: DiskThreads
  let catchUp: CatchUpQueue
  let configuration: Configuration
  private let recovered: [RecoveredPartition]
  let foundDamages: [MemQError]
  /// What may have been lost besides, with nothing left that names it: an open found it, now or earlier, and nobody settled it since.
  public let unnamedLosses: UnnamedLosses
  /// Made by this open.
  public let isFresh: Bool
  /// The last open ended in order.
  public let wasClean: Bool
  private let onClose: Monitor<Bool>

  init(
    engine: VolumeEngine, readers: DiskThreads, configuration: Configuration,
    recovered: RecoveredVolume, isFresh: Bool
  ) {
    self.engine = engine
    self.readers = readers
    self.catchUp = CatchUpQueue(SegmentReader(engine), threadCount: configuration.catchUpThreads)
    self.configuration = configuration
    self.recovered = recovered.partitions
    self.foundDamages = recovered.damages
    self.unnamedLosses = recovered.unnamed
    self.isFresh = isFresh
    self.wasClean = recovered.cleanShutdown
    self.onClose = Monitor(false)
  }

  /// The identity of the disk's content.
  public var id: VolumeID { self.engine.identity.volume }

  /// Its folder.
  public var path: String { self.configuration.path }

  /// The partitions as of open.
  public func recoveredPartitions() -> [RecoveredPartition] { self.recovered }

  // MARK: - Writes

  /// Begins a partition's log, empty, at `logStart`. Precondition: the volume has none of it.
  ///
  /// Completes with `.limitReached`, `.volumeFull`, `.volumeFailed`, `.shuttingDown` otherwise.
  public func openPartition(
    _ partition: TopicPartition, logStart: Offset, epochs: [EpochStart],
    completion: @escaping Completion
  ) {
    self.request(completion) {
      .openPartition($0, partition, logStart: logStart, epochs: epochs)
    }
  }

  /// Ends a partition's log; its records are gone.
  public func dropPartition(_ partition: TopicPartition, completion: @escaping Completion) {
    self.request(
      completion,
      taken: {
        $0.cache.drop(partition)
        $0.readAhead.cut(partition)
        $0.damaged[partition] = nil
      }
    ) { .dropPartition($0, partition) }
  }

  /// Whether an append of up to an eighth of `pendingBytesMax` would be taken now.
  public var hasRoom: Bool { self.engine.monitor.withLock { $0.core.hasRoom } }

  /// Whether a batch of `byteCount` would be taken now.
  public func hasRoom(for byteCount: Int) -> Bool {
    self.engine.monitor.withLock { $0.core.hasRoom(for: byteCount) }
  }

  /// Sets a place aside for a batch of `byteCount`: `append` then takes it, however full others make the volume meanwhile. Nil: it would
  /// not be taken now. What no append uses up is given back with `release`.
  public func reserve(_ byteCount: Int) -> RoomReservation? {
    self.engine.monitor.withLock { $0.core.reserve(byteCount) }
  }

  public func release(_ reservation: RoomReservation) {
    self.engine.monitor.withLock { $0.core.release(reservation) }
  }

  /// Whether there is a place for a batch of `byteCount`, now or once what waits is written; false: not before something is reclaimed.
  public func hasSpace(for byteCount: Int) -> Bool {
    self.engine.monitor.withLock { $0.core.hasSpace(for: byteCount) }
  }

  /// Whether a batch of `byteCount` is refused as `.volumeFull` until something is reclaimed.
  public func isFull(for byteCount: Int) -> Bool {
    self.engine.monitor.withLock { $0.core.isFull(for: byteCount) }
  }

  /// What the partition's cap says to a producer's batch of `byteCount`: take it; take it and hold the answer back for a while; or
  /// refuse it, retriable, as `.partitionQuotaExceeded`. Other partitions have no part in it. A leader asks before it
  /// takes a produced batch; followers take what it took.
  public func room(of partition: TopicPartition, for byteCount: Int) -> PartitionRoom {
    self.engine.monitor.withLock { $0.core.room(of: partition, for: byteCount) }
  }

  /// Takes batches, all or none, to make them durable; readable at once.
  ///
  /// Precondition: each base offset is its partition's end, batches of one partition in order, and each batch was validated
  /// (`RecordBatchHeader.validate`): what does not hold would read as damage later.
  /// - Throws: `.volumeFailed`, `.logCorrupt` where the open found the partition damaged, `.shuttingDown`, `.partitionNotFound`,
  ///   `.recordBatchInvalid`, `.recordBatchTooLarge`; retriable: `.resourceExhausted` (too much waits for the disk), and without a
  ///   reservation for all of them `.volumeFull`. Nothing was taken then, the reservation stands, and `completion` is not called.
  public func append(
    _ appends: [Append], reserved: RoomReservation = RoomReservation(),
    completion: @escaping Completion
  ) throws(MemQError) {
    var batches: [StoredBatch] = []
    var requests: [VolumeCore.BatchAppend] = []
    for append in appends {
      let batch = try StoredBatch(append)
      batches.append(batch)
      requests.append(
        VolumeCore.BatchAppend(
          partition: append.partition, summary: append.summary, byteCount: batch.byteCount,
          checksum: batch.checksum))
    }
    try self.engine.update { (state, now, wall) throws(MemQError) in
      for append in appends {
        // What follows a hole must not look as if it followed what was there.
        if let damaged = state.damaged[append.partition], damaged.isKnownSinceOpen {
          throw damaged.error
        }
      }
      let request = RequestID(state.nextRequest)
      state.nextRequest += 1
      for (index, batch) in batches.enumerated() {
        state.payloads[PayloadID(request, index)] = batch
      }
      do throws(MemQError) {
        try state.core.append(
          requests, request: request, reserved: reserved, at: now, wall: wall,
          into: &state.effects)
      } catch {
        for index in batches.indices { state.payloads[PayloadID(request, index)] = nil }
        throw error
      }
      var serial: UInt64 = 0
      for (batch, append) in zip(batches, appends) {
        serial = state.cache.append(batch, to: append.partition)
      }
      state.completions[request] = VolumeEngine.Completion(body: completion, serial: serial)
    }
  }

  /// States that a leader epoch begins, records or not.
  public func startEpoch(
    _ partition: TopicPartition, epoch: LeaderEpoch, start: Offset, completion: @escaping Completion
  ) {
    self.request(completion) {
      .startEpoch($0, partition, EpochStart(epoch: epoch, start: start))
    }
  }

  /// Cuts the log at `end`, a batch boundary at or above the log start. Nil epochs: those that start below it stay.
  public func truncate(
    _ partition: TopicPartition, to end: Offset, epochs: [EpochStart]? = nil,
    completion: @escaping Completion
  ) {
    self.request(
      completion,
      taken: {
        $0.cache.cut(partition, to: end)
        $0.readAhead.cut(partition)
        $0.forgetDamage(partition, from: end)
      }
    ) {
      .truncate($0, partition, to: end, epochs: epochs)
    }
  }

  /// Raises the log start; above the end, the log becomes empty there.
  public func setLogStart(
    _ partition: TopicPartition, to start: Offset, completion: @escaping Completion
  ) {
    self.request(completion, taken: { $0.cache.trim(partition, to: start) }) {
      .setLogStart($0, partition, start)
    }
  }

  /// A change of a partition's log that keeps its place among the appends.
  public enum Change: Sendable {
    case startEpoch(EpochStart)
    case truncate(to: Offset, epochs: [EpochStart])
  }

  /// As `startEpoch` and `truncate`, for a caller that keeps an order: what a full disk refuses is refused at once.
  ///
  /// - Throws: `.volumeFull`; nothing was taken then, and `completion` is not called.
  public func submit(
    _ change: Change, of partition: TopicPartition, completion: @escaping Completion
  ) throws(MemQError) {
    try self.engine.update { (state, now, wall) throws(MemQError) in
      let request = RequestID(state.nextRequest)
      state.nextRequest += 1
      let event: VolumeCore.Event =
        switch change {
        case .startEpoch(let start): .startEpoch(request, partition, start)
        case .truncate(let end, let epochs): .truncate(request, partition, to: end, epochs: epochs)
        }
      state.core.handle(event, at: now, wall: wall, into: &state.effects)
      for (index, effect) in state.effects.enumerated() {
        guard case .complete(request, .failure(let error)) = effect, error.code == .volumeFull
        else { continue }
        state.effects.remove(at: index)
        throw error
      }
      state.completions[request] = VolumeEngine.Completion(body: completion, serial: nil)
      if case .truncate(let end, _) = change {
        state.cache.cut(partition, to: end)
        state.readAhead.cut(partition)
        state.forgetDamage(partition, from: end)
      }
    }
  }

  /// - Parameter taken: brings what the volume keeps in memory in line with what the log says from now on. Not called when the log refuses:
  ///   then nothing changed, and what was cut from memory, or forgotten as damaged, would still be part of it.
  private func request(
    _ completion: @escaping Completion, taken: (inout VolumeEngine.State) -> Void = { _ in },
    _ event: (RequestID) -> VolumeCore.Event
  ) {
    self.engine.update { state, now, wall in
      let request = RequestID(state.nextRequest)
      state.nextRequest += 1
      state.completions[request] = VolumeEngine.Completion(body: completion, serial: nil)
      state.core.handle(event(request), at: now, wall: wall, into: &state.effects)
      let isRefused = state.effects.contains { effect in
        guard case .complete(request, .failure(let error)) = effect else { return false }
        // There is nothing to change: so it is as if it had been done.
        return error.code != .partitionNotFound
      }
      if !isRefused { taken(&state) }
    }
  }

  // MARK: - State without an answer

  /// Known after a restart only as of the last checkpoint or idle mark; so are the following.
  public func setHighWatermark(_ partition: TopicPartition, to offset: Offset) {
    self.engine.send(.setHighWatermark(partition, offset))
  }

  /// Records below are in the object tier: they may leave this disk when retention or room asks for it.
  public func setUploadedOffset(_ partition: TopicPartition, to offset: Offset) {
    self.engine.send(.setUploadedOffset(partition, offset))
  }

  /// Keeps the idempotent producers' state for all records below `end`, so that recovery reads only the batches after it.
  public func setProducerSnapshot(_ partition: TopicPartition, bytes: [UInt8], at end: Offset) {
    self.engine.send(.setProducerSnapshot(partition, bytes, at: end))
  }

  /// What may leave this disk once it is uploaded, and what the partition may take of it. Not kept over a restart: set it at each
  /// open.
  ///
  /// - Parameter capBytes: the most bytes that only this disk has: see `room(of:for:)`; nil: no cap. `local.retention.bytes` where
  ///   that is above 0.
  public func setLocalRetention(
    _ partition: TopicPartition, bytes: Int64?, milliseconds: Int64?, hasObjectTier: Bool,
    capBytes: Int64? = nil
  ) {
    self.engine.send(
      .setLocalRetention(
        partition,
        LocalRetention(
          bytes: bytes, milliseconds: milliseconds, hasObjectTier: hasObjectTier,
          capBytes: capBytes)))
  }

  /// The log start that retention by size and append time asks for, whole segments at a time. Nil: no such partition.
  public func retentionStart(
    _ partition: TopicPartition, bytes: Int64?, appendedSince: Timestamp?
  ) -> Offset? {
    self.engine.monitor.withLock {
      $0.core.retentionStart(partition, bytes: bytes, appendedSince: appendedSince)
    }
  }

  // MARK: - Looking

  /// The partition's state with everything accepted; nil when the volume has none of it.
  public func state(of partition: TopicPartition) -> PartitionState? {
    self.engine.monitor.withLock { $0.core.state(of: partition) }
  }

  /// Bytes on this disk, and the lowest offset still on it.
  public func localBytes(_ partition: TopicPartition) -> (bytes: Int64, localStart: Offset) {
    let state = self.state(of: partition)
    return (state?.localBytes ?? 0, state?.localStart ?? .zero)
  }

  /// The largest batch this volume's segments take.
  public var batchBytesMax: Int { self.engine.monitor.withLock { $0.core.batchBytesMax } }

  /// Bytes that batches may take in all, its reserve left out.
  public var capacityBytes: Int64 { self.engine.monitor.withLock { $0.core.userCapacityBytes } }

  public var stats: VolumeStats {
    self.engine.monitor.withLock { state in
      VolumeStats(
        state: state.core.failure != nil ? .failed : state.isClosed ? .closed : .open,
        log: state.core.stats, segmentBytes: self.engine.identity.segmentBytes,
        syncs: state.measures.syncs, syncTotal: state.measures.syncTotal,
        syncMax: state.measures.syncMax,
        bytesRead: self.engine.reading.bytes.load(ordering: .relaxed),
        readErrors: self.engine.reading.errors.load(ordering: .relaxed),
        tailCacheBytes: state.cache.bytes, readAheadBytes: state.readAhead.bytes)
    }
  }

  // MARK: - Callbacks, on a thread of the volume

  /// Once, when the volume takes no more requests. Set later than that, it is called at once.
  public var onFailure: (@Sendable (MemQError) -> Void)? {
    get { self.engine.monitor.withLock { $0.onFailure } }
    set {
      let failure = self.engine.monitor.withLock { state in
        state.onFailure = newValue
        return state.core.failure
      }
      if let failure { newValue?(failure) }
    }
  }

  /// A partition's lowest offset on this disk rose.
  public var onLocalStartMoved: (@Sendable (TopicPartition, Offset) -> Void)? {
    get { self.engine.monitor.withLock { $0.onLocalStartMoved } }
    set { self.engine.monitor.withLock { $0.onLocalStartMoved = newValue } }
  }

  /// Only a producer snapshot through all that is committed keeps the partition's oldest segment on this disk: send it by
  /// `setProducerSnapshot`. Asked for again while that is so.
  public var onSnapshotWanted: (@Sendable (TopicPartition) -> Void)? {
    get { self.engine.monitor.withLock { $0.onSnapshotWanted } }
    set { self.engine.monitor.withLock { $0.onSnapshotWanted = newValue } }
  }

  // MARK: - End

  deinit {
    // Without a close: the threads end, nothing more is written, the lock goes with the last of them.
    self.catchUp.abandon()
    self.engine.abandonThreads()
  }

  /// Makes everything accepted durable, leaves a clean end, and gives the folder back. A failed volume just ends.
  public func close() async {
    let isFirst = self.onClose.withLock { isClosing in
      defer { isClosing = true }
      return !isClosing
    }
    guard isFirst else { return }
    await withCheckedContinuation { continuation in
      self.request({ _ in continuation.resume() }) { .close($0) }
    }
    self.engine.monitor.withLock { $0.isClosed = true }
    await self.end(abandons: false)
  }

  /// Closes, but waits for at most `limit`: a disk that hangs then keeps what it had, as after a crash.
  ///
  /// - Returns: whether the volume is closed.
  public func close(within limit: Duration) async -> Bool {
    let waiting = Monitor<CheckedContinuation<Bool, Never>?>(nil)
    @Sendable func end(_ isClosed: Bool) {
      let continuation = waiting.withLock { waiting in
        defer { waiting = nil }
        return waiting
      }
      continuation?.resume(returning: isClosed)
    }
    let isClosed = await withCheckedContinuation { continuation in
      waiting.withLock { $0 = continuation }
      Task {
        await self.close()
        end(true)
      }
      Task {
        try? await Task.sleep(for: limit)
        end(false)
      }
    }
    if !isClosed { self.engine.abandonThreads() }
    return isClosed
  }

  /// Ends as a crash of the process would: nothing is drained, nothing written. For tests.
  package func abandon() async {
    let isFirst = self.onClose.withLock { isClosing in
      defer { isClosing = true }
      return !isClosing
    }
    guard isFirst else { return }
    await self.end(abandons: true)
  }

  /// Joins the threads, from one that is neither theirs nor the cooperative pool's.
  private func end(abandons: Bool) async {
    let (engine, readers, catchUp) = (self.engine, self.readers, self.catchUp)
    await withCheckedContinuation { continuation in
      _ = OwnThread(name: "memq-close") {
        catchUp.stop()
        readers.stop()
        engine.stop(abandons: abandons)
        continuation.resume()
      }
    }
  }
}
