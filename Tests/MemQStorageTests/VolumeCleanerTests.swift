// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import NIOCore
import Testing

/// The cleaner on real files.
@Suite struct VolumeCleanerTests {
  @Test func `a disk filled by a topic with and one without an object tier heals by itself`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.capacityBytes = 10 << 20
    configuration.carryBytesPerSecond = 256 << 20
    var volume = try await Volume.open(configuration, logger: Example.logger)
    let (tiered, kept) = (Example.partition(0), Example.partition(1))
    try await volume.openDurably(tiered)
    try await volume.openDurably(kept)
    volume.setLocalRetention(tiered, bytes: nil, milliseconds: nil, hasObjectTier: true)
    var made: [SyntheticBatch] = []
    var (end, keptEnd) = (Offset.zero, Offset.zero)
    var refusal: MemQError?
    while refusal == nil {
      let batch = Example.batch(at: end, bodyBytes: 20_000)
      let other = Example.batch(at: keptEnd, bodyBytes: 8_000)
      do {
        try await volume.appendDurably([(tiered, batch), (kept, other)])
        made.append(other)
        (end, keptEnd) = (batch.summary.endOffset, other.summary.endOffset)
      } catch let error as MemQError where error.code != .resourceExhausted {
        refusal = error
      } catch {
        await Task.yield()
      }
    }
    #expect(refusal?.code == .volumeFull)
    // An upload is all it takes: what only this disk has moves out of the way.
    volume.setUploadedOffset(tiered, to: end)
    let deadline = ContinuousClock.now + .seconds(60)
    while volume.stats.log.segmentsFree < 4, ContinuousClock.now < deadline { await Task.yield() }
    #expect(volume.stats.log.segmentsFree >= 4 && volume.stats.log.segmentsCold > 0)
    #expect(volume.stats.log.counters.bytesCarried > 0)
    #expect(try await volume.readAll(kept, from: .zero) == made.map(\.bytes))
    // Cold segments come back after a crash, and are looked at like any other.
    await volume.abandon()
    volume = try await Volume.open(configuration, logger: Example.logger)
    #expect(try await volume.readAll(kept, from: .zero) == made.map(\.bytes))
    await volume.close()
    let dump = try VolumeDump(path: configuration.path, requireStopped: true)
    #expect(try dump.segments().contains { $0.header.kind == .cold && $0.hasFooter })
    #expect(try dump.partitions().contains { $0.partition == kept && $0.end == keptEnd })
  }

  @Test func `a damaged partition is named, and what it held back goes once its log is given up`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.capacityBytes = 10 << 20
    configuration.carryBytesPerSecond = 256 << 20
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let (tiered, kept) = (Example.partition(0), Example.partition(1))
    try await volume.openDurably(tiered)
    try await volume.openDurably(kept)
    volume.setLocalRetention(tiered, bytes: nil, milliseconds: nil, hasObjectTier: true)
    let first = Example.batch(at: .zero, bodyBytes: 8_000)
    try await volume.appendDurably([(kept, first)])
    let end = try await volume.fillUp(tiered)
    try Self.flip(Array(first.bytes[100..<140]), in: configuration.path)
    let found = Monitor<Volume.DamagedPartition?>(nil)
    volume.onDamage = { damaged in found.withLock { $0 = damaged } }
    volume.setUploadedOffset(tiered, to: end)
    let deadline = ContinuousClock.now + .seconds(60)
    while found.withLock({ $0 == nil }), ContinuousClock.now < deadline { await Task.yield() }
    let damaged = try #require(found.withLock { $0 })
    #expect(damaged.partition == kept && damaged.from == .zero && damaged.isPlaceKnown)
    #expect(volume.damagedPartitions.map(\.partition) == [kept])
    // Its segment stays, and all that follow it: nothing is thrown away that may be wanted for a repair.
    #expect(volume.stats.log.segmentsFree < 4)
    try await volume.durably { volume.dropPartition(kept, completion: $0) }
    while volume.stats.log.segmentsFree < 4, ContinuousClock.now < deadline { await Task.yield() }
    #expect(volume.stats.log.segmentsFree >= 4 && volume.damagedPartitions.isEmpty)
    await volume.close()
  }

  @Test func `what the disk did not give once is carried once it gives it again`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.capacityBytes = 10 << 20
    configuration.carryBytesPerSecond = 256 << 20
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let (tiered, kept) = (Example.partition(0), Example.partition(1))
    try await volume.openDurably(tiered)
    try await volume.openDurably(kept)
    volume.setLocalRetention(tiered, bytes: nil, milliseconds: nil, hasObjectTier: true)
    let first = Example.batch(at: .zero, bodyBytes: 8_000)
    try await volume.appendDurably([(kept, first)])
    let end = try await volume.fillUp(tiered)
    disk.set { $0.readsFail = true }
    volume.setUploadedOffset(tiered, to: end)
    let deadline = ContinuousClock.now + .seconds(60)
    while volume.damagedPartitions.isEmpty, ContinuousClock.now < deadline { await Task.yield() }
    let damaged = try #require(volume.damagedPartitions.first)
    #expect(damaged.partition == kept && damaged.from == .zero && damaged.isPlaceKnown)
    disk.set { $0.readsFail = false }
    volume.forgetDamage(kept)
    while volume.stats.log.segmentsFree < 4, ContinuousClock.now < deadline { await Task.yield() }
    #expect(volume.stats.log.segmentsFree >= 4 && volume.damagedPartitions.isEmpty)
    #expect(try await volume.readAll(kept, from: .zero) == [first.bytes])
    await volume.close()
  }

  /// Changes a byte of the one place where these stand.
  private static func flip(_ bytes: [UInt8], in folder: String) throws {
    for name in try Files.list(folder) where name.hasPrefix("segment-") {
      let path = "\(folder)/\(name)"
      let content = try #require(try Files.contents(path, byteCountMax: 2 << 20))
      guard let at = content.firstRange(of: bytes)?.lowerBound else { continue }
      let file = try File(path, .readWrite)
      try [content[at] ^ 1].withUnsafeBytes { try file.write($0, at: Int64(at)) }
      return
    }
    Issue.record("no segment holds the bytes")
  }

  @Test func `a partition at its cap has no room for its producers, and others have`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let volume = try await Volume.open(Example.configuration(folder), logger: Example.logger)
    let (capped, other) = (Example.partition(0), Example.partition(1))
    try await volume.openDurably(capped)
    try await volume.openDurably(other)
    volume.setLocalRetention(
      capped, bytes: nil, milliseconds: nil, hasObjectTier: true, capBytes: 10_000)
    func append(_ partition: TopicPartition, at base: Offset) throws(MemQError) {
      let batch = Example.batch(at: base, bodyBytes: 6_000)
      let append = Volume.Append(
        partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: batch.bytes)])
      try volume.append([append]) { _ in }
    }
    // Nothing there yet: one batch always goes.
    #expect(volume.room(of: capped, for: 20_000) == .open)
    try append(capped, at: .zero)
    guard case .full(let error) = volume.room(of: capped, for: 6_000) else {
      Issue.record("room beyond the cap")
      return
    }
    #expect(error.code == .partitionQuotaExceeded && error.subject == "\(capped)")
    #expect(error.limit == 10_000)
    #expect(volume.room(of: other, for: 6_000) == .open)
    // A follower takes what its leader took.
    try append(capped, at: Offset(3))
    try append(other, at: .zero)
    #expect(volume.stats.log.partitionsAtCap == 1)
    volume.setUploadedOffset(capped, to: Offset(6))
    #expect(volume.room(of: capped, for: 6_000) == .open)
    await volume.close()
  }
}
