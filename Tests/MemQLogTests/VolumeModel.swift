// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport

/// What a volume must be able to give back: a naive model beside the real core on a crashable disk.
///
/// The model keeps, per partition, every state the partition went through; the log may come back as any state from the last
/// one that was acknowledged on, and only as such a whole.
struct VolumeModel {
  struct Version: Equatable {
    var exists = false
    /// Which opening of the partition this is; the uploaded offset belongs to it.
    var life = 0
    var logStart = Offset.zero
    var end = Offset.zero
    var epochs: [EpochStart] = []
    /// Every batch below the end, oldest first, with its bytes.
    var batches: [SyntheticBatch] = []
    /// Those below the log start that have a producer.
    var deleted: [BatchSummary] = []
  }

  struct Partition {
    let id: TopicPartition
    /// The first is durable; each change appends one.
    var versions: [Version] = [Version()]
    var requests: [RequestID?] = [nil]
    var uploadedOfLife = [Offset.zero]
    /// The leader's: rises with each truncate too, so that equal ends and epochs mean equal records.
    var epoch = LeaderEpoch(1)
    var now: Version { self.versions[self.versions.count - 1] }
    /// The highest local start that the volume told of, or that it had when the partition was opened or recovered.
    var toldStart = Offset.zero
    /// The highest end of a snapshot in this life: no truncate reaches below it.
    var snapshotted = Offset.zero
    var uploaded: Offset {
      get { self.uploadedOfLife[self.now.life] }
      set { self.uploadedOfLife[self.now.life] = newValue }
    }
  }

  var volume: SimulatedVolume
  var partitions: [Partition]
  var generator: SeededGenerator
  var time = MonotonicInstant(nanoseconds: 1_000_000_000)
  var wall = Timestamp(milliseconds: 1_700_000_000_000)
  private var nextRequest: UInt64 = 1
  var appends = 0
  var crashes = 0
  var cleanOpens = 0
  var refusals = 0

  /// Frames the cleaner copied, and cold segments it made, over all openings.
  var bytesCarried: Int64 = 0
  var segmentsCarried: UInt64 = 0
  /// Segments that went before the log could say why, for want of a segment to say it in.
  var segmentsFreedUnstated: UInt64 = 0
  /// Partitions other than the first have no producers, and so no snapshots that would bound truncates: these reach into what is
  /// being or was carried. The second has an object tier and keeps some bytes of what is uploaded.
  var truncatesDeep = false
  /// The most bytes of a batch's records.
  var bodyBytesMax = 20_000
  /// The least.
  var bodyBytesMin = 0

  init(seed: UInt64, segmentBytes: Int64 = 128 << 10, partitionCount: Int = 4, slotsMax: Int = 64) {
    self.generator = SeededGenerator(seed: seed)
    var configuration = LogConfiguration()
    configuration.groupBytesMax = 24 << 10
    configuration.pendingBytesMax = 96 << 10
    configuration.earlyWriteBytes = 4 << 10
    configuration.runBytesMax = 8 << 10
    configuration.carryGroupBytes = 16 << 10
    // A segment's end takes several steps, or one.
    if seed % 2 == 0 { configuration.rollSlice = 2 }
    // Two syncs at a time whenever something waits, or as long ones alone make it.
    if seed % 3 != 0 { configuration.syncsOverlapAbove = .zero }
    let identity = VolumeIdentity(
      cluster: ClusterID(UniqueID(high: 1, low: 2)), volume: VolumeID(UniqueID(high: 3, low: 4)),
      segmentBytes: segmentBytes)
    self.volume = SimulatedVolume(
      identity: identity, configuration: configuration, slotsMax: slotsMax)
    let topic = TopicID(UniqueID(high: 5, low: 6))
    self.partitions = (0..<partitionCount).map {
      Partition(id: TopicPartition(topic, PartitionIndex(Int32($0))))
    }
  }

  mutating func request(_ partition: Int) -> RequestID {
    defer { self.nextRequest += 1 }
    return RequestID(self.nextRequest)
  }

