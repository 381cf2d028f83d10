// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQRecords
import MemQReplication
import MemQTestSupport

/// A node's volume: the core that ships on a crashable disk, and beside it a plain model of what it must hold.
///
/// Writes are durable in the model once the volume says so. After a crash the volume must give back, for each partition,
/// the durable state or one that some of the following writes lead to, in order.
struct SimVolume {
  struct Batch {
    var summary: BatchSummary
    var values: [UInt64]
  }

  struct Log {
    private(set) var start: Offset
    private(set) var batches: [Batch] = []
    var epochs: [EpochStart] = []
    private(set) var end: Offset
    /// Where it was opened: what came before never was here.
    private(set) var opened: Offset
    /// The batches since that it let go of, uploaded or deleted: not always those that were committed, where it has yet to be cut.
    private(set) var released: [BatchSummary] = []
    /// Where its first batch begins.
    var first: Offset { self.batches.isEmpty ? self.end : self.batches[0].summary.baseOffset }

    /// - Parameter first: where its first batch begins; what lies before is not here any more.
    init(start: Offset = .zero, first: Offset? = nil) {
      self.start = start
      self.end = first ?? start
      self.opened = self.end
    }

    mutating func setStart(_ start: Offset) {
      self.start = Swift.max(self.start, start)
      self.letGo(below: start)
      if self.end < start { (self.end, self.opened, self.released) = (start, start, []) }
      let kept = self.epochs.lastIndex { $0.start < start } ?? 0
      self.epochs.removeFirst(kept)
    }

    mutating func letGo(below offset: Offset) {
      var gone = 0
      while gone < self.batches.count, self.batches[gone].summary.endOffset <= offset { gone += 1 }
      self.released += self.batches[..<gone].map(\.summary)
      self.batches.removeFirst(gone)
    }

    /// What a log of the same records that was found on the disk has let go of.
    mutating func setReleased(of log: Log) {
      self.opened = log.opened
      let before = log.released + log.batches.map(\.summary)
      self.released = Array(before.prefix { $0.endOffset <= self.first })
    }

    mutating func append(_ batch: Batch) {
      self.batches.append(batch)
      self.end = batch.summary.endOffset
    }

    mutating func removeLast() {
      self.end = self.batches.removeLast().summary.baseOffset
    }
  }

  enum Write {
    case open(at: Offset)
    case drop
    case setLogStart(Offset)
    case append(Batch)
    case startEpoch(EpochStart)
    case truncate(to: Offset, epochs: [EpochStart])
  }

  private struct Queued {
    var request: RequestID
    var partition: Int
    var number: WriteNumber?
    var write: Write
  }

  private let countsFailedWrites: Bool
  private static let segmentBytes: Int64 = 64 << 10
  /// Segment files that a disk has room for that never gets full by itself.
  private static let slotsPlenty = 20_000

  private var disk: SimulatedVolume
  private(set) var current: [Log]
  private(set) var durable: [Log]
  private var recovered: [RecoveredPartition?]
  /// Whether the volume knows the partition, once all that was filed is done.
  private var isHeld: [Bool]
  /// Filed and not durable yet, in order; `held` is the end of it that the volume did not take yet.
  private var queue: [Queued] = []
  private var held: [(request: RequestID, partition: Int, write: Write)] = []
  private var lastRequest: UInt64 = 0
  private var reads = 0
  private var localStarts: [(partition: Int, start: Offset)] = []
  /// Where each partition's records cease to read; nil: nothing is known to be damaged.
  private(set) var damagedFrom: [Offset?]
  /// A bit was flipped on the disk: reads may meet it.
  private var isCorrupted = false
  /// Segment files that this disk has room for.
  private var slotsMax: Int
  /// The file system has no room for another segment file, or may soon have none.
  private var isShort: Bool

