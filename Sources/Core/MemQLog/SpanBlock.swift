// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// Some spans that follow each other, packed: each as what differs from the one before.
///
/// A span is a byte of flags, then packed integers, those in brackets only where a flag says so: [segment], [base], offsets, bytes, max
/// timestamp, max append time, number of runs, [end of the producers' batches], [cut], [runs].
struct SpanBlock: Sendable {
  /// A look for one span reads through its block: about a microsecond.
  static let countMax = 128

  private struct Flags: OptionSet {
    let rawValue: UInt8
    /// Its segment is not the next one.
    static let jumps = Flags(rawValue: 1)
    /// It does not begin where the one before ends.
    static let hasGap = Flags(rawValue: 2)
    static let hasProducers = Flags(rawValue: 4)
    /// The last batch has a producer id.
    static let endsWithProducer = Flags(rawValue: 8)
    static let hasCut = Flags(rawValue: 16)
    static let isInFooter = Flags(rawValue: 32)
  }

  /// What the next span is told by.
  fileprivate struct Base {
    var segment: UInt64 = 0
    var end: Int64 = 0
    var timestamp: Int64 = 0
    /// From the max timestamp to the max append time.
    var lag: Int64 = 0

    mutating func pass(_ span: SegmentSpan) {
      self.segment = span.segment.rawValue
      self.end = span.endOffset.rawValue
      self.timestamp = span.maxTimestamp.milliseconds
      self.lag = span.maxAppendTime.milliseconds &- self.timestamp
    }
  }

  private var bytes: [UInt8] = []
  private var start = 0
  private(set) var count = 0
  private var before = Base()
  private var last = Base()
  private(set) var byteCount: Int64 = 0
  /// Of the last span with records; zero: none has.
  private(set) var recordsEnd = Offset.zero
  private(set) var maxTimestamp = Timestamp.none
  private(set) var maxAppendTime = Timestamp.none
  /// Of the last span that has producers' batches.
  private(set) var producersEnd: Offset?
  /// From the lowest to the highest.
  private(set) var segments: ClosedRange<SegmentSequence>

  init(_ spans: ArraySlice<SegmentSpan>) {
    self.segments = spans.first!.segment...spans.first!.segment
    self.before.segment = self.segments.lowerBound.rawValue &- 1
    self.before.end = spans.first!.baseOffset.rawValue
    self.last = self.before
    for span in spans { self.append(span) }
  }

  mutating func append(_ span: SegmentSpan) {
    self.count += 1
    self.note(span)
    self.bytes.reserve(more: 32)
    var flags: Flags = span.isInFooter ? .isInFooter : []
    if span.segment.rawValue != self.last.segment &+ 1 { flags.insert(.jumps) }
    if span.baseOffset.rawValue != self.last.end { flags.insert(.hasGap) }
    if let end = span.producersEnd {
      flags.insert(.hasProducers)
      if end == span.endOffset { flags.insert(.endsWithProducer) }
    }
    if span.cutTo != nil { flags.insert(.hasCut) }
    self.bytes.append(flags.rawValue)
    if flags.contains(.jumps) {
      self.bytes.pack(signed: Int64(bitPattern: span.segment.rawValue &- self.last.segment))
    }
    if flags.contains(.hasGap) {
      self.bytes.pack(signed: span.baseOffset.rawValue &- self.last.end)
    }
    self.bytes.pack(UInt64(bitPattern: span.endOffset - span.baseOffset))
    self.bytes.pack(UInt64(bitPattern: span.byteCount))
    let timestamp = span.maxTimestamp.milliseconds
    self.bytes.pack(signed: timestamp &- self.last.timestamp)
    self.bytes.pack(signed: span.maxAppendTime.milliseconds &- timestamp &- self.last.lag)
    self.bytes.pack(UInt64(span.isInFooter ? span.footerRuns : span.runs.count))
    if let end = span.producersEnd, end != span.endOffset {
      self.bytes.pack(signed: span.endOffset - end)
    }
    if let cut = span.cutTo { self.bytes.pack(signed: cut.rawValue) }
    var run = span.baseOffset.rawValue
    for entry in span.runs {
      self.bytes.reserve(more: 40)
      self.bytes.pack(UInt64(entry.position))
      self.bytes.pack(UInt64(entry.byteCount) << 1 | (entry.hasProducers ? 1 : 0))
      self.bytes.pack(signed: entry.baseOffset.rawValue &- run)
      self.bytes.pack(signed: entry.endOffset - entry.baseOffset)
      self.bytes.pack(signed: entry.maxTimestamp.milliseconds &- timestamp)
      self.bytes.pack(signed: entry.maxAppendTime.milliseconds &- timestamp)
      run = entry.endOffset.rawValue
    }
    self.last.pass(span)
  }

