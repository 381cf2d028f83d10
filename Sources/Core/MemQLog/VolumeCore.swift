// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The log of one disk: what is written where, what is durable, what may be read, what may go.
///
/// Pure: requests and disk results come in as events, disk work and answers go out as effects. Payload bytes never pass
/// through; the core places frames and writes their headers.
///
/// Phases: running → sealing (footer) → slot wanted → opening (segment header and checkpoint) → running …; closed or
/// failed at the end. A segment's end is always durable before the next one begins.
///
/// Invariants: a request completes only after an fdatasync that began after its group was written; at most one write and
/// two syncs run at a time, both of one file; at most `groupsInFlightMax` groups are not durable. Source: docs/formats/volume.md.
public struct VolumeCore: Sendable {
  /// One record batch for the log.
  public struct BatchAppend: Hashable, Sendable {
    public var partition: TopicPartition
    /// Its base offset is the partition's end.
    public var summary: BatchSummary
    /// The whole record batch v2.
    public var byteCount: Int
    /// The batch's own CRC-32C, its bytes 17..<21.
    public var checksum: UInt32

    public init(
      partition: TopicPartition, summary: BatchSummary, byteCount: Int, checksum: UInt32
    ) {
      self.partition = partition
      self.summary = summary
      self.byteCount = byteCount
      self.checksum = checksum
    }
  }

  public enum Event: Sendable {
    // Requests: `.complete` follows once durable, or with the reason why not.

    /// A new, empty log from `logStart` on. Precondition: the partition has none here.
    case openPartition(RequestID, TopicPartition, logStart: Offset, epochs: [EpochStart])
    case dropPartition(RequestID, TopicPartition)
    case startEpoch(RequestID, TopicPartition, EpochStart)
    /// Cuts the log at a batch boundary. Nil epochs: those that start below it stay.
    case truncate(RequestID, TopicPartition, to: Offset, epochs: [EpochStart]?)
    /// Above the end, the log becomes empty at that offset.
    case setLogStart(RequestID, TopicPartition, Offset)
    /// Drains, writes a checkpoint and an orderly end. Requests after it are refused.
    case close(RequestID)

    // State for checkpoints and reclaim, without an answer. Unknown partitions are passed over.

    case setHighWatermark(TopicPartition, Offset)
    case setUploadedOffset(TopicPartition, Offset)
    case setProducerSnapshot(TopicPartition, [UInt8], at: Offset)
    case setLocalRetention(TopicPartition, LocalRetention)
    /// Everything that missing segments cost was cut: the log no longer needs them.
    case forgetMissingSegments

    // Disk results.

    case written(GroupNumber)
    /// An fdatasync that began after `written(group)` ended: all groups up to it are durable.
    case synced(GroupNumber)
    /// The first failed write or sync. Final.
    case diskFailed(MemQError)
    case slotAllocated(SegmentSlot, availableBytes: Int64)
    case slotUnavailable(SegmentSlot, availableBytes: Int64)
    case retired(SegmentSlot)
    /// What the file system has free, for segments to come.
    case room(availableBytes: Int64)
    case readBegan(SegmentSlot)
    case readEnded(SegmentSlot)
    /// `.carry` is done: everything the result names is durable.
    case carried(CarryResult)
    /// What the cleaner found damaged of the partition reads again, or is no part of it any more.
    case carryAgain(TopicPartition)
    /// The time of the last `.wake` has come.
    case tick
  }

  public enum Effect: Sendable {
    /// One gathered write. Answer: `.written` or `.diskFailed`.
    case write(GroupWrite)
    /// One fdatasync of the slot's file. Answer: `.synced(group)` or `.diskFailed`. May overlap a write and one other sync, each by an
    /// open file of its own: the kernel tells each open file of a failed write-back once.
    case sync(SegmentSlot, GroupNumber)
    /// In the order of durability.
    case complete(RequestID, Result<Void, MemQError>)
    /// Create the file of `segmentBytes`, preallocated, its name durable. Answer: `.slotAllocated` or `.slotUnavailable`.
    case allocate(SegmentSlot)
    /// Write this block at the start of the slot's file and sync it: its segment is over. Beside the log's writes and
    /// syncs, in any order. Answer: `.retired` or `.diskFailed`.
    case retire(SegmentSlot, block: [UInt8])
    /// Copy what the plan names with a `SegmentCarrier`, at its rate, beside the log's writes and syncs. Answer: `.carried` or
    /// `.diskFailed`. One at a time.
    case carry(CarryPlan)
    /// The cleaner found damage in the partition's records, and leaves the rest of it where it is.
    case damageFound(TopicPartition, MemQError, from: Offset?)
    /// What may be read here of an open partition begins higher than its owner was told: at its log start or where an opening found it, and
    /// by each of these since.
    case localStartMoved(TopicPartition, Offset)
    case segmentRolled(SegmentSequence)
    /// Only a producer snapshot through all that is committed keeps this partition's oldest records on the disk. Asked for
    /// again, at `housekeeping` intervals, while that is so.
    case snapshotWanted(TopicPartition)
    /// Once: the volume takes no more requests.
    case failed(MemQError)
    /// Send `.tick` at this time; replaces the wake before.
    case wake(at: MonotonicInstant)
  }

