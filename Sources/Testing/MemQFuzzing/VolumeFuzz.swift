// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQTestSupport

/// A volume made by the core that ships, and everything that was ever appended to it.
struct LogImage {
  static let cluster = ClusterID(UniqueID(high: 1, low: 2))
  var volume: SimulatedVolume
  var appended: [TopicPartition: [Offset: [[UInt8]]]] = [:]
  /// Where each partition's log ends, all of it durable.
  var ends: [TopicPartition: Offset] = [:]
  private var now = MonotonicInstant(nanoseconds: 1_000_000_000)
  private let wall = Timestamp(milliseconds: 1_700_000_000_000)
  private var request: UInt64 = 0

  /// - Parameter steps: appends, truncates and the like.
  init(_ random: inout SeededGenerator, segmentBytes: Int64, steps: Int) throws {
    let identity = VolumeIdentity(
      cluster: Self.cluster, volume: VolumeID(UniqueID(high: 3, low: random.next() >> 1)),
      segmentBytes: segmentBytes)
    self.volume = SimulatedVolume(identity: identity)
    _ = try self.volume.open(at: self.now, wall: self.wall)
    self.drain()
    let partitions = (0..<(1 + random.below(4))).map {
      TopicPartition(TopicID(UniqueID(high: 5, low: 6)), PartitionIndex(Int32($0)))
    }
    for partition in partitions { self.open(partition) }
    for _ in 0..<steps { try self.step(partitions.randomElement(using: &random)!, &random) }
    // All of it is durable, and known to be.
    self.now = self.now + .milliseconds(25)
    self.volume.handle(.tick, at: self.now, wall: self.wall)
    self.drain()
    if random.oneIn(3) {
      self.send { .close($0) }
      self.volume.shut()
    } else {
      self.volume.kill()
    }
  }

  private mutating func drain() { self.volume.drain(at: self.now, wall: self.wall) }

  private mutating func send(_ event: (RequestID) -> VolumeCore.Event) {
    self.request += 1
    self.volume.handle(event(RequestID(self.request)), at: self.now, wall: self.wall)
    self.drain()
  }

  private mutating func open(_ partition: TopicPartition) {
    self.send { .openPartition($0, partition, logStart: .zero, epochs: []) }
    self.ends[partition] = .zero
  }

  private mutating func step(
    _ partition: TopicPartition, _ random: inout SeededGenerator
  ) throws {
    let end = self.ends[partition]!
    switch random.below(12) {
    case 0:
      // At a batch that stands there.
      guard let state = self.volume.core?.state(of: partition),
        let base = self.appended[partition]?.keys.filter({ $0 >= state.logStart && $0 < end })
          .min()
      else { return }
      self.send { .truncate($0, partition, to: base, epochs: nil) }
      self.ends[partition] = base
    case 1:
      self.send { .startEpoch($0, partition, EpochStart(epoch: LeaderEpoch(2), start: end)) }
    case 2:
      self.volume.handle(.setHighWatermark(partition, end), at: self.now, wall: self.wall)
    case 3 where random.oneIn(3):
      self.send { .dropPartition($0, partition) }
      self.open(partition)
    default:
      let summary = BatchSummary(
        baseOffset: end, endOffset: end + Int64(1 + random.below(4)), leaderEpoch: LeaderEpoch(2),
        maxTimestamp: self.wall, appendTime: self.wall)
      let size = random.oneIn(4) ? 9_000 : 700
      let batch = SyntheticBatch(summary, bodyBytes: random.below(size), using: &random)
      self.request += 1
      try self.volume.append(
        [(partition, batch)], request: RequestID(self.request), at: self.now, wall: self.wall)
      if !random.oneIn(4) { self.drain() }
      self.appended[partition, default: [:]][end, default: []].append(batch.bytes)
      self.ends[partition] = summary.endOffset
    }
  }
}

/// Segment files as bytes in memory, changed at will.
struct ImageFiles: SegmentSource {
  var files: [[UInt8]]

  init(_ disk: CrashableDisk) { self.files = disk.slots.map { disk.bytes(of: $0) } }

  var slots: [SegmentSlot] { self.files.indices.map { SegmentSlot(UInt32($0)) } }

  mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    let file = self.files[Int(slot.rawValue)]
    let start = Int(position)
    guard start >= 0, start + bytes.count <= file.count else {
      throw MemQError(.logCorrupt, "read past the file", subject: "file \(slot)")
    }
    file[start..<(start + bytes.count)].withUnsafeBytes { bytes.copyMemory(from: $0) }
  }
}

/// Recovery of a volume whose files were changed: it never crashes, never hands out a batch that was not appended, and never
/// passes over what one damaged block costs.
enum VolumeFuzz {
  static func run(
    _ random: inout SeededGenerator, planted fault: PlantedFault? = nil
  ) throws {
    let image = try LogImage(
      &random, segmentBytes: random.oneIn(2) ? 64 << 10 : 128 << 10, steps: 5 + random.below(80))
    var files = ImageFiles(image.volume.disk)
    let isOneBlock = random.oneIn(2)
    for _ in 0..<(isOneBlock ? 1 : 1 + random.below(6)) {
      self.damage(&files, isOneBlock: isOneBlock, &random)
    }
    let identity = image.volume.identity
    var copy = files
    let found = try VolumeVerification.run(identity, from: &copy)
    for mode in [SalvageMode.refuse, .isolate, .acceptLoss] {
      var source = files
      let recovered: RecoveredVolume
      do throws(MemQError) {
        recovered = try VolumeRecovery.run(
          identity, from: &source, runBytesMax: LogConfiguration().runBytesMax, salvage: mode,
          mutations: fault?.mutations ?? [])
      } catch {
        try require(error.code == .logCorrupt, "recovery failed with \(error)")
        try require(!isOneBlock || mode == .refuse, "one block costs the volume: \(error)")
        continue
      }
      let core = VolumeCore(identity, LogConfiguration(), recovered: recovered)
      for var partition in recovered.partitions {
        if fault == .forgetsDamage { (partition.damage, partition.damagedFrom) = (nil, nil) }
        try self.read(
          partition, core, image, &source, isComplete: isOneBlock && mode != .acceptLoss,
          trustsPayloads: fault == .trustsPayloads)
      }
      guard isOneBlock, mode == .isolate else { continue }
      for (partition, end) in image.ends where end > .zero {
        try require(
          recovered.unnamed.contains(.partitions)
            || recovered.partitions.contains { $0.partition == partition },
          "\(partition) is gone without a word")
      }
      let damaged = recovered.partitions.filter { $0.damage != nil }.map(\.partition)
      let named = found.partitions.filter { $0.damagedFrom != nil }.map(\.partition)
      try require(
        Set(damaged).isSubset(of: Set(named)), "verify finds \(named), the open \(damaged)")
    }
  }

  /// - Parameter isOneBlock: within a block of 4 KiB.
  private static func damage(
    _ files: inout ImageFiles, isOneBlock: Bool, _ random: inout SeededGenerator
  ) {
    let file = random.below(files.files.count)
    let size = files.files[file].count
    // Mostly where something stands.
    let limit = [size, size / 3, 20 << 10].randomElement(using: &random)!
    let block = random.below(limit / 4_096) * 4_096
    let at = block + random.below(4_096)
    let end = min(block + 4_096, at + 1 + random.below(random.oneIn(2) ? 4 : 4_096))
    switch random.below(isOneBlock ? 4 : 6) {
    case 0, 1: files.files[file][at] ^= 1 << UInt8(random.below(8))
    case 2: for index in at..<end { files.files[file][index] = 0 }
    case 3:
      for index in at..<end { files.files[file][index] = UInt8(truncatingIfNeeded: random.next()) }
    case 4:
      // A write that went to the wrong place.
      let from = random.below(files.files.count)
      let source = random.below(files.files[from].count / 4_096) * 4_096
      let bytes = Array(files.files[from][source..<(source + 4_096)])
      files.files[file].replaceSubrange(block..<(block + 4_096), with: bytes)
    default:
      files.files[file] = [UInt8](repeating: 0, count: size)
    }
  }

