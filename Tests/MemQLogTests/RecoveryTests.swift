// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

/// A small volume with one partition, driven by hand.
struct Fixture {
  static let partition = TopicPartition(TopicID(UniqueID(high: 5, low: 6)), PartitionIndex(0))
  var volume: SimulatedVolume
  var generator = SeededGenerator(seed: 1)
  var now = MonotonicInstant(nanoseconds: 1_000_000_000)
  var wall = Timestamp(milliseconds: 1_700_000_000_000)
  var end = Offset.zero
  private var request: UInt64 = 0

  init(segmentBytes: Int64 = 64 << 10) throws {
    let identity = VolumeIdentity(
      cluster: ClusterID(UniqueID(high: 1, low: 2)), volume: VolumeID(UniqueID(high: 3, low: 4)),
      segmentBytes: segmentBytes)
    self.volume = SimulatedVolume(identity: identity)
    _ = try self.volume.open(at: self.now, wall: self.wall)
    self.volume.drain(at: self.now, wall: self.wall)
    self.send(.openPartition(self.next(), Self.partition, logStart: .zero, epochs: []))
    self.drain()
  }

  mutating func next() -> RequestID {
    self.request += 1
    return RequestID(self.request)
  }

  mutating func send(_ event: VolumeCore.Event) {
    self.volume.handle(event, at: self.now, wall: self.wall)
  }

  mutating func drain() { self.volume.drain(at: self.now, wall: self.wall) }

  /// Appends a batch of about `bodyBytes` without doing its disk work.
  mutating func append(bodyBytes: Int = 1_500) throws {
    let summary = BatchSummary(
      baseOffset: self.end, endOffset: self.end + 3, leaderEpoch: LeaderEpoch(1),
      maxTimestamp: self.wall, appendTime: self.wall)
    let batch = SyntheticBatch(summary, bodyBytes: bodyBytes, using: &self.generator)
    try self.volume.append(
      [(Self.partition, batch)], request: self.next(), at: self.now, wall: self.wall)
    self.end = summary.endOffset
  }

  /// Waits until the idle mark is due, and writes it.
  mutating func idle() {
    self.now = self.now + .milliseconds(25)
    self.send(.tick)
    self.drain()
  }

  mutating func recover() throws(MemQError) -> RecoveredVolume {
    try VolumeRecovery.run(self.volume.identity, from: &self.volume.disk)
  }

  /// Where the log ends in its active segment.
  var logEnd: LogPlace { self.volume.core!.stats.durable }
  var activeSlot: SegmentSlot {
    get throws {
      var disk = self.volume.disk
      let active = self.logEnd.segment
      return try #require(
        disk.slots.first { try SegmentInspector.header($0, from: &disk)?.sequence == active })
    }
  }
}

@Suite struct RecoveryTests {
  @Test func `two segments in a row that were begun and given up leave the volume as it was`()
    throws
  {
    var fixture = try Fixture()
    for _ in 0..<5 {
      try fixture.append()
      fixture.drain()
    }
    fixture.idle()
    let (end, active) = (fixture.logEnd, try fixture.activeSlot)
    fixture.volume.kill()
    let free = fixture.volume.disk.slots.filter { $0 != active }
    try #require(free.count >= 2)
    let identity = fixture.volume.identity
    for (index, slot) in free.prefix(2).enumerated() {
      let header = SegmentHeader(
        kind: .hot, slot: slot, cluster: identity.cluster, volume: identity.volume,
        sequence: SegmentSequence(end.segment.rawValue + 1 + UInt64(index)),
        segmentBytes: identity.segmentBytes, previousEnd: end, previousChecksum: 0,
        openCount: 2 + UInt64(index), writeTime: fixture.wall)
      var block = [UInt8](repeating: 0, count: LogFormat.blockBytes)
      block.withUnsafeMutableBytes { _ = header.encode(into: $0) }
      fixture.volume.disk.write(block, to: slot, at: 0)
    }
    let recovered = try fixture.recover()
    #expect(recovered.end == end && recovered.partitions.map(\.end) == [fixture.end])
  }

