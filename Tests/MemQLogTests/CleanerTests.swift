// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

/// Two partitions on a small disk by hand: 0 has an object tier, 2 has none.
@Suite struct CleanerTests {
  private static let tiered = 0
  private static let kept = 2

  private func model(slotsMax: Int = 10) throws -> VolumeModel {
    var model = VolumeModel(seed: 7, segmentBytes: 64 << 10, partitionCount: 3, slotsMax: slotsMax)
    model.bodyBytesMax = 3_000
    try model.open()
    model.drain()
    return model
  }

  private func stats(_ model: VolumeModel) -> LogStats { model.volume.core!.stats }

  /// Appends to both until the volume refuses.
  private func fill(_ model: inout VolumeModel) {
    let before = model.refusals
    var rounds = 0
    while model.refusals == before, rounds < 2_000 {
      model.append(Self.tiered)
      if rounds % 3 == 0 { model.append(Self.kept) }
      model.drain()
      rounds += 1
    }
  }

  private func checkAll(_ model: inout VolumeModel) throws {
    for index in model.partitions.indices { try model.check(index) }
  }

  @Test func `a disk full of records with and without an object tier heals by uploads alone`()
    throws
  {
    var model = try self.model()
    self.fill(&model)
    #expect(self.stats(model).segmentsFree <= 2)
    let held = model.partitions[Self.kept].now
    for _ in 0..<6 {
      model.upload(Self.tiered)
      model.pass(.seconds(1))
    }
    let stats = self.stats(model)
    #expect(stats.segmentsCold > 0 && stats.segmentsFree >= 4)
    #expect(stats.counters.bytesCarried > 0)
    // Nothing of what has no other home left, and it reads back, now and after a crash.
    #expect(
      model.volume.core?.state(of: model.partitions[Self.kept].id)?.localStart == held.logStart)
    try self.checkAll(&model)
    for _ in 0..<40 {
      model.append(Self.tiered)
      model.drain()
    }
    #expect(model.volume.core?.hasRoom == true)
    try model.crash()
    try self.checkAll(&model)
  }

  @Test func `one upload that is stuck does not fill the disk for others`() throws {
    var model = try self.model(slotsMax: 12)
    // Partition 1 has an object tier too and is never uploaded; it stays small.
    for _ in 0..<8 {
      model.append(1)
      model.drain()
    }
    let stuck = model.partitions[1].now
    for _ in 0..<900 {
      model.append(Self.tiered)
      model.drain()
      model.upload(Self.tiered)
      model.pass(.milliseconds(100))
    }
    #expect(model.refusals == 0)
    #expect(self.stats(model).counters.segmentsReclaimed > 5)
    #expect(model.volume.core?.state(of: model.partitions[1].id)?.localStart == stuck.logStart)
    try self.checkAll(&model)
    try model.crash()
    try self.checkAll(&model)
  }

  @Test func `retention and a drop free cold segments`() throws {
    var model = try self.model()
    self.fill(&model)
    for _ in 0..<6 {
      model.upload(Self.tiered)
      model.pass(.seconds(1))
    }
    #expect(self.stats(model).segmentsCold > 0)
    let core = try #require(model.volume.core)
    let id = model.partitions[Self.kept].id
    let state = try #require(core.state(of: id))
    // Whole spans, in order, across cold and hot segments.
    let half = try #require(
      core.retentionStart(id, bytes: state.localBytes / 2, appendedSince: nil))
    #expect(half > state.logStart && half < state.end)
    #expect(core.retentionStart(id, bytes: state.localBytes, appendedSince: nil) == nil)
    model.raiseLogStart(Self.kept, to: half)
    model.pass(.seconds(1))
    model.pass(.seconds(1))
    try self.checkAll(&model)
    model.send(.dropPartition(RequestID(1 << 40), id))
    model.drain()
    for _ in 0..<3 { model.pass(.seconds(1)) }
    #expect(self.stats(model).segmentsCold == 0)
  }

  @Test func `a damaged source is reported and never carried, others are`() throws {
    var model = try self.model()
    self.fill(&model)
    // A byte in the middle of a batch of the oldest segment.
    var disk = model.volume.disk
    var place: (slot: SegmentSlot, position: Int64)?
    let id = model.partitions[Self.kept].id
    let hot = try disk.slots.compactMap { slot in
      try SegmentInspector.header(slot, from: &disk).flatMap { $0.kind == .hot ? $0 : nil }
    }
    for header in hot.sorted(by: { $0.sequence < $1.sequence }) where place == nil {
      _ = try SegmentInspector.inspect(header.slot, from: &disk) { frame, payload in
        guard frame.header.type == .batch, frame.header.partition == id else { return true }
        place = (header.slot, frame.place.position + 80 + Int64(payload.count) / 2)
        return false
      }
    }
    let damage = try #require(place)
    model.volume.disk.flip(bit: 4, at: Int(damage.position), of: damage.slot)
    for _ in 0..<4 {
      model.upload(Self.tiered)
      model.pass(.seconds(1))
    }
    #expect(model.volume.damages.map(\.partition) == [id])
    #expect(model.volume.damages.first?.error.code == .logCorrupt)
    #expect(
      model.volume.core?.state(of: id)?.localStart == model.partitions[Self.kept].now.logStart)
  }

  @Test func `a partition at its cap is slowed, then refused, and no other is`() throws {
    var model = try self.model(slotsMax: 40)
    model.append(Self.tiered)
    model.append(Self.kept)
    model.drain()
    let id = model.partitions[Self.tiered].id
    model.send(
      .setLocalRetention(id, LocalRetention(hasObjectTier: true, capBytes: 512 << 10)))
    var wasSlowed = false
    var refusal: MemQError?
    for _ in 0..<2_000 where refusal == nil {
      switch try #require(model.volume.core).room(of: id, for: 1_000) {
      case .open: #expect(!wasSlowed)
      case .slowed(let delay):
        wasSlowed = true
        #expect(delay > .zero && delay <= .milliseconds(500))
      case .full(let error): refusal = error
      }
      model.append(Self.tiered)
      model.drain()
    }
    #expect(wasSlowed && refusal?.code == .partitionQuotaExceeded && refusal?.isRetriable == true)
    #expect(refusal?.subject == id.description)
    #expect(self.stats(model).partitionsAtCap == 1)
    #expect(model.volume.core?.room(of: model.partitions[Self.kept].id, for: 1_000) == .open)
    // Uploads alone open it again, those in the middle of a segment, too.
    let state = try #require(model.volume.core?.state(of: id))
    let middle = Offset((state.logStart.rawValue + state.end.rawValue) / 2)
    model.send(.setUploadedOffset(id, middle))
    #expect(model.volume.core?.room(of: id, for: 1_000) == .open)
    model.upload(Self.tiered)
    #expect(model.volume.core?.room(of: id, for: 1_000) == .open)
  }

  @Test func `retention by age counts run by run in the segment that is being written`() throws {
    var fixture = try Fixture()
    var ends: [Offset] = []
    let began = fixture.wall
    for _ in 0..<4 {
      try fixture.append()
      fixture.drain()
      ends.append(fixture.end)
      fixture.wall = Timestamp(milliseconds: fixture.wall.milliseconds + 1_000)
    }
    let core = try #require(fixture.volume.core)
    #expect(core.stats.segmentsUsed == 1)
    func start(since seconds: Int64) -> Offset? {
      let since = Timestamp(milliseconds: began.milliseconds + seconds * 1_000)
      return core.retentionStart(Fixture.partition, bytes: nil, appendedSince: since)
    }
    #expect(start(since: 0) == nil && start(since: 2) == ends[1] && start(since: 9) == ends[3])
    // By size it stays with whole segments.
    #expect(core.retentionStart(Fixture.partition, bytes: 1, appendedSince: nil) == nil)
  }

  @Test func `a copy that begins above 0 is no reason to delete what is below`() throws {
    var fixture = try Fixture()
    let partition = TopicPartition(
      TopicID(UniqueID(high: 7, low: 8)), PartitionIndex(0))
    let start = Offset(1_000)
    fixture.send(
      .openPartition(
        fixture.next(), partition, logStart: start,
        epochs: [EpochStart(epoch: LeaderEpoch(1), start: start)]))
    fixture.drain()
    let core = try #require(fixture.volume.core)
    #expect(core.state(of: partition)?.logStart == start)
    let aWeekAgo = Timestamp(milliseconds: fixture.wall.milliseconds - 7 * 86_400_000)
    #expect(core.retentionStart(partition, bytes: nil, appendedSince: aWeekAgo) == nil)
    #expect(core.retentionStart(partition, bytes: 1 << 30, appendedSince: nil) == nil)
  }
}