  enum Phase: Sendable {
    case running
    /// The active segment gets its footer once everything in it is durable.
    case sealing
    case sealWritten
    /// No active segment; a slot is wanted.
    case slotWanted
    case opening
    case closing
    case closed
  }

  /// The segment that takes groups.
  struct ActiveSegment: Sendable {
    let sequence: SegmentSequence
    let slot: SegmentSlot
    let seal: HeaderSeal
    /// Of the next group.
    var position: Int64
    /// CRC of the last group header.
    var previousChecksum: UInt32
    /// What its footer's payload takes, at most.
    var footerBytes = 0
    /// When the last batch got its place.
    var lastBatchAt: MonotonicInstant?
    /// A partition with records here asks for an empty SSD.
    var isWantedEmpty = false
  }

  /// A group on its way to the disk.
  struct GroupInFlight: Sendable {
    let number: GroupNumber
    let kind: GroupKind
    let slot: SegmentSlot
    let end: LogPlace
    let requests: [RequestID]
    let cost: Int
    var isWritten = false
  }

  /// A segment that nothing keeps, on its way to be retired.
  struct FreeingSegment: Sendable {
    let segment: Checkpoint.Segment
    /// Snapshots that stand in it and wait to be written once more.
    var carries: Int
    /// Frames that wait, and say what of it is uploaded.
    var statements: Int
    /// Everything that freed it is in groups up to this one, which must be durable first.
    var after: GroupNumber
    var isRetiring = false
  }

  public let identity: VolumeIdentity
  public let configuration: LogConfiguration
  /// The number of this opening, from 1.
  var openCount: UInt64 { self.identity.openCount + 1 }

  // Partitions. `logs` keeps its places; `byName` holds those that are open as accepted.
  var logs: [PartitionLog?]
  /// The id of the log at each place, `.none` without one: asked without touching the log, which is large and seldom in a cache.
  var logIDs: [LogID]
  var freeLogIndices: [Int] = []
  var byName: [TopicPartition: Int] = [:]
  var nextLog: LogID
  /// Bytes of a checkpoint's partitions, at most.
  var checkpointBytes = 0

  // Segments, oldest first; the last one is the active one while there is one.
  var segments: [LiveSegment]
  var active: ActiveSegment?
  /// Of the active segment.
  var footerDraft = FooterDraft()
  var checkpointDraft: CheckpointDraft?
  var settling: Settling?
  /// Where producers' batches end in sealed segments, until their snapshots are asked for.
  var producersEnds: [(log: LogReference, end: Offset)] = []
  /// Segments of carried batches, by sequence; apart from the order of the hot ones.
  var cold: [LiveSegment]
  /// Those whose files are gone: checkpoints go on naming them, so that a repair that is interrupted begins anew.
  var missing: [Checkpoint.Segment]
  var carry: CarryUnderWay?
  /// When the cleaner looks again.
  var cleanAt = MonotonicInstant.zero
  var phase: Phase
  var nextSequence: SegmentSequence
  /// The segment of the newest durable checkpoint.
  var checkpointSegment: SegmentSequence
  /// Where the log ends, for the next segment's header.
  var logEnd: LogPlace
  var logEndChecksum: UInt32

  // Slots.
  var slotCount: UInt32
  var readySlots: [SegmentSlot]
  var allocating: SegmentSlot?
  var availableBytes: Int64 = .max
  /// Retired, but still read from.
  var readSlots: [SegmentSlot] = []
  var readers: [SegmentSlot: Int] = [:]
  /// Out of the log and not retired yet, oldest first: a checkpoint still names them.
  var freeing: [FreeingSegment] = []
  /// More segments may go than one event frees.
  var isReclaimLeft = false
  /// An allocation was refused; tried again at this time.
  var allocationRetryAt: MonotonicInstant?