  /// - Parameter slotsMax: segment files that the disk has room for; nil: as many as it wants.
  init(node: Int, partitions: Int, mutation: Mutation?, slotsMax: Int?) {
    self.slotsMax = slotsMax ?? Self.slotsPlenty
    self.isShort = slotsMax != nil
    let cluster = ClusterID(UniqueID(high: 7, low: 7))
    self.disk = SimulatedVolume(
      identity: VolumeIdentity(
        cluster: cluster, volume: World.volume(node),
        segmentBytes: Self.segmentBytes),
      slotsMax: self.slotsMax)
    self.countsFailedWrites = mutation?.countsFailedWrites ?? false
    self.disk.salvage = .isolate
    self.disk.configuration.mutations = mutation?.log ?? []
    self.disk.disk.skipsSyncs = mutation?.skipsSyncs ?? false
    self.current = Array(repeating: Log(), count: partitions)
    self.durable = self.current
    self.recovered = Array(repeating: nil, count: partitions)
    self.isHeld = Array(repeating: false, count: partitions)
    self.damagedFrom = Array(repeating: nil, count: partitions)
  }

  static func partition(_ number: Int) -> TopicPartition {
    World.partition(number)
  }

  func durableSpan(of partition: Int) -> (first: Offset, end: Offset) {
    (self.durable[partition].first, self.durable[partition].end)
  }

  // MARK: - Writes

  mutating func file(
    _ write: Write, _ partition: Int, _ number: WriteNumber?, at now: MonotonicInstant,
    wall: Timestamp
  ) throws(Shadow.Broken) {
    Self.apply(write, to: &self.current[partition])
    switch write {
    case .open: self.isHeld[partition] = true
    case .drop:
      self.isHeld[partition] = false
      self.recovered[partition] = nil
      self.damagedFrom[partition] = nil
    case .append, .startEpoch, .truncate, .setLogStart: break
    }
    self.lastRequest += 1
    let request = RequestID(self.lastRequest)
    self.queue.append(
      Queued(request: request, partition: partition, number: number, write: write))
    self.held.append((request, partition, write))
    try self.giveHeld(at: now, wall: wall)
  }

  /// Hands the volume what it would not take before, in order, as a node's lane does.
  private mutating func giveHeld(at now: MonotonicInstant, wall: Timestamp) throws(Shadow.Broken) {
    while let (request, partition, write) = self.held.first, self.disk.failure == nil {
      let id = Self.partition(partition)
      switch write {
      case .open(let start):
        self.disk.handle(
          .openPartition(request, id, logStart: start, epochs: []), at: now, wall: wall)
      case .setLogStart(let start):
        self.disk.handle(.setLogStart(request, id, start), at: now, wall: wall)
      case .drop:
        self.disk.handle(.dropPartition(request, id), at: now, wall: wall)
      case .startEpoch(let start):
        self.disk.handle(.startEpoch(request, id, start), at: now, wall: wall)
      case .truncate(let end, let epochs):
        self.disk.handle(.truncate(request, id, to: end, epochs: epochs), at: now, wall: wall)
      case .append(let batch):
        do throws(MemQError) {
          try self.disk.append(
            [(id, Self.bytes(of: batch))], request: request, at: now, wall: wall)
        } catch {
          // Its queue is full, the next segment is being made, or the disk is full: all pass.
          if error.code == .resourceExhausted || error.code == .volumeFull { return }
          throw Shadow.Broken(rule: "a volume refused a write", detail: "\(error)")
        }
      }
      if self.disk.takesBack(request) { return }
      self.held.removeFirst()
    }
  }

  /// What a leader asks before it decides on a batch: past it nothing would take it.
  var isFull: Bool {
    self.isShort && (!self.held.isEmpty || self.disk.core?.isFull(for: 200) ?? true)
  }

