// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQStorage
import MemQSystem
import NIOCore
import Testing

/// A volume of small segments with three partitions, closed, and what was appended to it.
private final class Damaged: Sendable {
  let folder = TemporaryFolder()
  let configuration: Volume.Configuration
  nonisolated(unsafe) var appended: [TopicPartition: [SyntheticBatch]] = [:]
  static let partitions = (0..<3).map { Example.partition(Int32($0)) }

  /// - Parameter closes: ends in order; otherwise as a crash, with the tail's durability known.
  init(
    batches: Int = 60, bodyBytes: Int = 1_000, segmentBytes: Int64 = 64 << 10, closes: Bool = true
  ) async throws {
    var configuration = Example.configuration(self.folder)
    configuration.segmentBytes = segmentBytes
    configuration.groupBytesMax = 16 << 10
    configuration.tailCacheBytes = 0
    self.configuration = configuration
    let volume = try await Volume.open(configuration, logger: Example.logger)
    for partition in Self.partitions { try await volume.openDurably(partition) }
    for number in 0..<batches {
      let partition = Self.partitions[number % 3]
      let end = self.appended[partition]?.last?.summary.endOffset ?? .zero
      let batch = Example.batch(at: end, bodyBytes: bodyBytes + 400 * (number % 5))
      self.appended[partition, default: []].append(batch)
      try await volume.appendDurably([(partition, batch)])
    }
    if closes { await volume.close() } else { await volume.abandon() }
  }

  /// As after a crash, with several batches in the last segment: a slow machine adds marks, so where segments end varies.
  static func crashed(batches: Int = 60, segmentBytes: Int64 = 64 << 10) async throws -> Damaged {
    for more in 0..<20 {
      let made = try await Damaged(
        batches: batches + more, segmentBytes: segmentBytes, closes: false)
      let tail = try #require(try made.verify().segments.last)
      if try made.frames(tail.sequence.rawValue).count >= 3 { return made }
    }
    throw MemQError(.internalError, "the last segment never had several batches")
  }

  func end(_ partition: TopicPartition) -> Offset {
    self.appended[partition]!.last!.summary.endOffset
  }

  func path(_ slot: SegmentSlot) -> String {
    let number = String(slot.rawValue)
    return self.configuration.path + "/segment-" + String(repeating: "0", count: 8 - number.count)
      + number
  }

  func bytes(_ slot: SegmentSlot) throws -> [UInt8] {
    try #require(try Files.contents(self.path(slot), byteCountMax: 1 << 20))
  }

  func write(_ bytes: [UInt8], _ slot: SegmentSlot, at position: Int64) throws {
    let file = try File(self.path(slot), .readWrite)
    try bytes.withUnsafeBytes { try file.write($0, at: position) }
  }

  func flip(_ slot: SegmentSlot, at position: Int64) throws {
    let byte = try self.bytes(slot)[Int(position)]
    try self.write([byte ^ 0x10], slot, at: position)
  }

  func verify() throws -> VolumeVerification {
    let check = try VolumeCheck(path: self.configuration.path)
    defer { check.close() }
    return try check.verify()
  }

  /// What is read below where the volume says a partition is damaged, compared with what was appended.
  func readable(_ volume: Volume, _ partition: TopicPartition) async throws -> Offset {
    try await volume.readable(partition, of: self.appended[partition]!)
  }

  /// The frames of one segment's batches.
  func frames(_ segment: UInt64) throws -> [FrameDescription] {
    var frames: [FrameDescription] = []
    let dump = try VolumeDump(path: self.configuration.path, requireStopped: true)
    try dump.forEachFrame { frame in
      if frame.place.segment.rawValue == segment, frame.header.type == .batch {
        frames.append(frame)
      }
      return true
    }
    return frames
  }
}

