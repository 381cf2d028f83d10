// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import MemQRecords
import MemQTestSupport

/// The SSD log's headers, groups, frames and indexes: what was changed never reads as what was written.
enum LogFuzz {
  static func run(_ random: inout SeededGenerator) throws {
    var image = try LogImage(&random, segmentBytes: 64 << 10, steps: 10 + random.below(40))
    let slot = image.volume.disk.slots.randomElement(using: &random)!
    let whole = image.volume.disk.bytes(of: slot)
    let other = image.volume.disk.bytes(of: image.volume.disk.slots[0])
    try self.headers(whole, other, image.volume.identity, &random)
    try self.groups(&image, slot, whole, &random)
    try self.payloads(&random)
  }

  /// One block or header of fixed size.
  private static func headers(
    _ whole: [UInt8], _ other: [UInt8], _ identity: VolumeIdentity, _ random: inout SeededGenerator
  ) throws {
    let block = LogFormat.blockBytes
    func mutated(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
      var changed = Array(bytes)
      Mutator.mutate(&changed, splicing: Array(other.prefix(block)), &random)
      return changed
    }
    let head = mutated(whole.prefix(block))
    try require(
      head.withUnsafeBytes { SegmentHeader.decode($0) } == nil
        || head.prefix(block).elementsEqual(whole.prefix(block))
        || head.prefix(block).elementsEqual(other.prefix(block)),
      "a changed segment header holds")
    let trailer = mutated(whole.suffix(block))
    let found = trailer.withUnsafeBytes { SegmentTrailer.decode($0) }
    try require(
      found == nil || trailer.prefix(block).elementsEqual(whole.suffix(block)),
      "a changed trailer holds")
    let volume = VolumeHeader(
      identity: identity, incarnation: Incarnation(Int64(random.next() >> 1)),
      incarnationID: UniqueID(high: random.next(), low: random.next()),
      hasLog: random.oneIn(2), created: Timestamp(milliseconds: 5))
    let bytes = mutated(volume.encoded()[...])
    if let decoded = try? VolumeHeader(decoding: bytes) {
      try require(decoded == volume && bytes == volume.encoded(), "a changed volume file holds")
    }
  }

  /// A group of a real segment, as a whole and frame by frame.
  private static func groups(
    _ image: inout LogImage, _ slot: SegmentSlot, _ whole: [UInt8],
    _ random: inout SeededGenerator
  ) throws {
    let identity = image.volume.identity
    guard
      let header = try SegmentInspector.header(slot, from: &image.volume.disk), header.kind == .hot
    else { return }
    let seal = HeaderSeal(volume: identity.volume, segment: header.sequence)
    var position = Int(LogFormat.firstGroupPosition)
    while position + GroupHeader.byteCount <= whole.count {
      let group = whole[position...].withUnsafeBytes {
        GroupHeader.decode($0, at: Int64(position), volume: identity.volume)
      }?.header
      guard let group, group.segment == header.sequence else { break }
      let bytes = Array(whole[position..<(position + group.byteCount)])
      try require(
        bytes.withUnsafeBytes { LogParts.holds($0, at: Int64(position), seal) },
        "a whole group does not hold")
      var changed = bytes
      Mutator.mutate(&changed, splicing: bytes, &random)
      if changed != bytes {
        try require(
          !changed.withUnsafeBytes { LogParts.holds($0, at: Int64(position), seal) },
          "a changed group holds")
      }
      // Whatever stands there, at any place: nothing may trip.
      let at = random.below(max(1, changed.count))
      changed[at...].withUnsafeBytes { bytes in
        _ = FrameHeader.decode(bytes, at: Int64(position + at), seal: seal)
        let run = RunEntry(
          position: Int64(position + at), byteCount: bytes.count, baseOffset: .zero,
          endOffset: .max, maxTimestamp: .none, maxAppendTime: .none, hasProducers: false)
        _ = FrameWalk.wholeBatches(
          in: bytes, run: run, log: LogID(1), seal: seal, from: .zero, below: .max)
      }
      if group.kind == .seal {
        let place = FooterPlace(position: Int64(position), byteCount: group.byteCount)
        let footer = bytes.withUnsafeBytes { SealedSegment.footer(in: $0, at: place, seal: seal) }
        try require(footer != nil, "a whole footer does not hold")
      }
      position += group.byteCount
    }
  }

