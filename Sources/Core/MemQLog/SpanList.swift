// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What a partition log has in each segment, by offset: those of cold segments, then those of hot ones. A hundred segments of ten
/// thousand partitions are a million spans: all but the last one are packed (`SpanBlock`), ten bytes each instead of 150.
struct SpanList: Sendable, Sequence {
  private var blocks: [SpanBlock] = []
  /// The last span while its segment has no footer, or got it only now: see `VolumeCore.Settling`. Recovery leaves those of a
  /// segment that it read through. At most one.
  private var open: [SegmentSpan] = []

  init(_ spans: [SegmentSpan] = []) {
    for span in spans { self.append(span) }
  }

  var isEmpty: Bool { self.blocks.isEmpty && self.open.isEmpty }
  var count: Int { self.blocks.reduce(self.open.count) { $0 + $1.count } }
  var byteCount: Int64 { self.blocks.reduce(self.open.last?.byteCount ?? 0) { $0 + $1.byteCount } }
  var first: SegmentSpan? { self.first { _ in true } }

  /// About the memory of what is packed.
  var memoryBytes: Int { self.blocks.reduce(32) { $0 + $1.memoryBytes } }

  /// The last one, where it is not packed.
  var lastOpen: SegmentSpan? { self.open.last }

  /// Of the last one, where it is not packed.
  var openSegment: SegmentSequence? { self.open.last?.segment }

  /// Behind all others.
  mutating func append(_ span: SegmentSpan) {
    self.pack()
    self.open.append(span)
    if span.isInFooter { self.pack() }
  }

  mutating func withOpen<R>(_ body: (inout SegmentSpan) -> R) -> R { body(&self.open[0]) }

  /// The open one's segment has its footer.
  mutating func seal(_ segment: SegmentSequence) {
    guard self.open.last?.segment == segment else { return }
    self.open[0].moveToFooter()
    self.pack()
  }

  private mutating func pack() {
    guard let span = self.open.popLast() else { return }
    if let last = self.blocks.last, last.count < SpanBlock.countMax {
      self.blocks[self.blocks.count - 1].append(span)
    } else {
      self.blocks.append(SpanBlock([span]))
    }
  }

  // MARK: - Looking

  /// Blocks are passed over by what they say of all their spans.
  private func first(
    _ mayHold: (SpanBlock) -> Bool, where isWanted: (SegmentSpan) -> Bool
  ) -> SegmentSpan? {
    for block in self.blocks where mayHold(block) {
      var reader = block.reader
      while let span = reader.next() {
        if isWanted(span) { return span }
      }
    }
    return self.open.first(where: isWanted)
  }

  /// The first one with records whose end is above `offset`.
  func first(endingAbove offset: Offset) -> SegmentSpan? {
    self.first({ $0.recordsEnd > offset }, where: { $0.hasRecords && $0.endOffset > offset })
  }

  /// The first one with a record at or above `timestamp`, and one above `offset`.
  func first(youngerThan timestamp: Timestamp, endingAbove offset: Offset) -> SegmentSpan? {
    self.first({ $0.recordsEnd > offset && $0.maxTimestamp >= timestamp }) {
      $0.hasRecords && $0.maxTimestamp >= timestamp && $0.endOffset > offset
    }
  }

  /// Bytes of records from `offset` on, as `SegmentSpan.bytes(from:)`.
  func bytes(from offset: Offset) -> Int64 {
    var bytes = self.open.last?.bytes(from: offset) ?? 0
    for block in self.blocks.reversed() {
      guard block.recordsEnd > offset else { continue }
      var reader = block.reader
      while let span = reader.next() { bytes += span.bytes(from: offset) }
    }
    return bytes
  }

  /// A span with what stands around it.
  struct Standing {
    var span: SegmentSpan
    /// Of the spans behind it.
    var bytesAfter: Int64
    /// The end of the last batch with a producer id, in it or before.
    var producersEnd: Offset?
    /// In it or before.
    var maxAppendTime: Timestamp
  }