@Suite(.timeLimit(.minutes(10))) struct VolumeDamageTests {
  @Test func `any single damaged byte of a sealed segment is found, and what it costs`()
    async throws
  {
    let made = try await Damaged(batches: 14, bodyBytes: 7_000)
    let clean = try made.verify()
    #expect(clean.isWhole && clean.segments.count > 1)
    #expect(clean.partitions.map(\.partition) == Damaged.partitions)
    let segment = clean.segments[0]
    #expect(segment.footer == .whole)
    let whole = try made.bytes(segment.slot)
    let trailer = Int64(whole.count) - 4_096
    let frames = try made.frames(segment.sequence.rawValue)
    // In memory: as many passes as bytes.
    var files = MemoryFiles(made.configuration.path, clean)
    let identity = try made.identity()
    var silent: [Int64] = []
    for position in Int64(0)..<Int64(whole.count) {
      files.contents[segment.slot]![Int(position)] ^= 0x41
      defer { files.contents[segment.slot]![Int(position)] ^= 0x41 }
      let belongs = position < segment.end || position >= trailer
      let inspection = try? SegmentInspector.inspect(
        segment.slot, end: segment.end, from: &files)
      let isFound = inspection.map { $0.damage != nil || !$0.hasFooter } ?? true
      if isFound != belongs { silent.append(position) }
      guard position % 31 == 0 else { continue }
      let found = try VolumeVerification.run(identity, from: &files)
      // Between end and trailer nothing is of the log: nothing is told and nothing lost.
      #expect(found.isWhole == !belongs && found.refusal == nil)
      guard belongs else { continue }
      #expect(
        found.damages.contains { $0.slot == segment.slot && $0.positions.contains(position) })
      let hit = frames.first {
        ($0.place.position..<($0.place.position + Int64($0.byteCount))).contains(position)
      }
      let lost = found.partitions.filter { $0.damagedFrom != nil }
      #expect(lost.map(\.partition) == (hit.map { [$0.header.partition] } ?? []))
      #expect(lost.first?.damagedFrom == hit?.header.baseOffset)
    }
    #expect(silent.isEmpty)
  }

  @Test func `a damaged batch costs its partition what stands behind it, and no other anything`()
    async throws
  {
    let made = try await Damaged()
    let frame = try made.frames(2)[4]
    let slot = try #require(try made.verify().segments.first { $0.sequence.rawValue == 2 }?.slot)
    try made.flip(slot, at: frame.place.position + 700)
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    for partition in Damaged.partitions {
      let wanted =
        partition == frame.header.partition ? frame.header.baseOffset : made.end(partition)
      #expect(try await made.readable(volume, partition) == wanted)
    }
    // A read found it: who owns the replica is told where to fetch anew from.
    #expect(volume.damagedPartitions.map(\.partition) == [frame.header.partition])
    #expect(volume.damagedPartitions.first?.from == frame.header.baseOffset)
    await volume.close()
  }

  @Test(arguments: ["group header", "frame header", "footer and batch", "segment header", "tail"])
  func `what is damaged keeps no other partition from being served`(_ kind: String) async throws {
    let made = try await kind == "tail" ? Damaged.crashed() : Damaged()
    let before = try made.verify()
    let segment = try #require(
      kind == "tail" ? before.segments.last : before.segments.first { $0.sequence.rawValue == 2 })
    let frames = try made.frames(segment.sequence.rawValue)
    let frame = try #require(kind == "tail" ? frames.first : frames.dropFirst(3).first)
    var damaged: Set<TopicPartition> = []
    switch kind {
    case "group header": try made.flip(segment.slot, at: 4_096 + 30)
    case "segment header": try made.flip(segment.slot, at: 50)
    case "frame header":
      try made.flip(segment.slot, at: frame.place.position + 40)
      damaged = [frame.header.partition]
    case "footer and batch":
      try made.flip(segment.slot, at: 65_536 - 4_000)
      try made.flip(segment.slot, at: frame.place.position + 300)
      damaged = [frame.header.partition]
    default:
      try made.flip(segment.slot, at: frame.place.position + 300)
      damaged = [frame.header.partition]
    }
    let found = try made.verify()
    #expect(!found.isWhole && found.refusal == nil)
    #expect(Set(found.partitions.filter { $0.damagedFrom != nil }.map(\.partition)) == damaged)
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    for partition in Damaged.partitions {
      let wanted = damaged.contains(partition) ? frame.header.baseOffset : made.end(partition)
      #expect(try await made.readable(volume, partition) == wanted)
    }
    // The others take appends, the damaged one says why it doesn't when the open knew.
    for partition in Damaged.partitions where !damaged.contains(partition) {
      try await volume.appendDurably([(partition, Example.batch(at: made.end(partition)))])
    }
    if kind == "tail" || kind == "footer and batch" {
      let damage = try #require(volume.recoveredPartitions().first { $0.damage != nil })
      #expect(damage.damagedFrom == frame.header.baseOffset)
      #expect(damage.damage?.subject.hasPrefix("segment \(segment.sequence) position") == true)
      await #expect(throws: MemQError.self) {
        try await volume.appendDurably([(damage.partition, Example.batch(at: damage.end))])
      }
    }
    await volume.close()
  }

  @Test(arguments: ["payload", "frame header", "group header", "whole block", "first segment"])
  func `a damaged checkpoint of the last segment is made up from the log before it`(
    _ kind: String
  ) async throws {
    let isFirst = kind == "first segment"
    let made = try await Damaged.crashed(
      batches: isFirst ? 9 : 60, segmentBytes: isFirst ? 4 << 20 : 64 << 10)
    let before = try made.verify()
    #expect(before.isWhole)
    let tail = try #require(before.segments.last)
    switch kind {
    case "payload": try made.flip(tail.slot, at: 4_096 + 80 + 80 + 20)
    case "frame header": try made.flip(tail.slot, at: 4_096 + 80 + 20)
    case "group header": try made.flip(tail.slot, at: 4_096 + 30)
    default: try made.write([UInt8](repeating: 0x55, count: 4_096), tail.slot, at: 4_096)
    }
    let found = try made.verify()
    #expect(!found.isWhole && !found.losesRecords)
    #expect(found.damages.allSatisfy { $0.slot == tail.slot && $0.lost.isEmpty })
    #expect(found.partitions.map(\.end) == before.partitions.map(\.end))
    // The second time from a checkpoint that is whole.
    for round in 0..<2 {
      let volume = try await Volume.open(made.configuration, logger: Example.logger)
      #expect(volume.damagedPartitions.isEmpty)
      for partition in Damaged.partitions {
        #expect(volume.state(of: partition)?.end == made.end(partition))
        #expect(try await made.readable(volume, partition) == made.end(partition))
        let batch = Example.batch(at: made.end(partition), bodyBytes: 100 + round)
        try await volume.appendDurably([(partition, batch)])
        made.appended[partition]!.append(batch)
      }
      if round == 0 { await volume.abandon() } else { await volume.close() }
    }
    #expect(try !made.verify().losesRecords)
  }

  @Test func `a volume that may have lost whole partitions says so until that is settled`()
    async throws
  {
    let folder = TemporaryFolder()
    defer { withExtendedLifetime(folder) {} }
    let configuration = Example.configuration(folder)
    var volume = try await Volume.open(configuration, logger: Example.logger)
    let (other, lost) = (Example.partition(0), Example.partition(1))
    func append(_ partition: TopicPartition) async throws {
      let end = try #require(volume.state(of: partition)?.end)
      try await volume.appendDurably([(partition, Example.batch(at: end))])
    }
    try await volume.openDurably(other)
    try await append(other)
    try await volume.openDurably(lost)
    for _ in 0..<5 { try await append(lost) }
    for _ in 0..<3 { try await append(other) }
    await volume.abandon()
    var positions: [Int64] = []
    do {
      let dump = try VolumeDump(path: configuration.path, requireStopped: true)
      try dump.forEachFrame(partition: lost) { frame in
        positions.append(frame.place.position)
        return true
      }
    }
    try #require(positions.count == 6)
    let start = positions.min()! / 4_096 * 4_096
    let zeros = [UInt8](repeating: 0, count: Int(positions.max()! / 4_096 * 4_096 + 4_096 - start))
    let file = try File(configuration.path + "/segment-00000000", .readWrite)
    try zeros.withUnsafeBytes { try file.write($0, at: start) }
    func verified() throws -> VolumeVerification {
      let check = try VolumeCheck(path: configuration.path)
      defer { check.close() }
      return try check.verify()
    }
    #expect(try verified().losesRecords)
    // Until then at each open, whatever has become of the segment.
    for _ in 0..<2 {
      volume = try await Volume.open(configuration, logger: Example.logger)
      #expect(volume.unnamedLosses == .partitions)
      #expect(volume.recoveredPartitions().map(\.partition) == [other])
      #expect(try await volume.readAll(other, from: .zero).count == 4)
      await volume.close()
      #expect(try verified().losesRecords)
    }
    volume = try await Volume.open(configuration, logger: Example.logger)
    let missing = volume.noteMissing(lost, from: Offset(7))
    #expect(missing.damagedFrom == Offset(7) && missing.end == Offset(7))
    #expect(volume.damagedPartitions.map(\.partition) == [lost])
    // There is nothing to drop, and then nothing damaged.
    await #expect(throws: MemQError.self) {
      try await volume.durably { volume.dropPartition(lost, completion: $0) }
    }
    #expect(volume.damagedPartitions.isEmpty)
    try await volume.settleUnnamedPartitions()
    await volume.close()
    volume = try await Volume.open(configuration, logger: Example.logger)
    #expect(volume.unnamedLosses.isEmpty)
    await volume.close()
    #expect(try !verified().losesRecords)
  }

  @Test func `a partition whose beginning is lost is damaged from there, not gone`() async throws {
    // All in the tail, however many marks a slow machine adds: no checkpoint says what is lost.
    let made = try await Damaged(batches: 9, segmentBytes: 4 << 20, closes: false)
    var opens: [FrameDescription] = []
    let dump = try VolumeDump(path: made.configuration.path, requireStopped: false)
    try dump.forEachFrame { frame in
      if frame.header.type == .partitionOpen { opens.append(frame) }
      return true
    }
    let lost = opens[1]
    let slot = try #require(try made.verify().segments.first?.slot)
    try made.flip(slot, at: lost.place.position + 20)
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    for partition in Damaged.partitions {
      let isLost = partition == lost.header.partition
      let found = try #require(
        volume.recoveredPartitions().first { $0.partition == partition })
      #expect(found.damagedFrom == (isLost ? .zero : nil))
      #expect(try await made.readable(volume, partition) == (isLost ? .zero : made.end(partition)))
    }
    await volume.close()
  }

  @Test
  func `a repair makes footers anew without loss, and cuts only what is damaged, when told to`()
    async throws
  {
    let made = try await Damaged()
    let segments = try made.verify().segments
    // One segment's footer, another's trailer, a third's batch.
    let footer = segments[0]
    let footerPosition = try made.bytes(footer.slot).withUnsafeBytes { bytes in
      Int64(bigEndian: bytes.loadUnaligned(fromByteOffset: 61_440 + 32, as: Int64.self))
    }
    let originalFooter = try made.bytes(footer.slot)
    try made.flip(footer.slot, at: footerPosition + 200)
    try made.flip(segments[1].slot, at: 61_440 + 10)
    let frame = try made.frames(3)[2]
    let slot = try #require(segments.first { $0.sequence.rawValue == 3 }?.slot)
    try made.flip(slot, at: frame.place.position + 900)
    let check = try VolumeCheck(path: made.configuration.path)
    await #expect(throws: MemQError.self) {
      _ = try await Volume.open(made.configuration, logger: Example.logger)
    }
    let found = try check.verify()
    #expect(Set(found.damages.map(\.kind)) == [.footer, .trailer, .payload])
    let lost = found.damages.flatMap(\.lost)
    #expect(
      lost == [
        .init(
          partition: frame.header.partition,
          offsets: frame.header.baseOffset..<frame.header.endOffset)
      ])
    #expect(try check.rebuild(found).count == 2)
    #expect(try made.bytes(footer.slot) == originalFooter)
    let rest = try check.verify()
    #expect(rest.damages.map(\.kind) == [.payload] && rest.losesRecords)
    #expect(try await check.cut(rest).count == 1)
    let after = try made.verify()
    #expect(!after.losesRecords)
    #expect(after.partitions.allSatisfy { $0.damagedFrom == nil })
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    for partition in Damaged.partitions {
      let isCut = partition == frame.header.partition
      let end = isCut ? frame.header.baseOffset : made.end(partition)
      #expect(volume.state(of: partition)?.end == end)
      #expect(try await made.readable(volume, partition) == end)
      try await volume.appendDurably([(partition, Example.batch(at: end, bodyBytes: 77))])
    }
    #expect(volume.damagedPartitions.isEmpty)
    await volume.close()
  }

  @Test func `a damaged volume file is made anew from the segments`() async throws {
    let made = try await Damaged()
    let path = made.configuration.path + "/volume"
    let id = try #require(try Volume.peek(made.configuration.path)).id
    let file = try File(path, .readWrite)
    try [UInt8(0xFF)].withUnsafeBytes { try file.write($0, at: 30) }
    let check = try VolumeCheck(path: made.configuration.path)
    #expect(check.isVolumeFileDamaged && check.header.identity.volume == id)
    let found = try check.verify()
    #expect(found.isWhole)
    #expect(try check.rebuild(found) == ["volume file written anew"])
    check.close()
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    #expect(volume.id == id)
    for partition in Damaged.partitions {
      #expect(try await made.readable(volume, partition) == made.end(partition))
    }
    await volume.close()
  }

  @Test func `a bad sector costs what stands in it`() async throws {
    let made = try await Damaged()
    let frame = try made.frames(2)[5]
    let slot = try #require(try made.verify().segments.first { $0.sequence.rawValue == 2 }?.slot)
    let bad = frame.place.position / 4_096 * 4_096
    let hit = try made.frames(2).filter {
      $0.place.position < bad + 4_096 && $0.place.position + Int64($0.byteCount) > bad
    }
    let disk = BadSectorDisk(path: made.configuration.path, slot: slot, sector: bad)
    let volume = try await Volume.open(made.configuration, disk: disk, logger: Example.logger)
    for partition in Damaged.partitions {
      let first = hit.first { $0.header.partition == partition }
      let readable = try await made.readable(volume, partition)
      if let first {
        // Its run is read as one: a batch right before may be out of reach with it.
        #expect(readable <= first.header.baseOffset)
      } else {
        #expect(readable == made.end(partition))
      }
    }
    await volume.close()
  }
}