  // MARK: - Steps

  /// One random step of a user, the disk or time.
  mutating func step() throws {
    self.time = self.time + .microseconds(Int.random(in: 1...3_000, using: &self.generator))
    self.wall = Timestamp(milliseconds: self.wall.milliseconds + 1)
    if let wake = self.volume.wake, wake <= self.time { self.send(.tick) }
    let partition = Int.random(in: 0..<self.partitions.count, using: &self.generator)
    if self.truncatesDeep(partition), self.isCold,
      self.generator.oneIn(self.volume.isCarrying ? 3 : 20)
    {
      self.truncate(partition)
      // A full disk refuses it at once: nothing may be built on it.
      self.noteCompletions()
    }
    switch Int.random(in: 0..<100, using: &self.generator) {
    case 0..<38: self.append(partition)
    case 38..<40: self.truncate(partition)
    case 40..<42: self.startEpoch(partition)
    case 42..<44: self.raiseLogStart(partition)
    case 44..<45: self.drop(partition)
    case 45..<48: self.upload(partition)
    case 48..<50: self.snapshot(partition)
    case 50..<55: try self.check(partition)
    default: self.performDisk()
    }
    self.answerSnapshotsWanted()
    self.noteCompletions()
    try self.checkLocalStarts()
    guard self.volume.retiresUnderWay <= 1 else {
      throw ModelViolation(description: "segments are retired side by side, and appends wait")
    }
  }

  /// Lets time pass, with its tick.
  mutating func pass(_ time: Duration) {
    self.time = self.time + time
    self.send(.room(availableBytes: self.volume.availableBytes))
    if let wake = self.volume.wake, wake <= self.time { self.send(.tick) }
    self.drain()
  }

  /// Lets time pass, with its tick, while the disk is busy.
  mutating func pass(beforeDisk time: Duration) {
    self.time = self.time + time
    if let wake = self.volume.wake, wake <= self.time { self.send(.tick) }
  }

  mutating func send(_ event: VolumeCore.Event) {
    self.volume.handle(event, at: self.time, wall: self.wall)
  }

  mutating func performDisk() {
    guard !self.volume.outstanding.isEmpty else { return }
    let index = Int.random(in: 0..<self.volume.outstanding.count, using: &self.generator)
    self.volume.perform(index, at: self.time, wall: self.wall)
  }

  mutating func drain() {
    self.volume.drain(at: self.time, wall: self.wall)
    self.noteCompletions()
    while !self.volume.snapshotsWanted.isEmpty {
      self.answerSnapshotsWanted()
      self.volume.drain(at: self.time, wall: self.wall)
      self.noteCompletions()
    }
  }

  private mutating func change(
    _ partition: Int, _ request: RequestID, _ body: (inout Version) -> Void
  ) {
    var version = self.partitions[partition].now
    body(&version)
    self.partitions[partition].versions.append(version)
    self.partitions[partition].requests.append(request)
  }

  mutating func openIfNeeded(_ partition: Int) {
    guard !self.partitions[partition].now.exists else { return }
    let start = Offset(Int64.random(in: 0...20, using: &self.generator))
    let request = self.request(partition)
    self.partitions[partition].epoch = self.partitions[partition].epoch.next
    let epochs = [EpochStart(epoch: self.partitions[partition].epoch, start: start)]
    self.noteLocalStarts()
    self.partitions[partition].toldStart = start
    let life = self.partitions[partition].uploadedOfLife.count
    self.partitions[partition].uploadedOfLife.append(.zero)
    self.partitions[partition].snapshotted = .zero
    self.change(partition, request) {
      $0 = Version(exists: true, life: life, logStart: start, end: start, epochs: epochs)
    }
    self.send(
      .openPartition(request, self.partitions[partition].id, logStart: start, epochs: epochs))
    self.send(.setLocalRetention(self.partitions[partition].id, self.retention(partition)))
  }

