// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Everything on a stopped volume read and checked: every header, batch, index and checkpoint the log needs.
///
/// Only bytes that no life of the log claims go unread: what stands between a segment's end and its trailer, and files whose
/// life is over.
public struct VolumeVerification: Sendable {
  public struct Damage: Hashable, Sendable {
    public enum Kind: String, Sendable, CaseIterable {
      /// The first block of a segment. Its groups say the same.
      case segmentHeader = "segment header"
      case groupHeader = "group header"
      /// Frames of unknown partitions.
      case frames
      case payload
      case padding
      /// A sealed segment's index, or the block that says where it is.
      case footer, trailer
      case checkpoint
      /// What holds by itself contradicts what holds elsewhere.
      case order
    }

    public var kind: Kind
    public var slot: SegmentSlot
    public var segment: SegmentSequence
    /// In the segment file.
    public var positions: Range<Int64>
    public var what: String
    /// Records that the log needs and that are gone by it.
    public var lost: [LostRecords] = []
  }

  public struct LostRecords: Hashable, Sendable {
    public var partition: TopicPartition
    public var offsets: Range<Offset>

    public init(partition: TopicPartition, offsets: Range<Offset>) {
      self.partition = partition
      self.offsets = offsets
    }
  }

  public struct Segment: Hashable, Sendable {
    public enum FooterState: String, Sendable {
      case whole
      /// Sealed by recovery, or the active segment: it has none.
      case none
      /// It had one. `canBeRebuilt`: all that it says still stands in the segment.
      case damaged
    }
    public var slot: SegmentSlot
    public var sequence: SegmentSequence
    public var kind = SegmentKind.hot
    public var end: Int64
    public var groups = 0
    public var batches = 0
    public var batchBytes: Int64 = 0
    public var footer = FooterState.none
    public var damages = 0
    public var canBeRebuilt = false
  }

  public struct Partition: Hashable, Sendable {
    public var partition: TopicPartition
    public var logStart: Offset
    public var localStart: Offset
    /// Exclusive.
    public var end: Offset
    public var uploadedOffset: Offset
    /// Records below are whole; nil: all are.
    public var damagedFrom: Offset?
    public var problem: MemQError?
    /// A segment with records of it that was not read: of these nothing is known.
    public var unreadSegment: SegmentSequence?
  }

  /// Cold ones first, then hot ones in the log's order.
  public var segments: [Segment] = []
  public var damages: [Damage] = []
  public var partitions: [Partition] = []
  /// Where the log ends, and the highest durable mark in it.
  public var end = LogPlace.start
  public var durable = LogPlace.start
  /// The youngest opening that wrote a group.
  public var openCount: UInt64 = 0
  /// What may be lost besides, with nothing left that names it.
  public var unnamed: UnnamedLosses = []
  /// Why a server could not open the volume at all.
  public var refusal: MemQError?
  public var bytesRead: Int64 = 0

  public var losesRecords: Bool {
    self.refusal != nil || self.unnamed.contains(.partitions)
      || self.partitions.contains { $0.damagedFrom != nil }
  }
  public var isWhole: Bool {
    self.damages.isEmpty && !self.losesRecords
      && self.partitions.allSatisfy { $0.unreadSegment == nil }
  }

  public init() {}

  /// Bytes to read and read.
  public typealias Progress = (_ done: Int64, _ total: Int64) -> Void

  /// - Parameters:
  ///   - runBytesMax: as `LogConfiguration.runBytesMax`.
  ///   - unnamed, durableEnd: as the volume file states them.
  /// - Throws: whatever the source throws; damage is what this returns.
  public static func run<Source: SegmentSource>(
    _ identity: VolumeIdentity, from source: inout Source,
    runBytesMax: Int = LogConfiguration().runBytesMax, unnamed: UnnamedLosses = [],
    durableEnd: LogPlace = .start, progress: Progress = { _, _ in }
  ) throws(MemQError) -> VolumeVerification {
    var verifier = Verifier(
      identity: identity, runBytesMax: runBytesMax, durableEnd: durableEnd, source: source)
    verifier.result.unnamed = unnamed
    try verifier.run(progress)
    source = verifier.source
    return verifier.result
  }
}

private struct Verifier<Source: SegmentSource> {
  /// A segment that is to be read, and where its groups end.
  struct Target {
    var header: SegmentHeader
    var checksum: UInt32
    var end: Int64?
    var isHeaderDamaged = false
    var isSealed = false
  }

