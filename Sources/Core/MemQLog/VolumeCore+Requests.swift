// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Places set aside in a volume for batches that are about to be appended.
public struct RoomReservation: Hashable, Sendable {
  var cost = 0

  /// None.
  public init() {}

  public static func += (left: inout RoomReservation, right: RoomReservation) {
    left.cost += right.cost
  }
}

extension VolumeCore {
  /// Sets a place aside for a batch of `byteCount`, so that who is to decide on it knows that it will be taken, whoever else appends
  /// meanwhile. `append` uses it up, or `release` gives it back. Nil: it would not be admitted now.
  public mutating func reserve(_ byteCount: Int) -> RoomReservation? {
    guard self.hasRoom(for: byteCount) else { return nil }
    var reservation = RoomReservation()
    reservation.cost = PendingFrame.overhead + byteCount
    self.reservedCost += reservation.cost
    return reservation
  }

  public mutating func release(_ reservation: RoomReservation) {
    self.reservedCost -= reservation.cost
    precondition(self.reservedCost >= 0, "a reservation is given back twice")
  }

  /// Accepts batches, all or none; `.complete(request, …)` follows once they are durable.
  ///
  /// Precondition: each batch's base offset is its partition's end, batches of one partition in order.
  /// - Parameter reserved: what `reserve` gave for them, or for some of them; used up when they are taken. With all of them reserved
  ///   `.volumeFull` is not thrown.
  /// - Throws: `.volumeFailed`, `.shuttingDown`, `.partitionNotFound`, `.recordBatchTooLarge`; retriable: `.resourceExhausted`
  ///   (too much waits for the disk), `.volumeFull`.
  public mutating func append(
    _ batches: [BatchAppend], request: RequestID, reserved: RoomReservation = RoomReservation(),
    at now: MonotonicInstant, wall: Timestamp, into effects: inout [Effect]
  ) throws(MemQError) {
    precondition(!batches.isEmpty)
    var cost = 0
    for batch in batches {
      cost += try self.admittedCost(batch)
    }
    try self.admit(cost, reserved)
    self.release(reserved)
    for (index, batch) in batches.enumerated() {
      let at = self.byName[batch.partition]!
      precondition(
        self.logs[at]!.accepted.end == batch.summary.baseOffset
          && batch.summary.baseOffset < batch.summary.endOffset)
      self.logs[at]!.accepted.append(
        base: batch.summary.baseOffset, end: batch.summary.endOffset,
        epoch: batch.summary.leaderEpoch)
      let isLast = index == batches.count - 1
      // Without a look at what is placed, which an append never moves.
      if self.logs[at]!.releasedBelow > self.logs[at]!.toldStart {
        self.tellLocalStart(at, &effects)
      }
      self.logs[at]!.waitingBytes += Int64(FrameHeader.byteCount + batch.byteCount)
      self.pending.append(
        PendingFrame(
          content: .batch(batch, PayloadID(request, index)),
          log: LogReference(index: at, log: self.logs[at]!.id), request: isLast ? request : nil,
          cost: PendingFrame.overhead + batch.byteCount))
    }
    self.handle(.tick, at: now, wall: wall, into: &effects)
  }

  private func admittedCost(_ batch: BatchAppend) throws(MemQError) -> Int {
    try self.refuseIfStopped()
    guard self.byName[batch.partition] != nil else {
      throw MemQError(
        .partitionNotFound, "the partition has no log on this volume",
        subject: batch.partition.description)
    }
    guard batch.byteCount <= self.batchBytesMax else {
      throw MemQError(
        .recordBatchTooLarge, "the batch is too large for this volume's segments",
        subject: batch.partition.description, limit: Int64(self.batchBytesMax),
        actual: Int64(batch.byteCount))
    }
    return PendingFrame.overhead + batch.byteCount
  }

  private func refuseIfStopped() throws(MemQError) {
    if let failure = self.failure { throw failure }
    if self.closeRequest != nil {
      throw MemQError(
        .shuttingDown, "the volume is closing", subject: "volume \(self.identity.volume)")
    }
  }

