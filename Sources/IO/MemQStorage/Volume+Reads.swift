// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
public import MemQModel
import MemQSystem
import NIOCore

extension Volume {
  /// Runs nearer than this to each other are read with what lies between them: a seek costs more.
  private static let coalesceGapBytes = 64 << 10
  /// One pread.
  private static let readBytesMax = 4 << 20

  /// Whole batches from the one that holds `from`, below `below`, up to `maxBytes` but at least one: fewer where a segment ends.
  /// From memory where they were just written, durable or not; the caller's `below` says what may be seen. Every batch
  /// from the disk is verified.
  ///
  /// - Throws: `.partitionNotFound`; `.offsetOutOfRange` below the local start or above the end; `.logCorrupt` with the place;
  ///   `.volumeFailed`; retriable `.resourceExhausted` when too many reads wait.
  public func read(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) async throws(MemQError) -> ReadResult {
    switch try self.find(partition, from: from, below: below, maxBytes: maxBytes) {
    case .memory(let result):
      return result
    case .disk(let plan, let slot):
      defer { self.engine.send(.readEnded(slot)) }
      return try await self.readers.run { () throws(MemQError) in
        do throws(MemQError) {
          guard let runs = try self.runs(plan) else { return ReadResult(nextOffset: from) }
          return try self.read(runs, maxBytes: maxBytes)
        } catch {
          if error.code == .logCorrupt { self.note(error, partition, from: from) }
          throw error
        }
      }
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
    /// The slot is held against being written over until `.readEnded`.
    case disk(ReadPlan, SegmentSlot)
  }

  private func find(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) throws(MemQError) -> Found {
    try self.engine.update { (state, now, wall) throws(MemQError) in
      if let failure = state.core.failure { throw failure }
      let below = try state.limit(partition, from: from, below: below)
      if let offsets = state.core.offsets(of: partition), offsets.contains(from),
        let cached = state.cache.read(partition, from: from, below: below, maxBytes: maxBytes)
      {
        return .memory(cached)
      }
      let limit = min(below, state.cache.start(of: partition) ?? below)
      let plan = try state.core.locate(partition, from: from, below: limit, maxBytes: maxBytes)
      let slot: SegmentSlot
      switch plan {
      case .nothing: return .memory(ReadResult(nextOffset: from))
      case .runs(let runs): slot = runs.slot
      case .footer(let read): slot = read.slot
      }
      state.core.handle(.readBegan(slot), at: now, wall: wall, into: &state.effects)
      return .disk(plan, slot)
    }
  }

  /// Narrows a sealed segment's range to the run that may hold the timestamp.
  private func narrow(
    _ partition: TopicPartition, _ range: Range<Offset>, _ timestamp: Timestamp
  ) async throws(MemQError) -> Range<Offset> {
    let found = try self.find(
      partition, from: range.lowerBound, below: range.upperBound, maxBytes: 1)
    guard case .disk(let plan, let slot) = found else { return range }
    defer { self.engine.send(.readEnded(slot)) }
    guard case .footer(let read) = plan else { return range }
    let footer = try await self.readers.run { () throws(MemQError) in try self.footer(read) }
    let run = footer.runs(of: read.log).first {
      $0.maxTimestamp >= timestamp && $0.endOffset > range.lowerBound
    }
    guard let run else { return range }
    let base = max(run.baseOffset, range.lowerBound)
    let end = min(run.endOffset, range.upperBound)
    return base < end ? base..<end : range
  }

  // MARK: - On a reading thread

  private func runs(_ plan: ReadPlan) throws(MemQError) -> SegmentRuns? {
    switch plan {
    case .nothing: return nil
    case .runs(let runs): return runs
    case .footer(let read):
      guard let runs = try self.footer(read).plan(read) else {
        throw MemQError(
          .logCorrupt,
          "the footer does not hold offset \(read.from); repair this replica from another one",
          subject: "segment \(read.segment) position \(read.place.position)")
      }
      return runs
    }
  }

  private func footer(_ read: FooterRead) throws(MemQError) -> Footer {
    if let footer = self.engine.monitor.withLock({ $0.footers.footer(read.segment) }) {
      return footer
    }
    let buffer = try self.bytes(
      read.slot, read.segment, at: read.place.position, read.place.byteCount)
    let seal = HeaderSeal(volume: self.id, segment: read.segment)
    let footer = buffer.withUnsafeReadableBytes {
      SealedSegment.footer(in: $0, at: read.place, seal: seal)
    }
    guard let footer else {
      throw MemQError(
        .logCorrupt, "the segment's footer is damaged; repair this replica from another one",
        subject: "segment \(read.segment) position \(read.place.position)")
    }
    self.engine.monitor.withLock { $0.footers.insert(footer, for: read.segment) }
    return footer
  }

  private func bytes(
    _ slot: SegmentSlot, _ segment: SegmentSequence, at position: Int64, _ count: Int
  ) throws(MemQError) -> ByteBuffer {
    var buffer = ByteBufferAllocator().buffer(capacity: count)
    let result: Result<Int, FileError> = Result { () throws(FileError) in
      let file = try self.engine.files.file(slot)
      var outcome: Result<Int, FileError> = .success(0)
      buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: count) { bytes in
        let target = UnsafeMutableRawBufferPointer(rebasing: bytes[0..<count])
        outcome = Result { () throws(FileError) in try file.read(into: target, at: position) }
        return (try? outcome.get()) ?? 0
      }
      return try outcome.get()
    }
    let place = "segment \(segment) position \(position)"
    switch result {
    case .success(count):
      break
    case .success(let got):
      throw MemQError(
        .logCorrupt, "the segment file ends early", subject: place, limit: Int64(count),
        actual: Int64(got))
    case .failure(let error):
      throw MemQError(
        .logCorrupt, "the disk can't read it (\(error)); repair this replica from another one",
        subject: place)
    }
    self.engine.monitor.withLock { $0.measures.bytesRead += Int64(count) }
    self.engine.metrics.read(count)
    return buffer
  }

