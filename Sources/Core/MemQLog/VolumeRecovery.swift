// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Finds the log in a volume's segment files.
///
/// 1. Every file's header block says which life it is in; a file whose header does not hold is probed for groups.
/// 2. The tail is the youngest segment whose head (checkpoint) holds. A younger one without a whole head never became
///    durable, unless a durable mark or a younger segment's header says it did: that is corruption, and the log is replayed from the
///    checkpoint before, as long as its segment is there.
/// 3. The tail is replayed up to the first group that does not hold. Below the highest durable mark of any group header
///    in it that is corruption; at or above, a torn tail: cut there, everything after it discarded, valid or not.
/// 4. The checkpoint and the frames after it name the segments before the tail. Their footers give the index; a segment
///    without a footer that holds is read through.
///
/// The driver syncs the files first: what is read must already be what a power cut would leave.
public enum VolumeRecovery {
  /// - Parameters:
  ///   - identity: as the volume file states it, `openCount` as of the opening before.
  ///   - runBytesMax: as `LogConfiguration.runBytesMax`.
  ///   - salvage: what to do with damage below what was durable.
  ///   - unnamed: what openings before found that may be lost, and nobody settled since.
  ///   - durableEnd: where the last opening found the log to end.
  /// - Throws: `.logCorrupt` with the place; whatever the source throws.
  public static func run<Source: SegmentSource>(
    _ identity: VolumeIdentity, from source: inout Source,
    runBytesMax: Int = LogConfiguration().runBytesMax, salvage: SalvageMode = .refuse,
    unnamed: UnnamedLosses = [], durableEnd: LogPlace = .start,
    progress: (RecoveryProgress) -> Void = { _ in }
  ) throws(MemQError) -> RecoveredVolume {
    try self.run(
      identity, from: &source, runBytesMax: runBytesMax, salvage: salvage, unnamed: unnamed,
      durableEnd: durableEnd, mutations: [], progress)
  }

  package static func run<Source: SegmentSource>(
    _ identity: VolumeIdentity, from source: inout Source, runBytesMax: Int,
    salvage: SalvageMode = .refuse, unnamed: UnnamedLosses = [], durableEnd: LogPlace = .start,
    mutations: LogMutations, _ progress: (RecoveryProgress) -> Void = { _ in }
  ) throws(MemQError) -> RecoveredVolume {
    var recovery = Recovery(identity: identity, runBytesMax: runBytesMax, source: source)
    recovery.mutations = mutations
    recovery.salvage = salvage
    recovery.result.unnamed = unnamed
    recovery.statedEnd = durableEnd
    let recovered = try recovery.run(progress)
    source = recovery.source
    return recovered
  }
}

/// What recovery does where something below the durable mark does not hold.
public enum SalvageMode: Sendable {
  /// Throws it.
  case refuse
  /// Goes on where the rest of the volume can be told from what is damaged: the partitions that lost something say so
  /// (`RecoveredPartition.damage`), the others are whole.
  case isolate
  /// As `isolate`, for a repair that was told to accept losses: a missing segment and a damaged producer snapshot are no reason to stop.
  case acceptLoss
}

struct Recovery<Source: SegmentSource> {
  struct Found {
    let header: SegmentHeader
    let checksum: UInt32
    var sequence: SegmentSequence { self.header.sequence }
  }

  let identity: VolumeIdentity
  let runBytesMax: Int
  var source: Source
  var mutations: LogMutations = []
  /// Hot segments, oldest first.
  var found: [Found] = []
  /// Files that were made cold segments, whether the log names them or not.
  var foundCold: [Found] = []
  /// Files whose last life is over.
  var retired: [SegmentHeader] = []
  var headerless: [HeaderlessSlot] = []
  /// The youngest hot segment the checkpoint names that was freed by then or has been retired since. Older ones that are still there
  /// were freed too and may only hold a snapshot.
  var retiredThrough = SegmentSequence.none
  var salvage = SalvageMode.refuse
  /// The youngest hot segment whose file is gone though the log needs it: it may have held truncates of what older ones hold.
  private var missingThrough = SegmentSequence.none
  /// Where the log begins instead of at the tail's checkpoint, which is damaged.
  var base: Base?
  /// Cold segments that may belong to the log, though nothing says so.
  var unnamedCold: [UnnamedCold] = []
  /// Below this all is durable: a younger segment's header states it, or the volume file.
  fileprivate var statedEnd = LogPlace.start
  var notes = SalvageNotes()
  var result = RecoveredVolume()
  var state = RecoveryState()

