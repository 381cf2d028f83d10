// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What the cleaner copies to a cold segment: whole batches, grouped by partition.
public struct CarryPlan: Sendable {
  /// Consecutive batches of one partition in one segment.
  struct Piece: Sendable {
    let log: LogReference
    let partition: TopicPartition
    let segment: SegmentSequence
    let slot: SegmentSlot
    /// Nil: the runs are below.
    let footer: FooterPlace?
    var runs: [RunEntry]
    /// From the batch that holds this offset.
    let from: Offset
    let below: Offset
  }

  /// The cold segment's file.
  public let slot: SegmentSlot
  public let segment: SegmentSequence
  /// The limit of the copy; nil: as fast as the disk goes.
  public let bytesPerSecond: Int?
  /// By log id, then by offset.
  var pieces: [Piece]
  /// They may be more than fits: the last one is copied as far as there is room.
  let isPart: Bool
  /// The file's first block.
  let header: SegmentHeader
  /// A group takes no further batch beyond this.
  let groupBytes: Int
  let runBytesMax: Int
  let footerBytesMax: Int

  /// The segment files it reads, which must not be written over meanwhile.
  var sources: [SegmentSlot] {
    var slots: [SegmentSlot] = []
    for piece in self.pieces where !slots.contains(piece.slot) { slots.append(piece.slot) }
    return slots
  }
}

/// What has been copied and is durable.
public struct CarryResult: Sendable {
  /// Consecutive batches of one piece that stand in the cold segment now.
  struct Moved: Sendable {
    let log: LogReference
    let source: SegmentSequence
    var span: SegmentSpan
  }

  public let slot: SegmentSlot
  public let segment: SegmentSequence
  /// Where its groups end.
  public let end: Int64
  let footer: FooterPlace
  let moved: [Moved]
  /// Sources that did not verify: nothing from there on was carried of these partitions. The offset: what stands there does not read, or
  /// did not; nil: an index does not hold, and who has read it before may not notice.
  public let damage: [(partition: TopicPartition, error: MemQError, from: Offset?)]
  let damaged: [LogReference]
  /// Everything planned was copied, or as much as the plan knew would fit.
  let isComplete: Bool
  /// Frames copied.
  public let bytesCarried: Int64
}

/// Copies batches into a cold segment, a group at a time, each verified before it is carried.
///
/// Pure but for its source: `next` reads and answers with what to write. The driver makes each write durable before it asks
/// for the next, so a segment that is done is durable as a whole.
public struct SegmentCarrier: Sendable {
  public enum Step: Sendable {
    /// Write these and sync the plan's file, then ask again.
    case write([(position: Int64, bytes: [UInt8])])
    case done(CarryResult)
  }

  public let plan: CarryPlan
  private let seal: HeaderSeal
  private var position = LogFormat.firstGroupPosition
  private var previousChecksum: UInt32 = 0
  private var nextGroup = GroupNumber(1)
  private var hasBegun = false
  private var isFull = false
  /// Once it is written.
  private var footer: FooterPlace?
  /// Of each piece, as its source's index has them.
  private var runs: [[RunEntry]]
  /// The next piece, and the next of its runs.
  private var piece = 0
  private var run = 0
  private var moved: [CarryResult.Moved] = []
  /// What the footer takes for `moved`, at most.
  private var footerBytes = 0
  private var damage: [(partition: TopicPartition, error: MemQError, from: Offset?)] = []
  private var damaged: [LogReference] = []
  /// Nothing more is copied of these: damaged ones, and those that could not be read for want of something else.
  private var stopped: [LogReference] = []
  private var bytesCarried: Int64 = 0

  public init(_ plan: CarryPlan) {
    self.plan = plan
    self.seal = HeaderSeal(volume: plan.header.volume, segment: plan.segment)
    self.runs = plan.pieces.map(\.runs)
  }

  /// The next step. What the source can't read for now (`.resourceExhausted`) ends its partition's part. What can't be read or does not verify ends its partition's part and is in the result.
  public mutating func next(from source: inout some SegmentSource) -> Step {
    if !self.hasBegun {
      self.loadRuns(&source)
      return .write([(position: Int64(0), bytes: self.begin())])
    }
    if let group = self.copyGroup(&source) { return .write(Self.bytes(of: group)) }
    guard let footer = self.footer else { return .write(Self.bytes(of: self.layOutFooter())) }
    return .done(
      CarryResult(
        slot: self.plan.slot, segment: self.plan.segment, end: self.position, footer: footer,
        moved: self.moved.map { moved in
          var moved = moved
          moved.span.moveToFooter()
          return moved
        }, damage: self.damage, damaged: self.damaged,
        isComplete: self.stopped.isEmpty && (!self.isFull || self.plan.isPart),
        bytesCarried: self.bytesCarried))
  }