  // Groups.
  var pending = FrameQueue()
  /// Costs of batches that have a place reserved and are not here yet.
  var reservedCost = 0
  var inFlight: [GroupInFlight] = []
  var isWriting = false
  /// Under way, by the last group that each makes durable: rising.
  var syncs: [GroupNumber] = []
  var pace = SyncPace()
  /// What waited was written for the next sync, which could have begun: no more is.
  var isToppedUp = false
  /// The next sync begins once the write that is under way has ended.
  var isSyncHeld = false
  var nextGroup: GroupNumber
  var durable: LogPlace
  var durableGroup: GroupNumber
  /// Costs of what is laid out and not durable.
  var inFlightCost = 0

  // Idle work.
  /// Something was synced that no later group's mark covers.
  var markDueAt: MonotonicInstant?
  var duePositions: [LogReference] = []
  var housekeepingAt: MonotonicInstant?
  var hasTimedRetention = false
  var wakeAt: MonotonicInstant?

  var closeRequest: RequestID?
  public internal(set) var failure: MemQError?
  var counters = VolumeCounters()

  public init(
    _ identity: VolumeIdentity, _ configuration: LogConfiguration, recovered: RecoveredVolume
  ) {
    precondition(
      identity.segmentBytes >= LogFormat.segmentBytesMin
        && identity.segmentBytes <= LogFormat.segmentBytesMax
        && identity.segmentBytes % Int64(LogFormat.blockBytes) == 0)
    self.identity = identity
    self.configuration = configuration
    self.logs = recovered.logs.map { $0 }
    self.logIDs = recovered.logs.map(\.id)
    self.nextLog = recovered.nextLog
    self.segments = recovered.segments
    self.cold = recovered.cold
    self.missing = recovered.missing
    self.nextSequence = recovered.nextSequence
    self.checkpointSegment = recovered.checkpointSegment
    self.logEnd = recovered.end
    self.logEndChecksum = recovered.endChecksum
    self.slotCount = recovered.slotCount
    self.readySlots = recovered.freeSlots
    self.nextGroup = recovered.nextGroup
    self.durable = recovered.end
    self.durableGroup = GroupNumber(recovered.nextGroup.rawValue - 1)
    self.phase = .slotWanted
    self.active = nil
    var placeOf: [SegmentSequence: Int] = [:]
    for (place, segment) in self.segments.enumerated() { placeOf[segment.sequence] = place }
    for (index, log) in self.logs.enumerated() {
      guard let log else { continue }
      self.logs[index]!.toldStart = log.localStart
      self.logs[index]!.uploadedStated = log.uploadedOffset
      if let snapshot = log.snapshotPlace, let place = placeOf[snapshot.place.segment] {
        self.segments[place].snapshots.append(index)
      }
      self.byName[log.partition] = index
      self.checkpointBytes += self.checkpointCost(log.accepted)
    }
    if recovered.cleanShutdown {
      self.resume()
    } else if configuration.mutations.contains(.cutsWithoutSealing), !self.segments.isEmpty {
      self.segments[self.segments.count - 1].end = identity.segmentBytes
    }
  }

  /// First call after `init`: opens the active segment. Requests may be made at once; they wait for it.
  public mutating func start(
    at now: MonotonicInstant, wall: Timestamp, into effects: inout [Effect]
  ) {
    self.advance(at: now, wall: wall, into: &effects)
  }

  public mutating func handle(
    _ event: Event, at now: MonotonicInstant, wall: Timestamp, into effects: inout [Effect]
  ) {
    switch event {
    case .openPartition(let request, let partition, let logStart, let epochs):
      self.open(partition, logStart, epochs, request, &effects)
    case .dropPartition(let request, let partition):
      self.drop(partition, request, &effects)
    case .startEpoch(let request, let partition, let entry):
      self.change(partition, request, &effects) { log in
        log.accepted.startEpoch(entry)
        return .epochStart(entry)
      }
    case .truncate(let request, let partition, let end, let epochs):
      self.truncate(partition, to: end, epochs, request, &effects)
    case .setLogStart(let request, let partition, let start):
      self.change(partition, request, &effects) { log in
        log.accepted.setLogStart(start)
        return .logStart(start)
      }
    case .close(let request):
      self.beginClose(request, &effects)
    case .setHighWatermark(let partition, let offset):
      self.setPosition(partition, &effects) { $0.highWatermark = offset }
    case .setUploadedOffset(let partition, let offset):
      self.setPosition(partition, &effects) { $0.uploadedOffset = offset }
    case .setProducerSnapshot(let partition, let bytes, let end):
      self.setSnapshot(partition, bytes, end)
    case .setLocalRetention(let partition, let retention):
      self.setRetention(partition, retention, &effects)
    case .written(let group):
      self.written(group)
    case .synced(let group):
      self.synced(group, at: now, &effects)
    case .diskFailed(let error):
      self.fail(error, &effects)
    case .slotAllocated(let slot, let availableBytes):
      self.allocated(slot, availableBytes)
    case .slotUnavailable(let slot, let availableBytes):
      self.unavailable(slot, availableBytes, at: now)
    case .retired(let slot):
      self.retired(slot)
    case .room(let availableBytes):
      self.availableBytes = availableBytes
    case .readBegan(let slot):
      self.readers[slot, default: 0] += 1
      return
    case .readEnded(let slot):
      guard self.readEnded(slot) else { return }
    case .carried(let result):
      self.carried(result, &effects)
    case .carryAgain(let partition):
      self.carryAgain(partition)
    case .forgetMissingSegments:
      self.missing = []
    case .tick:
      // Whoever drives this has no wake any more. An event whose time was taken just before, and that comes after, may want the same one.
      self.wakeAt = nil
    }
    self.advance(at: now, wall: wall, into: &effects)
  }