  init(identity: VolumeIdentity, runBytesMax: Int, source: Source) {
    self.identity = identity
    self.runBytesMax = runBytesMax
    self.source = source
  }

  mutating func run(_ progress: (RecoveryProgress) -> Void) throws(MemQError) -> RecoveredVolume {
    try self.survey()
    guard let tail = try self.findTail() else {
      self.finishSlots(live: [])
      return self.result
    }
    let (scan, index) = try self.replay(tail)
    try self.checkMissing()
    let total = self.state.segments.count + 1
    for (done, segment) in self.state.segments.enumerated() {
      progress(RecoveryProgress(segmentsDone: done, segmentsTotal: total))
      if segment.state != .cold { try self.loadIndex(segment) }
    }
    self.merge(index.entries, tail.header.slot, tail.sequence, end: scan.end, footer: nil)
    self.finishTail(tail, scan)
    try self.loadUnnamed()
    try self.loadCold()
    try self.finishPartitions()
    self.finishSlots(
      live: (self.result.segments + self.result.cold).map(\.slot) + self.holdUnnamed())
    self.result.damages = self.notes.errors
    progress(RecoveryProgress(segmentsDone: total, segmentsTotal: total))
    return self.result
  }

  // MARK: - Which segments there are

  private mutating func survey() throws(MemQError) {
    let block = UnsafeMutableRawBufferPointer.allocate(
      byteCount: LogFormat.blockBytes, alignment: 16)
    defer { block.deallocate() }
    for slot in self.source.slots {
      try self.source.read(slot, at: 0, into: block)
      self.result.slotCount = max(self.result.slotCount, slot.rawValue + 1)
      guard let (header, checksum) = SegmentHeader.decode(UnsafeRawBufferPointer(block)) else {
        self.headerless.append(try .probe(slot, self.identity, from: &self.source))
        continue
      }
      guard header.volume == self.identity.volume, header.cluster == self.identity.cluster,
        header.slot == slot, header.segmentBytes == self.identity.segmentBytes
      else {
        throw .corrupt(
          LogPlace(header.sequence, 0),
          "segment file \(slot) was written as file \(header.slot) of volume \(header.volume)")
      }
      switch header.kind {
      case .hot: self.found.append(Found(header: header, checksum: checksum))
      case .cold: self.foundCold.append(Found(header: header, checksum: checksum))
      case .freed: self.retired.append(header)
      }
    }
    self.found.sort { $0.sequence < $1.sequence }
    var sequences = (self.found + self.foundCold).map(\.sequence) + self.headerless.map(\.sequence)
    sequences += self.retired.map(\.sequence)
    sequences.append(.none)
    self.result.nextSequence = sequences.max()!.next
  }

  private mutating func findTail() throws(MemQError) -> Found? {
    let youngest = self.found.last?.sequence ?? .none
    for slot in self.headerless where slot.sequence > youngest {
      // A durable mark within the segment itself means its head was durable, and so its header.
      let wasDurable =
        slot.mark.segment == slot.sequence || slot.sequence == self.statedEnd.segment
      if wasDurable, self.salvage != .refuse {
        try self.revive(slot, .hot)
        continue
      }
      if wasDurable {
        throw .corrupt(LogPlace(slot.sequence, 0), "a segment's header is damaged")
      }
      self.result.discardedGroups = true
    }
    var wanted: SegmentSequence?
    for candidate in self.found.reversed() {
      if let wanted, candidate.sequence != wanted {
        // One that was begun, and given up at an opening before.
        if candidate.sequence > wanted { continue }
        throw .corrupt(LogPlace(wanted, 0), "the last durable segment is missing or damaged")
      }
      do throws(MemQError) {
        let isOwed = wanted != nil || candidate.sequence <= self.statedEnd.segment
        if try self.hasHead(candidate, isOwed: isOwed) {
          guard candidate.sequence >= self.statedEnd.segment || self.salvage == .acceptLoss else {
            throw .corrupt(
              LogPlace(self.statedEnd.segment, 0), "the last durable segment is missing")
          }
          return candidate
        }
      } catch {
        guard self.salvage != .refuse, error.code == .logCorrupt else { throw error }
        self.base = try self.base(of: candidate)
        guard self.base != nil else { throw error }
        self.notes.note(error)
        return candidate
      }
      self.result.discardedGroups = true
      wanted = candidate.header.previousEnd.segment
      self.statedEnd = max(self.statedEnd, candidate.header.previousEnd)
      if wanted == SegmentSequence.none { return nil }
    }
    if let wanted {
      throw .corrupt(LogPlace(wanted, 0), "the last durable segment is missing or damaged")
    }
    return nil
  }

