// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import NIOCore
import Testing

@Suite struct VolumeTests {
  private func fill(
    _ volume: Volume, _ partition: TopicPartition, from: Offset = .zero, batches: Int,
    bodyBytes: Int = 3_000, producer: ProducerID = .none
  ) async throws -> [SyntheticBatch] {
    var made: [SyntheticBatch] = []
    var base = from
    for index in 0..<batches {
      let batch = Example.batch(
        at: base, bodyBytes: bodyBytes, producer: producer, time: 1_700_000_000_000 + Int64(index))
      made.append(batch)
      base = batch.summary.endOffset
    }
    for chunk in stride(from: 0, to: made.count, by: 8) {
      try await volume.appendDurably(
        made[chunk..<min(chunk + 8, made.count)].map { (partition, $0) })
    }
    return made
  }

  @Test(arguments: Volume.WritePath.allCases)
  func `what was acknowledged reads back after a clean restart and after a crash`(
    writes: Volume.WritePath
  ) async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.writes = writes
    var volume = try await Volume.open(configuration, logger: Example.logger)
    #expect(volume.isFresh)
    let id = volume.id
    let partition = Example.partition()
    try await volume.openDurably(partition)
    var made = try await self.fill(volume, partition, batches: 200)
    #expect(try await volume.readAll(partition, from: .zero) == made.map(\.bytes))
    await volume.close()

    volume = try await Volume.open(configuration, logger: Example.logger)
    #expect(!volume.isFresh && volume.wasClean && volume.id == id)
    let recovered = try #require(volume.recoveredPartitions().first)
    #expect(recovered.end == Offset(600) && recovered.logStart == .zero)
    #expect(recovered.epochs == [EpochStart(epoch: LeaderEpoch(1), start: .zero)])
    made += try await self.fill(volume, partition, from: Offset(600), batches: 100)
    // Nothing is in memory of what the last process wrote: this reads footers and segments.
    #expect(try await volume.readAll(partition, from: .zero) == made.map(\.bytes))
    await volume.abandon()

