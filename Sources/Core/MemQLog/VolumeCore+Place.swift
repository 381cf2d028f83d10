// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension VolumeCore {
  /// Gives a frame its place: writes its header and brings the laid state and the index up to it.
  mutating func place(
    _ frame: PendingFrame, into builder: inout GroupBuilder, at now: MonotonicInstant
  ) {
    let reference = frame.log
    if case .snapshotCarry(let segment) = frame.content {
      return self.placeCarry(segment, reference, into: &builder)
    }
    if case .coldSegment(let result) = frame.content {
      return self.placeColdSegment(result, into: &builder)
    }
    if case .positions(let segment, let references) = frame.content {
      return self.placePositions(segment, references, into: &builder)
    }
    guard self.isHere(reference) else {
      preconditionFailure("a frame waits for a log that is gone")
    }
    // Before the log is copied: of batches there are many.
    if case .batch(let batch, let payload) = frame.content {
      return self.placeBatch(batch, payload, reference, into: &builder, at: now)
    }
    let log = self.logs[reference.index]!
    switch frame.content {
    case .epochStart(let entry):
      self.logs[reference.index]!.laid.startEpoch(entry)
      builder.add(
        .state(.epochStart, log, at: entry.start, epoch: entry.epoch), payload: [])
    case .truncate(let end, let epochs):
      self.placeTruncate(end, epochs, reference, into: &builder)
    case .logStart(let start):
      self.logs[reference.index]!.laid.setLogStart(start)
      builder.add(.state(.logStart, log, at: start), payload: [])
    case .open(let state):
      self.logs[reference.index]!.isLaid = true
      builder.add(
        .state(.partitionOpen, log, at: state.logStart), payload: Self.payload(state.epochs))
    case .drop:
      if log.spans.lastOpen?.segment == self.active!.sequence { self.footerDraft.end() }
      self.checkpointBytes -= self.checkpointCost(log.accepted)
      self.logs[reference.index] = nil
      self.logIDs[reference.index] = .none
      self.freeLogIndices.append(reference.index)
      self.resetReclaimCursors()
      self.cleanAt = .zero
      builder.add(.state(.partitionDrop, log, at: log.laid.end), payload: [])
    case .snapshot(let snapshot):
      self.logs[reference.index]!.snapshotsPending -= 1
      self.placeSnapshot(snapshot, reference, into: &builder)
    case .batch, .snapshotCarry, .coldSegment, .positions:
      preconditionFailure("handled above")
    }
  }

  private mutating func placeBatch(
    _ batch: BatchAppend, _ payload: PayloadID, _ reference: LogReference,
    into builder: inout GroupBuilder, at now: MonotonicInstant
  ) {
    let summary = batch.summary
    let position = builder.nextPosition
    let header = FrameHeader(
      type: .batch, payloadBytes: batch.byteCount, payloadChecksum: batch.checksum,
      log: reference.log, partition: batch.partition, baseOffset: summary.baseOffset,
      offsetDelta: Int32(summary.recordCount), leaderEpoch: summary.leaderEpoch,
      appendTime: summary.appendTime, previousChecksum: 0)
    builder.add(header, payload: payload)
    let run = RunEntry(
      position: position, byteCount: FrameHeader.byteCount + batch.byteCount,
      baseOffset: summary.baseOffset, endOffset: summary.endOffset,
      maxTimestamp: summary.maxTimestamp, maxAppendTime: summary.appendTime,
      hasProducers: summary.producerID.rawValue >= 0)
    if self.openSpan(of: reference) {
      self.footerDraft.open(
        reference.log, at: reference.index, batch.partition, base: summary.baseOffset)
    }
    let runs = Self.add(
      run, of: summary, to: &self.logs[reference.index]!,
      joinsBelow: self.configuration.runBytesMax)
    self.footerDraft.set(runs.last, of: reference.index, isNew: runs.added > 0)
    self.active!.footerBytes += Footer.runBytes * runs.added
    self.active!.lastBatchAt = now
    if runs.wantsEmpty { self.active!.isWantedEmpty = true }
  }

  /// In place, in one access: a copy of the log would cost more than all the rest.
  private static func add(
    _ run: RunEntry, of summary: BatchSummary, to log: inout PartitionLog,
    joinsBelow runBytesMax: Int
  ) -> (last: RunEntry, added: Int, wantsEmpty: Bool) {
    let (last, added) = log.spans.withOpen { span in
      let before = span.runs.count
      span.add(run, joinsBelow: runBytesMax)
      return (span.runs[span.runs.count - 1], span.runs.count - before)
    }
    log.waitingBytes -= Int64(run.byteCount)
    log.laid.append(
      base: summary.baseOffset, end: summary.endOffset, epoch: summary.leaderEpoch)
    let wantsEmpty = log.retention.bytes == 0 && log.retention.hasObjectTier
    return (last, added, wantsEmpty)
  }

  private mutating func placeTruncate(
    _ end: Offset, _ epochs: [EpochStart], _ reference: LogReference,
    into builder: inout GroupBuilder
  ) {
    self.openSpan(of: reference)
    self.footerDraft.end()
    let sequence = self.active!.sequence
    self.logs[reference.index]!.laid.truncate(to: end, epochs: epochs)
    self.logs[reference.index]!.cutSpans(
      to: end, in: sequence, newest: SegmentSequence(self.nextSequence.rawValue - 1))
    builder.add(
      .state(.truncate, self.logs[reference.index]!, at: end), payload: Self.payload(epochs))
  }

  /// Writes a snapshot once more, unless a newer one has been placed since, a truncate passed it or the log is gone.
  private mutating func placeCarry(
    _ segment: SegmentSequence, _ reference: LogReference, into builder: inout GroupBuilder
  ) {
    if let log = self.log(reference), let snapshot = log.snapshot,
      log.snapshotPlace?.place.segment == segment
    {
      self.placeSnapshot(snapshot, reference, into: &builder)
    }
    guard let index = self.freeing.firstIndex(where: { $0.segment.sequence == segment }) else {
      return
    }
    self.freeing[index].carries -= 1
    self.freeing[index].after = self.nextGroup
  }

  /// States that what a segment held is uploaded, which is why it goes.
  private mutating func placePositions(
    _ segment: SegmentSequence, _ references: [LogReference], into builder: inout GroupBuilder
  ) {
    // Those that an earlier frame spoke of say nothing new: that one is in this group or before it.
    let entries = references.filter { reference in
      self.log(reference).map { $0.isLaid && $0.uploadedStated < $0.uploadedOffset } ?? false
    }
    if !entries.isEmpty {
      builder.add(.ofVolume(.positions), payload: self.positions(entries))
    }
    guard let index = self.freeing.firstIndex(where: { $0.segment.sequence == segment }) else {
      return
    }
    self.freeing[index].statements -= 1
    self.freeing[index].after = self.nextGroup
  }

  private mutating func placeSnapshot(
    _ snapshot: PartitionLog.Snapshot, _ reference: LogReference, into builder: inout GroupBuilder
  ) {
    let log = self.logs[reference.index]!
    if log.snapshotPlace?.place.segment != self.active!.sequence {
      self.segments[self.segments.count - 1].snapshots.append(reference.index)
    }
    self.logs[reference.index]!.snapshot = snapshot
    self.logs[reference.index]!.snapshotPlace = SnapshotPlace(
      place: LogPlace(self.active!.sequence, builder.nextPosition),
      payloadBytes: snapshot.bytes.count, end: snapshot.end)
    builder.add(.state(.producerSnapshot, log, at: snapshot.end), payload: snapshot.bytes)
  }

  /// Begins the log's span in the active segment, where it has none yet. Returns whether it had none.
  @discardableResult
  private mutating func openSpan(of reference: LogReference) -> Bool {
    let sequence = self.active!.sequence
    if let last = self.logs[reference.index]!.spans.openSegment {
      if last == sequence { return false }
      self.settle(reference.index, in: last)
    }
    let span = SegmentSpan(segment: sequence, at: self.logs[reference.index]!.laid.end)
    self.logs[reference.index]!.spans.append(span)
    self.segments[self.segments.count - 1].logs.append(reference.index)
    self.active!.footerBytes += Footer.entryBytes
    return true
  }

  private static func payload(_ epochs: [EpochStart]) -> [UInt8] {
    var writer = ByteWriter()
    writer.epochs(epochs)
    return writer.bytes
  }
}

extension FrameHeader {
  /// A frame that changes a partition's state.
  fileprivate static func state(
    _ type: FrameType, _ log: PartitionLog, at offset: Offset, epoch: LeaderEpoch = .none
  ) -> FrameHeader {
    FrameHeader(
      type: type, payloadBytes: 0, payloadChecksum: 0, log: log.id, partition: log.partition,
      baseOffset: offset, leaderEpoch: epoch, previousChecksum: 0)
  }
}