  /// Whether the segment's first group, its checkpoint, holds.
  ///
  /// - Parameter isOwed: a younger segment's header states that this one is durable.
  private mutating func hasHead(_ segment: Found, isOwed: Bool) throws(MemQError) -> Bool {
    if try self.hasWholeHead(segment) { return true }
    let first = LogFormat.firstGroupPosition
    let scan = try SegmentScan.run(
      segment.header, segment.checksum, probes: true, from: &self.source
    ) { (_, _, _, _) throws(MemQError) in }
    guard !isOwed, scan.mark <= LogPlace(segment.sequence, first) else {
      throw .corrupt(
        LogPlace(segment.sequence, first),
        "a segment's checkpoint is damaged, and the segment before it is gone")
    }
    return false
  }

  mutating func hasWholeHead(_ segment: Found) throws(MemQError) -> Bool {
    var hasHead = false
    _ = try SegmentScan.run(
      segment.header, segment.checksum, limit: LogFormat.firstGroupPosition + 1, probes: false,
      from: &self.source
    ) { (group, _, _, _) throws(MemQError) in
      hasHead = group.kind == .head
    }
    return hasHead
  }

  // MARK: - The tail

  private mutating func replay(
    _ tail: Found
  ) throws(MemQError) -> (scan: SegmentScan, index: SegmentIndexer) {
    var index = SegmentIndexer(segment: tail.sequence, runBytesMax: self.runBytesMax)
    let headEnd = try self.replayBase(of: tail)
    var state = self.state
    let scan = try SegmentScan.run(
      tail.header, tail.checksum, probes: true, from: &self.source
    ) { (group, _, frames, bytes) throws(MemQError) in
      try state.apply(group, frames, bytes)
      for frame in frames { index.add(frame, bytes.part(frame.payload)) }
    }
    let mark = max(scan.mark, self.statedEnd)
    if let damage = scan.damage, mark > LogPlace(tail.sequence, scan.end),
      !self.mutations.contains(.ignoresDurableMark)
    {
      guard self.salvage != .refuse else {
        throw .corrupt(LogPlace(tail.sequence, damage.position), damage.what)
      }
      let (salvaged, index) = try self.salvageTail(tail, mark: mark, headEnd: headEnd)
      // No group is the last one: the tail is sealed here.
      var end = scan
      (end.end, end.checksum, end.lastGroup) = (salvaged.end, salvaged.checksum, nil)
      return (end, index)
    }
    self.state = state
    return (scan, index)
  }

  private mutating func finishTail(_ tail: Found, _ scan: SegmentScan) {
    self.result.end = LogPlace(tail.sequence, scan.end)
    self.result.endChecksum = scan.checksum
    self.result.checkpointSegment = self.base.flatMap(\.checkpointSegment) ?? tail.sequence
    self.result.discardedGroups = self.result.discardedGroups || scan.hasLaterGroup
    self.result.cleanShutdown =
      scan.lastGroup?.kind == .close && scan.lastGroup?.openCount == self.identity.openCount
      && !self.result.discardedGroups
    var last = scan.lastNumber
    for slot in self.headerless { last = max(last, slot.lastNumber) }
    self.result.nextGroup = last.next
    self.result.nextLog = self.state.nextLog
  }

