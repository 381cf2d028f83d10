// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension VolumeCore {
  /// Bytes that groups may still take in the active segment, its footer provided for.
  var remaining: Int {
    guard let active = self.active, self.phase == .running || self.phase == .opening else {
      return 0
    }
    return self.remaining(in: active, moreFooterBytes: 0)
  }

  private func remaining(in active: ActiveSegment, moreFooterBytes: Int) -> Int {
    let end = Int(self.identity.segmentBytes) - LogFormat.blockBytes
    return end - Int(active.position) - Footer.groupBytes(active.footerBytes + moreFooterBytes)
  }

  /// Lays the frames that wait and fit into a group, run by run per partition. Nil: the first one does not fit.
  mutating func layOutPending(at now: MonotonicInstant, wall: Timestamp) -> GroupWrite? {
    let count = self.fittingCount()
    guard count > 0 else { return nil }
    let frames = Self.byPartition(self.pending.removeFirst(count))
    var builder = self.builder(frames: count)
    var requests: [RequestID] = []
    var cost = 0
    for frame in frames.order {
      self.place(frames.frames[frame], into: &builder, at: now)
    }
    for frame in frames.frames {
      if let request = frame.request { requests.append(request) }
      cost += frame.cost
    }
    return self.launch(builder, .data, wall: wall, requests: requests, cost: cost)
  }

  /// How many of the waiting frames go into the next group.
  private func fittingCount() -> Int {
    guard let active = self.active else { return 0 }
    var bytes = GroupHeader.byteCount
    var footerBytes = 0
    var count = 0
    while count < self.pending.count, count < self.configuration.groupFramesMax {
      let frame = self.pending[count]
      let frameBytes = FrameHeader.byteCount + self.payloadBytes(frame)
      if count > 0, bytes + frameBytes > self.configuration.groupBytesMax { break }
      footerBytes += Footer.entryBytes + Footer.runBytes
      let room = self.remaining(in: active, moreFooterBytes: footerBytes)
      if LogFormat.blocks(bytes + frameBytes) > room { break }
      if active.footerBytes + footerBytes > self.configuration.footerBytesMax,
        count > 0 || active.footerBytes > 0
      {
        break
      }
      bytes += frameBytes
      count += 1
    }
    return count
  }

  /// At most what the frame's payload will take.
  private func payloadBytes(_ frame: PendingFrame) -> Int {
    switch frame.content {
    case .batch(let batch, _): batch.byteCount
    case .snapshot(let snapshot): snapshot.bytes.count
    case .snapshotCarry: self.log(frame.log)?.snapshot?.bytes.count ?? 0
    case .epochStart, .logStart, .drop: 0
    case .truncate(_, let epochs): 4 + 16 * epochs.count
    case .open(let state): 4 + 16 * state.epochs.count
    case .positions(_, let logs): Self.positionsBytes(logs.count)
    case .coldSegment(let result): Self.coldFrameBytes(entries: result.moved.count)
    }
  }

  /// Frames with an order that puts each partition's next to each other, its own order kept.
  private static func byPartition(
    _ frames: [PendingFrame]
  ) -> (frames: [PendingFrame], order: [Int]) {
    var bucketOf: [Int: Int] = [:]
    var buckets: [[Int]] = []
    for (index, frame) in frames.enumerated() {
      let log = frame.log.index
      if let bucket = bucketOf[log] {
        buckets[bucket].append(index)
      } else {
        bucketOf[log] = buckets.count
        buckets.append([index])
      }
    }
    return (frames, buckets.flatMap { $0 })
  }

  private func builder(
    frames: Int, segmentHeader: [UInt8] = [], payloadBytes: Int = 0
  ) -> GroupBuilder {
    let active = self.active!
    return GroupBuilder(
      at: active.position, seal: active.seal, previousChecksum: active.previousChecksum,
      segmentHeader: segmentHeader, frames: frames, payloadBytes: payloadBytes)
  }

  /// Closes the group and puts it on its way.
  private mutating func launch(
    _ builder: consuming GroupBuilder, _ kind: GroupKind, wall: Timestamp,
    requests: [RequestID] = [], cost: Int = 0
  ) -> GroupWrite {
    let position = builder.position
    let slot = self.active!.slot
    let (write, checksum) = builder.finish(
      kind: kind, number: self.nextGroup, slot: slot, durable: self.durable,
      openCount: self.openCount, wall: wall)
    let end = write.parts[0].position + Int64(write.parts[0].byteCount)
    precondition(end > position && end <= self.identity.segmentBytes - Int64(LogFormat.blockBytes))
    self.active!.position = end
    self.active!.previousChecksum = checksum
    self.segments[self.segments.count - 1].end = end
    self.logEnd = LogPlace(self.active!.sequence, end)
    self.logEndChecksum = checksum
    self.inFlight.append(
      GroupInFlight(
        number: self.nextGroup, kind: kind, slot: slot, end: self.logEnd, requests: requests,
        cost: cost))
    self.inFlightCost += cost
    self.nextGroup = self.nextGroup.next
    self.isWriting = true
    self.markDueAt = nil
    self.counters.groupsWritten += 1
    self.counters.bytesWritten += Int64(write.byteCount)
    return write
  }

  // MARK: - Groups without requests

  /// A slot's new life: header block and checkpoint.
  mutating func layOutHead(_ slot: SegmentSlot, wall: Timestamp) -> GroupWrite {
    let sequence = self.nextSequence
    self.nextSequence = sequence.next
    let header = SegmentHeader(
      kind: .hot, slot: slot, cluster: self.identity.cluster, volume: self.identity.volume,
      sequence: sequence, segmentBytes: self.identity.segmentBytes, previousEnd: self.logEnd,
      previousChecksum: self.logEndChecksum, openCount: self.openCount, writeTime: wall)
    var block = [UInt8](repeating: 0, count: LogFormat.blockBytes)
    let checksum = block.withUnsafeMutableBytes { header.encode(into: $0) }
    let payloads = self.checkpoint()
    self.active = ActiveSegment(
      sequence: sequence, slot: slot,
      seal: HeaderSeal(volume: self.identity.volume, segment: sequence),
      position: LogFormat.firstGroupPosition, previousChecksum: checksum)
    self.segments.append(
      LiveSegment(sequence: sequence, slot: slot, end: LogFormat.firstGroupPosition))
    self.footerDraft.begin()
    var builder = self.builder(
      frames: payloads.count, segmentHeader: block,
      payloadBytes: payloads.reduce(0) { $0 + $1.count })
    for payload in payloads { builder.add(.ofVolume(.checkpoint), payload: payload) }
    return self.launch(builder, .head, wall: wall)
  }

  /// The laid state of everything: what the next segment, or a clean end, begins from.
  private mutating func checkpoint() -> [[UInt8]] {
    var draft = self.checkpointDraft ?? self.newCheckpointDraft()
    self.checkpointDraft = nil
    self.extend(&draft, by: .max)
    let segments = self.segments.filter { $0.sequence != self.active?.sequence }
      .map { Checkpoint.Segment(sequence: $0.sequence, slot: $0.slot, end: $0.end) }
    let cold = self.cold.map {
      Checkpoint.Segment(sequence: $0.sequence, slot: $0.slot, end: $0.end, state: .cold)
    }
    let freeing = self.freeingStated()
    return Checkpoint.payloads(
      nextLog: self.nextLog, segments: freeing.hot + self.missing + segments + freeing.cold + cold,
      draft.bodies)
  }

  /// What the checkpoint says of segments that are on their way to be retired. Until the log has said that what they held is uploaded,
  /// they, and those that may only go after them, are part of it. After that a cold one is simply no longer named.
  private func freeingStated() -> (hot: [Checkpoint.Segment], cold: [Checkpoint.Segment]) {
    var (hot, cold): ([Checkpoint.Segment], [Checkpoint.Segment]) = ([], [])
    var isHeld = false
    for entry in self.freeing {
      isHeld = isHeld || entry.statements > 0
      var segment = entry.segment
      if segment.state == .cold {
        if isHeld { cold.append(segment) }
      } else {
        if isHeld { segment.state = .needed }
        hot.append(segment)
      }
    }
    return (hot, cold)
  }

  /// The active segment's index, and a trailer that says where it is.
  mutating func layOutFooter(wall: Timestamp) -> GroupWrite {
    let payloads = self.footer()
    let position = self.active!.position
    var builder = self.builder(
      frames: payloads.count, payloadBytes: payloads.reduce(0) { $0 + $1.count })
    for payload in payloads { builder.add(.ofVolume(.footer), payload: payload) }
    var write = self.launch(builder, .seal, wall: wall)
    let place = FooterPlace(position: position, byteCount: write.byteCount)
    self.segments[self.segments.count - 1].footer = place
    write.addTrailer(
      place, volume: self.identity.volume, segmentBytes: self.identity.segmentBytes)
    // The next segment begins from what is laid now.
    self.checkpointDraft = self.newCheckpointDraft()
    return write
  }

  /// The payloads of the footer's frames.
  private func footer() -> [[UInt8]] {
    guard self.footerDraft.isWhole else { return self.footerOfSpans().encoded() }
    let payloads = self.footerDraft.encoded()
    assert(payloads == self.footerOfSpans().encoded(), "a footer is not that of its spans")
    return payloads
  }

  private func footerOfSpans() -> Footer {
    let active = self.active!
    let segment = self.segments[self.segments.count - 1]
    var entries: [Footer.Entry] = []
    entries.reserveCapacity(segment.logs.count)
    var places = segment.logs
    // A log that took a dropped one's place in the table is named twice before.
    places.sort()
    for index in places where self.logIDs[index] != .none {
      guard let span = self.logs[index]!.spans.lastOpen, span.segment == active.sequence else {
        continue
      }
      entries.append(
        Footer.Entry(
          log: self.logIDs[index], partition: self.logs[index]!.partition, cutTo: span.cutTo,
          baseOffset: span.baseOffset, runs: span.runs))
    }
    entries.sort { $0.log < $1.log }
    return Footer(entries: entries)
  }

  /// A group that only states what is durable, with positions that changed, at most one block.
  mutating func layOutMark(wall: Timestamp) -> GroupWrite {
    var builder = self.builder(frames: 1)
    let room = LogFormat.blockBytes - GroupHeader.byteCount - FrameHeader.byteCount - 4
    let due = Array(self.duePositions.prefix(room / Self.positionBytes))
    var entries: [LogReference] = []
    for reference in due where self.log(reference)?.isLaid ?? false {
      self.logs[reference.index]!.arePositionsDue = false
      entries.append(reference)
    }
    self.duePositions.removeFirst(due.count)
    if !entries.isEmpty {
      builder.add(.ofVolume(.positions), payload: self.positions(entries))
    }
    return self.launch(builder, .mark, wall: wall)
  }

  /// A positions frame's payload: what it says has a place from now on.
  mutating func positions(_ references: [LogReference]) -> [UInt8] {
    var writer = ByteWriter()
    writer.list(references) { writer, reference in
      let log = self.logs[reference.index]!
      writer.integer(log.id.rawValue)
      writer.integer(log.highWatermark.rawValue)
      writer.integer(log.uploadedOffset.rawValue)
    }
    for reference in references {
      self.logs[reference.index]!.uploadedStated = self.logs[reference.index]!.uploadedOffset
    }
    return writer.bytes
  }

  static func positionsBytes(_ count: Int) -> Int { 4 + self.positionBytes * count }

  private static let positionBytes = 24

  /// An orderly end, with a checkpoint where it fits.
  mutating func layOutClose(wall: Timestamp) -> GroupWrite {
    var builder = self.builder(frames: 1)
    let payloads = self.checkpoint()
    let bytes = payloads.reduce(GroupHeader.byteCount) { $0 + FrameHeader.byteCount + $1.count }
    if LogFormat.blocks(bytes) <= self.remaining {
      for payload in payloads { builder.add(.ofVolume(.checkpoint), payload: payload) }
    }
    return self.launch(builder, .close, wall: wall)
  }
}

extension FrameHeader {
  /// A frame that concerns the volume; its payload's length and checksums are filled in at its place.
  static func ofVolume(_ type: FrameType) -> FrameHeader {
    FrameHeader(type: type, payloadBytes: 0, payloadChecksum: 0, previousChecksum: 0)
  }
}
