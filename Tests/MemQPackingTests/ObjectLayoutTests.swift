// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQPacking
import MemQRecords
import MemQTestSupport
import Testing

@Suite struct ObjectLayoutTests {
  private func small() throws -> ExampleObject {
    var first = ExampleRun(Examples.partition(0), from: 10, history: 1)
    try first.add(records: 3, size: 4, epoch: 2)
    try first.add(records: 1, size: 2, epoch: 4, time: 1_700_000_000_500)
    var second = ExampleRun(Examples.partition(1), from: 0)
    try second.add(records: 2, size: 1, epoch: 1)
    return try ExampleObject(Examples.identity(), [second, first])
  }

  private func decode(_ bytes: [UInt8]) throws(MemQError) -> ObjectFooter {
    let trailer = Array(bytes.suffix(ObjectLayout.trailerByteCount))
    let count = try ObjectFooter.footerByteCount(
      inTrailer: trailer, objectByteCount: Int64(bytes.count))
    return try ObjectFooter(
      decodingTail: Array(bytes.suffix(Int(count))), objectByteCount: Int64(bytes.count))
  }

  @Test func `an object is read alone, from its last bytes`() throws {
    let object = try self.small()
    #expect(object.plan.byteCount == Int64(object.bytes.count))
    let footer = try self.decode(object.bytes)
    #expect(footer == object.plan.footer)
    #expect(footer.identity == Examples.identity())
    #expect(try ObjectLayout.identity(inHeader: object.bytes) == Examples.identity())

    let run = try #require(footer.run(of: Examples.partition(0)))
    #expect(run.baseOffset == Offset(10) && run.endOffset == Offset(14))
    #expect(run.historyEpoch == HistoryEpoch(1))
    #expect(
      run.epochStarts == [
        EpochStart(epoch: LeaderEpoch(2), start: Offset(10)),
        EpochStart(epoch: LeaderEpoch(4), start: Offset(13)),
      ])
    #expect(footer.minTimestamp.milliseconds == 1_700_000_000_000)
    #expect(footer.maxTimestamp.milliseconds == 1_700_000_000_500)
    #expect(footer.run(of: Examples.partition(2)) == nil)
    let place = Int(run.position)..<Int(run.endPosition)
    #expect(CRC32C.checksum(object.bytes[place]) == run.crc)
  }

  @Test func `the bytes of version 0 never change`() throws {
    #expect(hexText(try self.small().bytes) == GoldenObject.small)
  }

  @Test func `every flipped bit is detected`() throws {
    let object = try self.small()
    for place in object.bytes.indices {
      for bit in 0..<8 {
        var bytes = object.bytes
        bytes[place] ^= 1 << UInt8(bit)
        #expect(self.damage(of: bytes), "byte \(place), bit \(bit)")
      }
    }
  }

  /// Whether a reader that checks header, footer and blocks notices.
  private func damage(of bytes: [UInt8]) -> Bool {
    do throws(MemQError) {
      _ = try ObjectLayout.identity(inHeader: bytes)
      let footer = try self.decode(bytes)
      return footer.runs.contains { run in
        var place = Int(run.position)
        return run.blocks.contains { block in
          defer { place += block.byteCount }
          return CRC32C.checksum(bytes[place..<place + block.byteCount]) != block.crc
        }
      }
    } catch {
      #expect([.objectCorrupt, .feature].contains(error.code))
      return true
    }
  }

  @Test func `a cut or padded object is refused`() throws {
    let object = try self.small()
    for count in 0..<object.bytes.count {
      #expect(throws: MemQError.self) { try self.decode(Array(object.bytes.prefix(count))) }
    }
    #expect(throws: MemQError.self) { try self.decode([0] + object.bytes) }
    #expect(throws: MemQError.self) { try self.decode(object.bytes + [0]) }
  }

  @Test func `garbage is refused with a typed error`() {
    var random = SeededGenerator(seed: 1)
    for _ in 0..<2_000 {
      let bytes = (0..<Int.random(in: 0..<400, using: &random)).map { _ in
        UInt8.random(in: 0...255, using: &random)
      }
      let error = #expect(throws: MemQError.self) {
        try ObjectFooter(decodingTail: bytes, objectByteCount: Int64(bytes.count))
      }
      #expect(error?.code == .objectCorrupt)
    }
  }

  @Test(arguments: 1...20) func `what is packed is what is read`(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    var runs: [ExampleRun] = []
    for index in 0..<Int32.random(in: 1...8, using: &random) {
      let topic = Bool.random(using: &random) ? Examples.topic : Examples.otherTopic
      var run = ExampleRun(
        Examples.partition(index, topic), from: Int64.random(in: 0..<1_000_000, using: &random))
      var epoch: Int64 = 0
      for _ in 0..<Int.random(in: 1...30, using: &random) {
        epoch += Int64.random(in: 0...1, using: &random)
        try run.add(
          records: Int.random(in: 1...5, using: &random),
          size: Int.random(in: 0...30_000, using: &random), epoch: epoch)
      }
      runs.append(run)
    }
    let object = try ExampleObject(Examples.identity(seed), runs.shuffled(using: &random))
    let footer = try self.decode(object.bytes)
    #expect(footer == object.plan.footer && footer.runs.count == runs.count)
    for expected in runs {
      let run = try #require(footer.run(of: expected.builder.partition))
      #expect(object.bytes[Int(run.position)..<Int(run.endPosition)].elementsEqual(expected.bytes))
      #expect(run.blocks.dropLast().allSatisfy { $0.byteCount >= ObjectLayout.blockByteCount })
      for offset in run.baseOffset.rawValue..<run.endOffset.rawValue {
        let block = run.block(holding: Offset(offset))
        #expect(run.blocks[block].baseOffset.rawValue <= offset)
        #expect(offset < run.endOffset(ofBlock: block).rawValue)
      }
    }
  }

  @Test func `a run takes no gap, no overlap and no epoch that goes back`() throws {
    var run = ExampleRun(Examples.partition(0), from: 5)
    #expect(throws: MemQError.self) { try run.add(try Examples.batch(at: 6, records: 1, size: 1)) }
    // The log may begin inside a batch.
    try run.add(try Examples.batch(at: 4, records: 3, size: 1, epoch: 3))
    #expect(run.builder.endOffset == Offset(7) && run.builder.baseOffset == Offset(5))
    for (offset, epoch) in [(8, 3), (6, 3), (7, 2)] as [(Int64, Int64)] {
      let batch = try Examples.batch(at: offset, records: 1, size: 1, epoch: epoch)
      let error = #expect(throws: MemQError.self) { try run.add(batch) }
      #expect(error?.code == .logCorrupt)
    }
    #expect(run.builder.endOffset == Offset(7))
  }
}
