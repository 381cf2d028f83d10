// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

/// Partition 0 fills the disk and leaves it, 1 has an object tier and keeps little, 2 has none.
@Suite struct CarriedTruncateTests {
  struct Rig {
    var volume: SimulatedVolume
    var time = MonotonicInstant(nanoseconds: 1_000_000_000)
    let wall = Timestamp(milliseconds: 1_700_000_000_000)
    var request: UInt64 = 1
    var ends: [Int32: Offset] = [:]
    var generator = SeededGenerator(seed: 5)
    var batches: [SyntheticBatch] = []
    var stopAt: UInt64 = .max
    /// The group that names the next cold segment after `stopAt`, counted from the opening.
    var carriedIn: UInt64?
    /// That is durable, and something waits to be retired.
    var isStopped = false
    mutating func drain() {
      while !self.isStopped, !self.volume.outstanding.isEmpty {
        self.volume.perform(0, at: self.time, wall: self.wall)
        let retires = self.volume.outstanding.contains {
          if case .retire = $0 { true } else { false }
        }
        let counters = self.volume.core!.stats.counters
        if self.carriedIn == nil, counters.segmentsCarried > self.stopAt {
          self.carriedIn = counters.groupsWritten
        }
        if retires, let group = self.carriedIn, counters.groupsDurable >= group {
          self.isStopped = true
        }
      }
    }
    init() {
      var configuration = LogConfiguration()
      configuration.groupBytesMax = 24 << 10
      configuration.pendingBytesMax = 96 << 10
      configuration.earlyWriteBytes = 4 << 10
      configuration.runBytesMax = 8 << 10
      configuration.carryGroupBytes = 16 << 10
      self.volume = SimulatedVolume(
        identity: VolumeIdentity(
          cluster: ClusterID(UniqueID(high: 1, low: 2)),
          volume: VolumeID(UniqueID(high: 3, low: 4)),
          segmentBytes: 64 << 10), configuration: configuration, slotsMax: 12)
    }
    func id(_ p: Int32) -> TopicPartition {
      TopicPartition(TopicID(UniqueID(high: 5, low: 6)), PartitionIndex(p))
    }
    mutating func send(_ event: VolumeCore.Event) {
      self.volume.handle(event, at: self.time, wall: self.wall)
      self.drain()
    }
    mutating func next() -> RequestID {
      self.request += 1
      return RequestID(self.request)
    }
    mutating func append(
      _ p: Int32, records: Int64, epoch: Int64, body: Int, producer: ProducerID = .none
    ) throws {
      let base = self.ends[p] ?? .zero
      let summary = BatchSummary(
        baseOffset: base, endOffset: base + records, leaderEpoch: LeaderEpoch(epoch),
        producerID: producer, producerEpoch: producer == .none ? .none : ProducerEpoch(0),
        baseSequence: producer == .none ? -1 : Int32(base.rawValue), maxTimestamp: self.wall,
        appendTime: self.wall)
      let batch = SyntheticBatch(summary, bodyBytes: body, using: &self.generator)
      try self.volume.append(
        [(self.id(p), batch)], request: self.next(), at: self.time, wall: self.wall)
      self.drain()
      self.ends[p] = base + records
    }
    mutating func pass() {
      self.time = self.time + .seconds(1)
      self.volume.handle(
        .room(availableBytes: self.volume.availableBytes), at: self.time, wall: self.wall)
      self.send(.tick)
    }
    mutating func retain() {
      self.send(.setLocalRetention(self.id(0), LocalRetention(bytes: 0, hasObjectTier: true)))
      self.send(.setLocalRetention(self.id(1), LocalRetention(bytes: 10, hasObjectTier: true)))
      self.send(.setLocalRetention(self.id(2), LocalRetention(hasObjectTier: false)))
    }
    /// Filler, uploaded at once.
    mutating func fill(until done: (Rig) -> Bool) throws {
      for _ in 0..<4000 {
        if done(self) { return }
        // A full volume refuses: the cleaner makes room.
        try? self.append(0, records: 1, epoch: 1, body: 3_000)
        self.send(.setUploadedOffset(self.id(0), self.ends[0] ?? .zero))
        self.pass()
      }
      Issue.record("never done \(self.volume.core!.stats)")
    }
  }

  @Test func `truncated records of a cold segment stay dead where what follows was not carried`()
    throws
  {
    #expect(try self.epochsAboveTruncate([]) == [LeaderEpoch(2)])
    // As a restart would have it that goes by the cold end alone.
    #expect(try self.epochsAboveTruncate(.ignoresColdCuts).contains(LeaderEpoch(1)))
  }

