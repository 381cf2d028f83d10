// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import NIOCore
import Testing

/// A closed volume of small segments. What its first partition had from `cut` on was truncated, and written anew by a later leader, in a
/// segment of its own, up to where it had ended; behind that segment the partition goes on.
private final class Rewritten: Sendable {
  let folder = TemporaryFolder()
  let configuration: Volume.Configuration
  static let rewritten = Example.partition(0)
  static let other = Example.partition(1)
  nonisolated(unsafe) var appended: [TopicPartition: [SyntheticBatch]] = [:]
  let cut: Offset
  /// With the truncate and what was written anew.
  let segment: SegmentSequence
  let slot: SegmentSlot

  init() async throws {
    var configuration = Example.configuration(self.folder)
    // Room for the marks that a slow machine adds between appends.
    configuration.segmentBytes = 256 << 10
    configuration.groupBytesMax = 16 << 10
    configuration.tailCacheBytes = 0
    self.configuration = configuration
    let volume = try await Volume.open(configuration, logger: Example.logger)
    var appended: [TopicPartition: [SyntheticBatch]] = [:]
    func append(_ partition: TopicPartition, epoch: Int64) async throws {
      let end = appended[partition]?.last?.summary.endOffset ?? .zero
      let batch = Example.batch(at: end, bodyBytes: 1_000, epoch: epoch)
      try await volume.appendDurably([(partition, batch)])
      appended[partition, default: []].append(batch)
    }
    func fillSegment() async throws {
      let segment = volume.stats.log.durable.segment
      for _ in 0..<500 where volume.stats.log.durable.segment == segment {
        try await append(Self.other, epoch: 1)
      }
    }
    for partition in [Self.rewritten, Self.other] { try await volume.openDurably(partition) }
    for _ in 0..<10 { try await append(Self.rewritten, epoch: 1) }
    try await fillSegment()
    let cut = appended[Self.rewritten]![4].summary.baseOffset
    self.cut = cut
    try await volume.durably { volume.truncate(Self.rewritten, to: cut, completion: $0) }
    self.segment = volume.stats.log.durable.segment
    appended[Self.rewritten]!.removeAll { $0.summary.baseOffset >= cut }
    for _ in 0..<6 { try await append(Self.rewritten, epoch: 2) }
    #expect(volume.stats.log.durable.segment == self.segment)
    try await fillSegment()
    try await append(Self.rewritten, epoch: 2)
    try await fillSegment()
    await volume.close()
    self.appended = appended
    let check = try VolumeCheck(path: configuration.path)
    defer { check.close() }
    let segment = self.segment
    self.slot = try #require(try check.verify().segments.first { $0.sequence == segment }?.slot)
  }

  /// Where the other partition's records begin in the segment.
  func firstOther() throws -> Offset {
    var first = Offset.max
    let dump = try VolumeDump(path: self.configuration.path, requireStopped: true)
    try dump.forEachFrame { frame in
      if frame.place.segment == self.segment, frame.header.partition == Self.other,
        frame.header.type == .batch
      {
        first = min(first, frame.header.baseOffset)
      }
      return true
    }
    return first
  }

  func remove() {
    let number = String(self.slot.rawValue)
    let name = "segment-" + String(repeating: "0", count: 8 - number.count) + number
    #expect(unlink(self.configuration.path + "/" + name) == 0)
  }

  /// How far what is read is what was appended.
  func readable(_ volume: Volume, _ partition: TopicPartition) async throws -> Offset {
    try await volume.readable(partition, of: self.appended[partition]!)
  }
}

@Suite(.timeLimit(.minutes(10))) struct MissingSegmentTests {
  @Test
  func
    `a hot segment's file that is gone refuses the volume, and where loss is accepted costs what stood in it and behind it`()
    async throws
  {
    let made = try await Rewritten()
    let otherFrom = try made.firstOther()
    made.remove()
    let check = try VolumeCheck(path: made.configuration.path)
    let found = try check.verify()
    #expect(found.refusal?.code == .logCorrupt && found.losesRecords)
    #expect(found.refusal?.subject == "segment \(made.segment) position 0")
    // Files that were never used are not damaged.
    #expect(found.damages.isEmpty)
    check.close()
    await #expect(throws: MemQError.self) {
      _ = try await Volume.open(made.configuration, logger: Example.logger)
    }
    var configuration = made.configuration
    configuration.acceptsLoss = true
    var volume = try await Volume.open(configuration, logger: Example.logger)
    // The truncate is gone with the segment; what it cut, in an older one, must not pass for what was written in its place.
    let expected = [Rewritten.rewritten: made.cut, Rewritten.other: otherFrom]
    for (partition, from) in expected {
      #expect(volume.damagedPartitions.first { $0.partition == partition }?.from == from)
      #expect(try await made.readable(volume, partition) == from)
    }
    await volume.close()
    // A repair that was interrupted there begins anew: until all is cut nobody takes the volume for whole.
    await #expect(throws: MemQError.self) {
      _ = try await Volume.open(made.configuration, logger: Example.logger)
    }
    // As `memq log repair --accept-loss` does it.
    let repair = try VolumeCheck(path: made.configuration.path)
    let done = try await repair.cut(try repair.verify())
    #expect(done.count == 2)
    volume = try await Volume.open(made.configuration, logger: Example.logger)
    #expect(volume.damagedPartitions.isEmpty)
    for (partition, from) in expected {
      #expect(volume.state(of: partition)?.end == from)
      #expect(try await made.readable(volume, partition) == from)
      try await volume.appendDurably([(partition, Example.batch(at: from, epoch: 3))])
    }
    await volume.close()
    let after = try VolumeCheck(path: made.configuration.path)
    defer { after.close() }
    #expect(try after.verify().isWhole)
  }
}