  /// - Parameter room: segment files that still fit; nil: as many as there are.
  mutating func setRoom(
    _ room: Int?, at now: MonotonicInstant, wall: Timestamp
  ) throws(Shadow.Broken) {
    self.isShort = room != nil || self.slotsMax < Self.slotsPlenty
    self.disk.slotsMax = Swift.min(
      room.map { self.disk.disk.slots.count + $0 } ?? .max, self.slotsMax)
    guard self.disk.isOpen else { return }
    self.disk.handle(.room(availableBytes: self.disk.availableBytes), at: now, wall: wall)
    try self.giveHeld(at: now, wall: wall)
  }

  /// From now on the disk has room for as many segment files as it wants. `setRoom` tells the volume.
  mutating func makeLarge() { self.slotsMax = Self.slotsPlenty }

  /// Flips a bit of a batch that was durable long ago, of the frame around it or of its bytes, once the power or the process is gone.
  mutating func corrupt(_ partition: Int, _ random: inout Randomness) {
    let batches = self.durable[partition].batches
    guard batches.count > 50 else { return }
    let batch = batches[random.number(0..<(batches.count - 40))]
    let bytes = Self.bytes(of: batch).bytes
    let mark = self.disk.disk.durableMark(of: self.disk.identity.volume)
    for slot in self.disk.disk.slots {
      guard let place = Self.place(of: bytes, in: self.disk.disk.bytes(of: slot)),
        self.isOwed(Int64(place), of: slot, mark)
      else { continue }
      let first = Swift.max(0, place - 40)
      self.disk.disk.flip(
        bit: random.number(0..<8), at: random.number(first..<(place + bytes.count)), of: slot)
      self.isCorrupted = true
    }
  }

  /// Whether recovery has to notice what is wrong there. At or above the last durable mark that is on the disk a damaged group is
  /// taken for a torn one, and the log ends before it (docs/formats/volume.md, Recovery, 4.): a whole replica that was filled anew just now
  /// may stand there.
  private mutating func isOwed(_ position: Int64, of slot: SegmentSlot, _ mark: LogPlace) -> Bool {
    guard let header = try? SegmentInspector.header(slot, from: &self.disk.disk),
      header.kind == .hot
    else { return true }
    return LogPlace(header.sequence, position) < mark
  }

  private static func place(of bytes: [UInt8], in file: [UInt8]) -> Int? {
    file.withUnsafeBufferPointer { file in
      bytes.withUnsafeBufferPointer { bytes in
        var at = 0
        while at + bytes.count <= file.count {
          if file[at] == bytes[0], file[at..<(at + bytes.count)].elementsEqual(bytes) { return at }
          at += 1
        }
        return nil
      }
    }
  }

  /// The next write or sync fails.
  mutating func failNext() { self.disk.worksUntilFailure = 0 }
  mutating func heal() { self.disk.worksUntilFailure = nil }

  var hasFailed: Bool { self.disk.failure != nil }

  mutating func setHighWatermark(
    _ offset: Offset, _ partition: Int, at now: MonotonicInstant, wall: Timestamp
  ) {
    self.disk.handle(.setHighWatermark(Self.partition(partition), offset), at: now, wall: wall)
  }

  mutating func setUploadedOffset(
    _ offset: Offset, _ partition: Int, at now: MonotonicInstant, wall: Timestamp
  ) {
    self.disk.handle(.setUploadedOffset(Self.partition(partition), offset), at: now, wall: wall)
  }

  mutating func setRetention(
    _ retention: LocalRetention, _ partition: Int, at now: MonotonicInstant, wall: Timestamp
  ) {
    self.disk.handle(.setLocalRetention(Self.partition(partition), retention), at: now, wall: wall)
  }

  /// From where the volume holds a log's records; nil when it holds none.
  func localStart(_ partition: Int) -> Offset? {
    self.disk.core?.offsets(of: Self.partition(partition))?.lowerBound
  }

  /// Where each log begins now whose older records left the disk since.
  mutating func takeLocalStarts() -> [(partition: Int, start: Offset)] {
    self.noteLocalStarts()
    defer { self.localStarts = [] }
    return self.localStarts
  }

