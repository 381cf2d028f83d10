// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension VolumeCore {
  // MARK: - Room

  /// What frames may take of a fresh segment, cautiously.
  private var usableBytes: Int {
    let bytes = Int(self.identity.segmentBytes)
    let head = LogFormat.blocks(
      self.checkpointBytes + 24 * (self.segments.count + self.cold.count) + GroupHeader.byteCount
        + 1024)
    return max(0, bytes - 4 * LogFormat.blockBytes - head - bytes / 64)
  }

  /// Segment files that could still be made.
  private var allocatable: Int {
    guard self.allocationRetryAt == nil else { return 0 }
    let byFileSystem = Int(self.availableBytes / self.identity.segmentBytes)
    guard let capacity = self.configuration.capacitySegments else { return byFileSystem }
    // One beyond the capacity, where the log could otherwise not go on to free what may go.
    if self.phase == .slotWanted, self.readySlots.isEmpty, self.slotCount == capacity,
      self.freeing.contains(where: { $0.carries > 0 || $0.statements > 0 })
        || self.waitsForSnapshots
    {
      return min(1, byFileSystem)
    }
    return max(0, min(byFileSystem, capacity - Int(self.slotCount)))
  }

  /// Segments that hold nothing, made or not.
  var freeSegments: Int {
    self.readySlots.count + self.readSlots.count + (self.allocating == nil ? 0 : 1)
      + self.allocatable
  }

  private var totalSegments: Int {
    self.segments.count + self.cold.count + self.carrySegments + self.freeSegments
      + self.freeing.count
  }

  /// The cleaner's own: it gives it back, or more than that.
  private var carrySegments: Int { self.carry == nil ? 0 : 1 }

  /// Segments that user appends leave alone: a tenth, at least three, and at most a quarter of a small volume.
  var userReserve: Int {
    let total = self.totalSegments
    return min(max(3, (total + 9) / 10), total / 4)
  }

  /// What batches may take of the volume in all.
  public var userCapacityBytes: Int64 {
    Int64(max(0, self.totalSegments - self.userReserve)) * Int64(self.usableBytes)
  }

  /// What state frames and the cleaner leave alone even then, for restarts: each one after a crash takes a segment.
  var stateReserve: Int { max(0, min(2, self.userReserve - 1)) }

  private func room(above reserve: Int, slack: Int) -> Int {
    let free = self.freeSegments + self.carrySegments
    // The frame that will name the cold segment must find its place.
    let remaining = self.remaining - (self.carry?.cost ?? 0)
    guard free <= reserve else {
      let beyond = (free - reserve).multipliedReportingOverflow(by: self.usableBytes)
      return beyond.overflow ? .max / 2 : max(0, min(.max / 2, remaining + beyond.partialValue))
    }
    return max(0, remaining - slack)
  }

  /// Bytes of user frames that may wait.
  var userRoom: Int {
    self.room(above: self.userReserve, slack: Int(self.identity.segmentBytes) / 16)
  }

  var stateRoom: Int {
    self.room(above: self.stateReserve, slack: Int(self.identity.segmentBytes) / 64)
  }

  /// Bytes of frames that find a place without another segment file.
  var placedRoom: Int { self.remaining + self.readySlots.count * self.usableBytes }

  /// Asks for another segment file ahead of need.
  private var freeingCount: Int {
    guard self.phase == .slotWanted else { return self.freeing.count }
    // Without a segment nothing is carried or stated, and what waits for that, or behind it, doesn't come.
    return self.freeing.prefix { $0.statements == 0 }.count { $0.carries == 0 }
  }

  mutating func requestSlot(at now: MonotonicInstant, _ effects: inout [Effect]) {
    guard self.allocating == nil, self.phase != .closed else { return }
    if let retry = self.allocationRetryAt {
      guard retry <= now else { return }
      self.allocationRetryAt = nil
    }
    let wanted = min(
      4, max(1, self.configuration.pendingBytesMax / Int(self.identity.segmentBytes)))
    let coming = self.readySlots.count + self.readSlots.count + self.freeingCount
    let isSoon =
      self.phase != .running || wanted > 1
      || self.remaining < Int(self.identity.segmentBytes) / 2
    guard coming < wanted, isSoon || self.pending.cost > self.remaining else { return }
    guard self.allocatable > 0 else {
      // Nothing else looks again when the file system has room once more.
      return self.allocationRetryAt = now + self.configuration.housekeeping
    }
    let slot = SegmentSlot(self.slotCount)
    self.slotCount += 1
    self.allocating = slot
    effects.append(.allocate(slot))
  }

  mutating func allocated(_ slot: SegmentSlot, _ availableBytes: Int64) {
    precondition(self.allocating == slot)
    self.allocating = nil
    self.availableBytes = availableBytes
    self.readySlots.append(slot)
  }

  mutating func unavailable(
    _ slot: SegmentSlot, _ availableBytes: Int64, at now: MonotonicInstant
  ) {
    precondition(self.allocating == slot)
    self.allocating = nil
    self.slotCount -= 1
    self.availableBytes = availableBytes
    self.allocationRetryAt = now + self.configuration.housekeeping
  }

  // MARK: - Reclaim

  /// Partitions that freed segments hold, of one event: a topic that is deleted may free a thousand segments, and appends get their
  /// turn in between.
  private var reclaimSlice: Int { 4 * self.configuration.rollSlice }

  /// Frees the oldest segments while nothing keeps them.
  mutating func reclaim(at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]) {
    var left = self.reclaimSlice
    self.isReclaimLeft = false
    while let oldest = self.segments.first, oldest.sequence < self.checkpointSegment,
      self.isReclaimable(0, at: now, wall: wall, &effects)
    {
      guard left > 0 else { return self.isReclaimLeft = true }
      left -= 1 + oldest.logs.count
      self.free(oldest, &effects)
    }
  }

  /// Whether the segment at `index` may go. The search goes on where it was stopped last time, so a segment kept by one
  /// partition costs one look per event, not one per partition.
  private mutating func isReclaimable(
    _ index: Int, at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]
  ) -> Bool {
    let isResumed = !self.segments[index].reclaimCursor.isAtStart
    var hold = self.advanceReclaimCursor(index, wall: wall)
    if hold == nil, isResumed {
      // What was passed earlier may hold again (a retention changed, room came back): look once more from the start.
      self.segments[index].reclaimCursor = .init()
      hold = self.advanceReclaimCursor(index, wall: wall)
    }
    if hold == .producers {
      self.askForSnapshots(index, at: now, wall: wall, &effects)
    } else {
      self.segments[index].snapshotsDueAt = nil
    }
    return hold == nil
  }

  private mutating func advanceReclaimCursor(_ index: Int, wall: Timestamp) -> Hold? {
    let isShort = self.isShortOfRoom
    let sequence = self.segments[index].sequence
    var here = self.segments[index].reclaimCursor
    var cursor = here
    while let log = self.segments[index].logs.next(&cursor) {
      if let hold = self.hold(log, sequence, isShort: isShort, wall: wall) {
        self.segments[index].reclaimCursor = here
        return hold
      }
      here = cursor
    }
    self.segments[index].reclaimCursor = here
    return nil
  }

  /// Asks once for all snapshots that this segment waits for, not for one after the other; again when they don't come.
  private mutating func askForSnapshots(
    _ index: Int, at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]
  ) {
    if let due = self.segments[index].snapshotsDueAt, due > now { return }
    guard self.closeRequest == nil else { return }
    self.segments[index].snapshotsDueAt = now + self.configuration.housekeeping
    let (isShort, segment) = (self.isShortOfRoom, self.segments[index])
    var cursor = segment.reclaimCursor
    while let index = segment.logs.next(&cursor) {
      guard let log = self.logs[index], log.snapshotsPending == 0,
        self.byName[log.partition] == index,
        self.hold(index, segment.sequence, isShort: isShort, wall: wall) == .producers
      else { continue }
      effects.append(.snapshotWanted(log.partition))
    }
  }

  /// Asks for what the log's span in a segment that was sealed will need before that may go: a disk that has filled up may have no
  /// place for it later.
  func askForSnapshot(_ index: Int, _ producersEnd: Offset, _ effects: inout [Effect]) {
    guard self.closeRequest == nil, let log = self.logs[index], log.snapshotsPending == 0,
      !log.isDamaged, producersEnd > log.snapshotPlace?.end ?? .zero,
      self.byName[log.partition] == index
    else { return }
    effects.append(.snapshotWanted(log.partition))
  }

  /// Nothing but producer snapshots keeps the oldest segment.
  var waitsForSnapshots: Bool { self.segments.first?.snapshotsDueAt != nil }

  var isShortOfRoom: Bool {
    self.freeSegments + self.freeing.count + self.carrySegments <= self.userReserve + 1
  }

  /// Why a partition keeps a segment.
  enum Hold {
    case records
    /// No snapshot holds the producers of all batches in it: without them a producer would be forgotten by a restart.
    case producers
  }

  private func hold(
    _ index: Int, _ segment: SegmentSequence, isShort: Bool, wall: Timestamp
  ) -> Hold? {
    guard let log = self.logs[index] else { return nil }
    // A closure that captured self would copy the whole core.
    var found: SpanList.Standing?
    log.spans.visit(segment) {
      found = $0
      return true
    }
    return found.flatMap { self.hold(log, $0, isShort: isShort, wall: wall) }
  }

  /// Why the log keeps the span, or one before, which would go with it.
  func hold(
    _ log: PartitionLog, _ standing: SpanList.Standing, isShort: Bool, wall: Timestamp
  ) -> Hold? {
    if log.isDamaged || self.keepsRecords(log, standing, isShort: isShort, wall: wall) {
      return .records
    }
    guard standing.span.hasRecords else { return nil }
    if let end = standing.producersEnd, end > log.snapshotPlace?.end ?? .zero { return .producers }
    return nil
  }

  private func keepsRecords(
    _ log: PartitionLog, _ standing: SpanList.Standing, isShort: Bool, wall: Timestamp
  ) -> Bool {
    let span = standing.span
    guard span.hasRecords, span.endOffset > log.laid.logStart else { return false }
    guard log.retention.hasObjectTier, span.endOffset <= log.uploadedOffset else { return true }
    if isShort { return false }
    // With a span everything before it goes.
    if let bytes = log.retention.bytes, standing.bytesAfter >= bytes { return false }
    if let age = log.retention.milliseconds,
      standing.maxAppendTime.milliseconds < wall.milliseconds - age
    {
      return false
    }
    return true
  }

  mutating func resetReclaimCursors() {
    guard !self.segments.isEmpty else { return }
    self.segments[0].reclaimCursor = .init()
    self.segments[self.segments.count - 1].reclaimCursor = .init()
  }

  /// Takes a segment out of the log. Its file is retired once everything that freed it is durable. Costs as much as it holds.
  private mutating func free(_ segment: LiveSegment, _ effects: inout [Effect]) {
    var carries = 0
    var snapshots = segment.snapshots
    snapshots.sort()
    for index in snapshots {
      guard let log = self.logs[index], log.snapshotPlace?.place.segment == segment.sequence else {
        continue
      }
      carries += 1
      self.pending.append(
        PendingFrame(
          content: .snapshotCarry(segment.sequence), log: LogReference(index: index, log: log.id),
          request: nil, cost: PendingFrame.overhead + (log.snapshot?.bytes.count ?? 0)))
    }
    self.segments.removeFirst()
    self.retireLater(segment, .freed, carries: carries, &effects)
  }

  /// Names the segment to be retired, and what it held to be gone.
  mutating func retireLater(
    _ segment: LiveSegment, _ state: Checkpoint.Segment.State, carries: Int,
    _ effects: inout [Effect]
  ) {
    let statements = self.stateUploaded(segment)
    self.freeing.append(
      FreeingSegment(
        segment: Checkpoint.Segment(
          sequence: segment.sequence, slot: segment.slot, end: segment.end, state: state),
        carries: carries, statements: statements,
        after: GroupNumber(self.nextGroup.rawValue - 1)))
    self.counters.segmentsReclaimed += 1
    for index in segment.logs { self.release(index, in: segment.sequence, &effects) }
  }

  /// Of one positions frame: little enough for any segment.
  private static let statedMax = 256

  /// Has the log say what is uploaded of the records that the segment holds, where it does not yet. A restart would otherwise find
  /// them gone and nothing that tells why: beside damage elsewhere they would count as lost.
  ///
  /// - Returns: frames that the segment's file waits for.
  private mutating func stateUploaded(_ segment: LiveSegment) -> Int {
    guard !self.configuration.mutations.contains(.freesBeforePositions) else { return 0 }
    var unstated: [LogReference] = []
    for index in segment.logs where self.logIDs[index] != .none {
      guard self.logs[index]!.retention.hasObjectTier,
        self.logs[index]!.uploadedStated < self.logs[index]!.uploadedOffset
      else { continue }
      var end = Offset.zero
      self.logs[index]!.spans.visit(segment.sequence) { standing in
        if standing.span.hasRecords { end = standing.span.endOffset }
        return false
      }
      guard end > max(self.logs[index]!.laid.logStart, self.logs[index]!.uploadedStated) else {
        continue
      }
      unstated.append(LogReference(index: index, log: self.logIDs[index]))
    }
    var frames = 0
    for start in stride(from: 0, to: unstated.count, by: Self.statedMax) {
      let part = Array(unstated[start..<min(start + Self.statedMax, unstated.count)])
      frames += 1
      self.pending.append(
        PendingFrame(
          content: .positions(segment.sequence, part), log: LogReference(index: -1, log: .none),
          request: nil, cost: PendingFrame.overhead + Self.positionsBytes(part.count)))
    }
    return frames
  }

  /// Takes what the log has in the segment out of its index, and with it everything before.
  mutating func release(
    _ index: Int, in segment: SegmentSequence, _ effects: inout [Effect]
  ) {
    // In place: a copy of the log would make its index another one.
    guard self.logIDs[index] != .none else { return }
    self.logs[index]!.spans.release(segment)
    self.tellLocalStart(index, &effects)
  }

  /// Ends the lives of segments whose freeing is durable, one at a time: each takes a sync beside those that appends wait for. Their
  /// headers say so before the files are used again, so that a checkpoint that still names them is not taken for damage.
  mutating func retireFreed(wall: Timestamp, _ effects: inout [Effect]) {
    guard !self.freeing.isEmpty, !self.freeing.contains(where: \.isRetiring) else { return }
    var next = self.nextToRetire { $0.statements == 0 }
    if next == nil, self.hasNowhereToWrite {
      // What says that they may go has no place without them.
      next = self.nextToRetire { _ in true }
      if next != nil { self.counters.segmentsFreedUnstated += 1 }
    }
    if let index = next {
      let entry = self.freeing[index]
      self.freeing[index].isRetiring = true
      let header = SegmentHeader(
        kind: .freed, slot: entry.segment.slot, cluster: self.identity.cluster,
        volume: self.identity.volume, sequence: entry.segment.sequence,
        segmentBytes: self.identity.segmentBytes,
        previousEnd: .start, previousChecksum: 0, openCount: self.openCount, writeTime: wall)
      var block = [UInt8](repeating: 0, count: LogFormat.blockBytes)
      block.withUnsafeMutableBytes { _ = header.encode(into: $0) }
      effects.append(.retire(entry.segment.slot, block: block))
    }
  }

  /// The first that waits for nothing, of those before the first whose statement is not durable: with that one's records went all that the
  /// log had before, in cold segments too, and after a restart a hot one that is retired says of all before it that they are out of the log.
  private func nextToRetire(where isStated: (FreeingSegment) -> Bool) -> Int? {
    for (index, entry) in self.freeing.enumerated() {
      guard isStated(entry), entry.after <= self.durableGroup else { return nil }
      if entry.carries == 0 { return index }
    }
    return nil
  }

  /// The log has no segment, and none will come.
  private var hasNowhereToWrite: Bool {
    self.phase == .slotWanted && self.inFlight.isEmpty && self.freeSegments == 0
  }

  mutating func retired(_ slot: SegmentSlot) {
    guard let index = self.freeing.firstIndex(where: { $0.segment.slot == slot && $0.isRetiring })
    else {
      preconditionFailure("a slot was retired that nobody freed")
    }
    self.freeing.remove(at: index)
    self.cleanAt = .zero
    if self.readers[slot, default: 0] > 0 {
      self.readSlots.append(slot)
    } else {
      self.readySlots.append(slot)
    }
  }

  /// Whether the slot may be written over now because of it.
  mutating func readEnded(_ slot: SegmentSlot) -> Bool {
    let readers = self.readers[slot, default: 0]
    precondition(readers > 0)
    self.readers[slot] = readers == 1 ? nil : readers - 1
    guard readers == 1, let index = self.readSlots.firstIndex(of: slot) else { return false }
    self.readSlots.remove(at: index)
    self.readySlots.append(slot)
    return true
  }

  // MARK: - Rolling

  /// The footer is durable: the index goes there, and the next segment is wanted.
  mutating func sealActive(at now: MonotonicInstant, _ effects: inout [Effect]) {
    effects.append(.segmentRolled(self.active!.sequence))
    self.beginSettling(at: now)
    self.active = nil
    self.phase = .slotWanted
    self.cleanAt = .zero
  }

  /// Whether the active segment is idle, holds only what may go, and someone wants it gone.
  mutating func shouldRollWhenIdle(
    at now: MonotonicInstant, wall: Timestamp, _ effects: inout [Effect]
  ) -> Bool {
    guard let active = self.active, active.isWantedEmpty, let last = active.lastBatchAt,
      last + self.configuration.rollIdle <= now, self.pending.isEmpty, self.inFlight.isEmpty,
      self.closeRequest == nil
    else { return false }
    return self.isReclaimable(self.segments.count - 1, at: now, wall: wall, &effects)
  }
}