  private static func read(
    _ partition: RecoveredPartition, _ core: VolumeCore, _ image: LogImage,
    _ source: inout ImageFiles, isComplete: Bool, trustsPayloads: Bool
  ) throws {
    let name = partition.partition
    let limit = partition.damagedFrom ?? partition.end
    if isComplete, partition.damage == nil {
      try require(
        partition.end == image.ends[name],
        "\(name) ends at \(partition.end), not \(image.ends[name].map { "\($0)" } ?? "nowhere")")
    }
    var from = partition.localStart
    while from < limit {
      let batches: [(FrameHeader, [UInt8])]
      do throws(MemQError) {
        batches = try self.batches(
          name, from, limit, core, &source, trustsPayloads: trustsPayloads)
      } catch {
        // Named damage, found by a read.
        try require(error.code == .logCorrupt, "a read failed with \(error)")
        return
      }
      for (header, bytes) in batches {
        try require(header.baseOffset <= from, "\(name) has a hole at \(from)")
        let made = image.appended[name]?[header.baseOffset] ?? []
        try require(made.contains(bytes), "\(name) at \(header.baseOffset) was never appended")
        from = header.endOffset
      }
      guard !batches.isEmpty else {
        try require(!isComplete, "\(name) gives nothing at \(from) below \(limit)")
        return
      }
    }
  }

  private static func batches(
    _ partition: TopicPartition, _ from: Offset, _ below: Offset, _ core: VolumeCore,
    _ source: inout ImageFiles, trustsPayloads: Bool
  ) throws(MemQError) -> [(FrameHeader, [UInt8])] {
    let volume = core.identity.volume
    let plan = try core.locate(partition, from: from, below: below, maxBytes: 30_000)
    let runs: SegmentRuns
    switch plan {
    case .nothing: return []
    case .runs(let found): runs = found
    case .footer(let read):
      let bytes = try self.bytes(read.slot, read.place.position, read.place.byteCount, &source)
      let seal = HeaderSeal(volume: volume, segment: read.segment)
      let footer = bytes.withUnsafeBytes {
        SealedSegment.footer(in: $0, at: read.place, seal: seal)
      }
      guard let found = footer?.plan(read) else {
        throw MemQError(.logCorrupt, "a footer is damaged", subject: "segment \(read.segment)")
      }
      runs = found
    }
    var batches: [(FrameHeader, [UInt8])] = []
    let seal = HeaderSeal(volume: volume, segment: runs.segment)
    for run in runs.runs {
      let bytes = try self.bytes(runs.slot, run.position, run.byteCount, &source)
      if trustsPayloads {
        batches += Self.unverified(bytes, run.position, runs, seal)
        continue
      }
      let (frames, damage) = bytes.withUnsafeBytes {
        FrameWalk.wholeBatches(
          in: $0, run: run, log: runs.log, seal: seal, from: runs.from, below: runs.below)
      }
      for frame in frames { batches.append((frame.header, Array(bytes[frame.payload]))) }
      if let damage {
        guard batches.isEmpty else { return batches }
        throw damage
      }
    }
    return batches
  }

  /// What a reader would hand out that goes by the frames' headers alone.
  private static func unverified(
    _ bytes: [UInt8], _ position: Int64, _ runs: SegmentRuns, _ seal: HeaderSeal
  ) -> [(FrameHeader, [UInt8])] {
    var batches: [(FrameHeader, [UInt8])] = []
    var offset = 0
    while offset + FrameHeader.byteCount <= bytes.count {
      let header = bytes.withUnsafeBytes {
        FrameHeader.decode(
          UnsafeRawBufferPointer(rebasing: $0[offset..<(offset + FrameHeader.byteCount)]),
          at: position + Int64(offset), seal: seal)?.header
      }
      guard let header else { return batches }
      let payload = offset + FrameHeader.byteCount
      offset = payload + header.payloadBytes
      guard offset <= bytes.count else { return batches }
      if header.endOffset > runs.from, header.endOffset <= runs.below {
        batches.append((header, Array(bytes[payload..<offset])))
      }
    }
    return batches
  }

  private static func bytes(
    _ slot: SegmentSlot, _ position: Int64, _ count: Int, _ source: inout ImageFiles
  ) throws(MemQError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let result = bytes.withUnsafeMutableBytes { view in
      Result { () throws(MemQError) in try source.read(slot, at: position, into: view) }
    }
    try result.get()
    return bytes
  }
}
