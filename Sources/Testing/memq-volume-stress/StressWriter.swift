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

/// What a partition and an offset hold.
enum StressBatch {
  static let cluster = ClusterID(UniqueID(high: 0x5354_5245_5353_0000, low: 1))
  static let topic = TopicID(UniqueID(high: 0x5354_5245_5353_0000, low: 2))

  static func partition(_ index: Int) -> TopicPartition {
    TopicPartition(Self.topic, PartitionIndex(Int32(index)))
  }

  static func make(_ partition: Int, at base: Offset) -> SyntheticBatch {
    var generator = SeededGenerator(seed: UInt64(partition) << 40 ^ UInt64(base.rawValue))
    let records = Int64.random(in: 1...9, using: &generator)
    let bytes = Int.random(in: 0...1, using: &generator) == 0 ? 20_000 : 600
    let time = Timestamp(milliseconds: 1_700_000_000_000 + base.rawValue)
    let summary = BatchSummary(
      baseOffset: base, endOffset: base + records, leaderEpoch: LeaderEpoch(1),
      maxTimestamp: time, appendTime: time)
    return SyntheticBatch(
      summary, bodyBytes: Int.random(in: 0...bytes, using: &generator), using: &generator)
  }

  static func configuration(_ options: VolumeStress.Options) -> Volume.Configuration {
    var configuration = Volume.Configuration(path: options.path, clusterID: Self.cluster)
    configuration.segmentBytes = options.segmentBytes
    configuration.groupBytesMax = 1 << 20
    configuration.tailCacheBytes = 1 << 20
    if options.cleans {
      configuration.capacityBytes = 16 * options.segmentBytes
      configuration.carryBytesPerSecond = 256 << 20
    }
    return configuration
  }

  static let logger = Logger(label: "volume-stress") { _ in SwiftLogNoOpLogHandler() }
}

/// Appends to all partitions, a few batches of each under way, and notes each acknowledged end.
enum StressWriter {
  static func run(_ options: VolumeStress.Options) async throws {
    let configuration = StressBatch.configuration(options)
    let disk: any VolumeDisk =
      options.isUnsynced
      ? UnsyncedDisk(path: options.path)
      : FolderDisk(path: options.path, writes: options.isDirect ? .direct : .cached)
    let volume = try await Volume.open(configuration, disk: disk, logger: StressBatch.logger)
    let acknowledged = Acknowledged(options.acknowledged)
    let deadline = SystemClock().monotonic + .seconds(options.seconds)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for index in 0..<options.partitions {
        group.addTask {
          try await Self.write(index, volume, acknowledged, options, until: deadline)
        }
      }
      group.addTask { try await Self.watchCold(volume, acknowledged, until: deadline) }
      try await group.waitForAll()
    }
    await volume.close()
    print("wrote until the end")
  }

  /// What partitions keep in all, where others fill the disk.
  private static let keptBytesMax: Int64 = 3 << 20

  /// Notes how many cold segments are durable, whenever that changes.
  private static func watchCold(
    _ volume: Volume, _ acknowledged: Acknowledged, until deadline: MonotonicInstant
  ) async throws {
    var known = -1
    while SystemClock().monotonic < deadline {
      let log = volume.stats.log
      if log.segmentsCold != known {
        // What makes it part of the log has a place by now.
        while volume.stats.log.counters.groupsDurable < log.counters.groupsWritten,
          SystemClock().monotonic < deadline
        {
          try await Task.sleep(for: .milliseconds(1))
        }
        known = log.segmentsCold
        acknowledged.noteCold(known)
      }
      try await Task.sleep(for: .milliseconds(2))
    }
  }

  private static func write(
    _ index: Int, _ volume: Volume, _ acknowledged: Acknowledged, _ options: VolumeStress.Options,
    until deadline: MonotonicInstant
  ) async throws {
    let partition = StressBatch.partition(index)
    if volume.state(of: partition) == nil {
      try await Self.durably { completion in
        volume.openPartition(partition, logStart: .zero, epochs: [], completion: completion)
      }
    }
    volume.setLocalRetention(
      partition, bytes: 64 << 10, milliseconds: nil, hasObjectTier: !options.keeps(index))
    let keepers = (0..<options.partitions).count { options.keeps($0) }
    var end = volume.state(of: partition)?.end ?? .zero
    while SystemClock().monotonic < deadline {
      if options.cleans, options.keeps(index) {
        try await Task.sleep(for: .milliseconds(10))
        if volume.localBytes(partition).bytes > Self.keptBytesMax / Int64(keepers) { continue }
      }
      var appends: [Volume.Append] = []
      for _ in 0..<3 {
        let batch = StressBatch.make(index, at: end)
        appends.append(
          Volume.Append(
            partition: partition, summary: batch.summary, batch: [ByteBuffer(bytes: batch.bytes)]))
        end = batch.summary.endOffset
      }
      let taken = appends
      do {
        try await Self.durably { (completion) throws(MemQError) in
          try volume.append(taken, completion: completion)
        }
      } catch let error as MemQError
        where error.code == .resourceExhausted || (options.cleans && error.code == .volumeFull)
      {
        end = taken[0].summary.baseOffset
        try await Task.sleep(for: .milliseconds(1))
        continue
      }
      acknowledged.note(index, end)
      if !options.keeps(index) { volume.setUploadedOffset(partition, to: end) }
    }
  }

  private static func durably(
    _ body: (@escaping Volume.Completion) throws(MemQError) -> Void
  ) async throws {
    let result: Result<Void, MemQError> = await withCheckedContinuation { continuation in
      do throws(MemQError) {
        try body { continuation.resume(returning: $0) }
      } catch {
        continuation.resume(returning: .failure(error))
      }
    }
    try result.get()
  }
}

