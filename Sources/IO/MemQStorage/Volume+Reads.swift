// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
public import MemQModel
import MemQSystem
import NIOCore

extension Volume {
  /// A read far behind waits so long for its turn at most.
  static let catchUpWaitMax: Duration = .seconds(30)

  /// Whole batches from the one that holds `from`, below `below`, up to `maxBytes` but at least one: fewer where a segment ends.
  /// From memory where they were just written, durable or not; the caller's `below` says what may be seen. Every batch
  /// from the disk is verified; those before damage are served.
  ///
  /// What lies further back than the youngest two segments is read on threads of its own, together with what others want of the same
  /// segment, so that catching up does not disturb those who keep up. A reader that goes on where a read ended is read ahead of.
  ///
  /// - Throws: `.partitionNotFound`; `.offsetOutOfRange` below the local start or above the end; `.logCorrupt` with the place, for
  ///   this read alone; `.volumeFailed`; `.cancelled`; `.deadlineExceeded` when its turn did not come within 30 s; retriable
  ///   `.resourceExhausted` when too many reads wait.
  public func read(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) async throws(MemQError) -> ReadResult {
    switch try self.find(partition, from: from, below: below, maxBytes: maxBytes) {
    case .memory(let result):
      return result
    case .ahead(let result):
      self.engine.metrics.readAheadHit(result.batches.reduce(0) { $0 + $1.byteCount })
      return result
    case .disk(let found):
      let whole = try await self.read(found)
      let (result, rest) = whole.split(maxBytes: maxBytes)
      let byteCount = rest.batches.isEmpty ? 0 : whole.byteCount
      self.engine.monitor.withLock {
        $0.readAhead.ended(
          partition, at: result.nextOffset, rest: rest, byteCount: byteCount, cuts: found.cuts)
      }
      return result
    }
  }

  private func read(_ found: DiskRead) async throws(MemQError) -> ReadResult {
    defer { self.engine.send(.readEnded(found.slot)) }
    let reader = SegmentReader(self.engine)
    let outcomes: [SegmentReader.Outcome]
    if found.isFarBehind {
      let now = self.engine.clock.monotonic
      outcomes = try await self.catchUp.run(
        [found.plan], limits: [found.maxBytes], passBytes: nil, since: now,
        deadline: now + Self.catchUpWaitMax)
    } else {
      outcomes = try await self.readers.run { () throws(MemQError) in
        reader.run([found.plan], limits: [found.maxBytes])
      }
    }
    switch outcomes[0] {
    case .failed(let error):
      if error.code == .logCorrupt {
        self.note(error, found.partition, from: found.plan.from!)
      }
      throw error
    case .notReached: return ReadResult(nextOffset: found.plan.from!)
    case .found(let result):
      if found.isFarBehind { self.engine.metrics.caughtUp(result.byteCount) }
      return result
    }
  }

  /// As `read`, at once and from memory only. Nil: the disk has to be asked. Nothing is found where the volume was not given
  /// what stands at `from` yet.
  ///
  /// - Throws: `.partitionNotFound`, `.volumeFailed`.
  public func readFromMemory(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) throws(MemQError) -> ReadResult? {
    try self.engine.monitor.withLock { (state) throws(MemQError) in
      if let failure = state.core.failure { throw failure }
      guard let offsets = state.core.offsets(of: partition) else {
        throw MemQError(
          .partitionNotFound, "the volume has no such partition", subject: "\(partition)")
      }
      if from >= offsets.upperBound { return ReadResult(nextOffset: from) }
      let below = try state.limit(partition, from: from, below: below)
      return state.cache.read(partition, from: from, below: below, maxBytes: maxBytes)
    }
  }

  /// The base offset of the first batch whose max timestamp is at or above `timestamp`; nil: none is that young.
  ///
  /// - Throws: as `read`.
  public func offset(
    _ partition: TopicPartition, forTimestamp timestamp: Timestamp
  ) async throws(MemQError) -> Offset? {
    var range = self.engine.monitor.withLock { $0.core.locate(partition, timestamp: timestamp) }
    if let found = range {
      range = try await self.narrow(partition, found, timestamp)
    }
    var from = range?.lowerBound
    while let start = from, let end = range?.upperBound, start < end {
      let result = try await self.read(partition, from: start, below: end, maxBytes: 1 << 20)
      for batch in result.batches where batch.summary.maxTimestamp >= timestamp {
        return batch.summary.baseOffset
      }
      from = result.nextOffset > start ? result.nextOffset : nil
    }
    return self.engine.monitor.withLock { $0.cache.offset(partition, forTimestamp: timestamp) }
  }

  // MARK: - Where

  private enum Found: Sendable {
    case memory(ReadResult)
    case ahead(ReadResult)
    case disk(DiskRead)
  }

  private struct DiskRead: Sendable {
    let partition: TopicPartition
    let plan: ReadPlan
    /// Held against being written over until `.readEnded`.
    let slot: SegmentSlot
    let maxBytes: Int
    let isFarBehind: Bool
    /// See `ReadAhead.cuts`.
    let cuts: UInt64
  }

  private func find(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) throws(MemQError) -> Found {
    try self.engine.update { (state, now, wall) throws(MemQError) in
      if let failure = state.core.failure { throw failure }
      let below = try state.limit(partition, from: from, below: below)
      if let offsets = state.core.offsets(of: partition), offsets.contains(from) {
        if let cached = state.cache.read(partition, from: from, below: below, maxBytes: maxBytes) {
          return .memory(cached)
        }
        if let ahead = state.readAhead.take(partition, from: from, below: below, maxBytes: maxBytes)
        {
          return .ahead(ahead)
        }
      }
      let limit = min(below, state.cache.start(of: partition) ?? below)
      let wanted = state.readAhead.wantedBytes(partition, from: from, maxBytes: maxBytes)
      let plan = try state.core.locate(partition, from: from, below: limit, maxBytes: wanted)
      guard let (slot, segment) = plan.place else { return .memory(ReadResult(nextOffset: from)) }
      state.core.handle(.readBegan(slot), at: now, wall: wall, into: &state.effects)
      return .disk(
        DiskRead(
          partition: partition, plan: plan, slot: slot, maxBytes: wanted,
          isFarBehind: !state.core.isNearEnd(segment), cuts: state.readAhead.cuts))
    }
  }

  /// Narrows a sealed segment's range to the run that may hold the timestamp.
  private func narrow(
    _ partition: TopicPartition, _ range: Range<Offset>, _ timestamp: Timestamp
  ) async throws(MemQError) -> Range<Offset> {
    let found = try self.find(
      partition, from: range.lowerBound, below: range.upperBound, maxBytes: 1)
    guard case .disk(let disk) = found else { return range }
    defer { self.engine.send(.readEnded(disk.slot)) }
    guard case .footer(let read) = disk.plan else { return range }
    let reader = SegmentReader(self.engine)
    let footer = try await self.readers.run { () throws(MemQError) in try reader.footer(read) }
    let run = footer.runs(of: read.log).first {
      $0.maxTimestamp >= timestamp && $0.endOffset > range.lowerBound
    }
    guard let run else { return range }
    let base = max(run.baseOffset, range.lowerBound)
    let end = min(run.endOffset, range.upperBound)
    return base < end ? base..<end : range
  }
}