  @Test func `damage below the durable mark is corruption with its place`() throws {
    var fixture = try Fixture()
    for _ in 0..<5 {
      try fixture.append()
      fixture.drain()
    }
    fixture.idle()
    let end = fixture.logEnd
    let slot = try fixture.activeSlot
    fixture.volume.kill()
    // Any block before the mark-only group is below the mark it carries.
    for position in stride(from: 4_096, to: Int(end.position) - 4_096, by: 517) {
      var damaged = fixture
      damaged.volume.disk.flip(bit: 3, at: position, of: slot)
      do throws(MemQError) {
        let recovered = try damaged.recover()
        Issue.record("position \(position) was accepted: \(recovered.partitions)")
      } catch {
        #expect(error.code == .logCorrupt)
        #expect(error.subject.hasPrefix("segment \(end.segment) position "))
      }
    }
  }

  @Test func `the last group torn at every sector is cut, everything before it stays`() throws {
    var fixture = try Fixture()
    for _ in 0..<3 {
      try fixture.append()
      fixture.drain()
    }
    fixture.idle()
    let before = fixture.logEnd
    let slot = try fixture.activeSlot
    try fixture.append(bodyBytes: 9_000)
    fixture.drain()
    let after = fixture.logEnd
    let whole = fixture.volume.disk.bytes(of: slot)
    fixture.volume.kill()
    for cut in stride(from: before.position, to: after.position, by: 512) {
      // Where only padding is left, nothing is lost.
      guard whole[Int(cut)..<Int(after.position)].contains(where: { $0 != 0 }) else { break }
      var torn = fixture
      let zeros = [UInt8](repeating: 0, count: Int(after.position - cut))
      torn.volume.disk.write(zeros, to: slot, at: cut)
      let recovered = try torn.recover()
      #expect(recovered.end == before)
      #expect(recovered.partitions.first?.end == Offset(9))
      // The other way round: the tail of the group is there, its start is not.
      torn = fixture
      let head = [UInt8](repeating: 0, count: Int(cut - before.position) + 1)
      torn.volume.disk.write(head, to: slot, at: before.position)
      #expect(try torn.recover().end == before)
    }
    #expect(try fixture.recover().end == after)
    #expect(fixture.volume.disk.bytes(of: slot) == whole)
  }

  @Test func `what stands after a torn group is discarded though it is valid`() throws {
    var fixture = try Fixture()
    fixture.volume.configuration.earlyWriteBytes = 1
    try fixture.append()
    fixture.drain()
    fixture.idle()
    let before = fixture.logEnd
    let slot = try fixture.activeSlot
    for _ in 0..<3 {
      try fixture.append()
      fixture.drain()
    }
    fixture.volume.kill()
    // The first of three groups is lost; the marks of the later two name places up to their own start.
    fixture.volume.disk.write([UInt8](repeating: 0, count: 512), to: slot, at: before.position)
    #expect(throws: MemQError.self) { try fixture.recover() }
    // Without the later two, it is a torn tail.
    let zeros = [UInt8](repeating: 0, count: 3 * 4_096)
    fixture.volume.disk.write(zeros, to: slot, at: before.position + 4_096)
    #expect(try fixture.recover().end == before)
  }

  @Test func `a tail cut once is sealed there and never appended to again`() throws {
    var fixture = try Fixture()
    try fixture.append()
    fixture.drain()
    let cut = fixture.logEnd
    fixture.volume.kill()
    _ = try fixture.volume.open(at: fixture.now, wall: fixture.wall)
    fixture.drain()
    try fixture.append()
    fixture.drain()
    #expect(fixture.logEnd.segment > cut.segment)
    fixture.volume.kill()
    let recovered = try fixture.recover()
    #expect(recovered.partitions.first?.end == fixture.end)
    #expect(recovered.segmentsReadThrough == 1)
  }