  var memoryBytes: Int { MemoryLayout<Self>.stride + 48 + self.bytes.capacity }

  private mutating func note(_ span: SegmentSpan) {
    self.byteCount += span.byteCount
    if span.hasRecords { self.recordsEnd = span.endOffset }
    self.maxTimestamp = max(self.maxTimestamp, span.maxTimestamp)
    self.maxAppendTime = max(self.maxAppendTime, span.maxAppendTime)
    self.producersEnd = span.producersEnd ?? self.producersEnd
    self.segments =
      min(self.segments.lowerBound, span.segment)...max(self.segments.upperBound, span.segment)
  }

  /// Reads span by span; also a place between two.
  struct Reader {
    fileprivate let bytes: [UInt8]
    fileprivate var at: Int
    fileprivate var left: Int
    fileprivate var before: Base

    mutating func next() -> SegmentSpan? {
      guard self.left > 0 else { return nil }
      self.left -= 1
      let flags = Flags(rawValue: self.bytes[self.at])
      self.at += 1
      var segment = self.before.segment &+ 1
      if flags.contains(.jumps) {
        segment = self.before.segment &+ UInt64(bitPattern: self.bytes.unpackSigned(&self.at))
      }
      var base = self.before.end
      if flags.contains(.hasGap) { base = base &+ self.bytes.unpackSigned(&self.at) }
      var span = SegmentSpan(segment: SegmentSequence(segment), at: Offset(base))
      span.endOffset = Offset(base &+ Int64(bitPattern: self.bytes.unpack(&self.at)))
      span.byteCount = Int64(bitPattern: self.bytes.unpack(&self.at))
      let timestamp = self.before.timestamp &+ self.bytes.unpackSigned(&self.at)
      span.maxTimestamp = Timestamp(milliseconds: timestamp)
      let lag = self.before.lag &+ self.bytes.unpackSigned(&self.at)
      span.maxAppendTime = Timestamp(milliseconds: timestamp &+ lag)
      let runs = Int(self.bytes.unpack(&self.at))
      if flags.contains(.hasProducers) {
        span.producersEnd = span.endOffset
        if !flags.contains(.endsWithProducer) {
          span.producersEnd = Offset(
            span.endOffset.rawValue &- self.bytes.unpackSigned(&self.at))
        }
      }
      if flags.contains(.hasCut) { span.cutTo = Offset(self.bytes.unpackSigned(&self.at)) }
      if flags.contains(.isInFooter) {
        span.isInFooter = true
        span.footerRuns = runs
      } else {
        span.runs = self.runs(runs, base, timestamp)
      }
      self.before.pass(span)
      return span
    }

    private mutating func runs(_ count: Int, _ base: Int64, _ timestamp: Int64) -> [RunEntry] {
      var runs: [RunEntry] = []
      runs.reserveCapacity(count)
      var end = base
      for _ in 0..<count {
        let position = Int64(self.bytes.unpack(&self.at))
        let bytes = self.bytes.unpack(&self.at)
        let start = end &+ self.bytes.unpackSigned(&self.at)
        end = start &+ self.bytes.unpackSigned(&self.at)
        let maxTimestamp = timestamp &+ self.bytes.unpackSigned(&self.at)
        let maxAppendTime = timestamp &+ self.bytes.unpackSigned(&self.at)
        runs.append(
          RunEntry(
            position: position, byteCount: Int(bytes >> 1), baseOffset: Offset(start),
            endOffset: Offset(end), maxTimestamp: Timestamp(milliseconds: maxTimestamp),
            maxAppendTime: Timestamp(milliseconds: maxAppendTime), hasProducers: bytes & 1 == 1))
      }
      return runs
    }
  }

  var reader: Reader {
    Reader(bytes: self.bytes, at: self.start, left: self.count, before: self.before)
  }

  /// Leaves what a reader of this block has not read yet.
  mutating func dropFirst(to reader: Reader) {
    (self.start, self.count, self.before) = (reader.at, reader.left, reader.before)
    (self.byteCount, self.recordsEnd, self.producersEnd) = (0, .zero, nil)
    (self.maxTimestamp, self.maxAppendTime) = (.none, .none)
    var rest = reader
    guard let first = rest.next() else { return }
    self.segments = first.segment...first.segment
    self.note(first)
    while let span = rest.next() { self.note(span) }
  }
}
