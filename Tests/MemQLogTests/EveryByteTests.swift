// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQDiskSimulation
import MemQLog
import MemQModel
import Testing

/// One segment file in memory.
private struct OneFile: SegmentSource {
  let slot: SegmentSlot
  var bytes: [UInt8]
  var slots: [SegmentSlot] { [self.slot] }

  mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    self.bytes.withUnsafeBytes {
      bytes.copyMemory(
        from: UnsafeRawBufferPointer(rebasing: $0[Int(position)..<(Int(position) + bytes.count)]))
    }
  }
}

/// `VolumeDamageTests` does the same with a hot segment in its first life, and says what it costs.
@Suite(.timeLimit(.minutes(10))) struct EveryByteTests {
  @Test func `any changed byte of a cold segment, and of one in a file's later life, is found`()
    throws
  {
    var rig = CarriedTruncateTests.Rig()
    _ = try rig.volume.open(at: rig.time, wall: rig.wall)
    rig.volume.drain(at: rig.time, wall: rig.wall)
    for partition in Int32(0)..<3 {
      rig.send(.openPartition(rig.next(), rig.id(partition), logStart: .zero, epochs: []))
    }
    rig.retain()
    for _ in 0..<4 { try rig.append(2, records: 10, epoch: 1, body: 3_000) }
    try rig.fill { $0.volume.core!.stats.counters.segmentsCarried >= 1 }
    // Until every file is in a later life.
    let rolled = rig.volume.segmentsRolled
    try rig.fill { $0.volume.segmentsRolled > rolled + 12 }
    // Of these nothing leaves.
    let filled = rig.volume.segmentsRolled
    for _ in 0..<100 where rig.volume.segmentsRolled < filled + 2 {
      try rig.append(2, records: 1, epoch: 1, body: 3_000)
    }
    var disk = rig.volume.disk
    let headers = try disk.slots.compactMap { try SegmentInspector.header($0, from: &disk) }
    let active = rig.volume.core!.stats.durable.segment
    let cold = try #require(headers.first { $0.kind == .cold })
    let hot = try #require(
      headers.filter { $0.kind == .hot && $0.sequence < active }.max { $0.sequence < $1.sequence })
    #expect(hot.sequence.rawValue > UInt64(disk.slots.count))
    for header in [cold, hot] { try self.check(header, disk.bytes(of: header.slot)) }
  }

  private func check(_ header: SegmentHeader, _ bytes: [UInt8]) throws {
    var file = OneFile(slot: header.slot, bytes: bytes)
    let whole = try SegmentInspector.inspect(header.slot, from: &file)
    #expect(whole.hasFooter)
    let trailer = Int64(bytes.count - LogFormat.blockBytes)
    var silent: [Int64] = []
    for position in Array(0..<whole.end) + Array(trailer..<Int64(bytes.count)) {
      file.bytes[Int(position)] ^= 0x41
      let found = try? SegmentInspector.inspect(header.slot, end: whole.end, from: &file)
      if let found, found.damage == nil, found.hasFooter { silent.append(position) }
      file.bytes[Int(position)] ^= 0x41
    }
    #expect(silent.isEmpty)
  }
}