extension Damaged {
  fileprivate func identity() throws -> VolumeIdentity {
    let check = try VolumeCheck(path: self.configuration.path)
    defer { check.close() }
    return check.header.identity
  }
}

/// Segment files held in memory.
private struct MemoryFiles: SegmentSource {
  var contents: [SegmentSlot: [UInt8]] = [:]
  let slots: [SegmentSlot]

  init(_ path: String, _ found: VolumeVerification) {
    self.slots = found.segments.map(\.slot).sorted()
    for slot in self.slots {
      self.contents[slot] = try? Files.contents(
        path + "/segment-0000000\(slot)", byteCountMax: 1 << 20)
    }
  }

  mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    let start = Int(position)
    self.contents[slot]![start..<(start + bytes.count)].withUnsafeBytes {
      bytes.copyMemory(from: $0)
    }
  }
}

/// A disk one of whose blocks can't be read.
private final class BadSectorDisk: VolumeDisk {
  let folder: FolderDisk
  let slot: SegmentSlot
  let sector: Int64

  init(path: String, slot: SegmentSlot, sector: Int64) {
    self.folder = FolderDisk(path: path)
    self.slot = slot
    self.sector = sector
  }

  func acquire() throws(MemQError) { try self.folder.acquire() }
  func release() { self.folder.release() }
  func volumeFile() throws(FileError) -> [UInt8]? { try self.folder.volumeFile() }
  func replaceVolumeFile(_ bytes: [UInt8]) throws(FileError) {
    try self.folder.replaceVolumeFile(bytes)
  }
  func slots() throws(FileError) -> [SegmentSlot] { try self.folder.slots() }
  func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    let file = try self.folder.file(slot)
    return slot == self.slot ? BadSectorFile(file, self.sector) : file
  }
  func allocate(_ slot: SegmentSlot, byteCount: Int64) throws(FileError) {
    try self.folder.allocate(slot, byteCount: byteCount)
  }
  func availableBytes() throws(FileError) -> Int64 { try self.folder.availableBytes() }
}