  /// The log's spans in a segment, by offset, until `body` has seen enough. A hot segment has one at most.
  func visit(_ segment: SegmentSequence, _ body: (Standing) -> Bool) {
    var (passed, producersEnd): (Int64, Offset?) = (0, nil)
    var maxAppendTime = Timestamp.none
    let total = self.byteCount
    func look(_ span: SegmentSpan) -> Bool {
      passed += span.byteCount
      producersEnd = span.producersEnd ?? producersEnd
      maxAppendTime = Swift.max(maxAppendTime, span.maxAppendTime)
      guard span.segment == segment else { return false }
      return body(
        Standing(
          span: span, bytesAfter: total - passed, producersEnd: producersEnd,
          maxAppendTime: maxAppendTime))
    }
    for block in self.blocks {
      guard block.segments.contains(segment) else {
        passed += block.byteCount
        producersEnd = block.producersEnd ?? producersEnd
        maxAppendTime = Swift.max(maxAppendTime, block.maxAppendTime)
        continue
      }
      var reader = block.reader
      while let span = reader.next() {
        if look(span) { return }
      }
    }
    for span in self.open where look(span) { return }
  }

  struct Iterator: IteratorProtocol {
    fileprivate var rest: ArraySlice<SpanBlock>
    fileprivate var reader: SpanBlock.Reader?
    fileprivate var open: [SegmentSpan]

    mutating func next() -> SegmentSpan? {
      while true {
        if let span = self.reader?.next() { return span }
        guard let block = self.rest.popFirst() else { return self.open.popLast() }
        self.reader = block.reader
      }
    }
  }

  func makeIterator() -> Iterator { Iterator(rest: self.blocks[...], reader: nil, open: self.open) }

  // MARK: - Changing

  /// Drops records at or above `end`, and what has nothing left.
  mutating func cut(to end: Offset) {
    if let first = self.blocks.firstIndex(where: { $0.recordsEnd > end }) {
      self.rewrite(first..<self.blocks.count) { spans in
        for index in spans.indices { spans[index].cut(to: end) }
        spans.removeAll(where: \.isVoid)
      }
    }
    guard !self.open.isEmpty else { return }
    self.open[0].cut(to: end)
    if self.open[0].isVoid { self.open = [] }
  }

  /// Takes the segment out, and with records of it everything before.
  mutating func release(_ segment: SegmentSequence) {
    if let last = self.open.last, last.segment == segment {
      if last.hasRecords { self.blocks = [] }
      self.open = []
    }
    for index in self.blocks.indices.reversed()
    where self.blocks[index].segments.contains(segment) {
      var reader = self.blocks[index].reader
      var passed: SpanBlock.Reader?
      while let span = reader.next() {
        if span.segment == segment, span.hasRecords { passed = reader }
      }
      guard let passed else { continue }
      self.blocks[index].dropFirst(to: passed)
      self.blocks.removeFirst(self.blocks[index].count > 0 ? index : index + 1)
      break
    }
    // What is left of it has no records: of a hot segment, and once.
    for index in self.blocks.indices.reversed()
    where self.blocks[index].segments.contains(segment) {
      var reader = self.blocks[index].reader
      var isHere = false
      while let span = reader.next() { isHere = isHere || span.segment == segment }
      if isHere {
        self.rewrite(index..<(index + 1)) { $0.removeAll { $0.segment == segment } }
      }
    }
  }

  /// Lets `body` put other spans in the place of the one of `segment` that holds `offset`, among its neighbours before it.
  ///
  /// - Parameter body: gets some spans that follow each other, and which of them it is.
  mutating func replace(
    in segment: SegmentSequence, holding offset: Offset,
    _ body: (inout [SegmentSpan], Int) -> Void
  ) {
    if self.open.last?.segment == segment { self.pack() }
    func isWanted(_ span: SegmentSpan) -> Bool {
      span.segment == segment && span.baseOffset <= offset && span.endOffset > offset
    }
    for index in self.blocks.indices
    where self.blocks[index].segments.contains(segment) && self.blocks[index].recordsEnd > offset {
      var reader = self.blocks[index].reader
      var isHere = false
      while !isHere, let span = reader.next() { isHere = isWanted(span) }
      guard isHere else { continue }
      return self.rewrite(Swift.max(0, index - 1)..<(index + 1)) { spans in
        body(&spans, spans.firstIndex(where: isWanted)!)
      }
    }
  }

  private mutating func rewrite(_ range: Range<Int>, _ body: (inout [SegmentSpan]) -> Void) {
    var spans: [SegmentSpan] = []
    for block in self.blocks[range] {
      var reader = block.reader
      while let span = reader.next() { spans.append(span) }
    }
    body(&spans)
    let starts = stride(from: 0, to: spans.count, by: SpanBlock.countMax)
    self.blocks.replaceSubrange(
      range,
      with: starts.map {
        SpanBlock(spans[$0..<Swift.min($0 + SpanBlock.countMax, spans.count)])
      })
  }
}
