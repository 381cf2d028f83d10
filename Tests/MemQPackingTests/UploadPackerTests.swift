// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import Testing

@testable import MemQPacking

/// Stories of one group with partitions of 10-byte records, objects of 1,000 bytes and reads of 400.
@Suite struct UploadPackerTests {
  private struct Story {
    var packer: UploadPacker
    var now = MonotonicInstant(nanoseconds: 0)

    init(readsMax: Int = 1) {
      var configuration = UploadPacker.Configuration()
      configuration.objectBytes = 1_000
      configuration.readBytes = 400
      configuration.readsMax = readsMax
      self.packer = UploadPacker(configuration: configuration)
    }

    mutating func send(_ event: UploadPacker.Event) -> [UploadPacker.Effect] {
      var effects: [UploadPacker.Effect] = []
      self.packer.handle(event, at: self.now, into: &effects)
      return effects
    }

    mutating func lease(
      _ next: [Int64], epoch: Int64 = 1, history: Int64 = 0
    ) -> [UploadPacker.Effect] {
      self.send(
        .leased(
          LeaseEpoch(epoch),
          next.enumerated().map { index, next in
            UploadPacker.Position(
              partition: Examples.partition(Int32(index)), nextOffset: Offset(next),
              historyEpoch: HistoryEpoch(history))
          }))
    }

    mutating func observe(_ watermarks: [Int64], logStart: Int64 = 0) -> [UploadPacker.Effect] {
      self.send(
        .observed(
          watermarks.enumerated().map { index, watermark in
            UploadPacker.Progress(
              partition: Examples.partition(Int32(index)), logStart: Offset(logStart),
              highWatermark: Offset(watermark), bytesPerRecord: 10)
          }))
    }

    mutating func after(_ duration: Duration) -> [UploadPacker.Effect] {
      self.now = self.now + duration
      return self.send(.ticked)
    }

    mutating func read(_ partition: Int32, end: Int64, _ bytes: Int64) -> [UploadPacker.Effect] {
      self.send(.read(Examples.partition(partition), end: Offset(end), byteCount: bytes))
    }
  }

  private func read(_ partition: Int32, _ from: Int64, _ maxBytes: Int) -> UploadPacker.Effect {
    .read(Examples.partition(partition), from: Offset(from), maxBytes: maxBytes, .zero)
  }

  private func range(_ partition: Int32, _ base: Int64, _ end: Int64) -> UploadPacker.Range {
    UploadPacker.Range(
      partition: Examples.partition(partition), baseOffset: Offset(base), endOffset: Offset(end),
      historyEpoch: .zero, byteCount: (end - base) * 10)
  }

  private func target(_ partition: Int32, _ end: Int64) -> UploadPacker.FlushTarget {
    UploadPacker.FlushTarget(partition: Examples.partition(partition), endOffset: Offset(end))
  }

  @Test func `an idle group does nothing, ever`() {
    var story = Story()
    #expect(story.lease([0, 5]) == [])
    #expect(story.observe([0, 5]) == [])
    #expect(story.after(.seconds(3600)) == [] && story.packer.nextTick == nil)
  }

  @Test func `a few records wait for sixty seconds, then share one object`() {
    var story = Story()
    #expect(story.lease([0, 5, 0]) == [])
    #expect(story.observe([3, 5, 2]) == [])
    #expect(story.packer.nextTick == MonotonicInstant(nanoseconds: 60_000_000_000))
    #expect(story.after(.milliseconds(59_999)) == [])
    #expect(story.after(.milliseconds(1)) == [self.read(0, 0, 400)])
    #expect(story.read(0, end: 3, 30) == [self.read(2, 0, 400)])
    #expect(story.read(2, end: 2, 20) == [.upload([self.range(0, 0, 3), self.range(2, 0, 2)])])
    #expect(story.send(.committed(refused: [], [])) == [])
    #expect(story.packer.nextOffset(Examples.partition(2)) == Offset(2))
    #expect(story.after(.seconds(600)) == [])
  }

  @Test func `an object's worth of bytes does not wait, and is cut at its size`() {
    var story = Story()
    _ = story.lease([0, 0])
    #expect(story.observe([70, 90]) == [self.read(0, 0, 400)])
    #expect(story.read(0, end: 40, 400) == [self.read(0, 40, 400)])
    #expect(story.read(0, end: 70, 300) == [self.read(1, 0, 300)])
    #expect(story.read(1, end: 30, 300) == [.upload([self.range(0, 0, 70), self.range(1, 0, 30)])])
    // The partition that was cut goes first in the next object, after its wait.
    #expect(story.send(.committed(refused: [], [])) == [])
    #expect(story.observe([75, 90]) == [])
    #expect(story.after(.seconds(60)) == [self.read(1, 30, 400)])
    #expect(story.read(1, end: 90, 600) == [self.read(0, 70, 400)])
  }