private final class BadSectorFile: SegmentFile {
  let file: any SegmentFile
  let sector: Int64

  init(_ file: any SegmentFile, _ sector: Int64) {
    self.file = file
    self.sector = sector
  }

  func byteCount() throws(FileError) -> Int64 { try self.file.byteCount() }
  func write(
    gathered pieces: UnsafeMutableBufferPointer<FilePiece>, at position: Int64
  ) throws(FileError) { try self.file.write(gathered: pieces, at: position) }
  func syncData() throws(FileError) { try self.file.syncData() }
  func read(into bytes: UnsafeMutableRawBufferPointer, at position: Int64) throws(FileError) -> Int
  {
    guard position + Int64(bytes.count) <= self.sector || position >= self.sector + 4_096 else {
      throw FileError(.read, path: "segment", number: EIO)
    }
    return try self.file.read(into: bytes, at: position)
  }
  func dropCache() { self.file.dropCache() }
}

/// A closed volume of 1 MiB segments, part of whose records were carried to cold ones.
private final class Carried: Sendable {
  let folder = TemporaryFolder()
  let configuration: Volume.Configuration
  nonisolated(unsafe) var appended: [SyntheticBatch] = []
  /// Its beginning is in cold segments.
  static let kept = Example.partition(1)
  /// Uploaded whole.
  static let tiered = Example.partition(0)