/// Counts since the volume was opened.
public struct VolumeCounters: Hashable, Sendable {
  public var groupsWritten: UInt64 = 0
  public var groupsDurable: UInt64 = 0
  public var bytesWritten: Int64 = 0
  public var segmentsReclaimed: UInt64 = 0
  /// Those of them that went before the log could say that what they held is uploaded: it had no segment to say it in.
  public var segmentsFreedUnstated: UInt64 = 0
  /// Frames that the cleaner copied to cold segments.
  public var bytesCarried: Int64 = 0
  /// Cold segments that became part of the log.
  public var segmentsCarried: UInt64 = 0
  /// Producer snapshots too large for a segment.
  public var snapshotsRefused: UInt64 = 0
}

/// A volume's log in numbers.
public struct LogStats: Hashable, Sendable {
  public var counters: VolumeCounters
  public var pendingBytes: Int
  /// Segments with something in them, the active one counted.
  public var segmentsUsed: Int
  /// Those of them that hold carried batches.
  public var segmentsCold: Int
  /// Segment files that may be written over now.
  public var segmentsReady: Int
  /// Segments without anything in them, made or not.
  public var segmentsFree: Int
  public var partitions: Int
  /// Partitions with as much as their cap allows.
  public var partitionsAtCap: Int
  public var durable: LogPlace
}

extension VolumeCore {
  public var stats: LogStats {
    LogStats(
      counters: self.counters, pendingBytes: self.pendingBytes,
      segmentsUsed: self.segments.count + self.cold.count, segmentsCold: self.cold.count,
      segmentsReady: self.readySlots.count, segmentsFree: self.freeSegments,
      partitions: self.byName.count, partitionsAtCap: self.partitionsAtCap, durable: self.durable)
  }
}