  let identity: VolumeIdentity
  let runBytesMax: Int
  let durableEnd: LogPlace
  var source: Source
  var result = VolumeVerification()
  /// What an open would go on from.
  var logs: [PartitionLog] = []
  var recovered: [RecoveredPartition] = []
  /// Which records of a segment hold, by log.
  var whole: [SegmentSequence: [LogID: [Range<Offset>]]] = [:]
  /// Each segment's payloads that do not hold: the number of the damage and the frame.
  var payloads: [SegmentSequence: [(damage: Int, header: FrameHeader)]] = [:]
  /// The last damage that may have taken the frame of a cold segment.
  var nameless: Int?
  /// Each segment's first damage that may have taken any frame.
  var unknown: [SegmentSequence: Int] = [:]
  var done: Int64 = 0

  init(identity: VolumeIdentity, runBytesMax: Int, durableEnd: LogPlace, source: Source) {
    self.identity = identity
    self.runBytesMax = runBytesMax
    self.durableEnd = durableEnd
    self.source = source
  }

  mutating func run(_ progress: VolumeVerification.Progress) throws(MemQError) {
    let targets = try self.targets()
    let total = targets.reduce(Int64(0)) { $0 + ($1.end ?? self.identity.segmentBytes) }
    progress(0, total)
    for target in targets {
      try self.check(target) { progress($0, total) }
    }
    self.result.bytesRead = self.done
    for log in self.logs { self.judge(log) }
    for damaged in self.recovered where damaged.damage != nil { self.note(damaged) }
    self.result.partitions.sort { $0.partition < $1.partition }
  }

  // MARK: - What there is

  private mutating func targets() throws(MemQError) -> [Target] {
    var (hot, cold): ([LiveSegment], [LiveSegment]) = ([], [])
    var end = LogPlace.start
    do throws(MemQError) {
      let volume = try VolumeRecovery.run(
        self.identity, from: &self.source, runBytesMax: self.runBytesMax, salvage: .isolate,
        unnamed: self.result.unnamed, durableEnd: self.durableEnd)
      self.result.unnamed = volume.unnamed
      (self.logs, self.recovered, hot, cold, end) = (
        volume.logs, volume.partitions, volume.segments, volume.cold, volume.end
      )
    } catch {
      guard error.code == .logCorrupt else { throw error }
      self.result.refusal = error
    }
    self.result.end = end
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    var targets: [Target] = []
    for slot in self.source.slots {
      try self.source.read(slot, at: 0, into: block)
      let decoded = SegmentHeader.decode(UnsafeRawBufferPointer(block))
      if let (header, checksum) = decoded, header.volume == self.identity.volume,
        header.slot == slot, header.segmentBytes == self.identity.segmentBytes
      {
        let live = header.kind == .cold ? cold : hot
        let needed = live.first { $0.sequence == header.sequence && $0.slot == slot }
        guard header.kind != .freed, needed != nil || self.result.refusal != nil else { continue }
        var target = Target(header: header, checksum: checksum, end: needed?.end)
        if header.kind == .cold, needed == nil {
          // Without a log to go by, its trailer says where it ends; one that has none was never finished.
          guard let end = try self.sealedEnd(of: header) else { continue }
          target.end = end
        }
        targets.append(target)
        continue
      }
      let isHot = hot.contains { $0.slot == slot }
      guard let needed = (isHot ? hot : cold).first(where: { $0.slot == slot }) else {
        // Without a log to go by, a header that does not hold is all there is to say of the file, unless it was never used.
        guard self.result.refusal != nil else { continue }
        let groups = try HeaderlessSlot.probe(slot, self.identity, from: &self.source)
        if !UnsafeRawBufferPointer(block).isZero || groups.sequence != .none {
          self.noteHeader(slot, .none)
        }
        continue
      }
      self.noteHeader(slot, needed.sequence)
      targets.append(try self.headless(needed, isHot ? .hot : .cold))
    }
    targets.sort { $0.header.sequence < $1.header.sequence }
    var sealed = targets.filter { $0.header.kind == .cold }
    for index in sealed.indices { sealed[index].isSealed = true }
    // Only the hot ones follow each other.
    targets.removeAll { $0.header.kind == .cold }
    for index in targets.indices.dropLast() {
      targets[index].isSealed = true
      let next = targets[index + 1].header.previousEnd
      if targets[index].end == nil, next.segment == targets[index].header.sequence {
        targets[index].end = next.position
      }
    }
    return sealed + targets
  }

