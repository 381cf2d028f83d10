// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import Synchronization
import Testing

/// A process that is out of descriptors or memory: its disk is as good as before.
@Suite struct ExhaustedProcessTests {
  @Test func `a read that can't open or read a segment may be retried, and nothing is damaged`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.tailCacheBytes = 0
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    var made: [SyntheticBatch] = []
    // Over several segments, of 1 MiB each.
    for _ in 0..<150 {
      let batch = Example.batch(at: made.last?.summary.endOffset ?? .zero, bodyBytes: 20_000)
      try await volume.appendDurably([(partition, batch)])
      made.append(batch)
    }
    for (openError, readError) in [(EMFILE, nil), (ENFILE, nil), (nil, ENOMEM)]
      as [(Int32?, Int32?)]
    {
      disk.set {
        $0.openError = openError
        $0.readError = readError
      }
      do {
        _ = try await volume.readAll(partition, from: .zero)
        Issue.record("read without descriptors or memory")
      } catch let error as MemQError {
        #expect(error.code == .resourceExhausted && error.isRetriable, "\(error)")
      }
    }
    disk.set {
      $0.openError = nil
      $0.readError = nil
    }
    #expect(try await volume.readAll(partition, from: .zero) == made.map(\.bytes))
    #expect(volume.damagedPartitions.isEmpty && volume.stats.state == .open)
    await volume.close()
  }

  @Test func `appends wait for a segment that can't be made or opened, and are not lost`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    disk.set {
      $0.openError = EMFILE
      // What is made ahead is there; no more for now.
      $0.slotsMax = 3
      $0.allocateError = EMFILE
      $0.statesRoom = true
    }
    let ender = Task {
      let deadline = ContinuousClock.now + .seconds(60)
      while disk.faults.withLock({ $0.opensFailed }) < 3, ContinuousClock.now < deadline {
        await Task.yield()
      }
      let opensFailed = disk.faults.withLock { $0.opensFailed }
      disk.set {
        $0.openError = nil
        $0.slotsMax = .max
      }
      return opensFailed
    }
    var made: [SyntheticBatch] = []
    let deadline = ContinuousClock.now + .seconds(60)
    while made.count < 250, ContinuousClock.now < deadline {
      let batch = Example.batch(at: made.last?.summary.endOffset ?? .zero, bodyBytes: 20_000)
      do {
        try await volume.appendDurably([(partition, batch)])
        made.append(batch)
      } catch let error as MemQError {
        try #require(error.isRetriable && error.code != .volumeFailed, "\(error)")
        await Task.yield()
      }
    }
    #expect(await ender.value >= 3)
    #expect(made.count == 250 && volume.stats.state == .open)
    await volume.abandon()
    let again = try await Volume.open(configuration, logger: Example.logger)
    #expect(try await again.readAll(partition, from: .zero) == made.map(\.bytes))
    await again.close()
  }

  @Test(arguments: [(EMFILE, nil), (nil, ENOMEM)] as [(Int32?, Int32?)])
  func `an opening waits for descriptors and memory, and takes nothing for damaged`(
    openError: Int32?, readError: Int32?
  ) async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let (partition, made) = try await self.made(configuration, disk)
    disk.set {
      $0.openError = openError
      $0.readError = readError
      ($0.opensFailed, $0.readsFailed) = (0, 0)
    }
    let ender = Task {
      // Well before the opening's own patience ends.
      let deadline = ContinuousClock.now + .seconds(30)
      func failed() -> Int { disk.faults.withLock { $0.opensFailed + $0.readsFailed } }
      while failed() < 5, ContinuousClock.now < deadline {
        try? await Task.sleep(for: .milliseconds(1))
      }
      let count = failed()
      disk.set {
        $0.openError = nil
        $0.readError = nil
      }
      return count
    }
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    #expect(await ender.value >= 5)
    #expect(volume.damagedPartitions.isEmpty && volume.stats.state == .open)
    #expect(try await volume.readAll(partition, from: .zero) == made)
    await volume.close()
  }

  @Test func `an opening that waited in vain says that it may be tried again`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let (partition, made) = try await self.made(configuration, disk)
    disk.set { $0.openError = EMFILE }
    do {
      _ = try await Volume.open(
        configuration, disk: disk, clock: HastyClock(), logger: Example.logger)
      Issue.record("opened without descriptors")
    } catch {
      #expect(error.code == .resourceExhausted && error.isRetriable, "\(error)")
    }
    disk.set { $0.openError = nil }
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    #expect(try await volume.readAll(partition, from: .zero) == made)
    await volume.close()
  }

  /// A volume of some segments, closed.
  private func made(
    _ configuration: Volume.Configuration, _ disk: FaultyDisk
  ) async throws -> (TopicPartition, [[UInt8]]) {
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    var (made, end): ([[UInt8]], Offset) = ([], .zero)
    for _ in 0..<100 {
      let batch = Example.batch(at: end, bodyBytes: 20_000)
      try await volume.appendDurably([(partition, batch)])
      made.append(batch.bytes)
      end = batch.summary.endOffset
    }
    await volume.abandon()
    return (partition, made)
  }

  @Test func `a disk that does not answer is said to be stalled until it does`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.stallAfter = .milliseconds(50)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    disk.set { $0.holdsSyncs = true }
    let batch = Example.batch(at: .zero)
    let append = Task { try await volume.appendDurably([(partition, batch)]) }
    let deadline = ContinuousClock.now + .seconds(60)
    while volume.stalledFor == nil, ContinuousClock.now < deadline { await Task.yield() }
    #expect(volume.stalledFor ?? .zero >= .milliseconds(50))
    // It is no failure: what hung is done in the end.
    disk.set { $0.holdsSyncs = false }
    try await append.value
    while volume.stalledFor != nil, ContinuousClock.now < deadline { await Task.yield() }
    #expect(volume.stalledFor == nil && volume.stats.state == .open)
    #expect(try await volume.readAll(partition, from: .zero) == [batch.bytes])
    await volume.close()
  }

  @Test func `the cleaner takes nothing that it could not read for now as damaged`() async throws {
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
    disk.set { $0.readError = ENOMEM }
    let end = try await volume.fillUp(tiered)
    let failed = disk.faults.withLock { $0.readsFailed }
    volume.setUploadedOffset(tiered, to: end)
    let deadline = ContinuousClock.now + .seconds(60)
    while disk.faults.withLock({ $0.readsFailed }) == failed, ContinuousClock.now < deadline {
      await Task.yield()
    }
    #expect(disk.faults.withLock { $0.readsFailed } > failed)
    disk.set { $0.readError = nil }
    while volume.stats.log.segmentsFree < 4, ContinuousClock.now < deadline { await Task.yield() }
    #expect(volume.stats.log.segmentsFree >= 4 && volume.damagedPartitions.isEmpty)
    #expect(volume.stats.log.segmentsCold > 0)
    #expect(try await volume.readAll(kept, from: .zero) == [first.bytes])
    await volume.close()
  }
}

/// Each look takes ten seconds.
private final class HastyClock: MemQClock {
  private let looks = Atomic<Int64>(0)

  var monotonic: MonotonicInstant {
    .zero + .seconds(10 * self.looks.wrappingAdd(1, ordering: .relaxed).newValue)
  }
  var wall: Timestamp { Timestamp(milliseconds: 1_700_000_000_000) }
}