/// The acknowledged ends, a line each, written before anything that follows from them.
final class Acknowledged: Sendable {
  private let file: Monitor<Int32>

  init(_ path: String) {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o640)
    guard descriptor >= 0 else {
      print("can't write \(path)")
      exit(2)
    }
    self.file = Monitor(descriptor)
  }

  func note(_ partition: Int, _ end: Offset) {
    let line = Array("\(partition) \(end)\n".utf8)
    self.file.withLock { _ = Glibc.write($0, line, line.count) }
  }

  /// How many cold segments there are; of no partition.
  func noteCold(_ count: Int) {
    let line = Array("cold \(count)\n".utf8)
    self.file.withLock { _ = Glibc.write($0, line, line.count) }
  }

  /// Each partition's last.
  static func read(_ path: String) throws -> [Int: Offset] {
    let bytes = try Files.contents(path, byteCountMax: 1 << 30) ?? []
    var ends: [Int: Offset] = [:]
    for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
      let parts = line.split(separator: " ")
      guard parts.count == 2, let partition = Int(parts[0]), let end = Int64(parts[1]) else {
        continue
      }
      ends[partition] = max(ends[partition] ?? .zero, Offset(end))
    }
    return ends
  }
}

/// Opens what is left and compares.
enum StressVerifier {
  static func run(_ options: VolumeStress.Options) async throws {
    let volume = try await Volume.open(
      StressBatch.configuration(options), logger: StressBatch.logger)
    let cold = volume.stats.log.segmentsCold
    let ends = try Acknowledged.read(options.acknowledged)
    var batches = 0
    for (index, acknowledged) in ends.sorted(by: { $0.key < $1.key }) {
      let partition = StressBatch.partition(index)
      guard let state = volume.state(of: partition), state.end >= acknowledged else {
        print(
          "LOST partition \(index): acknowledged below \(acknowledged), there is \(volume.state(of: partition).map { "\($0.end)" } ?? "nothing")"
        )
        exit(1)
      }
      guard !options.keeps(index) || state.localStart == .zero else {
        print("LOST partition \(index): begins at \(state.localStart), and nothing of it may go")
        exit(1)
      }
      batches += try await Self.compare(volume, index, state)
    }
    await volume.close()
    print(
      "all there: \(ends.count) partitions, \(batches) batches on this disk, \(cold) cold segments, byte for byte"
    )
  }

  private static func compare(
    _ volume: Volume, _ index: Int, _ state: PartitionState
  ) async throws -> Int {
    let partition = StressBatch.partition(index)
    var from = state.localStart
    var batches = 0
    while from < state.end {
      let found = try await volume.read(partition, from: from, below: state.end, maxBytes: 1 << 20)
      var bytes = found.slices.flatMap { Array($0.readableBytesView) }[...]
      for batch in found.batches {
        let expected = StressBatch.make(index, at: batch.summary.baseOffset)
        guard Array(bytes.prefix(batch.byteCount)) == expected.bytes else {
          print("OTHER BYTES partition \(index) offset \(batch.summary.baseOffset)")
          exit(1)
        }
        bytes = bytes.dropFirst(batch.byteCount)
        batches += 1
      }
      guard found.nextOffset > from else {
        print("HOLE partition \(index) at \(from) below \(state.end)")
        exit(1)
      }
      from = found.nextOffset
    }
    return batches
  }
}