  private mutating func sealedEnd(of header: SegmentHeader) throws(MemQError) -> Int64? {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    let position = header.segmentBytes - Int64(LogFormat.blockBytes)
    try self.source.read(header.slot, at: position, into: block)
    guard let trailer = SegmentTrailer.decode(UnsafeRawBufferPointer(block)),
      trailer.volume == header.volume, trailer.sequence == header.sequence
    else { return nil }
    return trailer.end
  }

  private mutating func noteHeader(_ slot: SegmentSlot, _ sequence: SegmentSequence) {
    self.result.damages.append(
      .init(
        kind: .segmentHeader, slot: slot, segment: sequence,
        positions: 0..<Int64(LogFormat.blockBytes), what: "the segment's header does not hold"))
  }

  private mutating func headless(
    _ segment: LiveSegment, _ kind: SegmentKind
  ) throws(MemQError) -> Target {
    let header = SegmentHeader(
      kind: kind, slot: segment.slot, cluster: self.identity.cluster, volume: self.identity.volume,
      sequence: segment.sequence, segmentBytes: self.identity.segmentBytes, previousEnd: .start,
      previousChecksum: 0, openCount: 0, writeTime: .none)
    let bytes = UnsafeMutableRawBufferPointer.allocate(
      byteCount: GroupHeader.byteCount, alignment: 16)
    defer { bytes.deallocate() }
    let first = LogFormat.firstGroupPosition
    try self.source.read(segment.slot, at: first, into: bytes)
    let group = GroupHeader.decode(
      UnsafeRawBufferPointer(bytes), at: first, volume: self.identity.volume)
    return Target(
      header: header, checksum: group?.header.previousChecksum ?? 0, end: segment.end,
      isHeaderDamaged: true)
  }

  // MARK: - One segment

  private mutating func check(
    _ target: Target, _ progress: (Int64) -> Void
  ) throws(MemQError) {
    let header = target.header
    var segment = VolumeVerification.Segment(
      slot: header.slot, sequence: header.sequence, kind: header.kind, end: target.end ?? 0)
    let before = self.result.damages.count
    var reading = Reading(
      header, index: SegmentIndexer(segment: header.sequence, runBytesMax: .max))
    reading.durable = self.result.durable
    let begun = self.done
    let mark = target.end == nil ? try self.mark(of: target) : .start
    let scan = try SegmentSalvage.run(
      header, target.checksum, limit: target.end, mark: mark, from: &self.source
    ) { (piece, bytes) throws(MemQError) in
      reading.take(piece, bytes)
      progress(begun + reading.position)
    }
    self.done = begun + scan.end
    segment.end = scan.end
    segment.groups = scan.groups
    segment.batches = reading.batches
    segment.batchBytes = reading.batchBytes
    self.result.openCount = max(self.result.openCount, reading.openCount)
    self.result.durable = max(self.result.durable, reading.durable)
    for damage in reading.damages {
      let number = self.result.damages.count
      self.result.damages.append(damage.damage)
      if header.kind == .hot,
        damage.damage.kind == .frames || damage.frame?.type == .coldSegment
      {
        self.nameless = number
      }
      if let frame = damage.frame, frame.type.carriesRecords {
        self.payloads[header.sequence, default: []].append((number, frame))
      } else if damage.damage.kind == .frames, self.unknown[header.sequence] == nil {
        self.unknown[header.sequence] = number
      }
    }
    self.whole[header.sequence] = reading.whole
    let areFramesWhole = self.result.damages[before...].allSatisfy { $0.kind == .padding }
    if target.isSealed || scan.lastGroup?.kind == .seal {
      try self.checkFooter(target, reading, scan, areFramesWhole, &segment)
    }
    segment.damages = self.result.damages.count - before + (target.isHeaderDamaged ? 1 : 0)
    self.result.segments.append(segment)
    progress(self.done)
  }

  /// Of a segment whose end nothing states.
  private mutating func mark(of target: Target) throws(MemQError) -> LogPlace {
    try SegmentScan.run(target.header, target.checksum, probes: true, from: &self.source) {
      (_, _, _, _) throws(MemQError) in
    }.mark
  }

  /// What one pass over a segment gathers.
  private struct Reading {
    let header: SegmentHeader
    var index: SegmentIndexer
    var whole: [LogID: [Range<Offset>]] = [:]
    var damages: [(damage: VolumeVerification.Damage, frame: FrameHeader?)] = []
    var batches = 0
    var batchBytes: Int64 = 0
    var openCount: UInt64 = 0
    var durable = LogPlace.start
    var position: Int64 = 0

    init(_ header: SegmentHeader, index: SegmentIndexer) {
      self.header = header
      self.index = index
    }

