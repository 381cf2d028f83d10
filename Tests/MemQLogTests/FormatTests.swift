// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQModel
import Testing

/// The bytes of docs/formats/volume.md. A change here is a new version of the format.
@Suite struct FormatTests {
  static let volume = VolumeID(UniqueID(high: 0x0102_0304_0506_0708, low: 0x090A_0B0C_0D0E_0F10))
  static let seal = HeaderSeal(volume: volume, segment: SegmentSequence(7))
  static let frame = FrameHeader(
    type: .batch, payloadBytes: 0x0001_0203, payloadChecksum: 0xAABB_CCDD, log: LogID(0x11),
    partition: TopicPartition(
      TopicID(UniqueID(high: 0x2122_2324_2526_2728, low: 0x292A_2B2C_2D2E_2F30)),
      PartitionIndex(5)),
    baseOffset: Offset(1_000), offsetDelta: 25, leaderEpoch: LeaderEpoch(3),
    appendTime: Timestamp(milliseconds: 1_700_000_000_000), previousChecksum: 0x0102_0304)
  static let group = GroupHeader(
    kind: .data, byteCount: 8_192, contentBytes: 5_000, frameCount: 2, number: GroupNumber(42),
    segment: SegmentSequence(7), durable: LogPlace(SegmentSequence(6), 123_456_789),
    writeTime: Timestamp(milliseconds: 1_700_000_000_001), openCount: 9,
    lastFrameChecksum: 0xDEAD_BEEF, previousChecksum: 0x0506_0708)

  private func encoded(_ count: Int, _ body: (UnsafeMutableRawBufferPointer) -> Void) -> [UInt8] {
    var bytes = [UInt8](repeating: 0xFF, count: count)
    bytes.withUnsafeMutableBytes(body)
    return bytes
  }

  @Test func `a frame header has these bytes`() {
    let bytes = self.encoded(FrameHeader.byteCount) {
      Self.frame.encode(into: $0, at: 8_272, seal: Self.seal)
    }
    #expect(hexText(bytes) == Golden.frame)
  }

  @Test func `a carried batch's and a cold segment's frames have these bytes`() throws {
    var frame = Self.frame
    frame.type = .carriedBatch
    let bytes = self.encoded(FrameHeader.byteCount) {
      frame.encode(into: $0, at: 8_272, seal: Self.seal)
    }
    #expect(hexText(bytes) == Golden.carriedFrame)
    let cold = ColdSegment(
      sequence: SegmentSequence(7), slot: SegmentSlot(2), end: 999_424,
      entries: [
        .init(log: LogID(0x11), coldEnd: Offset(1_025)),
        .init(log: LogID(0x12), coldEnd: Offset(7), hasDead: true),
      ])
    #expect(hexText(cold.encoded()) == Golden.coldSegment)
    #expect(try ColdSegment(decoding: cold.encoded()) == cold)
  }

  @Test func `a group header has these bytes`() {
    let bytes = self.encoded(GroupHeader.byteCount) {
      Self.group.encode(into: $0, at: 8_192, seal: Self.seal)
    }
    #expect(hexText(bytes) == Golden.group)
  }

  @Test func `a segment header has these bytes`() {
    let header = SegmentHeader(
      kind: .hot, slot: SegmentSlot(2), cluster: ClusterID(UniqueID(high: 1, low: 2)),
      volume: Self.volume, sequence: SegmentSequence(7), segmentBytes: 1 << 20,
      previousEnd: LogPlace(SegmentSequence(6), 999_424), previousChecksum: 0x0A0B_0C0D,
      openCount: 9, writeTime: Timestamp(milliseconds: 1_700_000_000_002))
    let bytes = self.encoded(LogFormat.blockBytes) { header.encode(into: $0) }
    #expect(hexText(bytes.prefix(128)) == Golden.segment)
    #expect(bytes.dropFirst(128).allSatisfy { $0 == 0 })
    #expect(bytes.withUnsafeBytes { SegmentHeader.decode($0) }?.header == header)
    var cold = header
    cold.kind = .cold
    let coldBytes = self.encoded(LogFormat.blockBytes) { cold.encode(into: $0) }
    #expect(coldBytes[5] == 1)
    #expect(coldBytes.withUnsafeBytes { SegmentHeader.decode($0) }?.header == cold)
  }