  /// - Parameter closes: ends in order; otherwise as a crash, with the tail's durability known, and the originals of what was carried gone.
  init(closes: Bool = true) async throws {
    var configuration = Example.configuration(self.folder)
    configuration.capacityBytes = 10 << 20
    configuration.carryBytesPerSecond = 256 << 20
    configuration.tailCacheBytes = 0
    self.configuration = configuration
    let volume = try await Volume.open(configuration, logger: Example.logger)
    for partition in [Self.tiered, Self.kept] { try await volume.openDurably(partition) }
    volume.setLocalRetention(Self.tiered, bytes: nil, milliseconds: nil, hasObjectTier: true)
    var (end, keptEnd) = (Offset.zero, Offset.zero)
    for _ in 0..<330 {
      let batch = Example.batch(at: end, bodyBytes: 16_000)
      let other = Example.batch(at: keptEnd, bodyBytes: 8_000)
      do {
        try await volume.appendDurably([(Self.tiered, batch), (Self.kept, other)])
      } catch {
        break
      }
      self.appended.append(other)
      (end, keptEnd) = (batch.summary.endOffset, other.summary.endOffset)
    }
    volume.setUploadedOffset(Self.tiered, to: end)
    let deadline = ContinuousClock.now + .seconds(60)
    while volume.stats.log.segmentsCold == 0, ContinuousClock.now < deadline { await Task.yield() }
    guard !closes else {
      await volume.close()
      return
    }
    func isRetired(_ log: LogStats) -> Bool {
      log.counters.segmentsReclaimed > 0 && log.segmentsUsed + log.segmentsFree == 10
    }
    while !isRetired(volume.stats.log), ContinuousClock.now < deadline { await Task.yield() }
    try #require(isRetired(volume.stats.log))
    for _ in 0..<3 {
      let batch = Example.batch(at: end, bodyBytes: 100)
      try await volume.appendDurably([(Self.tiered, batch)])
      end = batch.summary.endOffset
    }
    // More may have been carried meanwhile.
    while !isRetired(volume.stats.log), ContinuousClock.now < deadline { await Task.yield() }
    await volume.abandon()
  }

  var end: Offset { self.appended.last!.summary.endOffset }