  private func truncatesDeep(_ partition: Int) -> Bool { self.truncatesDeep && partition > 0 }

  /// Whether something is or is being carried.
  private var isCold: Bool {
    self.volume.isCarrying || (self.volume.core?.stats.segmentsCold ?? 0) > 0
  }

  /// Every third partition has no object tier.
  func hasObjectTier(_ partition: Int) -> Bool { partition % 3 != 2 }

  func retention(_ partition: Int) -> LocalRetention {
    if self.truncatesDeep, partition == 1 {
      return LocalRetention(bytes: 1_000, hasObjectTier: true)
    }
    return LocalRetention(
      bytes: partition % 2 == 0 ? 0 : nil, hasObjectTier: self.hasObjectTier(partition))
  }

  mutating func append(_ partition: Int) {
    self.openIfNeeded(partition)
    self.noteCompletions()
    // A full disk may have refused to open it.
    guard self.partitions[partition].now.exists else { return }
    let count = Int.random(in: 1...3, using: &self.generator)
    var batches: [(partition: TopicPartition, batch: SyntheticBatch)] = []
    var version = self.partitions[partition].now
    let epoch = self.partitions[partition].epoch
    if epoch > version.epochs.last?.epoch ?? .none {
      version.epochs.append(EpochStart(epoch: epoch, start: version.end))
    }
    // Each batch is durable as a whole; several of one request may end up in different groups.
    var versions: [Version] = []
    for _ in 0..<count {
      let batch = self.batch(at: version.end, epoch: epoch, partition)
      version.batches.append(batch)
      version.end = batch.summary.endOffset
      versions.append(version)
      batches.append((self.partitions[partition].id, batch))
    }
    let request = self.request(partition)
    let reserved = self.reservation(for: batches.map(\.batch.bytes.count))
    do throws(MemQError) {
      try self.volume.append(
        batches, request: request, reserved: reserved.places, at: self.time, wall: self.wall)
      self.appends += 1
    } catch {
      // Refused as a whole: nothing changed.
      precondition(error.isRetriable && (error.code != .volumeFull || !reserved.isWhole))
      self.volume.release(reserved.places)
      return self.refusals += 1
    }
    self.partitions[partition].versions += versions
    self.partitions[partition].requests += repeatElement(nil, count: count - 1) + [request]
  }

  /// Every other time places are reserved first, as a leader does it; for as many of the batches as there are places.
  private mutating func reservation(
    for byteCounts: [Int]
  ) -> (places: RoomReservation, isWhole: Bool) {
    var places = RoomReservation()
    guard self.nextRequest.isMultiple(of: 2) else { return (places, false) }
    for byteCount in byteCounts {
      guard let place = self.volume.reserve(byteCount) else { return (places, false) }
      places += place
    }
    return (places, true)
  }

  private mutating func batch(
    at base: Offset, epoch: LeaderEpoch, _ partition: Int
  ) -> SyntheticBatch {
    let records = Int64.random(in: 1...5, using: &self.generator)
    let bytes =
      self.generator.oneIn(12)
      ? Int.random(in: 0..<self.bodyBytesMax, using: &self.generator)
      : Int.random(in: 0..<min(1_200, self.bodyBytesMax), using: &self.generator)
    let hasProducer =
      self.generator.oneIn(2) && !self.truncatesDeep(partition)
    let summary = BatchSummary(
      baseOffset: base, endOffset: base + records, leaderEpoch: epoch,
      producerID: hasProducer ? ProducerID(7) : .none,
      producerEpoch: hasProducer ? ProducerEpoch(0) : .none,
      baseSequence: hasProducer ? Int32(truncatingIfNeeded: base.rawValue) : -1,
      maxTimestamp: self.wall, appendTime: self.wall)
    return SyntheticBatch(
      summary, bodyBytes: max(bytes, self.bodyBytesMin), using: &self.generator)
  }

  mutating func truncate(_ partition: Int) {
    let version = self.partitions[partition].now
    guard version.exists, !version.batches.isEmpty else { return }
    self.truncate(
      partition, keeping: Int.random(in: 0..<version.batches.count, using: &self.generator))
  }

