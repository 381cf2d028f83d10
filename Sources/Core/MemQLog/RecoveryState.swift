// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// The partitions' state while the log is replayed: newest checkpoint, then frame by frame.
struct RecoveryState {
  private(set) var logs: [PartitionLog] = []
  private var indexOf: [LogID: Int] = [:]
  private(set) var nextLog = LogID(1)
  /// Segments before the tail that are named, hot ones first, each oldest first; those retired since are taken out.
  var segments: [Checkpoint.Segment] = []
  /// Batches of the tail with a producer id, as they stand after truncates.
  private var summaries: [LogID: [BatchSummary]] = [:]
  /// The parts of a checkpoint within one group.
  private var parts: [[UInt8]] = []

  func index(of log: LogID) -> Int? { self.indexOf[log] }

  /// Whether a batch was truncated since, as the log's epochs tell: a leader writes an offset once, so another epoch there is another batch.
  func isDead(_ batch: FrameHeader) -> Bool {
    guard batch.type.carriesRecords, let index = self.indexOf[batch.log] else { return false }
    let log = self.logs[index].laid
    if batch.baseOffset >= log.end { return true }
    guard let epoch = log.epochs.last(where: { $0.start <= batch.baseOffset })?.epoch else {
      return false
    }
    return epoch != batch.leaderEpoch
  }

  func tailSummaries(of log: LogID) -> [BatchSummary] { self.summaries[log] ?? [] }

  mutating func withLogs(_ body: (inout [PartitionLog]) -> Void) { body(&self.logs) }

  func end(of log: LogID) -> Offset? { self.indexOf[log].map { self.logs[$0].laid.end } }

  /// A log whose beginning is lost: what follows of it is kept under its name.
  mutating func adopt(_ header: FrameHeader) {
    let state = LogState(logStart: header.baseOffset, end: header.baseOffset, epochs: [])
    self.nextLog = max(self.nextLog, LogID(header.log.rawValue + 1))
    self.drop(header.partition)
    self.insert(
      PartitionLog(
        id: header.log, partition: header.partition, accepted: state, laid: state, isLaid: true))
  }

  /// A partition that is opened anew was dropped before, seen or not.
  private mutating func drop(_ partition: TopicPartition) {
    if let index = self.logs.firstIndex(where: { $0.partition == partition }) { self.remove(index) }
  }

  /// Replays one frame on its own, of anything but a checkpoint.
  mutating func apply(
    _ frame: WalkedFrame, _ bytes: UnsafeRawBufferPointer, in segment: SegmentSequence,
    kind: GroupKind?
  ) throws(MemQError) {
    if frame.header.type == .partitionOpen { self.drop(frame.header.partition) }
    do throws(MemQError) {
      try self.apply(frame, bytes.part(frame.payload), segment)
    } catch {
      throw .corrupt(LogPlace(segment, frame.position), error.message)
    }
  }

  /// Replays one group.
  mutating func apply(
    _ group: GroupHeader, _ frames: [WalkedFrame], _ bytes: UnsafeRawBufferPointer
  ) throws(MemQError) {
    self.parts = []
    for frame in frames {
      do throws(MemQError) {
        try self.apply(frame, bytes.part(frame.payload), group.segment)
      } catch {
        throw .corrupt(LogPlace(group.segment, frame.position), error.message)
      }
    }
    guard !self.parts.isEmpty else { return }
    do throws(MemQError) {
      self.load(try Checkpoint(parts: self.parts), isHead: group.kind == .head)
    } catch {
      throw .corrupt(LogPlace(group.segment, frames[0].position), error.message)
    }
  }

  mutating func load(_ checkpoint: Checkpoint, isHead: Bool) {
    // Where a close's checkpoint follows frames of the same segment, it says the same as they do.
    if isHead { self.summaries = [:] }
    self.nextLog = checkpoint.nextLog
    self.segments = checkpoint.segments
    self.logs = []
    self.indexOf = [:]
    for entry in checkpoint.partitions {
      var log = PartitionLog(
        id: entry.log, partition: entry.partition, accepted: entry.state, laid: entry.state,
        isLaid: true)
      log.highWatermark = entry.highWatermark
      log.uploadedOffset = entry.uploadedOffset
      log.snapshotPlace = entry.snapshot
      log.coldEnd = entry.coldEnd
      log.coldCuts = entry.coldCuts
      self.insert(log)
    }
  }

  private mutating func insert(_ log: PartitionLog) {
    self.indexOf[log.id] = self.logs.count
    self.logs.append(log)
  }