  @Test func `a younger cold segment that is gone gives no truncated records of an older one back`()
    throws
  {
    var rig = Rig()
    try self.carryTwice(&rig, [])
    rig.volume.kill()
    var disk = rig.volume.disk
    let cold = try disk.slots.compactMap { slot in
      try SegmentInspector.header(slot, from: &disk).flatMap { $0.kind == .cold ? $0 : nil }
    }
    #expect(cold.count > 1)
    let young = try #require(cold.max { $0.sequence < $1.sequence })
    let identity = rig.volume.identity
    var files = FilesWithout(disk: disk, missing: young.slot)
    #expect(throws: MemQError.self) {
      try VolumeRecovery.run(identity, from: &files, salvage: .isolate)
    }
    let found = try VolumeRecovery.run(identity, from: &files, salvage: .acceptLoss)
    // Of the tiered one nothing below what is uploaded is missed, and nothing is left here: what the older segment has of it was
    // released, or truncated. Of the other that one has the first 130.
    #expect(found.partitions.map(\.damagedFrom) == [nil, Offset(80), Offset(130)])
    #expect(
      found.partitions[1].localStart == Offset(120) && found.partitions[2].localStart == .zero)
  }

  /// A disk one of whose files is gone.
  private struct FilesWithout: SegmentSource {
    var disk: CrashableDisk
    let missing: SegmentSlot
    var slots: [SegmentSlot] { self.disk.slots.filter { $0 != self.missing } }

    mutating func read(
      _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
    ) throws(MemQError) {
      try self.disk.read(slot, at: position, into: bytes)
    }
  }

  /// The epochs of what is at or above a truncate after a restart, where a younger cold segment begins some way above it.
  private func epochsAboveTruncate(_ mutations: LogMutations) throws -> Set<LeaderEpoch> {
    var rig = Rig()
    try self.carryTwice(&rig, mutations)
    rig.volume.kill()
    _ = try rig.volume.open(at: rig.time, wall: rig.wall)
    rig.volume.drain(at: rig.time, wall: rig.wall)
    rig.retain()
    let state = rig.volume.core!.state(of: rig.id(1))!
    var offset = state.localStart
    var epochs: Set<LeaderEpoch> = []
    while offset < Offset(120) {
      let batches = try rig.volume.read(rig.id(1), from: offset, below: Offset(120), maxBytes: 1)
      let batch = try #require(batches.first)
      if batch.summary.baseOffset >= Offset(50) { epochs.insert(batch.summary.leaderEpoch) }
      offset = batch.summary.endOffset
    }
    return epochs
  }

  /// Leaves an older cold segment with records that were truncated since, and a younger one with what was written after that and is not
  /// uploaded; what freed the originals is not retired yet.
  private func carryTwice(_ rig: inout Rig, _ mutations: LogMutations) throws {
    rig.volume.configuration.mutations = mutations
    _ = try rig.volume.open(at: rig.time, wall: rig.wall)
    rig.volume.drain(at: rig.time, wall: rig.wall)
    for p in Int32(0)..<3 {
      rig.send(.openPartition(rig.next(), rig.id(p), logStart: .zero, epochs: []))
    }
    rig.retain()
    for _ in 0..<10 { try rig.append(1, records: 10, epoch: 1, body: 300) }
    for _ in 0..<13 { try rig.append(2, records: 10, epoch: 1, body: 3_000) }
    // A: both are carried.
    try rig.fill { $0.volume.core!.stats.counters.segmentsCarried >= 1 }
    rig.send(
      .truncate(
        rig.next(), rig.id(1), to: Offset(50),
        epochs: [EpochStart(epoch: LeaderEpoch(1), start: .zero)]))
    rig.ends[1] = Offset(50)
    for _ in 0..<3 { try rig.append(1, records: 10, epoch: 2, body: 300) }
    let rolled = rig.volume.segmentsRolled
    try rig.fill { $0.volume.segmentsRolled > rolled }
    for _ in 0..<4 { try rig.append(1, records: 10, epoch: 2, body: 300) }
    rig.send(.setUploadedOffset(rig.id(1), Offset(80)))
    rig.send(.setHighWatermark(rig.id(1), Offset(80)))
    rig.stopAt = rig.volume.core!.stats.counters.segmentsCarried
    // These may bring the cleaner to it.
    for _ in 0..<10 { try rig.append(2, records: 10, epoch: 1, body: 3_000) }
    try rig.fill { $0.isStopped }
  }

  @Test func `a cut below the high watermark lowers it, for a restart too`() throws {
    var rig = Rig()
    _ = try rig.volume.open(at: rig.time, wall: rig.wall)
    rig.volume.drain(at: rig.time, wall: rig.wall)
    rig.send(.openPartition(rig.next(), rig.id(0), logStart: .zero, epochs: []))
    try rig.append(0, records: 10, epoch: 1, body: 100)
    try rig.append(0, records: 10, epoch: 1, body: 100)
    rig.send(.setHighWatermark(rig.id(0), Offset(20)))
    rig.time = rig.time + .seconds(1)
    rig.send(.tick)
    rig.send(.truncate(rig.next(), rig.id(0), to: Offset(10), epochs: nil))
    rig.ends[0] = Offset(10)
    try rig.append(0, records: 10, epoch: 2, body: 100)
    #expect(rig.volume.core?.state(of: rig.id(0))?.highWatermark == Offset(10))
    rig.volume.kill()
    let recovered = try rig.volume.open(at: rig.time, wall: rig.wall)
    let partition = try #require(recovered.first { $0.partition == rig.id(0) })
    #expect(partition.end == Offset(20) && partition.highWatermark == Offset(10))
  }

  @Test func `carried producers below the log start are known after a restart`() throws {
    var rig = Rig()
    _ = try rig.volume.open(at: rig.time, wall: rig.wall)
    rig.volume.drain(at: rig.time, wall: rig.wall)
    for p in Int32(0)..<3 {
      rig.send(.openPartition(rig.next(), rig.id(p), logStart: .zero, epochs: []))
    }
    rig.retain()
    for _ in 0..<10 {
      try rig.append(2, records: 10, epoch: 1, body: 300, producer: ProducerID(7))
    }
    rig.send(.setLogStart(rig.next(), rig.id(2), Offset(100)))
    // Nobody gives a snapshot.
    try rig.fill {
      let stats = $0.volume.core!.stats
      return stats.counters.segmentsCarried >= 1 && stats.counters.segmentsReclaimed >= 1
    }
    rig.volume.kill()
    let recovered = try rig.volume.open(at: rig.time, wall: rig.wall)
    let partition = try #require(recovered.first { $0.partition == rig.id(2) })
    #expect(partition.logStart == Offset(100) && partition.localStart == Offset(100))
    #expect(
      partition.batchesAfterSnapshot.map(\.baseOffset.rawValue)
        == Array(stride(from: 0, to: 100, by: 10)))
  }
}
