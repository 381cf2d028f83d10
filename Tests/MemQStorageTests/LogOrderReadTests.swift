// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import MemQTestSupport
import NIOCore
import Testing

/// Every version of every batch that was ever appended.
private final class Written: Sendable {
  private let batches = Monitor<[TopicPartition: [Offset: [[UInt8]]]]>([:])

  func add(_ partition: TopicPartition, _ batch: SyntheticBatch) {
    self.batches.withLock {
      $0[partition, default: [:]][batch.summary.baseOffset, default: []].append(batch.bytes)
    }
  }

  func holds(_ partition: TopicPartition, _ base: Offset, _ bytes: [UInt8]) -> Bool {
    self.batches.withLock { $0[partition]?[base]?.contains(bytes) ?? false }
  }

  func bases(_ partition: TopicPartition) -> [Offset] {
    self.batches.withLock { $0[partition].map { Array($0.keys) } ?? [] }
  }
}

/// Files whose reads of some slots wait.
private final class GatedDisk: VolumeDisk {
  final class GatedFile: SegmentFile {
    let file: any SegmentFile
    let slot: SegmentSlot
    let held: Monitor<Set<SegmentSlot>>

    init(_ file: any SegmentFile, _ slot: SegmentSlot, _ held: Monitor<Set<SegmentSlot>>) {
      self.file = file
      self.slot = slot
      self.held = held
    }

    func byteCount() throws(FileError) -> Int64 { try self.file.byteCount() }
    func write(
      gathered pieces: UnsafeMutableBufferPointer<iovec>, at position: Int64
    ) throws(FileError) { try self.file.write(gathered: pieces, at: position) }
    func syncData() throws(FileError) { try self.file.syncData() }
    func read(
      into bytes: UnsafeMutableRawBufferPointer, at position: Int64
    ) throws(FileError) -> Int {
      let slot = self.slot
      self.held.await { $0.contains(slot) ? .wait(until: nil) : .done(()) }
      return try self.file.read(into: bytes, at: position)
    }
    func dropCache() { self.file.dropCache() }
  }

  let folder: FolderDisk
  let held = Monitor<Set<SegmentSlot>>([])

  init(path: String) { self.folder = FolderDisk(path: path) }

  func hold(_ slots: Set<SegmentSlot>) {
    self.held.withLock { $0 = slots }
    self.held.broadcast()
  }

  func acquire() throws(MemQError) { try self.folder.acquire() }
  func release() { self.folder.release() }
  func volumeFile() throws(FileError) -> [UInt8]? { try self.folder.volumeFile() }
  func replaceVolumeFile(_ bytes: [UInt8]) throws(FileError) {
    try self.folder.replaceVolumeFile(bytes)
  }
  func slots() throws(FileError) -> [SegmentSlot] { try self.folder.slots() }
  func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    GatedFile(try self.folder.file(slot), slot, self.held)
  }
  func allocate(_ slot: SegmentSlot, byteCount: Int64) throws(FileError) {
    try self.folder.allocate(slot, byteCount: byteCount)
  }
  func availableBytes() throws(FileError) -> Int64 { try self.folder.availableBytes() }
}

@Suite struct LogOrderReadTests {
  private static func batches(_ result: Volume.ReadResult) -> [(BatchSummary, [UInt8])] {
    var bytes = result.slices.flatMap { Array($0.readableBytesView) }[...]
    return result.batches.map { batch in
      defer { bytes = bytes.dropFirst(batch.byteCount) }
      return (batch.summary, Array(bytes.prefix(batch.byteCount)))
    }
  }

