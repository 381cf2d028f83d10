// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import MemQTestSupport
import NIOCore
import Testing

/// A folder of its own under /tmp, removed at the end.
final class TemporaryFolder: Sendable {
  let path: String

  init() {
    var template = Array("/tmp/memq-storage-XXXXXX".utf8CString)
    self.path = String(cString: mkdtemp(&template)!)
  }

  deinit { Self.remove(self.path) }

  private static func remove(_ path: String) {
    for name in (try? Files.list(path)) ?? [] {
      let child = path + "/" + name
      if Files.isFolder(child) { Self.remove(child) } else { try? Files.remove(child) }
    }
    rmdir(path)
  }
}

enum Example {
  static let cluster = ClusterID(UniqueID(high: 1, low: 2))
  static let topic = TopicID(UniqueID(high: 5, low: 6))
  static let logger = Logger(label: "storage-tests") { _ in SwiftLogNoOpLogHandler() }

  static func partition(_ index: Int32 = 0) -> TopicPartition {
    TopicPartition(Self.topic, PartitionIndex(index))
  }

  static func configuration(_ folder: TemporaryFolder) -> Volume.Configuration {
    var configuration = Volume.Configuration(path: folder.path + "/ssd", clusterID: Self.cluster)
    configuration.segmentBytes = 1 << 20
    configuration.groupBytesMax = 128 << 10
    return configuration
  }

  static func batch(
    at base: Offset, records: Int64 = 3, bodyBytes: Int = 500, epoch: Int64 = 1,
    producer: ProducerID = .none, time: Int64 = 1_700_000_000_000
  ) -> SyntheticBatch {
    var generator = SeededGenerator(seed: UInt64(base.rawValue) &* 31 &+ UInt64(bodyBytes))
    let summary = BatchSummary(
      baseOffset: base, endOffset: base + records, leaderEpoch: LeaderEpoch(epoch),
      producerID: producer, producerEpoch: ProducerEpoch(0),
      baseSequence: producer == .none ? -1 : Int32(base.rawValue),
      maxTimestamp: Timestamp(milliseconds: time), appendTime: Timestamp(milliseconds: time))
    return SyntheticBatch(summary, bodyBytes: bodyBytes, using: &generator)
  }
}

