// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension FrameHeader {
  /// What the log knows of a verified batch.
  public func summary(of batch: UnsafeRawBufferPointer) -> BatchSummary {
    BatchSummary(
      baseOffset: self.baseOffset, endOffset: self.endOffset, leaderEpoch: self.leaderEpoch,
      producerID: ProducerID(batch.integer(at: 43)),
      producerEpoch: ProducerEpoch(batch.integer(at: 51)), baseSequence: batch.integer(at: 53),
      maxTimestamp: Timestamp(milliseconds: batch.integer(at: 35)), appendTime: self.appendTime)
  }
}

/// Builds one segment's index from its frames, as the footer would state it.
struct SegmentIndexer {
  let segment: SegmentSequence
  let runBytesMax: Int
  private var positionOf: [LogID: Int] = [:]
  private(set) var entries: [(log: LogID, partition: TopicPartition, span: SegmentSpan)] = []

  init(segment: SegmentSequence, runBytesMax: Int) {
    self.segment = segment
    self.runBytesMax = runBytesMax
  }

  /// Where the log's records end in this segment so far; nil: it has none.
  func end(of log: LogID) -> Offset? {
    guard let span = self.positionOf[log].map({ self.entries[$0].span }), span.hasRecords else {
      return nil
    }
    return span.endOffset
  }

  mutating func add(_ frame: WalkedFrame, _ payload: UnsafeRawBufferPointer) {
    switch frame.header.type {
    case .batch, .carriedBatch:
      let summary = frame.header.summary(of: payload)
      let run = RunEntry(
        position: frame.position, byteCount: FrameHeader.byteCount + frame.header.payloadBytes,
        baseOffset: summary.baseOffset, endOffset: summary.endOffset,
        maxTimestamp: summary.maxTimestamp, maxAppendTime: summary.appendTime,
        hasProducers: summary.producerID.rawValue >= 0)
      let entry = self.entry(frame.header)
      self.entries[entry].span.add(run, joinsBelow: self.runBytesMax)
    case .truncate:
      let end = frame.header.baseOffset
      let entry = self.entry(frame.header)
      self.entries[entry].span.cut(to: end)
      self.entries[entry].span.cutTo = min(self.entries[entry].span.cutTo ?? end, end)
    case .epochStart, .logStart, .partitionOpen, .partitionDrop, .producerSnapshot, .checkpoint,
      .footer, .positions, .coldSegment:
      break
    }
  }

  private mutating func entry(_ header: FrameHeader) -> Int {
    if let position = self.positionOf[header.log] { return position }
    self.positionOf[header.log] = self.entries.count
    self.entries.append(
      (header.log, header.partition, SegmentSpan(segment: self.segment, at: header.baseOffset)))
    return self.entries.count - 1
  }
}

extension SegmentSpan {
  /// A sealed segment's span: the runs stay in the footer.
  init(footer entry: Footer.Entry, segment: SegmentSequence) {
    self.init(segment: segment, at: entry.baseOffset)
    for run in entry.runs {
      if !self.hasRecords { self.baseOffset = run.baseOffset }
      self.endOffset = run.endOffset
      self.maxTimestamp = max(self.maxTimestamp, run.maxTimestamp)
      self.maxAppendTime = max(self.maxAppendTime, run.maxAppendTime)
      self.byteCount += Int64(run.byteCount)
      if run.hasProducers { self.producersEnd = run.endOffset }
    }
    self.cutTo = entry.cutTo
    self.footerRuns = entry.runs.count
    self.isInFooter = true
  }

  /// What a cold segment has of one partition: a span for each stretch without a gap.
  static func cold(_ runs: [RunEntry], segment: SegmentSequence) -> [SegmentSpan] {
    var spans: [SegmentSpan] = []
    for run in runs {
      if spans.last?.endOffset != run.baseOffset {
        spans.append(SegmentSpan(segment: segment, at: run.baseOffset))
      }
      spans[spans.count - 1].add(run, joinsBelow: 0)
    }
    return spans
  }
}
