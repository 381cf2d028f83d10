// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQLog
public import MemQModel
public import MemQTestSupport

/// A volume in memory: the core that ships, a crashable disk, and a driver without threads.
///
/// Disk work waits in `outstanding` until the scheduler performs it, so it sets latencies and the order of a write and a
/// sync that overlap. Times are the scheduler's.
public struct SimulatedVolume: Sendable {
  public enum DiskWork: Sendable {
    case write(GroupWrite, payloads: [PayloadID: [UInt8]])
    case sync(SegmentSlot, GroupNumber, begunAt: UInt64)
    case allocate(SegmentSlot)
    case retire(SegmentSlot, block: [UInt8])
    /// One step of a copy: the next follows it.
    case carry(SegmentCarrier)
  }

  struct TailBatch: Sendable {
    let summary: BatchSummary
    let bytes: [UInt8]
    let request: RequestID
  }

  /// A batch as a read gives it back: the frame's append time is in the summary.
  public struct ReadBatch: Sendable {
    public let summary: BatchSummary
    public let bytes: [UInt8]
  }

  public private(set) var identity: VolumeIdentity
  /// As the volume file states it.
  private var durableEnd = LogPlace.start
  public var configuration: LogConfiguration
  public var disk: CrashableDisk
  /// Segment files the file system has room for.
  public var slotsMax: Int
  /// Nil while the volume isn't open.
  public private(set) var core: VolumeCore?
  public private(set) var outstanding: [DiskWork] = []
  /// When to send `.tick` next.
  public private(set) var wake: MonotonicInstant?
  /// The next so many disk works succeed, then one fails; nil: none fails.
  public var worksUntilFailure: Int?
  /// A cold segment's writes are not synced: for showing that tests notice.
  public var skipsCarrySyncs = false
  /// What opening does where something below the durable mark does not read.
  public var salvage = SalvageMode.refuse
  /// `.failed` was reported.
  public private(set) var failure: MemQError?
  private var completions: [(request: RequestID, result: Result<Void, MemQError>)] = []
  private var moves: [(partition: TopicPartition, localStart: Offset)] = []
  private var payloads: [PayloadID: [UInt8]] = [:]
  private var tails: [TopicPartition: [TailBatch]] = [:]
  private var partitionsOf: [RequestID: [TopicPartition]] = [:]
  /// Segments sealed since the last look.
  public var segmentsRolled = 0
  /// Partitions whose producer snapshot the volume asked for since the last look.
  public var snapshotsWanted: [TopicPartition] = []
  /// What the cleaner found damaged since the last look.
  public var damages: [(partition: TopicPartition, error: MemQError)] = []

  public init(
    identity: VolumeIdentity, configuration: LogConfiguration = LogConfiguration(),
    slotsMax: Int = 64
  ) {
    self.identity = identity
    self.configuration = configuration
    self.slotsMax = slotsMax
    self.disk = CrashableDisk(segmentBytes: Int(identity.segmentBytes))
  }

  public var isOpen: Bool { self.core != nil }

  /// The cleaner copies.
  public var isCarrying: Bool {
    self.outstanding.contains { if case .carry = $0 { true } else { false } }
  }

  /// Segments that are being retired.
  public var retiresUnderWay: Int {
    self.outstanding.count { if case .retire = $0 { true } else { false } }
  }

  /// What the file system has free.
  public var availableBytes: Int64 {
    Int64(max(0, self.slotsMax - self.disk.slots.count)) * self.identity.segmentBytes
  }

  /// Recovers and starts. The opening's number is durable first, as the volume file makes it.
  public mutating func open(
    at now: MonotonicInstant, wall: Timestamp
  ) throws(MemQError) -> [RecoveredPartition] {
    precondition(self.core == nil)
    self.disk.syncAll()
    let recovered = try VolumeRecovery.run(
      self.identity, from: &self.disk, runBytesMax: self.configuration.runBytesMax,
      salvage: self.salvage, durableEnd: self.durableEnd, mutations: self.configuration.mutations)
    var core = VolumeCore(self.identity, self.configuration, recovered: recovered)
    self.identity.openCount += 1
    self.durableEnd = recovered.end
    var effects: [VolumeCore.Effect] = []
    core.handle(
      .room(availableBytes: self.availableBytes), at: now, wall: wall, into: &effects)
    core.start(at: now, wall: wall, into: &effects)
    self.core = core
    self.failure = nil
    self.file(effects)
    return recovered.partitions
  }