    volume = try await Volume.open(configuration, logger: Example.logger)
    #expect(!volume.wasClean)
    #expect(volume.recoveredPartitions().first?.end == Offset(900))
    #expect(try await volume.readAll(partition, from: .zero, maxBytes: 1) == made.map(\.bytes))
    await volume.close()
  }

  @Test(arguments: Volume.WritePath.allCases)
  func `large batches in many slices come back as one`(writes: Volume.WritePath) async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.writes = writes
    configuration.tailCacheBytes = 0
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    let batch = Example.batch(at: .zero, bodyBytes: 200_000)
    var slices: [ByteBuffer] = []
    var rest = batch.bytes[...]
    for count in [5, 7, 1, 40, 20_000, 3, 90_000, 1 << 20] {
      slices.append(ByteBuffer(bytes: rest.prefix(count)))
      rest = rest.dropFirst(count)
    }
    let appends = [Volume.Append(partition: partition, summary: batch.summary, batch: slices)]
    let result: Result<Void, MemQError> = await withCheckedContinuation { continuation in
      do throws(MemQError) {
        try volume.append(appends) { continuation.resume(returning: $0) }
        // Readable before it is durable.
      } catch {
        continuation.resume(returning: .failure(error))
      }
    }
    try result.get()
    #expect(try await volume.readAll(partition, from: .zero) == [batch.bytes])
    #expect(volume.stats.tailCacheBytes == 0)
    await volume.close()
  }

  @Test func `accepted batches are readable before they are durable`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    disk.set { $0.holdsSyncs = true }
    let batch = Example.batch(at: .zero)
    let durable = Monitor(false)
    let append = Volume.Append(
      partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: batch.bytes)])
    try volume.append([append]) { _ in durable.withLock { $0 = true } }
    let found = try await volume.read(partition, from: .zero, below: Offset(3), maxBytes: 1 << 20)
    #expect(found.nextOffset == Offset(3))
    #expect(!durable.withLock { $0 })
    disk.set { $0.holdsSyncs = false }
    await volume.close()
    #expect(durable.withLock { $0 })
  }

  @Test func `truncate, epochs, log start and drop hold over a crash`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    var volume = try await Volume.open(configuration, logger: Example.logger)
    let (first, second, third) = (Example.partition(0), Example.partition(1), Example.partition(2))
    for partition in [first, second, third] { try await volume.openDurably(partition) }
    let made = try await self.fill(volume, first, batches: 20)
    _ = try await self.fill(volume, second, batches: 20)
    _ = try await self.fill(volume, third, batches: 4)
    try await volume.durably { volume.truncate(first, to: Offset(30), completion: $0) }
    let later = Example.batch(at: Offset(30), bodyBytes: 77, epoch: 5)
    try await volume.appendDurably([(first, later)])
    try await volume.durably {
      volume.startEpoch(first, epoch: LeaderEpoch(9), start: Offset(33), completion: $0)
    }
    try await volume.durably { volume.setLogStart(second, to: Offset(12), completion: $0) }
    try await volume.durably { volume.dropPartition(third, completion: $0) }
    await #expect(throws: MemQError.self) {
      _ = try await volume.read(second, from: Offset(11), below: .max, maxBytes: 1)
    }
    await volume.abandon()

    volume = try await Volume.open(configuration, logger: Example.logger)
    let recovered = volume.recoveredPartitions()
    #expect(recovered.map(\.partition) == [first, second])
    #expect(
      recovered[0].epochs == [
        EpochStart(epoch: LeaderEpoch(1), start: .zero),
        EpochStart(epoch: LeaderEpoch(5), start: Offset(30)),
        EpochStart(epoch: LeaderEpoch(9), start: Offset(33)),
      ])
    #expect(recovered[0].end == Offset(33))
    #expect(recovered[1].logStart == Offset(12) && recovered[1].end == Offset(60))
    let expected = made.prefix(10).map(\.bytes) + [later.bytes]
    #expect(try await volume.readAll(first, from: .zero) == expected)
    // The name may be used again: a new log.
    try await volume.openDurably(third, at: Offset(1_000))
    #expect(volume.state(of: third)?.end == Offset(1_000))
    await volume.close()
  }

  @Test func `producer state comes back as a snapshot and the batches after it`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    var volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    let before = try await self.fill(volume, partition, batches: 400, producer: ProducerID(7))
    let end = before.last!.summary.endOffset
    volume.setProducerSnapshot(partition, bytes: [1, 2, 3], at: end)
    let after = try await self.fill(
      volume, partition, from: end, batches: 400, producer: ProducerID(8))
    await volume.abandon()
    volume = try await Volume.open(configuration, logger: Example.logger)
    let recovered = try #require(volume.recoveredPartitions().first)
    #expect(recovered.producerSnapshot == [1, 2, 3] && recovered.producerSnapshotEnd == end)
    #expect(recovered.batchesAfterSnapshot == after.map(\.summary))
    await volume.close()
  }

  @Test func `a time finds the first batch at or after it`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.tailCacheBytes = 32 << 10
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    let made = try await self.fill(volume, partition, batches: 900)
    for index in [0, 1, 57, 300, 620, 880, 899] {
      let found = try await volume.offset(
        partition, forTimestamp: Timestamp(milliseconds: 1_700_000_000_000 + Int64(index)))
      #expect(found == made[index].summary.baseOffset)
    }
    #expect(try await volume.offset(partition, forTimestamp: Timestamp(milliseconds: .max)) == nil)
    await volume.close()
  }

  @Test func `an upload empties the disk where nothing has to stay`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.rollIdle = .milliseconds(30)
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    volume.setLocalRetention(partition, bytes: 0, milliseconds: nil, hasObjectTier: true)
    let made = try await self.fill(volume, partition, batches: 700)
    #expect(volume.localBytes(partition).bytes > 2 << 20)
    let (moved, mover) = AsyncStream<Offset>.makeStream()
    volume.onLocalStartMoved = { _, start in mover.yield(start) }
    let end = made.last!.summary.endOffset
    volume.setUploadedOffset(partition, to: end)
    // Readers are sent to the object tier at once; the bytes follow with their segments.
    for await start in moved where start == end { break }
    try await volume.waitUntilEmpty(partition)
    #expect(volume.localBytes(partition) == (0, end))
    let next = Example.batch(at: end)
    try await volume.appendDurably([(partition, next)])
    #expect(try await volume.readAll(partition, from: end) == [next.bytes])
    await volume.close()
  }

  @Test func `what was uploaded stays until a snapshot knows its producers`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.rollIdle = .milliseconds(30)
    var volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    volume.setLocalRetention(partition, bytes: 0, milliseconds: nil, hasObjectTier: true)
    let (asked, asks) = AsyncStream<TopicPartition>.makeStream()
    volume.onSnapshotWanted = { asks.yield($0) }
    let made = try await self.fill(volume, partition, batches: 700, producer: ProducerID(7))
    let end = made.last!.summary.endOffset
    volume.setUploadedOffset(partition, to: end)
    for await wanted in asked {
      #expect(wanted == partition)
      break
    }
    #expect(volume.stats.log.counters.segmentsReclaimed == 0)
    await volume.abandon()

    volume = try await Volume.open(configuration, logger: Example.logger)
    var recovered = try #require(volume.recoveredPartitions().first)
    #expect(recovered.producerSnapshot == nil)
    #expect(recovered.batchesAfterSnapshot == made.map(\.summary))
    volume.onSnapshotWanted = { [weak volume] in
      volume?.setProducerSnapshot($0, bytes: [7], at: end)
    }
    volume.setLocalRetention(partition, bytes: 0, milliseconds: nil, hasObjectTier: true)
    volume.setUploadedOffset(partition, to: end)
    // The sealed segments go; what the crash cut goes with them, nothing of it was the active one.
    try await volume.waitUntilEmpty(partition)
    // Behind the snapshot in the log: what is durable here is so there.
    try await volume.openDurably(Example.partition(1))
    await volume.abandon()

    volume = try await Volume.open(configuration, logger: Example.logger)
    recovered = try #require(volume.recoveredPartitions().first { $0.partition == partition })
    #expect(recovered.producerSnapshot == [7] && recovered.producerSnapshotEnd == end)
    #expect(recovered.end == end && recovered.batchesAfterSnapshot.isEmpty)
    await volume.close()
  }

  @Test func `an idle partition gives its last bytes back once its producers are kept`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.rollIdle = .milliseconds(30)
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    volume.setLocalRetention(partition, bytes: 0, milliseconds: nil, hasObjectTier: true)
    volume.onSnapshotWanted = { [weak volume] in
      volume?.setProducerSnapshot($0, bytes: [7], at: Offset(9))
    }
    _ = try await self.fill(volume, partition, batches: 3, producer: ProducerID(7))
    volume.setUploadedOffset(partition, to: Offset(9))
    try await volume.waitUntilEmpty(partition)
    await volume.close()
  }

  @Test func `records that are uploaded and not kept are released from their offset on`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let volume = try await Volume.open(Example.configuration(folder), logger: Example.logger)
    let (released, kept) = (Example.partition(0), Example.partition(1))
    for partition in [released, kept] {
      try await volume.openDurably(partition)
      volume.setLocalRetention(
        partition, bytes: partition == released ? 0 : 1 << 30, milliseconds: nil,
        hasObjectTier: true)
      _ = try await self.fill(volume, partition, batches: 10, bodyBytes: 100)
      volume.setUploadedOffset(partition, to: Offset(15))
    }
    // One segment holds both, so no byte of it may go; its readers are told where to read all the same.
    #expect(volume.localBytes(released).localStart == Offset(15))
    #expect(volume.localBytes(released).bytes > 0)
    #expect(volume.localBytes(kept).localStart == .zero)
    await #expect(throws: MemQError.self) {
      _ = try await volume.read(released, from: Offset(14), below: .max, maxBytes: 1)
    }
    #expect(try await volume.readAll(released, from: Offset(15)).count == 5)
    // An uploaded offset beyond the end releases no more than there is.
    volume.setUploadedOffset(released, to: Offset(99))
    #expect(volume.localBytes(released).localStart == Offset(30))
    volume.setLocalRetention(released, bytes: nil, milliseconds: nil, hasObjectTier: true)
    #expect(volume.localBytes(released).localStart == .zero)
    await volume.close()
  }

  @Test func `a hung disk holds up no close beyond its time`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let disk = FaultyDisk(path: configuration.path)
    let volume = try await Volume.open(configuration, disk: disk, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    disk.set { $0.holdsSyncs = true }
    let batch = Example.batch(at: .zero)
    try volume.append([
      Volume.Append(
        partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: batch.bytes)])
    ]) { _ in }
    #expect(!(await volume.close(within: .milliseconds(50))))
    disk.set { $0.holdsSyncs = false }
    withExtendedLifetime(folder) {}
  }

  @Test
  func
    `memory gives what was just written, nothing at the end, and says when the disk has to be asked`()
    async throws
  {
    let folder = TemporaryFolder()
    var configuration = Example.configuration(folder)
    configuration.tailCacheBytes = 64 << 10
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partition = Example.partition()
    try await volume.openDurably(partition)
    let made = try await self.fill(volume, partition, batches: 100, bodyBytes: 4_000)
    let newest = try #require(made.last?.summary)
    func read(_ from: Offset) throws -> Volume.ReadResult? {
      try volume.readFromMemory(partition, from: from, below: newest.endOffset, maxBytes: 1 << 20)
    }
    #expect(try read(newest.baseOffset)?.batches.map(\.summary.baseOffset) == [newest.baseOffset])
    #expect(try read(newest.endOffset)?.batches.isEmpty == true)
    #expect(try read(.zero) == nil)
    let stranger = Example.partition(9)
    #expect(throws: MemQError.self) {
      try volume.readFromMemory(stranger, from: .zero, below: .zero, maxBytes: 1)
    }
    await volume.close()
    withExtendedLifetime(folder) {}
  }

  @Test func `many writers and readers at once lose nothing`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.tailCacheBytes = 64 << 10
    let volume = try await Volume.open(configuration, logger: Example.logger)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<8 as Range<Int32> {
        group.addTask {
          let partition = Example.partition(index)
          try await volume.openDurably(partition)
          let made = try await self.fill(
            volume, partition, batches: 150, bodyBytes: 500 + 900 * Int(index))
          let found = try await volume.readAll(partition, from: .zero, maxBytes: 30_000)
          #expect(found == made.map(\.bytes))
        }
      }
      try await group.waitForAll()
    }
    await volume.close()
    let dump = try VolumeDump(path: configuration.path, requireStopped: true)
    var batches = 0
    try dump.forEachFrame { frame in
      if frame.header.type == .batch { batches += 1 }
      return true
    }
    #expect(batches == 8 * 150)
    #expect(try dump.partitions().count == 8)
    #expect(try dump.segments().dropLast().allSatisfy { $0.damage == nil && $0.hasFooter })
  }
}