  private mutating func noteLocalStarts() {
    for (partition, start) in self.disk.takeLocalStartMoves() {
      let number = World.number(partition)
      self.current[number].letGo(below: start)
      self.durable[number].letGo(below: start)
      self.localStarts.append((number, start))
    }
  }

  mutating func takeSnapshotsWanted() -> [Int] {
    guard !self.disk.snapshotsWanted.isEmpty else { return [] }
    defer { self.disk.snapshotsWanted = [] }
    return self.disk.snapshotsWanted.map(World.number)
  }

  mutating func setSnapshot(
    _ bytes: [UInt8], _ partition: Int, at end: Offset, now: MonotonicInstant, wall: Timestamp
  ) {
    self.disk.handle(
      .setProducerSnapshot(Self.partition(partition), bytes, at: end), at: now, wall: wall)
  }

  private struct Values: RandomNumberGenerator {
    var values: ArraySlice<UInt64>
    mutating func next() -> UInt64 { self.values.removeFirst() }
  }

  private static func bytes(of batch: Batch) -> SyntheticBatch {
    var values = Values(values: batch.values[...])
    return SyntheticBatch(batch.summary, bodyBytes: batch.values.count * 8, using: &values)
  }

  // MARK: - Disk work

  /// Disk requests that wait to be carried out.
  var outstanding: Int { self.disk.outstanding.count }
  var wake: MonotonicInstant? { self.disk.wake }

  mutating func perform(
    _ index: Int, at now: MonotonicInstant, wall: Timestamp
  ) throws(Shadow.Broken) {
    self.disk.perform(index, at: now, wall: wall)
    try self.giveHeld(at: now, wall: wall)
  }

  mutating func tick(at now: MonotonicInstant, wall: Timestamp) throws(Shadow.Broken) {
    self.disk.handle(.tick, at: now, wall: wall)
    try self.giveHeld(at: now, wall: wall)
  }

  /// The last write of each partition that became durable since, by partition.
  mutating func takeDurable() throws(Shadow.Broken) -> [(partition: Int, number: WriteNumber)] {
    var last = [WriteNumber?](repeating: nil, count: self.durable.count)
    for (request, result) in self.disk.takeCompletions() {
      if case .failure(let error) = result {
        // Final, and the same for all that follow.
        if self.disk.failure != nil {
          guard self.countsFailedWrites else { break }
        } else {
          throw Shadow.Broken(rule: "a volume failed a write", detail: "\(error)")
        }
      }
      guard let next = self.queue.first, next.request == request else {
        throw Shadow.Broken(rule: "writes became durable out of order", detail: "\(request)")
      }
      self.queue.removeFirst()
      Self.apply(next.write, to: &self.durable[next.partition])
      last[next.partition] = next.number ?? last[next.partition]
    }
    return last.enumerated().compactMap { at, number in number.map { (at, $0) } }
  }

  // MARK: - Crash and recovery

  /// The power goes, or only the process ends.
  ///
  /// - Parameter isFailed: the disk failed: what it did not confirm may or may not be on it.
  mutating func crash(_ random: inout Randomness, isFailed: Bool = false) {
    self.disk.worksUntilFailure = nil
    if isFailed || random.chance(700) {
      var generator = SeededGenerator(seed: random.next())
      self.disk.crash(&generator)
    } else {
      self.disk.kill()
    }
  }