  /// Appends, truncates, trims and lets segments go.
  private static func write(
    _ volume: Volume, _ partitions: [TopicPartition], _ written: Written, seed: UInt64
  ) async throws {
    var generator = SeededGenerator(seed: seed)
    var ends: [Offset] = partitions.map { _ in .zero }
    var bases: [[Offset]] = partitions.map { _ in [] }
    var epoch: Int64 = 1
    for _ in 0..<500 {
      let index = Int.random(in: partitions.indices, using: &generator)
      let partition = partitions[index]
      switch Int.random(in: 0..<40, using: &generator) {
      case 0:
        // Partitions of even number are never cut: what they hold is what was written.
        guard index % 2 == 1, let state = volume.state(of: partition) else { continue }
        let choices = bases[index].filter { $0 >= state.logStart }
        guard let end = choices.randomElement(using: &generator) else { continue }
        epoch += 1
        try await volume.durably { volume.truncate(partition, to: end, completion: $0) }
        bases[index].removeAll { $0 >= end }
        ends[index] = end
      case 1:
        guard let start = bases[index].randomElement(using: &generator),
          let state = volume.state(of: partition), start > state.logStart
        else { continue }
        try await volume.durably { volume.setLogStart(partition, to: start, completion: $0) }
      case 2:
        for (partition, end) in zip(partitions, ends) {
          volume.setUploadedOffset(partition, to: end)
        }
      default:
        var appends: [(TopicPartition, SyntheticBatch)] = []
        for _ in 0..<Int.random(in: 1...6, using: &generator) {
          let batch = Example.batch(
            at: ends[index], bodyBytes: Int.random(in: 10...9_000, using: &generator),
            epoch: epoch)
          written.add(partition, batch)
          appends.append((partition, batch))
          bases[index].append(ends[index])
          ends[index] = batch.summary.endOffset
        }
        try await volume.appendDurably(appends)
      }
    }
  }

  private static func check(
    _ result: Volume.ReadResult, _ want: Volume.LogOrderWant, _ written: Written
  ) {
    var next = want.from
    var bytes = 0
    for (summary, batch) in Self.batches(result) {
      #expect(summary.endOffset <= want.below)
      #expect(next == want.from ? summary.endOffset > next : summary.baseOffset == next)
      #expect(written.holds(want.partition, summary.baseOffset, batch))
      bytes += batch.count
      next = summary.endOffset
    }
    #expect(bytes <= want.maxBytes || result.batches.count == 1)
    #expect(result.nextOffset == next || result.batches.isEmpty)
  }

