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
}