    mutating func take(_ piece: SegmentSalvage.Piece, _ bytes: UnsafeRawBufferPointer) {
      switch piece {
      case .group(let group, let frames):
        let start = (frames.first?.position ?? self.position) - Int64(GroupHeader.byteCount)
        self.check(group, at: start, frames, bytes)
        for frame in frames { self.take(frame, bytes, holds: true) }
        self.position = start + Int64(group.byteCount)
      case .frame(let frame, let holds):
        self.take(frame, bytes, holds: holds)
        self.position = frame.position
      case .damage(let stretch):
        var header: FrameHeader?
        let kind: VolumeVerification.Damage.Kind =
          switch stretch.kind {
          case .groupHeader: .groupHeader
          case .padding: .padding
          case .chain: .order
          case .unknown: .frames
          case .payload(let frame):
            if frame.type == .footer { .footer } else { .payload }
          }
        if case .payload(let frame) = stretch.kind { header = frame }
        self.note(kind, stretch.range, stretch.what, header)
      }
    }

    private mutating func note(
      _ kind: VolumeVerification.Damage.Kind, _ range: Range<Int64>, _ what: String,
      _ frame: FrameHeader? = nil
    ) {
      self.damages.append(
        (
          .init(
            kind: kind, slot: self.header.slot, segment: self.header.sequence, positions: range,
            what: what), frame
        ))
    }

    /// What must hold among groups that hold by themselves.
    private mutating func check(
      _ group: GroupHeader, at start: Int64, _ frames: [WalkedFrame],
      _ bytes: UnsafeRawBufferPointer
    ) {
      self.openCount = max(self.openCount, group.openCount)
      let range = start..<(start + Int64(group.byteCount))
      if !frames.isEmpty, group.durable > LogPlace(self.header.sequence, start) {
        self.note(.order, range, "a group's durable mark lies behind the group")
      }
      self.durable = max(self.durable, group.durable)
      let parts = frames.filter { $0.header.type == .checkpoint }
      guard !parts.isEmpty || group.kind == .head else { return }
      do throws(MemQError) {
        _ = try Checkpoint(parts: parts.map { Array(bytes.part($0.payload)) })
      } catch {
        self.note(.checkpoint, range, error.message)
      }
    }

    private mutating func take(
      _ frame: WalkedFrame, _ bytes: UnsafeRawBufferPointer, holds: Bool
    ) {
      let log = frame.header.log
      if holds || frame.header.type.carriesRecords {
        self.index.add(frame, bytes.part(frame.payload))
      }
      if frame.header.type == .truncate {
        let end = frame.header.baseOffset
        self.whole[log] = self.whole[log]?.compactMap { range in
          range.lowerBound < end ? range.lowerBound..<min(range.upperBound, end) : nil
        }
      }
      guard frame.header.type.carriesRecords else { return }
      self.batches += 1
      self.batchBytes += Int64(frame.header.payloadBytes)
      guard holds, frame.header.baseOffset < frame.header.endOffset else { return }
      let range = frame.header.baseOffset..<frame.header.endOffset
      let last = (self.whole[log]?.count ?? 0) - 1
      if last >= 0, self.whole[log]![last].upperBound == range.lowerBound {
        self.whole[log]![last] = self.whole[log]![last].lowerBound..<range.upperBound
      } else {
        self.whole[log, default: []].append(range)
      }
    }
  }

  private mutating func checkFooter(
    _ target: Target, _ reading: Reading, _ scan: SegmentSalvage, _ areFramesWhole: Bool,
    _ segment: inout VolumeVerification.Segment
  ) throws(MemQError) {
    let header = target.header
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    let position = header.segmentBytes - Int64(LogFormat.blockBytes)
    try self.source.read(header.slot, at: position, into: block)
    let trailer = SegmentTrailer.decode(UnsafeRawBufferPointer(block))
    let isSealed = scan.lastGroup?.kind == .seal && scan.lastGroup?.segment == header.sequence
    guard isSealed || trailer?.sequence == header.sequence else { return }
    func note(_ kind: VolumeVerification.Damage.Kind, _ range: Range<Int64>, _ what: String) {
      self.result.damages.append(
        .init(
          kind: kind, slot: header.slot, segment: header.sequence, positions: range, what: what))
      segment.footer = .damaged
      segment.canBeRebuilt = areFramesWhole && isSealed
    }
    let trailerRange = position..<header.segmentBytes
    guard let trailer, trailer.sequence == header.sequence, trailer.volume == header.volume,
      trailer.end == scan.end
    else { return note(.trailer, trailerRange, "the trailer does not hold") }
    let range = trailer.footerPosition..<trailer.end
    guard
      let (footer, _) = try SealedSegment.footer(
        of: header, end: scan.end, from: &self.source)
    else {
      segment.footer = .damaged
      // Bytes that do not hold were named already.
      if areFramesWhole { note(.footer, range, "the footer can't be read") }
      return
    }
    segment.footer = .whole
    guard areFramesWhole else { return }
    for entry in footer.entries {
      let found = reading.index.entries.first { $0.log == entry.log }
      guard Self.joined(entry.runs) == found?.span.runs ?? [], entry.cutTo == found?.span.cutTo
      else {
        return note(
          .footer, range, "the footer does not say what the segment holds of \(entry.partition)")
      }
    }
  }

