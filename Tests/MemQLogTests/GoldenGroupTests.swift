// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport
import Testing

/// What the log itself writes, byte by byte: groups of every kind with the frames and payloads of a partition's life. A change here
/// is a new version of the format.
@Suite struct GoldenGroupTests {
  private static let topic = TopicID(
    UniqueID(high: 0x2122_2324_2526_2728, low: 0x292A_2B2C_2D2E_2F30))
  private static let kept = TopicPartition(Self.topic, PartitionIndex(5))
  private static let dropped = TopicPartition(Self.topic, PartitionIndex(6))

  private struct Life {
    var volume: SimulatedVolume
    var time = MonotonicInstant(nanoseconds: 1_000_000_000)
    var wall = Timestamp(milliseconds: 1_700_000_000_000)
    var generator = SeededGenerator(seed: 7)
    private var request: UInt64 = 0

    init() {
      self.volume = SimulatedVolume(
        identity: VolumeIdentity(
          cluster: ClusterID(UniqueID(high: 1, low: 2)), volume: FormatTests.volume,
          segmentBytes: 64 << 10),
        slotsMax: 3)
    }

    mutating func next() -> RequestID {
      self.request += 1
      return RequestID(self.request)
    }

    mutating func send(_ event: VolumeCore.Event) {
      self.volume.handle(event, at: self.time, wall: self.wall)
      self.volume.drain(at: self.time, wall: self.wall)
    }

    mutating func append(_ partition: TopicPartition, at base: Int64, epoch: Int64) throws {
      let summary = BatchSummary(
        baseOffset: Offset(base), endOffset: Offset(base + 3), leaderEpoch: LeaderEpoch(epoch),
        producerID: ProducerID(9), producerEpoch: ProducerEpoch(1), baseSequence: 0,
        maxTimestamp: self.wall, appendTime: self.wall)
      try self.volume.append(
        [(partition, SyntheticBatch(summary, bodyBytes: 10, using: &self.generator))],
        request: self.next(), at: self.time, wall: self.wall)
      self.volume.drain(at: self.time, wall: self.wall)
    }

    mutating func pass(_ time: Duration) {
      self.time = self.time + time
      self.wall = Timestamp(milliseconds: self.wall.milliseconds + time.milliseconds)
      self.send(.tick)
    }

    /// Each group's header, frames and payloads, without the padding.
    func groups(of slot: SegmentSlot, _ sequence: UInt64) -> [[UInt8]] {
      let bytes = self.volume.disk.bytes(of: slot)
      var groups: [[UInt8]] = []
      var position = Int(LogFormat.firstGroupPosition)
      while position < bytes.count {
        let group = bytes[position...].withUnsafeBytes {
          GroupHeader.decode($0, at: Int64(position), volume: FormatTests.volume)?.header
        }
        guard let group, group.segment.rawValue == sequence else { break }
        groups.append(Array(bytes[position..<(position + Int(group.contentBytes))]))
        position += Int(group.byteCount)
      }
      return groups
    }
  }

  @Test func `groups, frames, checkpoints, footers and positions have these bytes`() throws {
    var life = Life()
    _ = try life.volume.open(at: life.time, wall: life.wall)
    life.volume.drain(at: life.time, wall: life.wall)
    life.send(
      .openPartition(
        life.next(), Self.kept, logStart: Offset(5),
        epochs: [EpochStart(epoch: LeaderEpoch(1), start: Offset(5))]))
    life.send(.setLocalRetention(Self.kept, LocalRetention(bytes: 0, hasObjectTier: true)))
    try life.append(Self.kept, at: 5, epoch: 1)
    try life.append(Self.kept, at: 8, epoch: 1)
    life.send(
      .startEpoch(
        life.next(), Self.kept, EpochStart(epoch: LeaderEpoch(2), start: Offset(11))))
    life.send(.truncate(life.next(), Self.kept, to: Offset(8), epochs: nil))
    life.send(.setLogStart(life.next(), Self.kept, Offset(6)))
    life.send(.openPartition(life.next(), Self.dropped, logStart: .zero, epochs: []))
    life.send(.dropPartition(life.next(), Self.dropped))
    life.send(.setProducerSnapshot(Self.kept, [1, 2, 3], at: Offset(8)))
    life.send(.setHighWatermark(Self.kept, Offset(8)))
    life.send(.setUploadedOffset(Self.kept, Offset(7)))
    // The mark.
    life.pass(.milliseconds(30))
    // Everything is uploaded: after a while the segment is sealed, and the next begun.
    life.send(.setUploadedOffset(Self.kept, Offset(8)))
    life.pass(.seconds(2))
    life.send(.close(life.next()))
    let found =
      life.groups(of: SegmentSlot(0), 1).map(hexText)
      + life.groups(of: SegmentSlot(1), 2).map(hexText)
    #expect(found.count == Golden.groups.count)
    for (index, group) in found.enumerated() {
      #expect(group == (index < Golden.groups.count ? Golden.groups[index] : ""), "\(index)")
    }
    // And they read back.
    let identity = life.volume.identity
    var disk = life.volume.disk
    let recovered = try VolumeRecovery.run(identity, from: &disk)
    #expect(recovered.cleanShutdown && recovered.partitions.count == 1)
    let partition = try #require(recovered.partitions.first)
    #expect(partition.partition == Self.kept && partition.logStart == Offset(6))
    #expect(partition.end == Offset(8) && partition.uploadedOffset == Offset(8))
    #expect(partition.epochs == [EpochStart(epoch: LeaderEpoch(1), start: Offset(5))])
    #expect(partition.producerSnapshot == [1, 2, 3])
  }
}