  private func admit(_ cost: Int, _ reserved: RoomReservation) throws(MemQError) {
    let isReserved = cost <= reserved.cost
    // What others have reserved is theirs.
    let others = isReserved ? 0 : self.reservedCost - reserved.cost
    guard
      self.pendingBytes == 0
        || self.pendingBytes + others + cost <= self.configuration.pendingBytesMax
    else {
      throw MemQError(
        .resourceExhausted, "too many bytes wait for the disk",
        subject: "volume \(self.identity.volume)", limit: Int64(self.configuration.pendingBytesMax),
        actual: Int64(self.pendingBytes + others + cost))
    }
    guard isReserved || self.pending.cost + others + cost <= self.userRoom else {
      throw self.volumeFull(needed: others + cost)
    }
    guard self.pending.cost + others + cost <= self.placedRoom else {
      throw MemQError(
        .resourceExhausted, "the next segment is being made",
        subject: "volume \(self.identity.volume)",
        limit: Int64(self.placedRoom), actual: Int64(self.pending.cost + others + cost))
    }
  }

  private func volumeFull(needed: Int) -> MemQError {
    MemQError(
      .volumeFull,
      "the volume has no room above its reserve; upload, delete or retain less, or add capacity",
      subject: "volume \(self.identity.volume)", limit: Int64(self.userRoom),
      actual: Int64(self.pending.cost + needed))
  }

  /// Half a segment: the rest is for its header, checkpoint and footer.
  public var batchBytesMax: Int {
    min(FrameHeader.payloadBytesMax, Int(self.identity.segmentBytes) / 2 - 2 * LogFormat.blockBytes)
  }

  mutating func open(
    _ partition: TopicPartition, _ logStart: Offset, _ epochs: [EpochStart], _ request: RequestID,
    _ effects: inout [Effect]
  ) {
    let state = LogState(logStart: logStart, end: logStart, epochs: epochs)
    let cost = PendingFrame.overhead + 32 + 16 * epochs.count
    guard self.admitState(cost, request, &effects) else { return }
    precondition(self.byName[partition] == nil, "the partition is open")
    let checkpointLimit = Int(self.identity.segmentBytes) / 4
    guard self.byName.count < self.configuration.partitionsMax,
      self.checkpointBytes + self.checkpointCost(state) <= checkpointLimit
    else {
      let error = MemQError(
        .limitReached, "the volume has as many partitions as its segments' checkpoints can state",
        subject: partition.description, limit: Int64(self.byName.count),
        actual: Int64(self.byName.count + 1))
      return effects.append(.complete(request, .failure(error)))
    }
    self.checkpointBytes += self.checkpointCost(state)
    var log = PartitionLog(
      id: self.nextLog, partition: partition, accepted: state, laid: state, isLaid: false)
    log.toldStart = logStart
    self.nextLog = LogID(self.nextLog.rawValue + 1)
    let index = self.freeLogIndices.popLast() ?? self.logs.count
    if index == self.logs.count {
      self.logs.append(log)
      self.logIDs.append(log.id)
    } else {
      self.logs[index] = log
      self.logIDs[index] = log.id
    }
    self.byName[partition] = index
    self.pending.append(
      PendingFrame(
        content: .open(state), log: LogReference(index: index, log: log.id), request: request,
        cost: cost))
  }

  func checkpointCost(_ state: LogState) -> Int { 128 + 16 * state.epochs.count }

  mutating func drop(
    _ partition: TopicPartition, _ request: RequestID, _ effects: inout [Effect]
  ) {
    guard self.change(partition, request, &effects, { _ in .drop }) else { return }
    self.byName[partition] = nil
  }

  mutating func truncate(
    _ partition: TopicPartition, to end: Offset, _ epochs: [EpochStart]?, _ request: RequestID,
    _ effects: inout [Effect]
  ) {
    self.change(partition, request, &effects) { log in
      precondition(end <= log.accepted.end && end >= log.accepted.logStart)
      let remaining = epochs ?? log.accepted.epochs(below: end)
      log.accepted.truncate(to: end, epochs: remaining)
      // Below a watermark only an unclean election asks for a cut: what follows is not committed by what was.
      log.highWatermark = min(log.highWatermark, end)
      // What the cleaner found damaged may have been cut.
      log.isCarryStopped = false
      // Whoever owns it next begins with what it finds here.
      log.toldStart = min(log.toldStart, log.localStart)
      return .truncate(end, remaining)
    }
  }

  /// Accepts a state change of an open partition; answers at once when it can't be.
  @discardableResult
  mutating func change(
    _ partition: TopicPartition, _ request: RequestID, _ effects: inout [Effect],
    _ body: (inout PartitionLog) -> PendingFrame.Content
  ) -> Bool {
    guard let index = self.byName[partition] else {
      let error = MemQError(
        .partitionNotFound, "the partition has no log on this volume",
        subject: partition.description)
      effects.append(.complete(request, .failure(error)))
      return false
    }
    let cost = PendingFrame.overhead + 64 + 16 * self.logs[index]!.accepted.epochs.count
    guard self.admitState(cost, request, &effects) else { return false }
    let before = self.checkpointCost(self.logs[index]!.accepted)
    let content = body(&self.logs[index]!)
    self.checkpointBytes += self.checkpointCost(self.logs[index]!.accepted) - before
    self.pending.append(
      PendingFrame(
        content: content, log: LogReference(index: index, log: self.logs[index]!.id),
        request: request, cost: cost))
    self.tellLocalStart(index, &effects)
    return true
  }

