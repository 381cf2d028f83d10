// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQTestSupport
import Testing

@testable import MemQLog

/// The packed index of a partition log against a plain array, over random appends, cuts, releases and moves.
@Suite struct SpanListTests {
  private struct Model {
    var generator: SeededGenerator
    var list = SpanList()
    var plain: [SegmentSpan] = []
    var segment = SegmentSequence(1)
    var end = Offset(1_000)

    init(seed: UInt64) { self.generator = SeededGenerator(seed: seed) }

    mutating func number(_ range: Range<Int64>) -> Int64 {
      Int64.random(in: range, using: &self.generator)
    }

    mutating func run(at offset: Offset) -> RunEntry {
      RunEntry(
        position: self.number(4_096..<(1 << 30)), byteCount: Int(self.number(1..<100_000)),
        baseOffset: offset, endOffset: offset + self.number(1..<500),
        maxTimestamp: Timestamp(
          milliseconds: self.generator.oneIn(20)
            ? self.generator.oneIn(2) ? .max : .min : 1_700_000_000_000 + self.number(0..<9_999)),
        maxAppendTime: Timestamp(milliseconds: 1_700_000_000_000 + self.number(0..<9_999)),
        hasProducers: self.generator.oneIn(3))
    }

    /// A segment's span: written run by run, sealed or not.
    mutating func append() {
      self.segment = SegmentSequence(
        self.segment.rawValue + (self.generator.oneIn(10) ? 7 : 1))
      if self.generator.oneIn(30) { self.end = self.end + self.number(1..<50) }
      var span = SegmentSpan(segment: self.segment, at: self.end)
      self.list.append(span)
      if self.generator.oneIn(30) {
        span.cutTo = self.end
        self.list.withOpen { $0.cutTo = span.cutTo }
      }
      let runs = self.generator.oneIn(20) && span.cutTo != nil ? 0 : self.number(1..<6)
      for _ in 0..<runs {
        let run = self.run(at: self.end)
        span.add(run, joinsBelow: 64 << 10)
        self.list.withOpen { $0.add(run, joinsBelow: 64 << 10) }
        self.end = run.endOffset
      }
      if !self.generator.oneIn(8) {
        span.moveToFooter()
        self.list.seal(self.segment)
      }
      self.plain.append(span)
    }

    mutating func cut() {
      guard let any = self.plain.randomElement(using: &self.generator) else { return }
      // Most near the end.
      let low = self.generator.oneIn(50) ? any.baseOffset.rawValue : self.end.rawValue - 3_000
      self.end = Offset(self.number(max(0, min(low, self.end.rawValue))..<(self.end.rawValue + 1)))
      self.list.cut(to: self.end)
      for index in self.plain.indices { self.plain[index].cut(to: self.end) }
      self.plain.removeAll(where: \.isVoid)
    }

    mutating func release() {
      let near = self.plain.prefix(self.generator.oneIn(100) ? 200 : 2)
      guard let segment = near.randomElement(using: &self.generator)?.segment else { return }
      self.list.release(segment)
      if let last = self.plain.lastIndex(where: { $0.segment == segment && $0.hasRecords }) {
        self.plain.removeFirst(last + 1)
      }
      self.plain.removeAll { $0.segment == segment }
    }

    /// As the cleaner does: a part of a span to another segment.
    mutating func move() {
      let index = self.plain.indices.filter {
        self.plain[$0].hasRecords && self.plain[$0].isInFooter
      }
      .randomElement(using: &self.generator)
      guard let index else { return }
      let source = self.plain[index]
      let target = SegmentSequence(self.segment.rawValue + 1_000 + UInt64(self.number(0..<3)))
      let middle = source.baseOffset + self.number(0..<(source.endOffset - source.baseOffset))
      guard
        var moved = source.part(
          from: source.baseOffset, to: max(middle, source.baseOffset + 1))
      else { return }
      moved = SegmentSpan(moving: moved, to: target)
      let rest = source.rest(from: moved.endOffset, to: source.endOffset, of: moved)
      self.plain.replaceSubrange(index...index, with: [moved] + rest)
      self.list.replace(in: source.segment, holding: source.baseOffset) { spans, found in
        #expect(spans[found] == source)
        spans.replaceSubrange(found...found, with: [moved] + rest)
      }
    }