  mutating func open(at now: MonotonicInstant, wall: Timestamp) throws(Shadow.Broken) {
    let found: [RecoveredPartition]
    do {
      found = try self.disk.open(at: now, wall: wall)
    } catch {
      throw Shadow.Broken(rule: "a volume doesn't recover", detail: "\(error)")
    }
    for number in self.durable.indices {
      let id = Self.partition(number)
      self.recovered[number] = found.first { $0.partition == id }
      self.isHeld[number] = self.recovered[number] != nil
      self.damagedFrom[number] = nil
      var log = try self.contents(number)
      // It must not be served, nor voted with; that is no loss while others hold it.
      if self.damagedFrom[number] != nil { continue }
      guard let state = self.legalState(log, number) else {
        throw Shadow.Broken(
          rule: "a volume lost or made up records",
          detail:
            "partition \(number): recovered to \(log.end), durable to \(self.durable[number].end)")
      }
      log.setReleased(of: state)
      self.durable[number] = log
    }
    self.current = self.durable
    self.queue = []
    self.held = []
    self.localStarts = []
  }

  private mutating func contents(_ number: Int) throws(Shadow.Broken) -> Log {
    guard let recovered = self.recovered[number] else { return Log() }
    if recovered.damage != nil, self.isCorrupted {
      self.damagedFrom[number] = recovered.damagedFrom ?? recovered.logStart
      return Log()
    }
    var log = Log(start: recovered.logStart, first: recovered.localStart)
    log.epochs = recovered.epochs
    do {
      while log.end < recovered.end {
        let found = try self.disk.read(
          recovered.partition, from: log.end, below: recovered.end, maxBytes: 1 << 20)
        guard !found.isEmpty else { break }
        for read in found { log.append(Self.batch(read)) }
      }
    } catch {
      guard self.isCorrupted, error.code == .logCorrupt else {
        throw Shadow.Broken(rule: "a recovered volume can't be read", detail: "\(error)")
      }
      self.damagedFrom[number] = log.end
    }
    return log
  }

  private static func batch(_ read: SimulatedVolume.ReadBatch) -> Batch {
    let body = read.bytes[RecordBatchHeader.byteCount...]
    let values = stride(from: body.startIndex, to: body.endIndex, by: 8).map { at in
      (0..<8).reduce(UInt64(0)) { $0 | UInt64(body[at + $1]) << UInt64(8 * $1) }
    }
    return Batch(summary: read.summary, values: values)
  }

  /// What a recovered log is: the durable one after none, some or all of the writes that followed. Nil: it is none of these.
  private func legalState(_ log: Log, _ number: Int) -> Log? {
    var state = self.durable[number]
    if Self.isSame(state, log) { return state }
    for queued in self.queue where queued.partition == number {
      Self.apply(queued.write, to: &state)
      if Self.isSame(state, log) { return state }
    }
    return nil
  }

  private static func isSame(_ a: Log, _ b: Log) -> Bool {
    guard a.end == b.end, a.start == b.start, a.epochs == b.epochs else { return false }
    // What is uploaded may be on the one and gone on the other.
    let first = Swift.max(a.first, b.first)
    let here = a.batches[Self.index(of: first, in: a.batches)...]
    let there = b.batches[Self.index(of: first, in: b.batches)...]
    guard here.count == there.count else { return false }
    return zip(here, there).allSatisfy {
      $0.summary.baseOffset == $1.summary.baseOffset
        && $0.summary.leaderEpoch == $1.summary.leaderEpoch
        && $0.summary.appendTime == $1.summary.appendTime && $0.values == $1.values
    }
  }

  /// Whether the volume knows the partition: else it must be opened first.
  func holds(_ partition: Int) -> Bool { self.isHeld[partition] }

  /// Whether it is being dropped: it can be opened again only after.
  func isDropping(_ partition: Int) -> Bool {
    self.queue.contains {
      if $0.partition == partition, case .drop = $0.write { true } else { false }
    }
  }