  private mutating func truncate(_ partition: Int, keeping keep: Int) {
    let version = self.partitions[partition].now
    let end = version.batches[keep].summary.baseOffset
    guard end >= version.logStart, end >= self.partitions[partition].uploaded,
      end >= self.partitions[partition].snapshotted
    else { return }
    let request = self.request(partition)
    self.change(partition, request) { version in
      version.batches.removeSubrange(keep...)
      version.end = end
      version.epochs.removeAll { $0.start >= end }
    }
    self.partitions[partition].epoch = self.partitions[partition].epoch.next
    self.send(.truncate(request, self.partitions[partition].id, to: end, epochs: nil))
  }

  /// Cuts what has an object tier to little more than what is uploaded, and writes less anew than was cut, in two segments at least. The
  /// first of them is uploaded: a cleaner carries what follows alone.
  mutating func rewrite(_ partition: Int) {
    let (version, uploaded) = (self.partitions[partition].now, self.partitions[partition].uploaded)
    guard version.exists,
      let first = version.batches.firstIndex(where: { $0.summary.baseOffset >= uploaded })
    else { return }
    let least = min(first + Int.random(in: 0...2, using: &self.generator), version.batches.count)
    let cut = version.batches.count - least
    guard cut > 8 else { return }
    self.truncate(partition, keeping: least)
    self.noteCompletions()
    for _ in 0..<Int.random(in: 1...(cut / 6), using: &self.generator) { self.append(partition) }
    self.drain()
    let begun = self.partitions[partition].now.end
    self.fill { UInt64($0.segmentsRolled) }
    for _ in 0..<Int.random(in: 1...4, using: &self.generator) { self.append(partition) }
    self.drain()
    guard self.partitions[partition].versions.map(\.end).min()! >= begun else { return }
    self.partitions[partition].uploaded = max(begun, self.partitions[partition].uploaded)
    self.send(.setUploadedOffset(self.partitions[partition].id, begun))
    self.send(.setHighWatermark(self.partitions[partition].id, begun))
  }

  /// Appends to the first partition, which is uploaded at once, until the number rises: segments roll, and the cleaner finds work.
  mutating func fill(until number: (SimulatedVolume) -> UInt64) {
    let before = number(self.volume)
    self.bodyBytesMin = self.bodyBytesMax
    defer { self.bodyBytesMin = 0 }
    for _ in 0..<200 where number(self.volume) == before {
      self.append(0)
      self.drain()
      self.upload(0)
      self.pass(.milliseconds(500))
    }
  }

  mutating func startEpoch(_ partition: Int) {
    let version = self.partitions[partition].now
    guard version.exists else { return }
    self.partitions[partition].epoch = self.partitions[partition].epoch.next
    let entry = EpochStart(epoch: self.partitions[partition].epoch, start: version.end)
    let request = self.request(partition)
    self.change(partition, request) { $0.epochs.append(entry) }
    self.send(.startEpoch(request, self.partitions[partition].id, entry))
  }

  mutating func raiseLogStart(_ partition: Int, to newStart: Offset? = nil) {
    let version = self.partitions[partition].now
    guard version.exists else { return }
    let resets = newStart == nil && self.generator.oneIn(6)
    let start =
      newStart
      ?? (resets
        ? version.end + Int64.random(in: 1...5, using: &self.generator)
        : Offset(
          Int64.random(in: version.logStart.rawValue...version.end.rawValue, using: &self.generator)
        ))
    let request = self.request(partition)
    self.change(partition, request) { version in
      version.logStart = start
      version.end = max(version.end, start)
      let kept = version.batches.firstIndex { $0.summary.endOffset > start }
      let gone = version.batches[..<(kept ?? version.batches.count)].map(\.summary)
      version.deleted += gone.filter { $0.producerID.rawValue >= 0 }
      version.batches.removeFirst(gone.count)
      let keep = version.epochs.lastIndex { $0.start < start } ?? 0
      version.epochs.removeFirst(keep)
    }
    self.send(.setLogStart(request, self.partitions[partition].id, start))
  }

