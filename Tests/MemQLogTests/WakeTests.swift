// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

/// When a volume asks to be looked at again.
@Suite struct WakeTests {
  @Test func `an event whose time was taken before a tick that overtook it is waked for again`()
    throws
  {
    let configuration = LogConfiguration()
    var volume = SimulatedVolume(
      identity: VolumeIdentity(
        cluster: ClusterID(UniqueID(high: 1, low: 2)), volume: VolumeID(UniqueID(high: 3, low: 4)),
        segmentBytes: 64 << 10), configuration: configuration, slotsMax: 64)
    let start = MonotonicInstant(nanoseconds: 1_000_000_000)
    let wall = Timestamp(milliseconds: 1_700_000_000_000)
    let partition = TopicPartition(TopicID(UniqueID(high: 5, low: 6)), PartitionIndex(0))
    func drain(_ volume: inout SimulatedVolume, at time: MonotonicInstant) {
      while !volume.outstanding.isEmpty { volume.perform(0, at: time, wall: wall) }
    }
    _ = try volume.open(at: start, wall: wall)
    drain(&volume, at: start)
    volume.handle(
      .openPartition(RequestID(1), partition, logStart: .zero, epochs: []), at: start, wall: wall)
    volume.handle(
      .setLocalRetention(partition, LocalRetention(bytes: 0, hasObjectTier: true)), at: start,
      wall: wall)
    var generator = SeededGenerator(seed: 1)
    let summary = BatchSummary(
      baseOffset: .zero, endOffset: Offset(3), leaderEpoch: LeaderEpoch(1), maxTimestamp: wall,
      appendTime: wall)
    let batch = SyntheticBatch(summary, bodyBytes: 100, using: &generator)
    try volume.append([(partition, batch)], request: RequestID(2), at: start, wall: wall)
    drain(&volume, at: start)

    // It is idle, and nothing in it may go yet.
    let due = start + configuration.rollIdle
    for time in [start + configuration.markIdle, due] {
      volume.handle(.tick, at: time, wall: wall)
      drain(&volume, at: time)
    }
    #expect(volume.segmentsRolled == 0)
    // This one read the clock a moment earlier and waited for the lock.
    volume.handle(
      .setUploadedOffset(partition, Offset(3)),
      at: start + (configuration.rollIdle - .nanoseconds(1)), wall: wall)
    #expect(volume.wake == due)
    volume.handle(.tick, at: try #require(volume.wake), wall: wall)
    drain(&volume, at: due)
    #expect(volume.segmentsRolled == 1)
  }

  /// What the cleaner is to copy next may be on its way to its footer when it looks.
  @Test func `the cleaner looks again once a segment's index is in its footer`() throws {
    var configuration = LogConfiguration()
    configuration.rollSlice = 2
    var volume = SimulatedVolume(
      identity: VolumeIdentity(
        cluster: ClusterID(UniqueID(high: 1, low: 2)), volume: VolumeID(UniqueID(high: 3, low: 4)),
        segmentBytes: 64 << 10), configuration: configuration, slotsMax: 8)
    var time = MonotonicInstant(nanoseconds: 1_000_000_000)
    let wall = Timestamp(milliseconds: 1_700_000_000_000)
    func partition(_ number: Int32) -> TopicPartition {
      TopicPartition(TopicID(UniqueID(high: 5, low: 6)), PartitionIndex(number))
    }
    _ = try volume.open(at: time, wall: wall)
    volume.drain(at: time, wall: wall)
    var generator = SeededGenerator(seed: 1)
    var (request, ends) = (UInt64(0), [Int64](repeating: 0, count: 12))
    func append(_ number: Int32, _ bodyBytes: Int) throws {
      let base = Offset(ends[Int(number)])
      let summary = BatchSummary(
        baseOffset: base, endOffset: base + 1, leaderEpoch: LeaderEpoch(1), maxTimestamp: wall,
        appendTime: wall)
      request += 1
      try volume.append(
        [(partition(number), SyntheticBatch(summary, bodyBytes: bodyBytes, using: &generator))],
        request: RequestID(request), at: time, wall: wall)
      ends[Int(number)] += 1
    }
    for number in 0..<Int32(12) {
      request += 1
      volume.handle(
        .openPartition(RequestID(request), partition(number), logStart: .zero, epochs: []),
        at: time, wall: wall)
      // All but the first only this disk has.
      volume.handle(
        .setLocalRetention(
          partition(number), LocalRetention(bytes: 0, hasObjectTier: number == 0)), at: time,
        wall: wall)
    }
    volume.drain(at: time, wall: wall)
    for _ in 0..<2 {
      // In few groups: a segment holds no more than fifteen.
      for number in 1..<Int32(12) { try append(number, 100) }
      volume.drain(at: time, wall: wall)
      let rolled = volume.segmentsRolled
      while volume.segmentsRolled == rolled {
        try append(0, 6_000)
        volume.drain(at: time, wall: wall)
      }
      volume.handle(.setUploadedOffset(partition(0), Offset(ends[0])), at: time, wall: wall)
      volume.drain(at: time, wall: wall)
    }
    // From here on only time passes: the index of the second segment takes a dozen slices, and nothing else is due before a mark is.
    func carried() -> UInt64 { volume.core!.stats.counters.segmentsCarried }
    #expect(carried() == 0)
    let end = time + .milliseconds(15)
    while carried() == 0, let wake = volume.wake, wake <= end {
      time = wake
      volume.handle(.tick, at: time, wall: wall)
      volume.drain(at: time, wall: wall)
    }
    #expect(carried() > 0)
  }
}