extension Volume {
  /// Appends and waits for durability.
  func appendDurably(
    _ batches: [(TopicPartition, SyntheticBatch)], reserved: RoomReservation = RoomReservation()
  ) async throws {
    let appends = batches.map { partition, batch in
      // The stamp is the log's work: what comes in has none.
      var bytes = batch.bytes
      for index in Array(0..<8) + Array(12..<16) { bytes[index] = 0xEE }
      return Volume.Append(
        partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: bytes)])
    }
    let result: Result<Void, MemQError> = await withCheckedContinuation { continuation in
      do throws(MemQError) {
        try self.append(appends, reserved: reserved) { continuation.resume(returning: $0) }
      } catch {
        continuation.resume(returning: .failure(error))
      }
    }
    try result.get()
  }

  func durably(_ body: (@escaping Volume.Completion) -> Void) async throws {
    let result: Result<Void, MemQError> = await withCheckedContinuation { continuation in
      body { continuation.resume(returning: $0) }
    }
    try result.get()
  }

  func openDurably(_ partition: TopicPartition, at start: Offset = .zero) async throws {
    try await self.durably {
      self.openPartition(partition, logStart: start, epochs: [], completion: $0)
    }
  }

  /// Waits until nothing of the partition is on the disk; for at most 60 s.
  func waitUntilEmpty(_ partition: TopicPartition) async throws {
    let deadline = ContinuousClock.now + .seconds(60)
    while self.localBytes(partition).bytes > 0 {
      guard ContinuousClock.now < deadline else {
        throw MemQError(
          .deadlineExceeded, "bytes are left on the disk",
          actual: self.localBytes(partition).bytes)
      }
      await Task.yield()
    }
  }

  /// Appends until nothing but the reserve is left. Returns the end.
  func fillUp(_ partition: TopicPartition) async throws -> Offset {
    var end = Offset.zero
    while !self.isFull(for: 20_000) {
      let batch = Example.batch(at: end, bodyBytes: 20_000)
      do {
        try await self.appendDurably([(partition, batch)])
        end = batch.summary.endOffset
      } catch let error as MemQError where error.isRetriable {
        await Task.yield()
      }
    }
    return end
  }

  /// How far what is read, from the beginning, is what was appended.
  func readable(
    _ partition: TopicPartition, of expected: [SyntheticBatch]
  ) async throws -> Offset {
    var from = Offset.zero
    while true {
      let end = try #require(self.state(of: partition)?.end)
      guard from < end else { return from }
      let result: Volume.ReadResult
      do {
        result = try await self.read(partition, from: from, below: end, maxBytes: 1 << 20)
      } catch {
        guard error.code == .logCorrupt else { throw error }
        return from
      }
      var bytes = result.slices.flatMap { Array($0.readableBytesView) }[...]
      for batch in result.batches {
        let appended = try #require(
          expected.first { $0.summary.baseOffset == batch.summary.baseOffset })
        #expect(Array(bytes.prefix(batch.byteCount)) == appended.bytes)
        bytes = bytes.dropFirst(batch.byteCount)
      }
      try #require(result.nextOffset > from)
      from = result.nextOffset
    }
  }

  /// Everything from `from` to the end, as bytes per batch.
  func readAll(
    _ partition: TopicPartition, from: Offset, maxBytes: Int = 100_000
  ) async throws -> [[UInt8]] {
    var found: [[UInt8]] = []
    var from = from
    while let end = self.state(of: partition)?.end, from < end {
      let result = try await self.read(partition, from: from, below: end, maxBytes: maxBytes)
      var bytes = result.slices.flatMap { Array($0.readableBytesView) }[...]
      for batch in result.batches {
        found.append(Array(bytes.prefix(batch.byteCount)))
        bytes = bytes.dropFirst(batch.byteCount)
      }
      guard result.nextOffset > from, bytes.isEmpty else {
        throw MemQError(.internalError, "a read from \(from) made no progress")
      }
      from = result.nextOffset
    }
    return found
  }
}

/// A disk that fails, fills up or lies on demand, over real files.
final class FaultyDisk: VolumeDisk {
  struct Faults: Sendable {
    /// The next so many syncs work, then `syncErrors` fail.
    var syncsUntilError = Int.max
    var syncErrors = 0
    var writesUntilError = Int.max
    var slotsMax = Int.max
    /// What an allocation beyond `slotsMax` fails with.
    var allocateError = ENOSPC
    /// The file system claims to have room.
    var statesRoom = false
    var readsFail = false
    /// What opening and reading a segment file fail with, once it is open anew.
    var openError: Int32?
    var readError: Int32?
    /// Opens and reads that failed by them.
    var opensFailed = 0
    var readsFailed = 0
    var syncs = 0
    /// Syncs wait until it is false.
    var holdsSyncs = false
    /// What a sync takes at least.
    var syncTakes: Duration = .zero
    /// Open files whose syncs are under way.
    var syncing: [(slot: SegmentSlot, file: ObjectIdentifier)] = []
    /// Syncs that began beside one of the same segment file, and those of them by the very same open file.
    var syncsBeside = 0
    var syncsShared = 0
  }

  let folder: FolderDisk
  let faults: Monitor<Faults>

  init(path: String, _ faults: Faults = Faults()) {
    self.folder = FolderDisk(path: path)
    self.faults = Monitor(faults)
  }

  func set(_ body: (inout Faults) -> Void) {
    self.faults.withLock(body)
    self.faults.broadcast()
  }