  @Test(arguments: [11, 12, 13] as [UInt64])
  func `reads in log order equal plain reads while the log is written, cut and freed beside them`(
    seed: UInt64
  ) async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    var configuration = Example.configuration(folder)
    configuration.segmentBytes = 256 << 10
    configuration.tailCacheBytes = 64 << 10
    configuration.readAheadBytes = 256 << 10
    configuration.footerCacheBytes = 8 << 10
    let volume = try await Volume.open(configuration, logger: Example.logger)
    let partitions = (0..<12).map { Example.partition($0) }
    for partition in partitions {
      try await volume.openDurably(partition)
      volume.setLocalRetention(partition, bytes: 100_000, milliseconds: nil, hasObjectTier: true)
    }
    let written = Written()
    let isWriting = Monitor(true)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask {
        defer { isWriting.withLock { $0 = false } }
        try await Self.write(volume, partitions, written, seed: seed)
      }
      for reader in 0..<2 {
        group.addTask {
          var generator = SeededGenerator(seed: seed &* 100 &+ UInt64(reader))
          while isWriting.withLock({ $0 }) {
            // Reads from memory don't suspend: the writer has its turn here.
            await Task.yield()
            var wants: [Volume.LogOrderWant] = []
            for partition in partitions where Bool.random(using: &generator) {
              guard let from = written.bases(partition).randomElement(using: &generator) else {
                continue
              }
              let below = Bool.random(using: &generator) ? .max : from + 60
              wants.append(
                Volume.LogOrderWant(
                  partition: partition, from: from, below: below,
                  maxBytes: Int.random(in: 1...60_000, using: &generator)))
            }
            let results = try await volume.readInLogOrder(
              wants, maxBytes: Int.random(in: 1...400_000, using: &generator))
            for (want, result) in zip(wants, results) {
              switch result {
              case .success(let found): Self.check(found, want, written)
              case .failure(let error): #expect(error.code == .offsetOutOfRange)
              }
            }
            guard let want = wants.first else { continue }
            do {
              let found = try await volume.read(
                want.partition, from: want.from, below: want.below, maxBytes: want.maxBytes)
              Self.check(found, want, written)
            } catch {
              #expect((error as? MemQError)?.code == .offsetOutOfRange)
            }
          }
        }
      }
      try await group.waitForAll()
    }
    #expect(volume.stats.log.counters.segmentsReclaimed > 0 && volume.stats.readErrors == 0)
    // At rest, all of it: the same batches, whatever the ceilings.
    var generator = SeededGenerator(seed: seed)
    var wants: [Volume.LogOrderWant] = []
    for partition in partitions {
      guard let state = volume.state(of: partition) else { continue }
      wants.append(
        .init(partition: partition, from: state.localStart, below: state.end, maxBytes: 20_000))
    }
    var found = wants.map { _ in [[UInt8]]() }
    var hasMore = true
    while hasMore {
      hasMore = false
      let results = try await volume.readInLogOrder(
        wants, maxBytes: Int.random(in: 1...200_000, using: &generator))
      for (index, result) in results.enumerated() {
        let result = try result.get()
        found[index] += Self.batches(result).map(\.1)
        hasMore = hasMore || !result.batches.isEmpty
        wants[index].from = result.nextOffset
      }
    }
    for (index, want) in wants.enumerated() {
      let start = try #require(volume.state(of: want.partition)).localStart
      #expect(try await volume.readAll(want.partition, from: start) == found[index])
    }
    await volume.close()
  }

  /// A volume of `count` batches over `partitions`, of which nothing is in memory.
  private static func volume(
    _ configuration: Volume.Configuration, _ partitions: [TopicPartition], count: Int,
    disk: (any VolumeDisk)? = nil
  ) async throws -> (Volume, [Offset]) {
    var configuration = configuration
    configuration.tailCacheBytes = 0
    let volume =
      if let disk {
        try await Volume.open(configuration, disk: disk, logger: Example.logger)
      } else {
        try await Volume.open(configuration, logger: Example.logger)
      }
    for partition in partitions { try await volume.openDurably(partition) }
    var ends: [Offset] = partitions.map { _ in .zero }
    for _ in 0..<count {
      var appends: [(TopicPartition, SyntheticBatch)] = []
      for (index, partition) in partitions.enumerated() {
        let batch = Example.batch(at: ends[index], bodyBytes: 3_000)
        appends.append((partition, batch))
        ends[index] = batch.summary.endOffset
      }
      try await volume.appendDurably(appends)
    }
    return (volume, ends)
  }

  @Test func `many partitions far behind cost one reading of their segments`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let partitions = (0..<16).map { Example.partition($0) }
    let (volume, ends) = try await Self.volume(
      Example.configuration(folder), partitions, count: 60)
    var wants = partitions.indices.map {
      Volume.LogOrderWant(
        partition: partitions[$0], from: .zero, below: ends[$0], maxBytes: 1 << 20)
    }
    var bytes = 0
    var calls = 0
    while true {
      calls += 1
      let results = try await volume.readInLogOrder(wants, maxBytes: 16 << 20)
      var isOver = true
      for (index, result) in results.enumerated() {
        let result = try result.get()
        bytes += result.byteCount
        wants[index].from = result.nextOffset
        isOver = isOver && result.batches.isEmpty
      }
      if isOver { break }
    }
    #expect(wants.map(\.from) == ends)
    // One pass for each segment, and hardly more read than handed out.
    #expect(calls <= volume.stats.log.segmentsUsed + 1)
    #expect(volume.stats.bytesRead < Int64(bytes) * 5 / 4)
    await volume.close()
  }

  @Test func `what several want is read once`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let partitions = (0..<4).map { Example.partition($0) }
    let (volume, ends) = try await Self.volume(
      Example.configuration(folder), partitions, count: 60)
    let want = Volume.LogOrderWant(
      partition: partitions[0], from: .zero, below: ends[0], maxBytes: 1 << 20)
    let one = try await volume.readInLogOrder([want], maxBytes: 16 << 20)[0].get()
    let before = volume.stats.bytesRead
    for result in try await volume.readInLogOrder([want, want, want, want], maxBytes: 16 << 20) {
      let result = try result.get()
      #expect(result.batches == one.batches && result.slices == one.slices)
    }
    // How much is read around what is wanted hangs on whether appends keep the disk busy just
    // then, by less than one read more; four reads of their own would be four times as much.
    #expect(one.byteCount > 0 && volume.stats.bytesRead - before < 2 * before)
    await volume.close()
  }

  @Test func `damage and a disk that can't read are errors of those reads alone`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let partitions = (0..<4).map { Example.partition($0) }
    let disk = FaultyDisk(path: configuration.path)
    let (volume, ends) = try await Self.volume(configuration, partitions, count: 200, disk: disk)
    let (hurt, place) = try #require(try Self.secondBatch(configuration.path))
    let file = try File(configuration.path + "/segment-00000000", .readWrite)
    try [UInt8(0x55)].withUnsafeBytes { try file.write($0, at: place + 1_000) }
    let wants = partitions.map {
      Volume.LogOrderWant(partition: $0, from: .zero, below: .max, maxBytes: 1 << 20)
    }
    let first = try await volume.readInLogOrder(wants, maxBytes: 16 << 20)
    for (want, result) in zip(wants, first) {
      let found = try result.get()
      // Up to the damage, and no further.
      #expect(
        want.partition == hurt ? found.nextOffset == Offset(3) : found.nextOffset > Offset(30))
    }
    await #expect(throws: MemQError.self) {
      _ = try await volume.read(hurt, from: Offset(3), below: .max, maxBytes: 1)
    }
    #expect(volume.stats.readErrors == 2)
    disk.set { $0.readsFail = true }
    for result in try await volume.readInLogOrder(wants, maxBytes: 1 << 20) {
      guard case .failure(let error) = result else {
        Issue.record("a read that failed was served")
        continue
      }
      #expect(error.code == .logCorrupt)
    }
    // The log goes on.
    try await volume.appendDurably([(partitions[0], Example.batch(at: ends[0]))])
    disk.set { $0.readsFail = false }
    #expect(volume.stats.state == .open && volume.stats.readErrors > 2)
    #expect(
      try await volume.read(partitions[0], from: ends[0], below: .max, maxBytes: 1).batches.count
        == 1)
    await volume.close()
  }

  /// The second batch of the first segment, and where its frame is.
  private static func secondBatch(_ path: String) throws -> (TopicPartition, Int64)? {
    var found: (TopicPartition, Int64)?
    try VolumeDump(path: path, requireStopped: false).forEachFrame { frame in
      guard frame.header.type == .batch, frame.header.baseOffset == Offset(3) else { return true }
      found = (frame.header.partition, frame.place.position)
      return false
    }
    return found
  }

  @Test func `catching up on a disk that hangs keeps neither appends nor those who keep up`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    let partition = Example.partition()
    let disk = GatedDisk(path: configuration.path)
    let (volume, ends) = try await Self.volume(configuration, [partition], count: 1_200, disk: disk)
    #expect(volume.stats.log.segmentsUsed > 3)
    disk.hold([SegmentSlot(0)])
    let behind = Task {
      try await volume.read(partition, from: .zero, below: .max, maxBytes: 1 << 20)
    }
    let gone = Task {
      try await volume.read(partition, from: Offset(3), below: .max, maxBytes: 1 << 20)
    }
    gone.cancel()
    // Its place in the queue, or the one pread that the other waits for too, is left at once.
    let next = Example.batch(at: ends[0])
    try await volume.appendDurably([(partition, next)])
    let tail = try await volume.read(partition, from: ends[0], below: .max, maxBytes: 1)
    #expect(tail.nextOffset == next.summary.endOffset)
    disk.hold([])
    #expect(try await behind.value.batches.count > 1)
    do {
      #expect(try await gone.value.batches.count > 1)
    } catch {
      #expect((error as? MemQError)?.code == .cancelled)
    }
    do {
      _ = try await volume.readInLogOrder(
        [.init(partition: partition, from: .zero, below: .max, maxBytes: 1)], maxBytes: 1,
        deadline: MonotonicInstant(nanoseconds: 0))
      Issue.record("a read after its deadline was served")
    } catch {
      #expect(error.code == .deadlineExceeded)
    }
    await volume.close()
  }

  @Test func `a sequential reader is read ahead of, and a truncate forgets it`() async throws {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let partition = Example.partition()
    let (volume, ends) = try await Self.volume(
      Example.configuration(folder), [partition], count: 1_000)
    var from = Offset.zero
    var preads: Set<Int64> = []
    var calls = 0
    while from < Offset(900) {
      let found = try await volume.read(partition, from: from, below: ends[0], maxBytes: 10_000)
      #expect(found.batches.first?.summary.baseOffset == from && found.byteCount <= 10_000)
      from = found.nextOffset
      calls += 1
      preads.insert(volume.stats.bytesRead)
    }
    #expect(calls > 90 && preads.count < 10)
    #expect(volume.stats.readAheadBytes > 0 && volume.stats.readAheadBytes <= 16 << 20)
    try await volume.durably { volume.truncate(partition, to: from, completion: $0) }
    #expect(volume.stats.readAheadBytes == 0)
    let other = Example.batch(at: from, bodyBytes: 77, epoch: 2)
    try await volume.appendDurably([(partition, other)])
    #expect(try await volume.readAll(partition, from: from) == [other.bytes])
    await volume.close()
  }
}