  /// The runs as the index makes them without a limit.
  private static func joined(_ runs: [RunEntry]) -> [RunEntry] {
    var span = SegmentSpan(segment: .none, at: .zero)
    for run in runs { span.add(run, joinsBelow: .max) }
    return span.runs
  }

  // MARK: - Partitions

  /// Compares what a log needs with what holds.
  private mutating func judge(_ log: PartitionLog) {
    let found = self.recovered.first { $0.partition == log.partition }
    var partition = VolumeVerification.Partition(
      partition: log.partition, logStart: log.laid.logStart, localStart: log.localStart,
      end: log.laid.end, uploadedOffset: log.uploadedOffset, damagedFrom: found?.damagedFrom,
      problem: found?.damage)
    for span in log.spans where span.hasRecords && span.endOffset > log.laid.logStart {
      let needed = max(span.baseOffset, log.laid.logStart)..<span.endOffset
      guard let whole = self.whole[span.segment] else {
        partition.unreadSegment = partition.unreadSegment ?? span.segment
        continue
      }
      for lost in Self.missing(needed, whole[log.id] ?? []) {
        self.blame(lost, of: log, in: span.segment)
        guard lost.lowerBound < partition.damagedFrom ?? .max else { continue }
        partition.damagedFrom = lost.lowerBound
        partition.problem =
          partition.problem
          ?? .corrupt(
            LogPlace(span.segment, 0), "offsets \(lost.lowerBound)..<\(lost.upperBound) are damaged"
          )
      }
    }
    // What is gone from its front, or from between two segments, stands in none that anything names.
    if let from = partition.damagedFrom, let nameless {
      let next = log.spans.first(endingAbove: from)?.baseOffset ?? log.laid.end
      if from < next {
        self.result.damages[nameless].lost.append(
          .init(partition: log.partition, offsets: from..<next))
      }
    }
    self.result.partitions.append(partition)
  }

  private static func missing(
    _ needed: Range<Offset>, _ whole: [Range<Offset>]
  ) -> [Range<Offset>] {
    var missing: [Range<Offset>] = []
    var from = needed.lowerBound
    for range in whole where range.upperBound > from && range.lowerBound < needed.upperBound {
      if range.lowerBound > from { missing.append(from..<range.lowerBound) }
      from = max(from, range.upperBound)
    }
    if from < needed.upperBound { missing.append(from..<needed.upperBound) }
    return missing
  }

  /// Says at the damages of the segment what of the log went with them.
  private mutating func blame(
    _ lost: Range<Offset>, of log: PartitionLog, in segment: SegmentSequence
  ) {
    var rest = lost.lowerBound
    for (damage, frame) in self.payloads[segment] ?? [] where frame.log == log.id {
      let from = max(frame.baseOffset, lost.lowerBound)
      let to = min(frame.endOffset, lost.upperBound)
      guard from < to else { continue }
      self.result.damages[damage].lost.append(.init(partition: log.partition, offsets: from..<to))
      if from == rest { rest = to }
    }
    guard rest < lost.upperBound, let damage = self.unknown[segment] else { return }
    self.result.damages[damage].lost.append(
      .init(partition: log.partition, offsets: rest..<lost.upperBound))
  }

  /// A partition that an open finds damaged, though all its frames may be whole.
  private mutating func note(_ found: RecoveredPartition) {
    guard !self.result.partitions.contains(where: { $0.partition == found.partition }) else {
      return
    }
    self.result.partitions.append(
      .init(
        partition: found.partition, logStart: found.logStart, localStart: found.localStart,
        end: found.end, uploadedOffset: found.uploadedOffset, damagedFrom: found.damagedFrom,
        problem: found.damage))
  }
}