  /// An orderly end: all is durable and closed. False: the disk failed meanwhile.
  mutating func close(at now: MonotonicInstant, wall: Timestamp) throws(Shadow.Broken) -> Bool {
    var (rounds, now) = (0, now)
    while !self.held.isEmpty || !self.queue.isEmpty || rounds == 0 {
      rounds += 1
      // A full disk keeps no volume from closing.
      if self.isShort, rounds > 3 { break }
      guard rounds < 100 else {
        throw Shadow.Broken(rule: "a volume doesn't close", detail: "\(self.held.count) held")
      }
      // A disk that has room only now is asked again after a while.
      if rounds > 1 {
        now = now + .milliseconds(100)
        self.disk.handle(.tick, at: now, wall: wall)
      }
      self.disk.drain(at: now, wall: wall)
      _ = try self.takeDurable()
      if self.hasFailed { return false }
      try self.giveHeld(at: now, wall: wall)
    }
    self.queue.removeLast(self.held.count)
    self.held = []
    self.lastRequest += 1
    self.disk.handle(.close(RequestID(self.lastRequest)), at: now, wall: wall)
    self.disk.drain(at: now, wall: wall)
    if self.hasFailed { return false }
    for (request, result) in self.disk.takeCompletions() where request.rawValue != self.lastRequest
    {
      let queued = self.queue.removeFirst()
      // What found no room is refused.
      if case .success = result { Self.apply(queued.write, to: &self.durable[queued.partition]) }
    }
    self.disk.shut()
    return true
  }

  /// The log as a node finds it at start.
  func recover(_ partition: Int, _ limits: ProducerLimits) throws(MemQError) -> ReplicaLog {
    guard let found = self.recovered[partition] else {
      return ReplicaLog(emptyAt: self.current[partition].start, limits: limits)
    }
    return ReplicaLog(
      start: found.logStart, end: found.end, highWatermark: found.highWatermark,
      uploadedOffset: found.uploadedOffset, epochs: try EpochCache(found.epochs),
      producers: try ProducerState(
        snapshot: found.producerSnapshot, start: found.producerSnapshotEnd,
        batches: found.batchesAfterSnapshot, limits: limits))
  }

  // MARK: - Reads

  /// The batch that begins at `offset`. Every sixteenth is compared with what the volume reads, if it has taken all.
  mutating func batch(_ partition: Int, at offset: Offset) throws(Shadow.Broken) -> Batch? {
    self.noteLocalStarts()
    let batches = self.current[partition].batches
    let at = Self.index(of: offset, in: batches)
    guard at < batches.count, batches[at].summary.baseOffset == offset else { return nil }
    self.reads += 1
    if self.reads % 16 == 0, !self.held.contains(where: { $0.partition == partition }) {
      let found = try? self.disk.read(
        Self.partition(partition), from: offset, below: batches[at].summary.endOffset, maxBytes: 1)
      guard found?.first?.bytes == Self.bytes(of: batches[at]).bytes else {
        throw Shadow.Broken(
          rule: "a volume reads something else", detail: "partition \(partition) offset \(offset)")
      }
    }
    return batches[at]
  }

  static func index(of offset: Offset, in batches: [Batch]) -> Int {
    var (low, high) = (0, batches.count)
    while low < high {
      let middle = (low + high) / 2
      if batches[middle].summary.endOffset <= offset { low = middle + 1 } else { high = middle }
    }
    return low
  }

  private static func apply(_ write: Write, to log: inout Log) {
    switch write {
    case .open(let start): log = Log(start: start)
    case .drop: log = Log()
    case .setLogStart(let start):
      log.setStart(start)
    case .append(let batch):
      precondition(batch.summary.baseOffset == log.end, "appends follow the end")
      if batch.summary.leaderEpoch > log.epochs.last?.epoch ?? .none {
        log.epochs.append(
          EpochStart(epoch: batch.summary.leaderEpoch, start: batch.summary.baseOffset))
      }
      log.append(batch)
    case .startEpoch(let epoch):
      log.epochs.append(epoch)
    case .truncate(let end, let epochs):
      while let last = log.batches.last, last.summary.endOffset > end {
        precondition(last.summary.baseOffset >= end, "a cut lies between batches")
        log.removeLast()
      }
      log.epochs = epochs
    }
  }
}