  /// Cuts what is kept, appends other records there, and has these carried too.
  ///
  /// - Parameter all: goes on until something was carried behind the last of them, not only until something was.
  func carryAnew(from cut: Offset, all: Bool = false) async throws {
    let volume = try await Volume.open(self.configuration, logger: Example.logger)
    volume.setLocalRetention(Self.tiered, bytes: nil, milliseconds: nil, hasObjectTier: true)
    try await volume.durably { volume.truncate(Self.kept, to: cut, completion: $0) }
    self.appended.removeAll { $0.summary.endOffset > cut }
    var (end, keptEnd) = (try #require(volume.state(of: Self.tiered)?.end), cut)
    // As long as the cleaner takes: a slow machine may refuse any number of appends until then, and carry what was there before first.
    var before = volume.stats.log.counters.segmentsCarried
    let deadline = ContinuousClock.now + .seconds(60)
    var number = 0
    while all && number < 60 || volume.stats.log.counters.segmentsCarried == before,
      ContinuousClock.now < deadline
    {
      let batch = Example.batch(at: end, bodyBytes: 16_000)
      var appends = [(Self.tiered, batch)]
      let other = Example.batch(at: keptEnd, bodyBytes: 6_000, epoch: 2)
      if number < 60 { appends.append((Self.kept, other)) }
      do {
        try await volume.appendDurably(appends)
      } catch {
        await Task.yield()
        continue
      }
      end = batch.summary.endOffset
      volume.setUploadedOffset(Self.tiered, to: end)
      guard number < 60 else { continue }
      number += 1
      keptEnd = other.summary.endOffset
      self.appended.append(other)
      if all { before = volume.stats.log.counters.segmentsCarried }
    }
    await volume.close()
  }

  func verify() throws -> VolumeVerification {
    let check = try VolumeCheck(path: self.configuration.path)
    defer { check.close() }
    return try check.verify()
  }

  func flip(_ slot: SegmentSlot, at position: Int64, count: Int = 1) throws {
    let file = try File(self.configuration.path + "/segment-0000000\(slot)", .readWrite)
    var bytes = [UInt8](repeating: 0, count: count)
    _ = try bytes.withUnsafeMutableBytes { try file.read(into: $0, at: position) }
    for index in bytes.indices { bytes[index] ^= 0x10 }
    try bytes.withUnsafeBytes { try file.write($0, at: position) }
  }

  func bytes(_ slot: SegmentSlot) throws -> [UInt8] {
    try #require(
      try Files.contents(
        self.configuration.path + "/segment-0000000\(slot)", byteCountMax: 2 << 20))
  }

  /// The batches in a cold segment.
  func frames(_ segment: SegmentSequence) throws -> [FrameDescription] {
    var frames: [FrameDescription] = []
    let dump = try VolumeDump(path: self.configuration.path, requireStopped: true)
    try dump.forEachFrame { frame in
      if frame.place.segment == segment, frame.header.type == .carriedBatch { frames.append(frame) }
      return true
    }
    return frames
  }

  /// How far what is read is what was appended.
  func readable(_ volume: Volume) async throws -> Offset {
    var from = Offset.zero
    let end = try #require(volume.state(of: Self.kept)?.end)
    while from < end {
      let result: Volume.ReadResult
      do {
        result = try await volume.read(Self.kept, from: from, below: end, maxBytes: 1 << 20)
      } catch {
        guard error.code == .logCorrupt else { throw error }
        return from
      }
      var bytes = result.slices.flatMap { Array($0.readableBytesView) }[...]
      for batch in result.batches {
        let wanted = try #require(
          self.appended.first { $0.summary.baseOffset == batch.summary.baseOffset })
        #expect(Array(bytes.prefix(batch.byteCount)) == wanted.bytes)
        bytes = bytes.dropFirst(batch.byteCount)
      }
      try #require(result.nextOffset > from)
      from = result.nextOffset
    }
    return from
  }
}