  @Test func `a trailer and a volume file have these bytes`() throws {
    let trailer = SegmentTrailer(
      volume: Self.volume, sequence: SegmentSequence(7), footerPosition: 991_232,
      footerBytes: 8_192)
    let bytes = self.encoded(LogFormat.blockBytes) { trailer.encode(into: $0) }
    #expect(hexText(bytes.prefix(64)) == Golden.trailer)
    #expect(bytes.withUnsafeBytes { SegmentTrailer.decode($0) } == trailer)
    let identity = VolumeIdentity(
      cluster: ClusterID(UniqueID(high: 1, low: 2)), volume: Self.volume, segmentBytes: 1 << 20,
      openCount: 9)
    let header = VolumeHeader(
      identity: identity, incarnation: Incarnation(2), incarnationID: UniqueID(high: 3, low: 4),
      hasLog: true, durableEnd: LogPlace(SegmentSequence(7), 40_960),
      created: Timestamp(milliseconds: 1_700_000_000_003))
    #expect(hexText(header.encoded()) == Golden.volume)
    #expect(try VolumeHeader(decoding: header.encoded()) == header)
  }

  @Test func `headers read back only where they were written`() {
    let bytes = self.encoded(FrameHeader.byteCount) {
      Self.frame.encode(into: $0, at: 8_272, seal: Self.seal)
    }
    bytes.withUnsafeBytes { bytes in
      #expect(FrameHeader.decode(bytes, at: 8_272, seal: Self.seal)?.header == Self.frame)
      // A misdirected write: the right bytes at another place.
      #expect(FrameHeader.decode(bytes, at: 8_272 + 4_096, seal: Self.seal) == nil)
      let other = HeaderSeal(volume: Self.volume, segment: SegmentSequence(8))
      #expect(FrameHeader.decode(bytes, at: 8_272, seal: other) == nil)
      let volume = HeaderSeal(
        volume: VolumeID(UniqueID(high: 9, low: 9)), segment: SegmentSequence(7))
      #expect(FrameHeader.decode(bytes, at: 8_272, seal: volume) == nil)
    }
    let group = self.encoded(GroupHeader.byteCount) {
      Self.group.encode(into: $0, at: 8_192, seal: Self.seal)
    }
    group.withUnsafeBytes { bytes in
      #expect(GroupHeader.decode(bytes, at: 8_192, volume: Self.volume)?.header == Self.group)
      #expect(GroupHeader.decode(bytes, at: 12_288, volume: Self.volume) == nil)
      let other = VolumeID(UniqueID(high: 9, low: 9))
      #expect(GroupHeader.decode(bytes, at: 8_192, volume: other) == nil)
    }
  }

  @Test func `no header survives a flipped bit`() {
    let frame = self.encoded(FrameHeader.byteCount) {
      Self.frame.encode(into: $0, at: 8_272, seal: Self.seal)
    }
    let group = self.encoded(GroupHeader.byteCount) {
      Self.group.encode(into: $0, at: 8_192, seal: Self.seal)
    }
    for bit in 0..<(80 * 8) {
      var flipped = frame
      flipped[bit / 8] ^= 1 << UInt8(bit % 8)
      #expect(
        flipped.withUnsafeBytes { FrameHeader.decode($0, at: 8_272, seal: Self.seal) } == nil)
      flipped = group
      flipped[bit / 8] ^= 1 << UInt8(bit % 8)
      #expect(
        flipped.withUnsafeBytes { GroupHeader.decode($0, at: 8_192, volume: Self.volume) } == nil)
    }
  }
}