  private mutating func admitState(
    _ cost: Int, _ request: RequestID, _ effects: inout [Effect]
  ) -> Bool {
    do throws(MemQError) {
      try self.refuseIfStopped()
      guard self.pending.cost + cost <= self.stateRoom else { throw self.volumeFull(needed: cost) }
      return true
    } catch {
      effects.append(.complete(request, .failure(error)))
      return false
    }
  }

  /// Tells the owner of an open log where what may be read here begins, once that has risen: to be called wherever the log's start or
  /// end, its uploaded offset, its retention or its index changes, as the local start derives from all of them.
  mutating func tellLocalStart(_ index: Int, _ effects: inout [Effect]) {
    let (start, partition) = (self.logs[index]!.localStart, self.logs[index]!.partition)
    guard start > self.logs[index]!.toldStart, self.byName[partition] == index else { return }
    self.logs[index]!.toldStart = start
    effects.append(.localStartMoved(partition, start))
  }

  mutating func setPosition(
    _ partition: TopicPartition, _ effects: inout [Effect], _ body: (inout PartitionLog) -> Void
  ) {
    guard let index = self.byName[partition] else { return }
    let uploaded = self.logs[index]!.uploadedOffset
    body(&self.logs[index]!)
    let now = self.logs[index]!.uploadedOffset
    if now != uploaded {
      self.logs[index]!.uploadedStated = min(self.logs[index]!.uploadedStated, now)
      self.tellLocalStart(index, &effects)
    }
    guard !self.logs[index]!.arePositionsDue else { return }
    self.logs[index]!.arePositionsDue = true
    self.duePositions.append(LogReference(index: index, log: self.logs[index]!.id))
  }

  /// A snapshot that would not fit into a segment, or that follows two that still wait, is passed over: recovery then reads
  /// more batches instead, and what frees a segment is asked for again. Where the disk waits for snapshots to free something,
  /// they may use up what has a place already.
  mutating func setSnapshot(_ partition: TopicPartition, _ bytes: [UInt8], _ end: Offset) {
    guard self.failure == nil, self.closeRequest == nil, let index = self.byName[partition],
      end <= self.logs[index]!.accepted.end
    else { return }
    let cost = PendingFrame.overhead + bytes.count
    let room = self.waitsForSnapshots ? max(self.stateRoom, self.placedRoom) : self.stateRoom
    guard bytes.count <= self.batchBytesMax, self.logs[index]!.snapshotsPending < 2,
      self.pending.cost + cost <= room,
      self.pending.isEmpty || self.pendingBytes + cost <= self.configuration.pendingBytesMax
    else { return self.counters.snapshotsRefused += 1 }
    self.logs[index]!.snapshotsPending += 1
    self.pending.append(
      PendingFrame(
        content: .snapshot(PartitionLog.Snapshot(bytes: bytes, end: end)),
        log: LogReference(index: index, log: self.logs[index]!.id), request: nil, cost: cost))
  }

  mutating func setRetention(
    _ partition: TopicPartition, _ retention: LocalRetention, _ effects: inout [Effect]
  ) {
    guard let index = self.byName[partition] else { return }
    // It may have fallen since it was told, and an owner since then knows only that.
    self.logs[index]!.toldStart = min(self.logs[index]!.toldStart, self.logs[index]!.localStart)
    self.logs[index]!.retention = retention
    self.tellLocalStart(index, &effects)
    if retention.milliseconds != nil { self.hasTimedRetention = true }
    self.resetReclaimCursors()
    if retention.bytes == 0, retention.hasObjectTier, let active = self.active,
      self.logs[index]!.spans.lastOpen?.segment == active.sequence
    {
      self.active!.isWantedEmpty = true
    }
  }

  mutating func beginClose(_ request: RequestID, _ effects: inout [Effect]) {
    if let failure = self.failure {
      return effects.append(.complete(request, .failure(failure)))
    }
    precondition(self.closeRequest == nil, "the volume is closed twice")
    self.closeRequest = request
  }
}