  func acquire() throws(MemQError) { try self.folder.acquire() }
  func release() { self.folder.release() }
  func volumeFile() throws(FileError) -> [UInt8]? { try self.folder.volumeFile() }
  func replaceVolumeFile(_ bytes: [UInt8]) throws(FileError) {
    try self.folder.replaceVolumeFile(bytes)
  }
  func slots() throws(FileError) -> [SegmentSlot] { try self.folder.slots() }

  func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    let error = self.faults.withLock { faults in
      if faults.openError != nil { faults.opensFailed += 1 }
      return faults.openError
    }
    if let error { throw FileError(.open, path: "segment \(slot)", number: error) }
    return FaultyFile(slot: slot, file: try self.folder.file(slot), faults: self.faults)
  }

  func allocate(_ slot: SegmentSlot, byteCount: Int64) throws(FileError) {
    guard Int(slot.rawValue) < self.faults.withLock({ $0.slotsMax }) else {
      throw FileError(
        .allocate, path: "segment \(slot)", number: self.faults.withLock { $0.allocateError })
    }
    try self.folder.allocate(slot, byteCount: byteCount)
  }

  func availableBytes() throws(FileError) -> Int64 {
    let slots = try self.folder.slots(removesUnfinished: false).count
    let (max, statesRoom) = self.faults.withLock { ($0.slotsMax, $0.statesRoom) }
    if statesRoom { return try self.folder.availableBytes() }
    return max == .max ? try self.folder.availableBytes() : Int64(Swift.max(0, max - slots)) << 20
  }
}

final class FaultyFile: SegmentFile {
  let slot: SegmentSlot
  let file: any SegmentFile
  let faults: Monitor<FaultyDisk.Faults>

  init(slot: SegmentSlot, file: any SegmentFile, faults: Monitor<FaultyDisk.Faults>) {
    self.slot = slot
    self.file = file
    self.faults = faults
  }

  func byteCount() throws(FileError) -> Int64 { try self.file.byteCount() }

  func write(
    gathered pieces: UnsafeMutableBufferPointer<FilePiece>, at position: Int64
  ) throws(FileError) {
    let fails = self.faults.withLock { faults in
      faults.writesUntilError -= 1
      return faults.writesUntilError < 0
    }
    guard !fails else { throw FileError(.write, path: "segment", number: EIO) }
    try self.file.write(gathered: pieces, at: position)
  }

  func syncData() throws(FileError) {
    let fails: Bool = self.faults.await { faults in
      if faults.holdsSyncs { return .wait(until: nil) }
      faults.syncs += 1
      guard faults.syncsUntilError <= 0, faults.syncErrors > 0 else {
        if faults.syncsUntilError != .max { faults.syncsUntilError -= 1 }
        return .done(false)
      }
      faults.syncErrors -= 1
      return .done(true)
    }
    guard !fails else { throw FileError(.sync, path: "segment", number: EIO) }
    let id = ObjectIdentifier(self)
    let takes = self.faults.withLock { faults in
      if faults.syncing.contains(where: { $0.slot == self.slot }) { faults.syncsBeside += 1 }
      if faults.syncing.contains(where: { $0.file == id }) { faults.syncsShared += 1 }
      faults.syncing.append((self.slot, id))
      return faults.syncTakes
    }
    defer {
      self.faults.withLock { (faults: inout FaultyDisk.Faults) -> Void in
        let index = faults.syncing.firstIndex { $0.file == id }!
        faults.syncing.remove(at: index)
      }
    }
    if takes > .zero { usleep(UInt32(takes / .microseconds(1))) }
    try self.file.syncData()
  }

  func read(into bytes: UnsafeMutableRawBufferPointer, at position: Int64) throws(FileError) -> Int
  {
    guard !self.faults.withLock({ $0.readsFail }) else {
      throw FileError(.read, path: "segment", number: EIO)
    }
    let error = self.faults.withLock { faults in
      if faults.readError != nil { faults.readsFailed += 1 }
      return faults.readError
    }
    if let error {
      throw FileError(.read, path: "segment", number: error)
    }
    return try self.file.read(into: bytes, at: position)
  }

  func dropCache() { self.file.dropCache() }
}
