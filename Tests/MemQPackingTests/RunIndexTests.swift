// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQPacking
import Testing

@Suite struct RunIndexTests {
  private let partition = Examples.partition(0)

  private func run(
    _ base: Int64, _ end: Int64, history: Int64 = 0, lease: Int64 = 1
  ) throws
    -> ObjectRun
  {
    var run = ExampleRun(self.partition, from: base, history: history, lease: lease)
    try run.add(records: Int(end - base), size: 1)
    return run.builder.run(at: 84)
  }

  private func ranges(_ index: RunIndex) -> [String] {
    index.entries(of: self.partition).map {
      "\($0.sequence): \($0.baseOffset)..<\($0.endOffset)"
    }
  }

  @Test func `offsets are found in the object that holds them`() throws {
    var index = RunIndex()
    index.add([try self.run(0, 10)], sequence: 1)
    index.add([try self.run(10, 25)], sequence: 2)
    index.skip(sequence: 3)
    index.add([try self.run(25, 26)], sequence: 7)
    #expect(index.lastSequence == 7 && index.count == 3)
    for (offset, sequence) in [(0, 1), (9, 1), (10, 2), (24, 2), (25, 7)] as [(Int64, Int64)] {
      #expect(index.entry(self.partition, holding: Offset(offset))?.sequence == sequence)
    }
    #expect(index.entry(self.partition, holding: Offset(26)) == nil)
    #expect(index.entry(Examples.partition(1), holding: .zero) == nil)
    index.remove(sequence: 1)
    #expect(index.entry(self.partition, holding: .zero) == nil)
    #expect(index.entry(self.partition, endingAbove: .zero)?.sequence == 2)
  }

  @Test func `a range that was refused is dead bytes`() throws {
    var index = RunIndex()
    index.add([try self.run(0, 10)], sequence: 1)
    // Packed before the first commit was known: metadata refused it in an object whose other ranges it took.
    index.add([try self.run(5, 12)], sequence: 2)
    index.add([try self.run(10, 20)], sequence: 3)
    #expect(self.ranges(index) == ["1: 0..<10", "3: 10..<20"])
  }

  @Test func `a higher history ends the lower one from its first offset on`() throws {
    var index = RunIndex()
    index.add([try self.run(0, 10)], sequence: 1)
    index.add([try self.run(10, 30)], sequence: 2)
    index.add([try self.run(15, 18, history: 1)], sequence: 3)
    #expect(self.ranges(index) == ["1: 0..<10", "2: 10..<15", "3: 15..<18"])
    #expect(index.endOffset(self.partition) == Offset(18))
  }
}