    func check() {
      #expect(Array(self.list) == self.plain)
      #expect(self.list.count == self.plain.count && self.list.isEmpty == self.plain.isEmpty)
      #expect(self.list.first == self.plain.first)
      #expect(self.list.byteCount == self.plain.reduce(0) { $0 + $1.byteCount })
    }

    mutating func look() {
      guard let any = self.plain.randomElement(using: &self.generator) else { return }
      let offset = any.baseOffset + self.number(-5..<500)
      #expect(
        self.list.first(endingAbove: offset)
          == self.plain.first { $0.hasRecords && $0.endOffset > offset })
      let timestamp = any.maxTimestamp
      #expect(
        self.list.first(youngerThan: timestamp, endingAbove: offset)
          == self.plain.first {
            $0.hasRecords && $0.endOffset > offset && $0.maxTimestamp >= timestamp
          })
      #expect(
        self.list.bytes(from: offset) == self.plain.reduce(0) { $0 + $1.bytes(from: offset) })
      var standings: [SpanList.Standing] = []
      self.list.visit(any.segment) {
        standings.append($0)
        return false
      }
      let places = self.plain.indices.filter { self.plain[$0].segment == any.segment }
      #expect(standings.map(\.span) == places.map { self.plain[$0] })
      for (standing, place) in zip(standings, places) {
        #expect(
          standing.bytesAfter == self.plain[(place + 1)...].reduce(0) { $0 + $1.byteCount })
        #expect(
          standing.producersEnd
            == self.plain[...place].last { $0.producersEnd != nil }?.producersEnd)
        #expect(standing.maxAppendTime == self.plain[...place].map(\.maxAppendTime).max())
      }
    }
  }

  @Test(arguments: 1...8 as ClosedRange<UInt64>)
  func `a packed index says what a plain one does`(seed: UInt64) {
    var model = Model(seed: seed)
    var longest = 0
    for step in 0..<2_000 {
      switch model.number(0..<20) {
      case 0: model.cut()
      case 1, 2: model.release()
      case 3: model.move()
      default: model.append()
      }
      model.look()
      if step % 50 == 0 { model.check() }
      longest = max(longest, model.plain.count)
    }
    model.check()
    #expect(longest > 2 * SpanBlock.countMax)
  }

  @Test func `a thousand spans of sealed segments take ten bytes each, not a hundred`() {
    var list = SpanList()
    for number in 0..<1_000 as Range<Int64> {
      var span = SegmentSpan(segment: SegmentSequence(UInt64(number) + 1), at: Offset(number * 64))
      span.add(
        RunEntry(
          position: 4_096, byteCount: 27_000 + Int(number % 7), baseOffset: Offset(number * 64),
          endOffset: Offset(number * 64 + 64),
          maxTimestamp: Timestamp(milliseconds: 1_700_000_000_000 + number * 2_600 + number % 61),
          maxAppendTime: Timestamp(milliseconds: 1_700_000_000_000 + number * 2_600 + 64),
          hasProducers: number % 2 == 0), joinsBelow: 64 << 10)
      span.moveToFooter()
      list.append(span)
    }
    #expect(list.memoryBytes < 14 * 1_000)
  }

  @Test func `places of logs come in order and each once`() {
    var places = LogPlaces()
    for place in [7, 3, 100_000, 3, 0, 7] { places.append(place) }
    #expect(Array(places) == [7, 3, 100_000, 3, 0, 7])
    places.sort()
    #expect(Array(places) == [0, 3, 7, 100_000] && places.count == 4)
    var cursor = LogPlaces.Cursor()
    _ = places.next(&cursor)
    let here = cursor
    #expect(places.next(&cursor) == 3)
    cursor = here
    #expect(places.next(&cursor) == 3 && places.next(&cursor) == 7)
  }
}

extension SegmentSpan {
  fileprivate init(moving span: SegmentSpan, to segment: SegmentSequence) {
    self.init(segment: segment, at: span.baseOffset)
    (self.endOffset, self.byteCount, self.producersEnd) = (
      span.endOffset, span.byteCount, span.producersEnd
    )
    (self.maxTimestamp, self.maxAppendTime) = (span.maxTimestamp, span.maxAppendTime)
    (self.isInFooter, self.footerRuns) = (true, span.runCount)
  }
}
