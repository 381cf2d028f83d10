// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import NIOCore
import Testing

@Suite struct VolumeFaultTests {
  private func code(_ body: () async throws -> Void) async -> ErrorCode? {
    do {
      try await body()
      return nil
    } catch {
      return (error as? MemQError)?.code
    }
  }

  @Test func `a volume is opened by one process and one cluster`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.incarnation = Incarnation(3)
    configuration.incarnationID = UniqueID(high: 3, low: 3)
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let same = configuration
    #expect(
      await self.code { _ = try await Volume.open(same, logger: Example.logger) }
        == .dataFolderInUse)
    await volume.close()
    var other = configuration
    other.clusterID = ClusterID(UniqueID(high: 9, low: 9))
    let foreign = other
    #expect(
      await self.code { _ = try await Volume.open(foreign, logger: Example.logger) }
        == .wrongCluster)
    other = configuration
    other.incarnation = Incarnation(2)
    let older = other
    #expect(
      await self.code { _ = try await Volume.open(older, logger: Example.logger) } == .wrongCluster)
    other = configuration
    other.incarnationID = UniqueID(high: 4, low: 4)
    let rival = other
    #expect(
      await self.code { _ = try await Volume.open(rival, logger: Example.logger) } == .wrongCluster)
    other = configuration
    other.incarnation = Incarnation(4)
    let newer = try await Volume.open(other, logger: Example.logger)
    await newer.close()
    #expect(
      await self.code { _ = try await Volume.open(same, logger: Example.logger) } == .wrongCluster)
  }

  /// The kernel tells each open file of a failed write-back once.
  @Test func `two syncs at a time go by open files of their own`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    disk.set { $0.syncTakes = .milliseconds(2) }
    let deadline = ContinuousClock.now + .seconds(60)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<8 {
        group.addTask {
          let partition = Example.partition(Int32(index))
          try await volume.openDurably(partition)
          var end = Offset.zero
          // Over several segments, of 1 MiB each.
          while volume.stats.log.segmentsUsed < 4 || disk.faults.withLock({ $0.syncsBeside }) < 8,
            ContinuousClock.now < deadline
          {
            try await volume.appendDurably([
              (partition, Example.batch(at: end, bodyBytes: 20_000))
            ])
            end = end + 3
          }
        }
      }
      try await group.waitForAll()
    }
    #expect(disk.faults.withLock { $0.syncsBeside } >= 8)
    #expect(disk.faults.withLock { $0.syncsShared } == 0)
    let ends = (0..<8).map { volume.state(of: Example.partition($0))?.end }
    await volume.abandon()
    let again = try await Volume.open(configuration, logger: Example.logger)
    #expect((0..<8).map { again.state(of: Example.partition($0))?.end } == ends)
    await again.close()
  }

  @Test func `the first failed sync is final though the next would work`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    try await volume.appendDurably([(partition, Example.batch(at: .zero))])
    let (failures, failed) = AsyncStream<MemQError>.makeStream()
    volume.onFailure = { failed.yield($0) }
    disk.set {
      $0.syncsUntilError = 0
      $0.syncErrors = 1
    }
    let lost = Example.batch(at: Offset(3))
    #expect(
      await self.code { try await volume.appendDurably([(partition, lost)]) } == .volumeFailed)
    for await failure in failures {
      #expect(failure.code == .volumeFailed)
      break
    }
    #expect(volume.stats.state == .failed && !volume.hasRoom)
    #expect(
      await self.code {
        try await volume.appendDurably([(partition, Example.batch(at: Offset(6)))])
      } == .volumeFailed)
    #expect(
      await self.code {
        _ = try await volume.read(partition, from: .zero, below: .max, maxBytes: 1)
      } == .volumeFailed)
    await volume.close()
  }

  @Test func `a failed write acknowledges nothing`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    disk.set { $0.writesUntilError = 0 }
    #expect(
      await self.code {
        try await volume.appendDurably([(partition, Example.batch(at: .zero))])
      } == .volumeFailed)
    await volume.close()
    let again = try await Volume.open(configuration, logger: Example.logger)
    #expect(again.recoveredPartitions().first?.end == .zero)
    await again.close()
  }

  @Test func `a full disk refuses appends, keeps reading, and heals by an upload`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    disk.set { $0.slotsMax = 6 }
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    volume.setLocalRetention(partition, bytes: nil, milliseconds: nil, hasObjectTier: true)
    var made: [SyntheticBatch] = []
    var end = Offset.zero
    var refusal: MemQError?
    while refusal == nil, made.count < 5_000 {
      let batch = Example.batch(at: end, bodyBytes: 20_000)
      do {
        try await volume.appendDurably([(partition, batch)])
        made.append(batch)
        end = batch.summary.endOffset
      } catch let error as MemQError where error.code != .resourceExhausted {
        refusal = error
      }
    }
    #expect(refusal?.code == .volumeFull && refusal?.isRetriable == true)
    #expect(made.count > 100)
    #expect(try await volume.readAll(partition, from: .zero) == made.map(\.bytes))
    // State changes still find room: a drained leader must be able to say so.
    try await volume.durably {
      volume.startEpoch(partition, epoch: LeaderEpoch(2), start: end, completion: $0)
    }
    let (moved, mover) = AsyncStream<Offset>.makeStream()
    volume.onLocalStartMoved = { _, start in mover.yield(start) }
    volume.setUploadedOffset(partition, to: end)
    for await _ in moved { break }
    var taken = 0
    let deadline = ContinuousClock.now + .seconds(60)
    while taken < 20, ContinuousClock.now < deadline {
      let batch = Example.batch(at: end, bodyBytes: 20_000, epoch: 2)
      guard (try? await volume.appendDurably([(partition, batch)])) != nil else {
        await Task.yield()
        continue
      }
      end = batch.summary.endOffset
      taken += 1
    }
    #expect(taken == 20)
    await volume.close()
  }

  @Test func `a reserved place is there, whoever fills the volume meanwhile`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.capacityBytes = 6 << 20
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let (first, other) = (Example.partition(0), Example.partition(1))
    for partition in [first, other] { try await volume.openDurably(partition) }
    let batch = Example.batch(at: .zero, bodyBytes: 20_000)
    let place = try #require(volume.reserve(batch.bytes.count))
    let unused = try #require(volume.reserve(20_000))
    var end = Offset.zero
    func fill() async throws {
      let deadline = ContinuousClock.now + .seconds(60)
      var code: ErrorCode?
      while code != .volumeFull, ContinuousClock.now < deadline {
        let next = Example.batch(at: end, bodyBytes: 15_000)
        code = await self.code { try await volume.appendDurably([(other, next)]) }
        if code == nil { end = next.summary.endOffset }
      }
      #expect(code == .volumeFull)
    }
    try await fill()
    #expect(volume.reserve(batch.bytes.count) == nil)
    // It never says that it is full, and takes it once the next segment is there.
    let deadline = ContinuousClock.now + .seconds(60)
    var code: ErrorCode? = .resourceExhausted
    while code == .resourceExhausted, ContinuousClock.now < deadline {
      code = await self.code {
        try await volume.appendDurably([(first, batch)], reserved: place)
      }
    }
    #expect(code == nil)
    #expect(try await volume.readAll(first, from: .zero) == [batch.bytes])
    // What is given back is there for others.
    volume.release(unused)
    let before = end
    try await fill()
    #expect(end > before)
    await volume.close()
  }

  @Test func `a first open without room says what it needs and what there is`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    disk.set { $0.slotsMax = 0 }
    do {
      _ = try await Volume.open(configuration, disk: disk, logger: Example.logger)
      Issue.record("opened without room")
    } catch {
      #expect(error.code == .volumeFull)
      #expect(error.limit == 0 && error.actual == 1 << 20)
    }
    disk.set { $0.slotsMax = 8 }
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    await volume.close()
  }

  @Test func `a volume without room opens, reads, refuses writes, and heals when there is room`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    disk.set { $0.slotsMax = 1 }
    var volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    let made = Example.batch(at: .zero)
    try await volume.appendDurably([(partition, made)])
    await volume.abandon()
    // The cut segment takes no more, and there is no room for the next.
    volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    #expect(try await volume.readAll(partition, from: .zero) == [made.bytes])
    let next = Example.batch(at: Offset(3))
    #expect(await self.code { try await volume.appendDurably([(partition, next)]) } == .volumeFull)
    let open = volume
    #expect(
      await self.code {
        try await open.durably {
          open.startEpoch(partition, epoch: LeaderEpoch(2), start: Offset(3), completion: $0)
        }
      } == .volumeFull)
    disk.set { $0.slotsMax = 8 }
    let deadline = ContinuousClock.now + .seconds(60)
    var code: ErrorCode? = .volumeFull
    while code != nil, ContinuousClock.now < deadline {
      code = await self.code { try await open.appendDurably([(partition, next)]) }
    }
    #expect(code == nil)
    await volume.close()
  }

  @Test func `a segment file that can't be made for want of anything but room fails the volume`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    disk.set {
      $0.slotsMax = 0
      $0.allocateError = EIO
      $0.statesRoom = true
    }
    #expect(
      await self.code {
        _ = try await Volume.open(configuration, disk: disk, logger: Example.logger)
      } == .volumeFailed)
  }

  @Test func `the capacity bounds what a volume takes of its file system`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.capacityBytes = 5 << 20
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    var end = Offset.zero
    var code: ErrorCode?
    // Nearly full it says "not now" for as long as another segment may still be freed.
    let deadline = ContinuousClock.now + .seconds(60)
    while code == nil || code == .resourceExhausted, ContinuousClock.now < deadline {
      let batch = Example.batch(at: end, bodyBytes: 30_000)
      code = await self.code { try await volume.appendDurably([(partition, batch)]) }
      if code == nil { end = batch.summary.endOffset } else { await Task.yield() }
    }
    #expect(code == .volumeFull)
    await volume.close()
    let files = try Files.list(configuration.path).filter { $0.hasPrefix("segment-") }
    #expect(files.count <= 5)
  }

  @Test func `a damaged batch is never served, its place is named`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.tailCacheBytes = 0
    var volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    var end = Offset.zero
    for _ in 0..<90 {
      let batch = Example.batch(at: end, bodyBytes: 30_000)
      try await volume.appendDurably([(partition, batch)])
      end = batch.summary.endOffset
    }
    await volume.close()
    var places: [(Int64, Offset)] = []
    try VolumeDump(path: configuration.path, requireStopped: true).forEachFrame { frame in
      if frame.header.type == .batch, frame.place.segment.rawValue == 1 {
        places.append((frame.place.position, frame.header.baseOffset))
      }
      return true
    }
    let (position, offset) = places[7]
    let file = try File(configuration.path + "/segment-00000000", .readWrite)
    try [UInt8(0x55)].withUnsafeBytes { try file.write($0, at: position + 20_000) }
    volume = try await Volume.open(configuration, logger: Example.logger)
    let before = try await volume.read(partition, from: .zero, below: offset, maxBytes: 1)
    #expect(before.nextOffset == Offset(3))
    do {
      _ = try await volume.read(partition, from: offset, below: .max, maxBytes: 1)
      Issue.record("a damaged batch was served")
    } catch {
      #expect(error.code == .logCorrupt)
      #expect(error.subject == "segment 1 position \(position)")
    }
    await volume.close()
  }

  @Test func `a lost, shortened or foreign file is noticed at the open`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let volume = try await Volume.open(configuration, logger: Example.logger)
    try await volume.openDurably(Example.partition())
    await volume.close()
    func open() async -> ErrorCode? {
      await self.code { _ = try await Volume.open(configuration, logger: Example.logger) }
    }
    let segment = configuration.path + "/segment-00000000"
    try Files.rename(segment, to: configuration.path + "/aside")
    #expect(await open() == .logCorrupt)
    try [UInt8](repeating: 0, count: 0).withUnsafeBytes {
      try File(segment, .create).write($0, at: 0)
    }
    #expect(await open() == .logCorrupt)
    try Files.rename(configuration.path + "/aside", to: segment)
    try Files.rename(configuration.path + "/volume", to: configuration.path + "/aside")
    #expect(await open() == .logCorrupt)
    try Files.rename(configuration.path + "/aside", to: configuration.path + "/volume")
    let again = try await Volume.open(configuration, logger: Example.logger)
    #expect(again.recoveredPartitions().count == 1)
    await again.close()
  }

  @Test func `a stalled disk bounds what waits`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.pendingBytesMax = 256 << 10
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    disk.set { $0.holdsSyncs = true }
    let completed = Monitor(0)
    var taken = 0
    var end = Offset.zero
    while taken < 1_000 {
      let batch = Example.batch(at: end, bodyBytes: 10_000)
      let append = Volume.Append(
        partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: batch.bytes)])
      do throws(MemQError) {
        try volume.append([append]) { _ in completed.withLock { $0 += 1 } }
      } catch {
        #expect(error.code == .resourceExhausted && error.isRetriable)
        break
      }
      taken += 1
      end = batch.summary.endOffset
    }
    #expect(taken > 10 && taken < 40)
    #expect(!volume.hasRoom)
    #expect(volume.stats.pendingBytes <= 256 << 10)
    disk.set { $0.holdsSyncs = false }
    await volume.close()
    #expect(completed.withLock { $0 } == taken)
  }
}