@Suite(.timeLimit(.minutes(10))) struct ColdDamageTests {
  @Test(arguments: ["payload", "frame header", "block"])
  func
    `where the frame that names a cold segment is lost, who has records there says so until it is given up`(
      _ kind: String
    ) async throws
  {
    let made = try await Carried(closes: false)
    let clean = try made.verify()
    #expect(clean.isWhole && clean.partitions.map(\.localStart).last == .zero)
    let tail = try #require(clean.segments.last { $0.kind == .hot })
    var frames: [FrameDescription] = []
    do {
      let dump = try VolumeDump(path: made.configuration.path, requireStopped: true)
      try dump.forEachFrame { frame in
        if frame.header.type == .coldSegment { frames.append(frame) }
        return true
      }
    }
    let frame = try #require(frames.last)
    try #require(frame.place.segment == tail.sequence)
    // The one it names; a fast machine has carried a part in another one before.
    let cold = try #require(clean.segments.last { $0.kind == .cold })
    let from = try #require(
      try made.frames(cold.sequence).first { $0.header.partition == Carried.kept }
    ).header.baseOffset
    switch kind {
    case "payload": try made.flip(tail.slot, at: frame.place.position + 80 + 3)
    case "frame header": try made.flip(tail.slot, at: frame.place.position + 20)
    default: try made.flip(tail.slot, at: frame.place.position / 4_096 * 4_096, count: 4_096)
    }
    let found = try made.verify()
    #expect(found.losesRecords && found.refusal == nil)
    #expect(found.partitions.first { $0.partition == Carried.kept }?.damagedFrom == from)
    let lost = found.damages.flatMap(\.lost).filter { $0.partition == Carried.kept }
    #expect(lost.map(\.offsets.lowerBound) == [from])
    // Each open says so, also once the damaged segment is not the last one any more; meanwhile the file stays as it is.
    let files = try made.bytes(cold.slot)
    for _ in 0..<3 {
      let volume = try await Volume.open(made.configuration, logger: Example.logger)
      #expect(volume.damagedPartitions.first { $0.partition == Carried.kept }?.from == from)
      volume.setLocalRetention(Carried.tiered, bytes: nil, milliseconds: nil, hasObjectTier: true)
      var end = try #require(volume.state(of: Carried.tiered)?.end)
      for _ in 0..<80
      where !volume.damagedPartitions.contains(where: { $0.partition == Carried.tiered }) {
        let batch = Example.batch(at: end, bodyBytes: 16_000)
        do {
          try await volume.appendDurably([(Carried.tiered, batch)])
        } catch let error as MemQError where error.isRetriable {
          break
        }
        end = batch.summary.endOffset
        volume.setUploadedOffset(Carried.tiered, to: end)
      }
      await volume.abandon()
      #expect(try made.bytes(cold.slot) == files)
    }
    let check = try VolumeCheck(path: made.configuration.path)
    _ = try await check.cut(try check.verify())
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    #expect(volume.damagedPartitions.isEmpty && volume.unnamedLosses.isEmpty)
    #expect(volume.state(of: Carried.kept)?.end == from)
    await volume.close()
  }

  @Test
  func
    `whole cold segments verify clean, and one damaged batch in them damages its partition from there`()
    async throws
  {
    let made = try await Carried()
    let clean = try made.verify()
    #expect(clean.isWhole && clean.partitions.count == 2)
    #expect(clean.partitions.allSatisfy { $0.unreadSegment == nil && $0.problem == nil })
    let cold = try #require(clean.segments.first { $0.kind == .cold })
    #expect(cold.footer == .whole && cold.batches > 10)
    // Nothing is cut of what is whole, nor of what was not read.
    var check = try VolumeCheck(path: made.configuration.path)
    var unread = clean
    unread.partitions[1].unreadSegment = cold.sequence
    unread.partitions[1].damagedFrom = .zero
    await #expect(throws: MemQError.self) { try await check.cut(unread) }
    #expect(try await check.cut(clean).isEmpty)
    #expect(try made.verify().partitions.map(\.end) == clean.partitions.map(\.end))
    let frames = try made.frames(cold.sequence).filter { $0.header.partition == Carried.kept }
    let frame = try #require(frames.dropFirst(5).first)
    try made.flip(cold.slot, at: frame.place.position + 500)
    check = try VolumeCheck(path: made.configuration.path)
    let found = try check.verify()
    #expect(found.refusal == nil && found.damages.map(\.kind) == [.payload])
    #expect(
      found.damages.flatMap(\.lost) == [
        .init(partition: Carried.kept, offsets: frame.header.baseOffset..<frame.header.endOffset)
      ])
    let damaged = found.partitions.filter { $0.damagedFrom != nil }
    #expect(damaged.map(\.partition) == [Carried.kept])
    #expect(damaged.first?.damagedFrom == frame.header.baseOffset)
    #expect(try await check.cut(found).count == 1)
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    #expect(volume.state(of: Carried.kept)?.end == frame.header.baseOffset)
    #expect(try await made.readable(volume) == frame.header.baseOffset)
    await volume.close()
  }

  @Test func `a cold segment whose first block is damaged is still read`() async throws {
    let made = try await Carried()
    let cold = try #require(try made.verify().segments.first { $0.kind == .cold })
    try made.flip(cold.slot, at: 0, count: 4_096)
    let found = try made.verify()
    #expect(found.damages.map(\.kind) == [.segmentHeader] && !found.losesRecords)
    #expect(found.segments.first { $0.sequence == cold.sequence }?.batches == cold.batches)
    for acceptsLoss in [false, true] {
      var configuration = made.configuration
      configuration.acceptsLoss = acceptsLoss
      let volume = try await Volume.open(configuration, logger: Example.logger)
      #expect(volume.damagedPartitions.isEmpty)
      #expect(try await made.readable(volume) == made.end)
      await volume.close()
    }
  }

  @Test(arguments: ["payload", "frame"])
  func
    `damage of a cold segment and its index costs its partition what stands behind it, not the volume`(
      _ kind: String
    ) async throws
  {
    let made = try await Carried()
    let cold = try #require(try made.verify().segments.first { $0.kind == .cold })
    let frames = try made.frames(cold.sequence).filter { $0.header.partition == Carried.kept }
    let frame = try #require(frames.dropFirst(5).first)
    try made.flip(cold.slot, at: made.configuration.segmentBytes - 4_096, count: 4_096)
    try made.flip(cold.slot, at: frame.place.position + (kind == "payload" ? 500 : 20))
    // A frame that is gone leaves a gap: what is below it is whole.
    let from = frame.header.baseOffset
    let found = try made.verify()
    #expect(found.refusal == nil)
    let damaged = found.partitions.filter { $0.damagedFrom != nil }
    #expect(damaged.map(\.partition) == [Carried.kept] && damaged.first?.damagedFrom == from)
    for acceptsLoss in [false, true] {
      var configuration = made.configuration
      configuration.acceptsLoss = acceptsLoss
      let volume = try await Volume.open(configuration, logger: Example.logger)
      #expect(volume.damagedPartitions.map(\.partition) == [Carried.kept])
      #expect(volume.damagedPartitions.first?.from == from)
      #expect(try await made.readable(volume) == from)
      let end = try #require(volume.state(of: Carried.tiered)?.end)
      try await volume.appendDurably([(Carried.tiered, Example.batch(at: end))])
      await volume.close()
    }
  }

  @Test
  func `where a cold segment lost frames, older copies of the same offsets do not pass for whole`()
    async throws
  {
    let made = try await Carried()
    let older = try #require(try made.verify().segments.last { $0.kind == .cold })
    let olderFrames = try made.frames(older.sequence).filter {
      $0.header.partition == Carried.kept
    }
    let cut = try #require(olderFrames.dropFirst(4).first).header.baseOffset
    try await made.carryAnew(from: cut, all: true)
    let clean = try made.verify()
    #expect(clean.isWhole)
    func anew(in segment: SegmentSequence) throws -> [FrameDescription] {
      try made.frames(segment).filter {
        $0.header.partition == Carried.kept && $0.header.baseOffset > cut
          && $0.header.endOffset <= olderFrames.last!.header.endOffset
      }
    }
    let young = try #require(
      try clean.segments.last {
        try $0.kind == .cold && $0.sequence > older.sequence && !anew(in: $0.sequence).isEmpty
      })
    let frame = try #require(try anew(in: young.sequence).last)
    try made.flip(young.slot, at: made.configuration.segmentBytes - 4_096, count: 4_096)
    try made.flip(young.slot, at: frame.place.position + 20)
    let found = try made.verify()
    let damaged = found.partitions.filter { $0.damagedFrom != nil }
    #expect(damaged.map(\.partition) == [Carried.kept])
    // The older copies are dead since the truncate, so a frame is gone.
    #expect(damaged.first?.damagedFrom == frame.header.baseOffset)
    let volume = try await Volume.open(made.configuration, logger: Example.logger)
    #expect(volume.damagedPartitions.first?.from == frame.header.baseOffset)
    #expect(try await made.readable(volume) == frame.header.baseOffset)
    await volume.close()
  }

  @Test func `a cold segment's file that is gone gives no older copies of its records back`()
    async throws
  {
    let made = try await Carried()
    let older = try #require(try made.verify().segments.last { $0.kind == .cold })
    let cut = try #require(
      try made.frames(older.sequence).filter { $0.header.partition == Carried.kept }
        .dropFirst(4).first
    ).header.baseOffset
    try await made.carryAnew(from: cut)
    let clean = try made.verify()
    let young = try #require(clean.segments.last { $0.kind == .cold })
    #expect(young.sequence > older.sequence)
    // The younger one holds copies of what the older one had, and may have taken its place.
    let others = try clean.segments.filter { $0.kind == .cold && $0.sequence < young.sequence }
      .flatMap { try made.frames($0.sequence) }
      .filter { $0.header.partition == Carried.kept && $0.header.endOffset <= cut }
    let whole = others.map(\.header.endOffset).max() ?? .zero
    let number = String(young.slot.rawValue)
    let name = "segment-" + String(repeating: "0", count: 8 - number.count) + number
    #expect(unlink(made.configuration.path + "/" + name) == 0)
    // As it is the volume is refused: more than records of one partition may be gone.
    #expect(try made.verify().refusal?.code == .logCorrupt)
    await #expect(throws: MemQError.self) {
      _ = try await Volume.open(made.configuration, logger: Example.logger)
    }
    var configuration = made.configuration
    configuration.acceptsLoss = true
    let volume = try await Volume.open(configuration, logger: Example.logger)
    // What the older segment has above the truncate is dead; below, it is all there is.
    #expect(volume.damagedPartitions.map(\.partition) == [Carried.kept])
    #expect(volume.damagedPartitions.first?.from == whole)
    #expect(try await made.readable(volume) == whole)
    await volume.close()
  }
}