  mutating func drop(_ partition: Int) {
    guard self.partitions[partition].now.exists, self.generator.oneIn(3) else { return }
    let request = self.request(partition)
    self.change(partition, request) { $0 = Version() }
    self.send(.dropPartition(request, self.partitions[partition].id))
  }

  /// Marks acknowledged records as uploaded: they may leave this disk.
  mutating func upload(_ partition: Int) {
    let durable = self.partitions[partition].versions[0]
    guard durable.exists, self.partitions[partition].now.exists, self.hasObjectTier(partition)
    else { return }
    // Only what every state from the durable one on has in common counts as committed.
    var committed = self.partitions[partition].versions.map(\.end).min()!
    if self.truncatesDeep(partition) {
      // In parts, so that something is left to truncate.
      let start = self.partitions[partition].uploaded
      let part = durable.batches.map(\.summary.endOffset).filter { $0 > start && $0 <= committed }
      committed = part.isEmpty ? committed : part[part.count / 3]
    }
    guard committed > self.partitions[partition].uploaded,
      self.partitions[partition].versions.allSatisfy(\.exists)
    else { return }
    // A follower that keeps nothing of what is uploaded may hear of more than it has.
    let isAhead =
      self.nextRequest.isMultiple(of: 4) && self.retention(partition).bytes == 0
      && !self.truncatesDeep(partition)
    if isAhead { committed = self.partitions[partition].now.end + 8 }
    self.partitions[partition].uploaded = committed
    self.send(.setUploadedOffset(self.partitions[partition].id, committed))
    self.send(
      .setHighWatermark(
        self.partitions[partition].id, min(committed, self.partitions[partition].now.end)))
  }

  /// Snapshots cover what no truncate reaches, as the rules of replication have it.
  mutating func snapshot(_ partition: Int) {
    guard self.partitions[partition].versions.allSatisfy(\.exists),
      !self.truncatesDeep(partition)
    else { return }
    let end = self.partitions[partition].versions.map(\.end).min()!
    self.partitions[partition].snapshotted = max(self.partitions[partition].snapshotted, end)
    let text = "producers below \(end)"
    self.send(.setProducerSnapshot(self.partitions[partition].id, Array(text.utf8), at: end))
  }

  private mutating func answerSnapshotsWanted() {
    let wanted = self.volume.snapshotsWanted
    self.volume.snapshotsWanted = []
    for index in self.partitions.indices where wanted.contains(self.partitions[index].id) {
      self.snapshot(index)
    }
  }

  // MARK: - Completions

  mutating func noteCompletions() {
    for (request, result) in self.volume.takeCompletions() {
      for partition in self.partitions.indices {
        guard let index = self.partitions[partition].requests.firstIndex(of: request) else {
          continue
        }
        switch result {
        case .success:
          // Acknowledged: no earlier state may come back.
          self.partitions[partition].versions.removeFirst(index)
          self.partitions[partition].requests.removeFirst(index)
        case .failure(let error):
          self.forget(partition, index, error)
        }
      }
    }
  }

  /// No earlier state may come back.
  mutating func acknowledge(_ request: RequestID) {
    for partition in self.partitions.indices {
      guard let index = self.partitions[partition].requests.firstIndex(of: request) else {
        continue
      }
      self.partitions[partition].versions.removeFirst(index)
      self.partitions[partition].requests.removeFirst(index)
    }
  }

  /// A state change that was refused at once takes its state with it.
  private mutating func forget(_ partition: Int, _ index: Int, _ error: MemQError) {
    guard self.volume.failure == nil else { return }
    precondition(index == self.partitions[partition].versions.count - 1, "\(error)")
    self.partitions[partition].versions.remove(at: index)
    self.partitions[partition].requests.remove(at: index)
    self.refusals += 1
  }
}