  /// Every segment the checkpoint names must be there, or have been retired since: then its file says so, or is in a later life.
  private mutating func checkMissing() throws(MemQError) {
    var live: [Checkpoint.Segment] = []
    for segment in self.state.segments {
      if segment.state == .freed {
        self.retiredThrough = max(self.retiredThrough, segment.sequence)
      }
      if (segment.state == .cold ? self.foundCold : self.found).contains(where: {
        $0.sequence == segment.sequence && $0.header.slot == segment.slot
      }) {
        live.append(segment)
        continue
      }
      let headers = (self.found + self.foundCold).map(\.header) + self.retired
      let isOver = headers.contains {
        $0.slot == segment.slot
          && ($0.sequence > segment.sequence
            || ($0.sequence == segment.sequence && $0.kind == .freed))
      }
      if !isOver, self.salvage != .refuse,
        let slot = self.headerless.first(where: {
          $0.slot == segment.slot && $0.sequence == segment.sequence
        })
      {
        try self.revive(slot, segment.state == .cold ? .cold : .hot)
        live.append(segment)
        continue
      }
      if !isOver, self.salvage == .acceptLoss {
        self.notes.note(.corrupt(LogPlace(segment.sequence, 0), "a segment is missing"))
        self.notes.isSealedUnknown = true
        self.result.missing.append(segment)
        // A file of that name would look like the segment's next life.
        self.result.slotCount = max(self.result.slotCount, segment.slot.rawValue + 1)
        if segment.state != .cold {
          self.missingThrough = max(self.missingThrough, segment.sequence)
        }
        continue
      }
      guard isOver else {
        throw .corrupt(
          LogPlace(segment.sequence, 0), "a segment is missing, or its header is damaged")
      }
      if segment.state != .cold {
        self.retiredThrough = max(self.retiredThrough, segment.sequence)
      }
    }
    self.state.segments = live
  }

  private mutating func finishSlots(live: [SegmentSlot]) {
    let live = live.sorted()
    for slot in self.source.slots {
      var low = 0
      var high = live.count
      while low < high {
        let middle = (low + high) / 2
        if live[middle] < slot { low = middle + 1 } else { high = middle }
      }
      if low == live.count || live[low] != slot { self.result.freeSlots.append(slot) }
    }
  }

  // MARK: - The index

  /// The file `checkMissing` found.
  static func file(
    of segment: Checkpoint.Segment, in found: [Found]
  ) throws(MemQError) -> Found {
    guard
      let file = found.first(where: {
        $0.sequence == segment.sequence && $0.header.slot == segment.slot
      })
    else { throw .corrupt(LogPlace(segment.sequence, 0), "a segment is missing") }
    return file
  }

  private mutating func loadIndex(_ segment: Checkpoint.Segment) throws(MemQError) {
    let found = try Self.file(of: segment, in: self.found)
    if segment.sequence < self.missingThrough {
      self.result.segmentsReadThrough += 1
      let state = self.state
      let index = try self.salvageIndex(found, segment, isDead: { state.isDead($0) })
      return self.merge(
        index.entries, segment.slot, segment.sequence, end: segment.end, footer: nil)
    }
    if let (footer, place) = try SealedSegment.footer(
      of: found.header, end: segment.end, from: &self.source)
    {
      let entries = footer.entries.map { entry in
        var entry = entry
        if let index = self.state.index(of: entry.log) {
          // What was carried since is no longer here.
          entry.runs.removeAll { $0.endOffset <= self.state.logs[index].coldEnd }
        }
        return (
          log: entry.log, partition: entry.partition,
          span: SegmentSpan(footer: entry, segment: segment.sequence)
        )
      }
      return self.merge(entries, segment.slot, segment.sequence, end: segment.end, footer: place)
    }
    self.result.segmentsReadThrough += 1
    var index = SegmentIndexer(segment: segment.sequence, runBytesMax: self.runBytesMax)
    let scan = try SegmentScan.run(
      found.header, found.checksum, limit: segment.end, probes: false, from: &self.source
    ) { (_, _, frames, bytes) throws(MemQError) in
      for frame in frames { index.add(frame, bytes.part(frame.payload)) }
    }
    if let damage = scan.damage {
      guard self.salvage != .refuse else {
        throw .corrupt(LogPlace(segment.sequence, damage.position), damage.what)
      }
      index = try self.salvageIndex(found, segment)
    }
    self.merge(index.entries, segment.slot, segment.sequence, end: segment.end, footer: nil)
  }

  /// Adds a segment's index to the partitions', later than all before.
  private mutating func merge(
    _ entries: [(log: LogID, partition: TopicPartition, span: SegmentSpan)], _ slot: SegmentSlot,
    _ sequence: SegmentSequence, end: Int64, footer: FooterPlace?
  ) {
    var segment = LiveSegment(sequence: sequence, slot: slot, end: end)
    segment.footer = footer
    for entry in entries where sequence > self.retiredThrough {
      guard let index = self.state.index(of: entry.log) else { continue }
      self.state.withLogs { logs in
        if let cut = entry.span.cutTo { logs[index].spans.cut(to: cut) }
        if !entry.span.isVoid { logs[index].spans.append(entry.span) }
      }
      segment.logs.append(index)
    }
    segment.logs.sort()
    self.result.segments.append(segment)
  }
}