  /// As `VolumeCore.reserve`; nil where the volume is not open, too.
  public mutating func reserve(_ byteCount: Int) -> RoomReservation? {
    self.core?.reserve(byteCount)
  }

  public mutating func release(_ reservation: RoomReservation) {
    self.core?.release(reservation)
  }

  /// - Throws: as `VolumeCore.append`.
  public mutating func append(
    _ batches: [(partition: TopicPartition, batch: SyntheticBatch)], request: RequestID,
    reserved: RoomReservation = RoomReservation(), at now: MonotonicInstant, wall: Timestamp
  ) throws(MemQError) {
    guard self.core != nil else { throw MemQError(.unavailable, "the volume is not open") }
    let appends = batches.map {
      VolumeCore.BatchAppend(
        partition: $0.partition, summary: $0.batch.summary, byteCount: $0.batch.bytes.count,
        checksum: $0.batch.checksum)
    }
    var effects: [VolumeCore.Effect] = []
    for (index, entry) in batches.enumerated() {
      self.payloads[PayloadID(request, index)] = entry.batch.bytes
    }
    do throws(MemQError) {
      try self.core!.append(
        appends, request: request, reserved: reserved, at: now, wall: wall, into: &effects)
    } catch {
      for index in batches.indices { self.payloads[PayloadID(request, index)] = nil }
      throw error
    }
    for entry in batches {
      self.tails[entry.partition, default: []].append(
        TailBatch(summary: entry.batch.summary, bytes: entry.batch.bytes, request: request))
      self.partitionsOf[request, default: []].append(entry.partition)
    }
    self.file(effects)
  }

  public mutating func handle(
    _ event: VolumeCore.Event, at now: MonotonicInstant, wall: Timestamp
  ) {
    guard self.core != nil else { return }
    switch event {
    case .truncate(_, let partition, let end, _):
      self.tails[partition]?.removeAll { $0.summary.endOffset > end }
    case .dropPartition(_, let partition):
      self.tails[partition] = nil
    case .setLogStart(_, let partition, let start):
      self.tails[partition]?.removeAll { $0.summary.endOffset <= start }
    case .tick:
      self.wake = nil
    default:
      break
    }
    var effects: [VolumeCore.Effect] = []
    self.core!.handle(event, at: now, wall: wall, into: &effects)
    self.file(effects)
  }

  private mutating func file(_ effects: [VolumeCore.Effect]) {
    for effect in effects {
      switch effect {
      case .write(let group): self.outstanding.append(.write(group, payloads: self.take(group)))
      case .sync(let slot, let group):
        self.outstanding.append(.sync(slot, group, begunAt: self.disk.beginSync(slot)))
      case .allocate(let slot): self.outstanding.append(.allocate(slot))
      case .retire(let slot, let block): self.outstanding.append(.retire(slot, block: block))
      case .carry(let plan): self.outstanding.append(.carry(SegmentCarrier(plan)))
      case .damageFound(let partition, let error, _): self.damages.append((partition, error))
      case .complete(let request, let result): self.complete(request, result)
      case .localStartMoved(let partition, let start): self.moves.append((partition, start))
      case .segmentRolled: self.segmentsRolled += 1
      case .snapshotWanted(let partition): self.snapshotsWanted.append(partition)
      case .failed(let error): self.failure = error
      case .wake(let time): self.wake = time
      }
    }
  }

  private mutating func take(_ group: GroupWrite) -> [PayloadID: [UInt8]] {
    var taken: [PayloadID: [UInt8]] = [:]
    for part in group.parts {
      for case .payload(let id, _) in part.pieces {
        taken[id] = self.payloads.removeValue(forKey: id)
      }
    }
    return taken
  }

  private mutating func complete(_ request: RequestID, _ result: Result<Void, MemQError>) {
    for partition in self.partitionsOf.removeValue(forKey: request) ?? [] {
      self.tails[partition]?.removeAll { $0.request == request }
    }
    self.completions.append((request, result))
  }

  // MARK: - Disk