  /// The header goes first and alone: whatever group is found later is then known to be of this life.
  private mutating func begin() -> [UInt8] {
    self.hasBegun = true
    var block = [UInt8](repeating: 0, count: LogFormat.blockBytes)
    self.previousChecksum = block.withUnsafeMutableBytes { self.plan.header.encode(into: $0) }
    return block
  }

  // MARK: - What to copy

  /// Takes the runs that are wanted out of each source's footer, one footer in memory at a time.
  private mutating func loadRuns(_ source: inout some SegmentSource) {
    var loaded: [SegmentSequence] = []
    for piece in self.plan.pieces {
      guard let place = piece.footer, !loaded.contains(piece.segment) else { continue }
      loaded.append(piece.segment)
      let footer: Footer?
      var failure: MemQError?
      do throws(MemQError) {
        footer = try self.footer(of: piece, place, &source)
      } catch {
        (footer, failure) = (nil, error)
      }
      for (index, wanted) in self.plan.pieces.enumerated() where wanted.segment == piece.segment {
        guard let footer else {
          if let failure, Self.isTransient(failure) {
            self.stopped.append(wanted.log)
          } else {
            self.stop(
              wanted, .corrupt(LogPlace(wanted.segment, place.position), "a footer is damaged"),
              from: failure == nil ? nil : wanted.from)
          }
          continue
        }
        self.runs[index] = RunEntry.select(
          footer.runs(of: wanted.log.log), from: wanted.from, below: wanted.below, maxBytes: .max)
      }
    }
  }