  @Test func `a clean close goes on in the same segment`() throws {
    var fixture = try Fixture()
    try fixture.append()
    fixture.drain()
    fixture.send(.close(fixture.next()))
    fixture.drain()
    let end = fixture.logEnd
    fixture.volume.shut()
    #expect(try fixture.recover().cleanShutdown)
    _ = try fixture.volume.open(at: fixture.now, wall: fixture.wall)
    try fixture.append()
    fixture.drain()
    #expect(fixture.logEnd.segment == end.segment && fixture.logEnd.position > end.position)
    // A crash in this opening: the close of the one before proves nothing any more.
    fixture.volume.kill()
    #expect(try fixture.recover().cleanShutdown == false)
  }

  @Test func `a lost segment below the tail is corruption`() throws {
    var fixture = try Fixture()
    for _ in 0..<80 {
      try fixture.append()
      fixture.drain()
    }
    #expect(fixture.volume.core!.stats.segmentsUsed >= 3)
    fixture.volume.kill()
    for slot in fixture.volume.disk.slots {
      var damaged = fixture
      guard try SegmentInspector.header(slot, from: &damaged.volume.disk) != nil else { continue }
      damaged.volume.disk.flip(bit: 0, at: 100, of: slot)
      #expect(throws: MemQError.self) { try damaged.recover() }
    }
  }

  @Test func `every flipped byte of a sealed segment is detected`() throws {
    var fixture = try Fixture()
    while fixture.volume.segmentsRolled < 2 {
      try fixture.append(bodyBytes: 700)
      fixture.drain()
    }
    let slot = try #require(fixture.volume.disk.slots.first)
    let sound = try SegmentInspector.inspect(slot, from: &fixture.volume.disk)
    #expect(sound.hasFooter && sound.frames > 10)
    let trailer = Int(sound.header.segmentBytes) - LogFormat.blockBytes
    var undetected: [Int] = []
    for position in Array(0..<Int(sound.end)) + Array(trailer..<(trailer + LogFormat.blockBytes)) {
      fixture.volume.disk.flip(bit: position % 8, at: position, of: slot)
      let found = try? SegmentInspector.inspect(slot, end: sound.end, from: &fixture.volume.disk)
      if let found, found.damage == nil, found.hasFooter { undetected.append(position) }
      fixture.volume.disk.flip(bit: position % 8, at: position, of: slot)
    }
    #expect(undetected.isEmpty)
  }

  @Test func `a damaged footer or trailer is rebuilt by reading the segment through`() throws {
    var fixture = try Fixture()
    while fixture.volume.segmentsRolled < 1 {
      try fixture.append()
      fixture.drain()
    }
    fixture.volume.kill()
    let whole = try fixture.recover()
    #expect(whole.segmentsReadThrough == 0)
    let slot = try #require(fixture.volume.disk.slots.first)
    fixture.volume.disk.flip(
      bit: 1, at: Int(fixture.volume.identity.segmentBytes) - 4_090, of: slot)
    let rebuilt = try fixture.recover()
    #expect(rebuilt.segmentsReadThrough == 1)
    #expect(rebuilt.partitions == whole.partitions)
  }

  @Test func `blank files are a fresh volume, an older life is never read`() throws {
    var fixture = try Fixture()
    fixture.volume.kill()
    var blank = CrashableDisk(segmentBytes: 64 << 10)
    for slot in 0..<3 as Range<UInt32> { blank.allocate(SegmentSlot(slot)) }
    let fresh = try VolumeRecovery.run(fixture.volume.identity, from: &blank)
    #expect(fresh.isEmpty && fresh.partitions.isEmpty)
    // Another volume's file among ours is refused, not read.
    var other = fixture.volume.identity
    other.volume = VolumeID(UniqueID(high: 8, low: 8))
    #expect(throws: MemQError.self) {
      try VolumeRecovery.run(other, from: &fixture.volume.disk)
    }
  }
}