  private mutating func apply(
    _ frame: WalkedFrame, _ payload: UnsafeRawBufferPointer, _ segment: SegmentSequence
  ) throws(MemQError) {
    let header = frame.header
    switch header.type {
    case .checkpoint:
      self.parts.append(Array(payload))
    case .footer:
      break
    case .positions:
      try self.applyPositions(payload)
    case .coldSegment:
      self.apply(try ColdSegment(decoding: Array(payload)))
    case .carriedBatch:
      throw MemQError(.corruptMessage, "a carried batch outside of a cold segment")
    case .partitionOpen:
      var reader = ByteReader(Array(payload))
      let state = LogState(
        logStart: header.baseOffset, end: header.baseOffset, epochs: try reader.epochs())
      self.nextLog = max(self.nextLog, LogID(header.log.rawValue + 1))
      self.insert(
        PartitionLog(
          id: header.log, partition: header.partition, accepted: state, laid: state, isLaid: true))
    case .batch, .epochStart, .truncate, .logStart, .partitionDrop, .producerSnapshot:
      try self.applyToLog(frame, payload, segment)
    }
  }

  private mutating func applyToLog(
    _ frame: WalkedFrame, _ payload: UnsafeRawBufferPointer, _ segment: SegmentSequence
  ) throws(MemQError) {
    let header = frame.header
    guard let index = self.indexOf[header.log] else {
      throw MemQError(.corruptMessage, "a frame of a partition log that isn't open")
    }
    switch header.type {
    case .batch:
      guard header.baseOffset == self.logs[index].laid.end else {
        throw MemQError(
          .corruptMessage, "a batch does not begin at its log's end",
          limit: self.logs[index].laid.end.rawValue, actual: header.baseOffset.rawValue)
      }
      self.logs[index].laid.append(
        base: header.baseOffset, end: header.endOffset, epoch: header.leaderEpoch)
      let summary = header.summary(of: payload)
      if summary.producerID.rawValue >= 0 {
        self.summaries[header.log, default: []].append(summary)
      }
    case .epochStart:
      self.logs[index].laid.startEpoch(
        EpochStart(epoch: header.leaderEpoch, start: header.baseOffset))
    case .truncate:
      var reader = ByteReader(Array(payload))
      self.logs[index].laid.truncate(to: header.baseOffset, epochs: try reader.epochs())
      self.logs[index].highWatermark = min(self.logs[index].highWatermark, header.baseOffset)
      if header.baseOffset < self.logs[index].coldEnd {
        // One that was being carried says so itself, in the frame that names it.
        let youngest = self.segments.filter { $0.state == .cold }.map(\.sequence).max()
        if let youngest { self.logs[index].coldCuts.cut(youngest, to: header.baseOffset) }
        self.logs[index].coldEnd = header.baseOffset
      }
      if let place = self.logs[index].snapshotPlace, place.end > header.baseOffset {
        self.logs[index].snapshotPlace = nil
      }
      self.summaries[header.log]?.removeAll { $0.endOffset > header.baseOffset }
    case .logStart:
      self.logs[index].laid.setLogStart(header.baseOffset)
    case .producerSnapshot:
      self.logs[index].snapshotPlace = SnapshotPlace(
        place: LogPlace(segment, frame.position), payloadBytes: header.payloadBytes,
        end: header.baseOffset)
    case .partitionDrop:
      self.remove(index)
    case .partitionOpen, .checkpoint, .footer, .positions, .carriedBatch, .coldSegment:
      preconditionFailure("not a frame of one log")
    }
  }

  private mutating func apply(_ cold: ColdSegment) {
    self.segments.append(
      Checkpoint.Segment(sequence: cold.sequence, slot: cold.slot, end: cold.end, state: .cold))
    for entry in cold.entries {
      guard let index = self.indexOf[entry.log] else { continue }
      self.logs[index].coldEnd = entry.coldEnd
      if entry.hasDead { self.logs[index].coldCuts.cut(cold.sequence, to: entry.coldEnd) }
    }
  }

  private mutating func remove(_ index: Int) {
    self.indexOf[self.logs[index].id] = nil
    self.summaries[self.logs[index].id] = nil
    self.logs.swapAt(index, self.logs.count - 1)
    self.logs.removeLast()
    if index < self.logs.count { self.indexOf[self.logs[index].id] = index }
  }

  private mutating func applyPositions(_ payload: UnsafeRawBufferPointer) throws(MemQError) {
    var reader = ByteReader(Array(payload))
    let count: UInt32 = try reader.integer()
    for _ in 0..<count {
      let log = LogID(try reader.integer())
      let highWatermark = Offset(try reader.integer())
      let uploaded = Offset(try reader.integer())
      guard let index = self.indexOf[log] else { continue }
      self.logs[index].highWatermark = highWatermark
      self.logs[index].uploadedOffset = uploaded
    }
  }
}