  private func footer(
    of piece: CarryPlan.Piece, _ place: FooterPlace, _ source: inout some SegmentSource
  ) throws(MemQError) -> Footer? {
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: place.byteCount, alignment: 16)
    defer { bytes.deallocate() }
    try source.read(piece.slot, at: place.position, into: bytes)
    return SealedSegment.footer(
      in: UnsafeRawBufferPointer(bytes), at: place,
      seal: HeaderSeal(volume: self.seal.volume, segment: piece.segment))
  }

  /// The source is fine and could not be asked: no damage, and the next plan may find it.
  private static func isTransient(_ error: MemQError) -> Bool {
    error.code == .resourceExhausted
  }

  private mutating func stop(_ piece: CarryPlan.Piece, _ error: MemQError, from: Offset?) {
    guard !self.damaged.contains(piece.log) else { return }
    self.damaged.append(piece.log)
    self.stopped.append(piece.log)
    self.damage.append((piece.partition, error, from))
  }

  // MARK: - Groups

  /// The next runs that fit into a group; nil: everything is copied, or the segment is full.
  private mutating func copyGroup(_ source: inout some SegmentSource) -> GroupWrite? {
    guard !self.isFull, self.footer == nil else { return nil }
    var builder = GroupBuilder(
      at: self.position, seal: self.seal, previousChecksum: self.previousChecksum, frames: 64)
    var hasFrames = false
    while let (piece, run) = self.nextRun() {
      let content = builder.contentBytes + run.byteCount
      guard self.fits(content) else {
        self.isFull = true
        break
      }
      if hasFrames, content > self.plan.groupBytes { break }
      self.run += 1
      let count = self.copy(run, piece, into: &builder, &source)
      hasFrames = hasFrames || count > 0
    }
    return hasFrames ? self.finish(builder, .data) : nil
  }

  private mutating func nextRun() -> (CarryPlan.Piece, RunEntry)? {
    while self.piece < self.plan.pieces.count {
      let piece = self.plan.pieces[self.piece]
      if self.run < self.runs[self.piece].count, !self.stopped.contains(piece.log) {
        return (piece, self.runs[self.piece][self.run])
      }
      self.piece += 1
      self.run = 0
    }
    return nil
  }

  /// Whether a group of that content, and the footer with one more run, still have room.
  private func fits(_ content: Int) -> Bool {
    let footerBytes = self.footerBytes + Footer.entryBytes + Footer.runBytes
    let end =
      Int(self.position) + LogFormat.blocks(content) + Footer.groupBytes(footerBytes)
      + LogFormat.blockBytes
    return end <= Int(self.plan.header.segmentBytes) && footerBytes <= self.plan.footerBytesMax
  }

  private mutating func copy(
    _ run: RunEntry, _ piece: CarryPlan.Piece, into builder: inout GroupBuilder,
    _ source: inout some SegmentSource
  ) -> Int {
    let start = max(run.baseOffset, piece.from)
    let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: run.byteCount, alignment: 16)
    defer { bytes.deallocate() }
    do throws(MemQError) {
      try source.read(piece.slot, at: run.position, into: bytes)
    } catch {
      guard !Self.isTransient(error) else {
        self.stopped.append(piece.log)
        return 0
      }
      self.stop(
        piece,
        .corrupt(
          LogPlace(piece.segment, run.position), "the disk can't read it (\(error.message))"),
        from: start)
      return 0
    }
    let view = UnsafeRawBufferPointer(bytes)
    let (frames, damage) = FrameWalk.wholeBatches(
      in: view, run: run, log: piece.log.log,
      seal: HeaderSeal(volume: self.seal.volume, segment: piece.segment), from: piece.from,
      below: piece.below)
    if let damage {
      self.stop(piece, damage, from: frames.last?.header.endOffset ?? start)
      return 0
    }
    for frame in frames { self.add(frame, view.part(frame.payload), piece, into: &builder) }
    return frames.count
  }

  private mutating func add(
    _ frame: WalkedFrame, _ payload: UnsafeRawBufferPointer, _ piece: CarryPlan.Piece,
    into builder: inout GroupBuilder
  ) {
    let summary = frame.header.summary(of: payload)
    let run = RunEntry(
      position: builder.nextPosition, byteCount: FrameHeader.byteCount + payload.count,
      baseOffset: summary.baseOffset, endOffset: summary.endOffset,
      maxTimestamp: summary.maxTimestamp, maxAppendTime: summary.appendTime,
      hasProducers: summary.producerID.rawValue >= 0)
    var header = frame.header
    header.type = .carriedBatch
    builder.add(header, copying: payload)
    self.bytesCarried += Int64(run.byteCount)
    if self.moved.last?.log != piece.log || self.moved.last?.source != piece.segment
      || self.moved.last?.span.endOffset != run.baseOffset
    {
      if self.moved.last?.log != piece.log { self.footerBytes += Footer.entryBytes }
      self.moved.append(
        CarryResult.Moved(
          log: piece.log, source: piece.segment,
          span: SegmentSpan(segment: self.plan.segment, at: run.baseOffset)))
    }
    let last = self.moved.count - 1
    let before = self.moved[last].span.runs.count
    self.moved[last].span.add(run, joinsBelow: self.plan.runBytesMax)
    self.footerBytes += Footer.runBytes * (self.moved[last].span.runs.count - before)
  }

  private mutating func finish(
    _ builder: consuming GroupBuilder, _ kind: GroupKind
  ) -> GroupWrite {
    // No mark: a cold segment counts only once it is durable as a whole.
    let (write, checksum) = builder.finish(
      kind: kind, number: self.nextGroup, slot: self.plan.slot, durable: .start,
      openCount: self.plan.header.openCount, wall: self.plan.header.writeTime)
    self.nextGroup = self.nextGroup.next
    self.position += Int64(write.byteCount)
    self.previousChecksum = checksum
    return write
  }

  private mutating func layOutFooter() -> GroupWrite {
    var entries: [Footer.Entry] = []
    for moved in self.moved {
      if let last = entries.indices.last, entries[last].log == moved.log.log {
        entries[last].runs += moved.span.runs
      } else {
        let piece = self.plan.pieces.first { $0.log == moved.log }!
        entries.append(
          Footer.Entry(
            log: moved.log.log, partition: piece.partition, cutTo: nil,
            baseOffset: moved.span.baseOffset, runs: moved.span.runs))
      }
    }
    let position = self.position
    let payloads = Footer(entries: entries).encoded()
    var builder = GroupBuilder(
      at: position, seal: self.seal, previousChecksum: self.previousChecksum,
      frames: payloads.count)
    for payload in payloads { builder.add(.ofVolume(.footer), payload: payload) }
    var write = self.finish(builder, .seal)
    let place = FooterPlace(position: position, byteCount: write.byteCount)
    self.footer = place
    write.addTrailer(
      place, volume: self.seal.volume, segmentBytes: self.plan.header.segmentBytes)
    return write
  }

  private static func bytes(of group: GroupWrite) -> [(position: Int64, bytes: [UInt8])] {
    group.parts.map { part in
      var bytes: [UInt8] = []
      bytes.reserveCapacity(part.byteCount)
      for piece in part.pieces {
        switch piece {
        case .bytes(let range): bytes += group.headerBytes[range]
        case .zeros(let count): bytes += [UInt8](repeating: 0, count: count)
        case .payload: preconditionFailure("a carried group has all its bytes")
        }
      }
      return (part.position, bytes)
    }
  }
}

extension GroupWrite {
  /// Adds the segment's last block, which says where the footer is.
  mutating func addTrailer(_ footer: FooterPlace, volume: VolumeID, segmentBytes: Int64) {
    let trailer = SegmentTrailer(
      volume: volume, sequence: self.segment, footerPosition: footer.position,
      footerBytes: Int64(footer.byteCount))
    var block = [UInt8](repeating: 0, count: LogFormat.blockBytes)
    block.withUnsafeMutableBytes { trailer.encode(into: $0) }
    self.add(block: block, at: segmentBytes - Int64(LogFormat.blockBytes))
  }
}