  /// Does the disk work at `index` and tells the core.
  public mutating func perform(_ index: Int, at now: MonotonicInstant, wall: Timestamp) {
    let work = self.outstanding.remove(at: index)
    if let left = self.worksUntilFailure {
      self.worksUntilFailure = left == 0 ? nil : left - 1
      if left == 0 {
        return self.handle(
          .diskFailed(MemQError(.volumeFailed, "simulated I/O error")), at: now, wall: wall)
      }
    }
    switch work {
    case .write(let group, let payloads):
      for (position, bytes) in Self.bytes(of: group, payloads) {
        self.disk.write(bytes, to: group.slot, at: position)
      }
      self.handle(.written(group.number), at: now, wall: wall)
    case .sync(let slot, let group, let begun):
      self.disk.endSync(slot, begunAt: begun)
      self.handle(.synced(group), at: now, wall: wall)
    case .carry(let carrier):
      self.carry(carrier, at: now, wall: wall)
    case .retire(let slot, let block):
      self.disk.write(block, to: slot, at: 0)
      self.disk.endSync(slot, begunAt: self.disk.beginSync(slot))
      self.handle(.retired(slot), at: now, wall: wall)
    case .allocate(let slot):
      if self.disk.slots.count < self.slotsMax {
        self.disk.allocate(slot)
        self.disk.syncFolder()
        self.handle(.slotAllocated(slot, availableBytes: self.availableBytes), at: now, wall: wall)
      } else {
        self.handle(
          .slotUnavailable(slot, availableBytes: self.availableBytes), at: now, wall: wall)
      }
    }
  }

  private mutating func carry(
    _ carrier: SegmentCarrier, at now: MonotonicInstant, wall: Timestamp
  ) {
    var carrier = carrier
    switch carrier.next(from: &self.disk) {
    case .write(let parts):
      for (position, bytes) in parts {
        self.disk.write(bytes, to: carrier.plan.slot, at: position)
      }
      if !self.skipsCarrySyncs {
        self.disk.endSync(
          carrier.plan.slot, begunAt: self.disk.beginSync(carrier.plan.slot))
      }
      self.outstanding.append(.carry(carrier))
    case .done(let result):
      self.handle(.carried(result), at: now, wall: wall)
    }
  }

  /// Does all disk work that there is and that follows from it.
  public mutating func drain(at now: MonotonicInstant, wall: Timestamp) {
    var works = 0
    while !self.outstanding.isEmpty {
      works += 1
      precondition(works < 20_000, "the volume never comes to rest: \(self.core!.stats)")
      self.perform(0, at: now, wall: wall)
    }
  }

  /// What a group's parts put where.
  public static func bytes(
    of group: GroupWrite, _ payloads: [PayloadID: [UInt8]]
  ) -> [(position: Int64, bytes: [UInt8])] {
    group.parts.map { part in
      var bytes: [UInt8] = []
      bytes.reserveCapacity(part.byteCount)
      for piece in part.pieces {
        switch piece {
        case .bytes(let range): bytes += group.headerBytes[range]
        case .payload(let id, let count):
          let payload = payloads[id]!
          precondition(payload.count == count)
          bytes += payload
        case .zeros(let count): bytes += [UInt8](repeating: 0, count: count)
        }
      }
      return (part.position, bytes)
    }
  }

  public mutating func takeCompletions() -> [(request: RequestID, result: Result<Void, MemQError>)]
  {
    defer { self.completions = [] }
    return self.completions
  }

  /// Whether the last request was refused for want of room; then it is as if it had not been made.
  public mutating func takesBack(_ request: RequestID) -> Bool {
    guard let last = self.completions.last, last.request == request,
      case .failure(let error) = last.result, error.code == .volumeFull
    else { return false }
    self.completions.removeLast()
    return true
  }

  public mutating func takeLocalStartMoves() -> [(partition: TopicPartition, localStart: Offset)] {
    defer { self.moves = [] }
    return self.moves
  }

  // MARK: - Crashes