  /// What stands behind the checksums: any bytes at all.
  private static func payloads(_ random: inout SeededGenerator) throws {
    var bytes = random.oneIn(4) ? random.bytes(random.below(600)) : self.plausible(&random)
    Mutator.mutate(&bytes, splicing: [0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF], &random)
    let parts = random.oneIn(2) ? [bytes] : Mutator.pieces(bytes, &random).map(Array.init)
    if let (footer, again) = try? LogParts.footer(parts) {
      let (same, _) = try LogParts.footer(again)
      try require(same == footer, "a footer reads otherwise when it is written again")
      for entry in footer.entries { _ = footer.runs(of: entry.log) }
    }
    if let again = try? LogParts.checkpoint(parts) {
      try require(
        try LogParts.checkpoint(again) == again,
        "a checkpoint reads otherwise when it is written again")
    }
    for type in [FrameType.positions, .truncate, .partitionOpen, .logStart, .epochStart] {
      let header = FrameHeader(
        type: type, payloadBytes: bytes.count, payloadChecksum: 0, log: LogID(1),
        partition: TopicPartition(TopicID(UniqueID(high: 1, low: 1)), PartitionIndex(0)),
        baseOffset: Offset(Int64(random.below(1_000))),
        leaderEpoch: LeaderEpoch(Int64(random.below(5))), previousChecksum: 0)
      try? LogParts.replay(header, bytes)
    }
  }

  /// Small integers of eight and four bytes, as indexes have them.
  private static func plausible(_ random: inout SeededGenerator) -> [UInt8] {
    var bytes: [UInt8] = []
    for _ in 0..<random.below(80) {
      let value = UInt8(random.below(4))
      bytes += [UInt8](repeating: 0, count: random.oneIn(2) ? 7 : 3) + [value]
    }
    return bytes
  }
}

/// Record batches as they come from the disk or the network.
enum BatchFuzz {
  static func run(_ random: inout SeededGenerator) throws {
    var builder = RecordBatchBuilder(
      compression: Compression.allCases.randomElement(using: &random)!)
    for _ in 0...random.below(20) {
      let headers =
        random.oneIn(3) ? [RecordHeader(name: "h", value: random.bytes(random.below(9)))] : []
      builder.append(
        key: random.oneIn(2) ? nil : random.bytes(random.below(20)),
        value: random.oneIn(9) ? nil : random.bytes(random.below(300)), headers: headers,
        timestamp: Timestamp(milliseconds: 1_700_000_000_000 + Int64(random.below(1_000))))
    }
    let whole = try builder.build()
    var bytes = whole
    if !random.oneIn(8) { Mutator.mutate(&bytes, splicing: whole, &random) }
    let isWhole = bytes.withUnsafeBytes {
      (try? RecordBatchHeader.validate($0, maxBytes: 1 << 20)) != nil
    }
    // Base offset, leader epoch and the attributes' stamp stand outside the CRC.
    try require(
      !isWhole || bytes.dropFirst(16).elementsEqual(whole.dropFirst(16)),
      "a changed batch validates")
    try self.decode(bytes)
    // With a CRC that fits, anything may stand inside.
    if bytes.count > RecordBatchHeader.byteCount {
      let checksum = CRC32C.checksum(bytes[21...])
      for (index, shift) in [24, 16, 8, 0].enumerated() {
        bytes[17 + index] = UInt8(truncatingIfNeeded: checksum >> UInt32(shift))
      }
      try self.decode(bytes)
    }
  }

  private static func decode(_ bytes: [UInt8]) throws {
    var batches = RecordBatchIterator(bytes)
    var count = 0
    while count < 1_000, let batch = try? batches.next() {
      count += 1
      _ = try? batches.records(of: batch, unpackedBytesMax: 1 << 20)
      bytes[batch.range].withUnsafeBytes { whole in
        try? RecordBatch.validateRecords(whole, unpackedBytesMax: 1 << 20)
      }
    }
  }
}