  private func read(_ read: SegmentRuns, maxBytes: Int) throws(MemQError) -> ReadResult {
    var result = ReadResult(nextOffset: read.from)
    let seal = HeaderSeal(volume: self.id, segment: read.segment)
    var bytes = 0
    for whole in Self.chunks(read.runs) {
      let start = whole[0].position
      let buffer: ByteBuffer
      var chunk = whole
      do throws(MemQError) {
        let count = Int(chunk[chunk.count - 1].position - start) + chunk[chunk.count - 1].byteCount
        buffer = try self.bytes(read.slot, read.segment, at: start, count)
      } catch {
        // What stands before a bad block is still to be had.
        guard result.batches.isEmpty else { return result }
        guard chunk.count > 1 else { throw error }
        chunk = [chunk[0]]
        buffer = try self.bytes(read.slot, read.segment, at: start, chunk[0].byteCount)
      }
      for run in chunk {
        let offset = Int(run.position - start)
        let (frames, damage) = Self.frames(buffer, offset, run, read, seal)
        for (frame, summary) in frames {
          guard bytes == 0 || bytes + frame.header.payloadBytes <= maxBytes else { return result }
          bytes += frame.header.payloadBytes
          let slice = buffer.getSlice(
            at: buffer.readerIndex + offset + frame.payload.lowerBound, length: frame.payload.count)!
          result.slices.append(slice)
          result.batches.append(
            .init(summary: summary, byteCount: frame.payload.count))
          result.nextOffset = frame.header.endOffset
        }
        guard let damage else { continue }
        guard result.batches.isEmpty else { return result }
        throw damage
      }
      if chunk.count < whole.count { return result }
    }
    return result
  }

  private static func frames(
    _ buffer: ByteBuffer, _ offset: Int, _ run: RunEntry, _ read: SegmentRuns, _ seal: HeaderSeal
  ) -> (frames: [(WalkedFrame, BatchSummary)], damage: MemQError?) {
    buffer.withUnsafeReadableBytes { whole in
      let bytes = UnsafeRawBufferPointer(rebasing: whole[offset..<(offset + run.byteCount)])
      let (frames, damage) = FrameWalk.wholeBatches(
        in: bytes, run: run, log: read.log, seal: seal, from: read.from, below: read.below)
      let summed = frames.map {
        ($0, $0.header.summary(of: UnsafeRawBufferPointer(rebasing: bytes[$0.payload])))
      }
      return (summed, damage)
    }
  }

  /// Runs that are read together.
  private static func chunks(_ runs: [RunEntry]) -> [[RunEntry]] {
    var chunks: [[RunEntry]] = []
    for run in runs {
      if let last = chunks.last?.last, let first = chunks.last?.first {
        let gap = run.position - (last.position + Int64(last.byteCount))
        let whole = run.position + Int64(run.byteCount) - first.position
        if gap >= 0, gap <= Int64(Self.coalesceGapBytes), whole <= Int64(Self.readBytesMax) {
          chunks[chunks.count - 1].append(run)
          continue
        }
      }
      chunks.append([run])
    }
    return chunks
  }
}