  /// The power goes: writes under way reach the disk in part, then the disk keeps what it keeps.
  public mutating func crash(_ generator: inout SeededGenerator) {
    for work in self.outstanding {
      switch work {
      case .write(let group, let payloads):
        guard Bool.random(using: &generator) else { continue }
        for (position, bytes) in Self.bytes(of: group, payloads) {
          self.disk.write(bytes, to: group.slot, at: position)
        }
      case .allocate(let slot):
        if Bool.random(using: &generator), self.disk.slots.count < self.slotsMax {
          self.disk.allocate(slot)
        }
      case .retire(let slot, let block):
        if Bool.random(using: &generator) { self.disk.write(block, to: slot, at: 0) }
      case .carry(var carrier):
        guard Bool.random(using: &generator),
          case .write(let parts) = carrier.next(from: &self.disk)
        else { continue }
        for (position, bytes) in parts {
          self.disk.write(bytes, to: carrier.plan.slot, at: position)
        }
      case .sync:
        break
      }
    }
    self.disk.crash(&generator)
    self.forget()
  }

  /// The process ends without a word; the machine and what was written stay.
  public mutating func kill() { self.forget() }

  /// After a completed `.close`.
  public mutating func shut() {
    precondition(self.outstanding.isEmpty)
    self.forget()
  }

  private mutating func forget() {
    self.core = nil
    self.outstanding = []
    self.completions = []
    self.moves = []
    self.payloads = [:]
    self.tails = [:]
    self.partitionsOf = [:]
    self.wake = nil
  }

  // MARK: - Reads

  /// Whole batches from the one that holds `from`, below `below`, about `maxBytes`, at least one.
  ///
  /// - Throws: `.partitionNotFound`, `.offsetOutOfRange`, `.logCorrupt`.
  public mutating func read(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) throws(MemQError) -> [ReadBatch] {
    guard let core = self.core else { throw MemQError(.unavailable, "the volume is not open") }
    let tail = self.tails[partition] ?? []
    if let first = tail.first, from >= first.summary.baseOffset {
      return Self.batches(tail, from, below, maxBytes)
    }
    let plan = try core.locate(
      partition, from: from, below: min(below, tail.first?.summary.baseOffset ?? below),
      maxBytes: maxBytes)
    switch plan {
    case .nothing: return []
    case .runs(let runs): return try self.batches(runs)
    case .footer(let read):
      let bytes = try self.bytes(read.slot, read.place.position, read.place.byteCount)
      let seal = HeaderSeal(volume: self.identity.volume, segment: read.segment)
      let footer = bytes.withUnsafeBytes {
        SealedSegment.footer(in: $0, at: read.place, seal: seal)
      }
      guard let footer, let runs = footer.plan(read) else {
        throw MemQError(.logCorrupt, "a footer is damaged", subject: "segment \(read.segment)")
      }
      return try self.batches(runs)
    }
  }

  private static func batches(
    _ tail: [TailBatch], _ from: Offset, _ below: Offset, _ maxBytes: Int
  ) -> [ReadBatch] {
    var found: [ReadBatch] = []
    var bytes = 0
    for batch in tail where batch.summary.endOffset > from && batch.summary.endOffset <= below {
      guard found.isEmpty || bytes + batch.bytes.count <= maxBytes else { break }
      bytes += batch.bytes.count
      found.append(ReadBatch(summary: batch.summary, bytes: batch.bytes))
    }
    return found
  }

  private mutating func batches(_ read: SegmentRuns) throws(MemQError) -> [ReadBatch] {
    var found: [ReadBatch] = []
    let seal = HeaderSeal(volume: self.identity.volume, segment: read.segment)
    for run in read.runs {
      let bytes = try self.bytes(read.slot, run.position, run.byteCount)
      let frames = bytes.withUnsafeBytes { view in
        Result { () throws(MemQError) in
          try FrameWalk.batches(
            in: view, run: run, log: read.log, seal: seal, from: read.from, below: read.below)
        }
      }
      for frame in try frames.get() {
        let payload = Array(bytes[frame.payload])
        let summary = payload.withUnsafeBytes { frame.header.summary(of: $0) }
        found.append(ReadBatch(summary: summary, bytes: payload))
      }
    }
    return found
  }

  private mutating func bytes(
    _ slot: SegmentSlot, _ position: Int64, _ count: Int
  ) throws(MemQError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let result = bytes.withUnsafeMutableBytes { view in
      Result { () throws(MemQError) in try self.disk.read(slot, at: position, into: view) }
    }
    try result.get()
    return bytes
  }
}