  @Test func `several reads share the room that is left`() {
    var story = Story(readsMax: 4)
    _ = story.lease([0, 0, 0, 0])
    #expect(
      story.observe([100, 100, 100, 100]) == [
        self.read(0, 0, 400), self.read(1, 0, 400), self.read(2, 0, 200),
      ])
    #expect(story.read(1, end: 10, 100) == [self.read(1, 10, 300)])
    #expect(story.send(.readFailed(Examples.partition(0))) == [self.read(3, 0, 400)])
    #expect(story.read(1, end: 40, 300) == [])
    #expect(story.read(2, end: 20, 200) == [])
    #expect(
      story.read(3, end: 40, 400)
        == [.upload([self.range(1, 0, 40), self.range(2, 0, 20), self.range(3, 0, 40)])])
  }

  @Test func `a flush uploads now, and is answered when what it saw is announced`() {
    var story = Story()
    _ = story.lease([0, 0])
    _ = story.observe([3, 4])
    let ask = UploadPacker.Event.flushRequested(9, [self.target(0, 3), self.target(1, 4)])
    #expect(story.send(ask) == [self.read(0, 0, 400)])
    #expect(story.read(0, end: 3, 30) == [self.read(1, 0, 400)])
    #expect(story.read(1, end: 4, 40) == [.upload([self.range(0, 0, 3), self.range(1, 0, 4)])])
    let totals = UploadPacker.FlushTotals(objects: 1, records: 7, byteCount: 70)
    #expect(story.send(.committed(refused: [], [])) == [.flushed(9, totals)])
    // Nothing waits: answered at once.
    #expect(story.send(ask) == [.flushed(9, UploadPacker.FlushTotals())])
  }

  @Test func `a flush of more than an object makes several`() {
    var story = Story()
    _ = story.lease([0])
    _ = story.observe([150])
    _ = story.send(.flushRequested(1, [self.target(0, 150)]))
    #expect(story.read(0, end: 40, 400) == [self.read(0, 40, 400)])
    #expect(story.read(0, end: 80, 400) == [self.read(0, 80, 200)])
    #expect(story.read(0, end: 100, 200) == [.upload([self.range(0, 0, 100)])])
    #expect(story.send(.committed(refused: [], [])) == [self.read(0, 100, 400)])
    #expect(story.read(0, end: 150, 500) == [.upload([self.range(0, 100, 150)])])
    let totals = UploadPacker.FlushTotals(objects: 2, records: 150, byteCount: 1_500)
    #expect(story.send(.committed(refused: [], [])) == [.flushed(1, totals)])
  }

  @Test func `a refused range is dead bytes and is read again from where metadata stands`() {
    var story = Story()
    _ = story.lease([0, 0])
    _ = story.observe([100, 3])
    _ = story.read(0, end: 100, 1_000)
    let position = UploadPacker.Position(
      partition: Examples.partition(0), nextOffset: Offset(7), historyEpoch: HistoryEpoch(1))
    #expect(story.send(.committed(refused: [0], [position])) == [])
    #expect(story.packer.nextOffset(Examples.partition(0)) == Offset(7))
    let again = story.after(.seconds(60))
    #expect(again == [self.read(1, 0, 400)] || again.count == 1)
  }

  @Test func `nothing moves before it is announced, and a failed upload is tried again`() {
    var story = Story()
    _ = story.lease([0])
    _ = story.observe([100])
    _ = story.read(0, end: 100, 1_000)
    #expect(story.packer.nextOffset(Examples.partition(0)) == Offset(0))
    #expect(story.observe([200]) == [])
    #expect(story.send(.uploadFailed) == [])
    #expect(story.packer.nextOffset(Examples.partition(0)) == Offset(0))
    #expect(story.after(.seconds(1)) == [self.read(0, 0, 400)])
  }

  @Test func `a lost lease drops everything; answers of that life change nothing`() {
    var story = Story()
    _ = story.lease([0])
    _ = story.observe([100])
    #expect(story.send(.leaseLost) == [.discardAll])
    #expect(story.read(0, end: 40, 400) == [])
    #expect(story.send(.committed(refused: [], [])) == [])
    #expect(story.lease([40], epoch: 2) == [])
    #expect(story.observe([140]) == [self.read(0, 40, 400)])
  }

  @Test func `a renewal that a commit overtook does not move positions back`() {
    var story = Story()
    _ = story.lease([0])
    _ = story.observe([100])
    _ = story.read(0, end: 100, 1_000)
    let position = UploadPacker.Position(
      partition: Examples.partition(0), nextOffset: Offset(100), historyEpoch: .zero)
    _ = story.send(.committed(refused: [], [position]))
    #expect(story.lease([0]) == [])
    #expect(story.packer.partitions[Examples.partition(0)]?.position.nextOffset == Offset(100))
    // Another history or another lease is believed, whatever it says.
    _ = story.lease([40], history: 1)
    #expect(story.packer.partitions[Examples.partition(0)]?.position.nextOffset == Offset(40))
    _ = story.lease([10], epoch: 2, history: 1)
    #expect(story.packer.partitions[Examples.partition(0)]?.position.nextOffset == Offset(10))
  }

  @Test func `a history that changes under a fill takes only its partition out`() {
    var story = Story()
    _ = story.lease([0, 0])
    _ = story.observe([20, 90])
    #expect(story.read(0, end: 20, 200) == [self.read(1, 0, 400)])
    let positions = [
      UploadPacker.Position(
        partition: Examples.partition(0), nextOffset: .zero, historyEpoch: HistoryEpoch(1)),
      UploadPacker.Position(
        partition: Examples.partition(1), nextOffset: .zero, historyEpoch: .zero),
    ]
    #expect(story.send(.leased(LeaseEpoch(1), positions)) == [.discard(Examples.partition(0))])
    #expect(story.read(1, end: 90, 900) == [.upload([self.range(1, 0, 90)])])
  }

  @Test func `what retention took before its upload is passed over`() {
    var story = Story()
    _ = story.lease([0])
    #expect(story.observe([200], logStart: 50) == [self.read(0, 50, 400)])
  }

  @Test func `the collector takes an object only when all of it is out of reach`() throws {
    var first = ExampleRun(Examples.partition(0), from: 0)
    try first.add(records: 10)
    var second = ExampleRun(Examples.partition(1), from: 5)
    try second.add(records: 10)
    let footer = try ExampleObject(Examples.identity(), [first, second]).plan.footer
    let (p0, p1) = (Examples.partition(0), Examples.partition(1))
    let gone = Offset(10)
    #expect(CollectionPlanner.isDead(footer, [p0: gone, p1: Offset(15)]))
    #expect(!CollectionPlanner.isDead(footer, [p0: gone, p1: Offset(14)]))
    #expect(!CollectionPlanner.isDead(footer, [p0: gone, p1: nil]))
    // Deleted topics.
    #expect(CollectionPlanner.isDead(footer, [p0: gone]))
    #expect(CollectionPlanner.isDead(footer, [:]))
  }

  @Test func `retention lets whole runs of a partition go, oldest first, by age or by size`() throws
  {
    var retention = ObjectRetention()
    var bytes: [Int64] = []
    for index in 0..<4 as Range<Int64> {
      var run = ExampleRun(Examples.partition(0), from: index * 10)
      try run.add(records: 10)
      var other = ExampleRun(Examples.partition(1), from: index * 10)
      try other.add(records: 10)
      let footer = try ExampleObject(Examples.identity(), [run, other]).plan.footer
      bytes.append(footer.runs[0].byteCount)
      retention.add(footer, announcedAt: Timestamp(milliseconds: 1_000 + index))
    }
    let partition = Examples.partition(0)
    func start(age: Int64? = nil, bytes: Int64? = nil, waiting: Int64 = 0) -> Int64? {
      retention.start(
        of: partition,
        .init(
          expiresBefore: age.map { Timestamp(milliseconds: $0) }, bytes: bytes,
          bytesNotUploaded: waiting))?.rawValue
    }
    let total = bytes.reduce(0, +)
    #expect(start() == nil)
    #expect(start(bytes: total) == nil)
    // Never less than was asked for stays.
    #expect(start(bytes: total - 1) == nil)
    #expect(start(bytes: total - bytes[0]) == 10)
    #expect(start(bytes: total, waiting: bytes[0] + bytes[1]) == 20)
    #expect(start(bytes: 0) == 40)
    // By when the object was announced, whatever its records say of themselves.
    #expect(start(age: 1_000) == nil)
    #expect(start(age: 1_002) == 20)
    #expect(start(age: .max) == 40)
    #expect(retention.start(of: Examples.partition(9), .init(expiresBefore: nil, bytes: 0)) == nil)
    #expect(Set(retention.partitions) == [partition, Examples.partition(1)])
  }
}