  /// Whether an append of up to an eighth of what may wait would be admitted now.
  public var hasRoom: Bool {
    self.failure == nil && self.closeRequest == nil
      && self.pendingBytes + self.reservedCost <= self.configuration.pendingBytesMax / 8 * 7
      && self.owedCost < self.userRoom && self.owedCost < self.placedRoom
  }

  /// Whether a batch of `byteCount` would be admitted now.
  public func hasRoom(for byteCount: Int) -> Bool {
    self.hasRoom && self.hasSpace(for: byteCount)
  }

  /// Whether such a batch has a place beside what waits for the disk.
  public func hasSpace(for byteCount: Int) -> Bool {
    let cost = self.owedCost + PendingFrame.overhead + byteCount
    return cost <= self.userRoom && cost <= self.placedRoom
  }

  /// Whether such a batch is refused until something is reclaimed: what is left is the reserve.
  public func isFull(for byteCount: Int) -> Bool {
    self.owedCost + PendingFrame.overhead + byteCount > self.userRoom
  }

  /// What has no place yet and will want one.
  var owedCost: Int { self.pending.cost + self.reservedCost }

  /// The log takes groups, or can't for want of room: opening it is done.
  public var isStarted: Bool {
    self.phase == .running || (self.phase == .slotWanted && self.allocationRetryAt != nil)
  }

  /// False while there is no room for one.
  public var hasActiveSegment: Bool { self.active != nil }

  /// Accepted and not yet durable, with headers and index entries.
  public var pendingBytes: Int { self.pending.cost + self.inFlightCost }

  /// Does everything that has become possible.
  private mutating func advance(
    at now: MonotonicInstant, wall: Timestamp, into effects: inout [Effect]
  ) {
    guard self.failure == nil else { return }
    self.reclaim(at: now, wall: wall, &effects)
    self.clean(at: now, wall: wall, &effects)
    self.retireFreed(wall: wall, &effects)
    self.requestSlot(at: now, &effects)
    self.startWrite(at: now, wall: wall, &effects)
    self.startSync(at: now, &effects)
    self.workOnRolling(at: now, &effects)
    self.planWake(at: now, &effects)
  }

  private mutating func resume() {
    guard let tail = self.segments.last else { return }
    let seal = HeaderSeal(volume: self.identity.volume, segment: tail.sequence)
    var active = ActiveSegment(
      sequence: tail.sequence, slot: tail.slot, seal: seal, position: tail.end,
      previousChecksum: self.logEndChecksum)
    if !tail.logs.isEmpty { active.lastBatchAt = .zero }
    for index in tail.logs {
      active.footerBytes += Footer.entryBytes
      guard let span = self.logs[index]?.spans.lastOpen, span.segment == tail.sequence else {
        continue
      }
      active.footerBytes += Footer.runBytes * span.runs.count
    }
    self.active = active
    self.phase = .running
  }

  func log(_ reference: LogReference) -> PartitionLog? {
    guard self.isHere(reference) else { return nil }
    return self.logs[reference.index]
  }

  /// Whether the reference is not stale.
  func isHere(_ reference: LogReference) -> Bool {
    self.logIDs[reference.index] == reference.log
  }

  private mutating func fail(_ error: MemQError, _ effects: inout [Effect]) {
    guard self.failure == nil else { return }
    let failure = MemQError(
      .volumeFailed, "the disk failed, the volume takes no more writes: \(error.message)",
      subject: error.subject)
    self.failure = failure
    var requests = self.inFlight.flatMap(\.requests)
    for frame in self.pending.removeFirst(self.pending.count) {
      if let request = frame.request { requests.append(request) }
    }
    if let close = self.closeRequest, self.phase != .closed { requests.append(close) }
    self.inFlight = []
    self.inFlightCost = 0
    for request in requests { effects.append(.complete(request, .failure(failure))) }
    effects.append(.failed(failure))
  }
}
