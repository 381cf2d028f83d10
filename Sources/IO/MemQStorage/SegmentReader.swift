// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQLog
import MemQModel
import MemQSystem
import NIOCore
import Synchronization

/// What was read since the open.
final class ReadMeasures: Sendable {
  let bytes = Atomic<Int64>(0)
  /// Syncs of the log that are under way: appends wait for the disk.
  let syncsUnderWay = Atomic<Int>(0)
  /// When the last one ended, in nanoseconds of the engine's clock.
  let lastSyncAt = Atomic<Int64>(0)
  let errors = Atomic<UInt64>(0)
  /// When an error was last written to the log, monotonic ns.
  let loggedAt = Atomic<Int64>(.min)
}

/// Reads one segment for one or many partitions, in the order of the log, each byte once. Blocks: reading threads only.
///
/// Nothing that does not verify is handed out. What the disk can't give is an error of those reads alone whose bytes they are.
struct SegmentReader: Sendable {
  /// Runs nearer than this to each other are read with what lies between them: a seek costs more.
  private static let gapBytesMax: Int64 = 64 << 10
  /// One pread of one who keeps up: some milliseconds of an SSD's bandwidth. A single run may be larger.
  static let readBytesMax: Int64 = 4 << 20
  /// An error is logged so often at most; each is counted.
  private static let logInterval: Duration = .seconds(10)

  /// What a pass had for one of its reads.
  enum Outcome: Sendable {
    case found(Volume.ReadResult)
    /// The pass ended before its first batch.
    case notReached
    case failed(MemQError)
  }

  let engine: VolumeEngine

  init(_ engine: VolumeEngine) { self.engine = engine }

  private struct Read {
    let log: LogID
    let from: Offset
    let below: Offset
    let maxBytes: Int
    var result: Volume.ReadResult
    var byteCount = 0
    var isDone = false
    var isReached = false
    var failure: MemQError?
  }

  private struct Run {
    let entry: RunEntry
    let read: Int
  }

  /// - Parameters:
  ///   - plans: of one segment, none of them `.nothing`.
  ///   - limits: batch bytes of each, but at least one batch.
  ///   - passBytes: of all together, but at least one run. Cut in the order of the log, from where `plans[leader]` begins, or from
  ///     the lowest place: reads that begin before it wait for another pass.
  ///   - readBytes: of one pread, at most, unless a single run is larger.
  ///   - readsAhead: the kernel may read more than it is asked for, megabytes at a stretch; nil: as it was told last.
  ///   - goesOn: asked before each pread.
  func run(
    _ plans: [ReadPlan], limits: [Int], passBytes: Int = .max, leader: Int? = nil,
    readBytes: Int64 = SegmentReader.readBytesMax, readsAhead: Bool? = nil,
    goesOn: () -> Bool = { true }
  ) -> [Outcome] {
    let (slot, segment) = plans[0].place!
    if let readsAhead {
      // A hint: where the file can't be opened the reads say so.
      (try? self.engine.files.file(slot))?.advise(readsAhead: readsAhead)
    }
    var reads: [Read] = []
    var runs: [Run] = []
    var failures: [MemQError?] = []
    for (index, plan) in plans.enumerated() {
      var selected: SegmentRuns?
      do throws(MemQError) {
        selected = try self.runs(plan)
        failures.append(nil)
      } catch {
        failures.append(self.noted(error))
      }
      reads.append(
        Read(
          log: selected?.log ?? .none, from: plan.from!, below: selected?.below ?? plan.from!,
          maxBytes: limits[index], result: Volume.ReadResult(nextOffset: plan.from!)))
      for run in selected?.runs ?? [] { runs.append(Run(entry: run, read: index)) }
    }
    if plans.count > 1 { runs.sort { $0.entry.position < $1.entry.position } }
    Self.cut(&runs, reads.count, passBytes, leader)
    var pass = Pass(reader: self, slot: slot, segment: segment, reads: reads)
    for chunk in Self.chunks(runs, readBytes) {
      guard goesOn() else { break }
      pass.take(chunk)
    }
    return pass.reads.indices.map { index in
      let read = pass.reads[index]
      if !read.result.batches.isEmpty { return .found(read.result) }
      if let failure = failures[index] ?? read.failure { return .failed(failure) }
      return read.isReached ? .found(read.result) : .notReached
    }
  }

  /// Keeps the runs from the leader's first on, of reads that begin there or later, up to `passBytes`.
  private static func cut(_ runs: inout [Run], _ readCount: Int, _ passBytes: Int, _ leader: Int?) {
    var total = 0
    for run in runs { total += run.entry.byteCount }
    guard total > passBytes else { return }
    let start = runs.firstIndex { $0.read == leader } ?? 0
    var isBefore = [Bool](repeating: false, count: readCount)
    for run in runs[..<start] { isBefore[run.read] = true }
    var bytes = 0
    var kept: [Run] = []
    for run in runs[start...] where !isBefore[run.read] {
      guard kept.isEmpty || bytes + run.entry.byteCount <= passBytes else { break }
      bytes += run.entry.byteCount
      kept.append(run)
    }
    runs = kept
  }

  /// Runs that are read together: by position, those that several reads want among them.
  private static func chunks(_ runs: [Run], _ readBytes: Int64) -> [ArraySlice<Run>] {
    var chunks: [ArraySlice<Run>] = []
    var start = 0
    var end: Int64 = 0
    for (index, run) in runs.enumerated() {
      let (position, runEnd) = (run.entry.position, run.entry.position + Int64(run.entry.byteCount))
      let whole = max(end, runEnd) - runs[start].entry.position
      if index > start, position - end > Self.gapBytesMax || whole > readBytes {
        chunks.append(runs[start..<index])
        start = index
        end = runEnd
      } else {
        end = max(end, runEnd)
      }
    }
    if start < runs.count { chunks.append(runs[start...]) }
    return chunks
  }

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

  /// A sealed segment's footer, from the cache or the disk.
  func footer(_ read: FooterRead) throws(MemQError) -> Footer {
    if let footer = self.engine.footers.withLock({ $0.footer(read.segment) }) { return footer }
    let buffer = try self.bytes(
      read.slot, read.segment, at: read.place.position, read.place.byteCount)
    let seal = HeaderSeal(volume: self.engine.identity.volume, segment: read.segment)
    let footer = buffer.withUnsafeReadableBytes {
      SealedSegment.footer(in: $0, at: read.place, seal: seal)
    }
    guard let footer else {
      throw MemQError(
        .logCorrupt, "the segment's footer is damaged; repair this replica from another one",
        subject: "segment \(read.segment) position \(read.place.position)")
    }
    self.engine.footers.withLock { $0.insert(footer, for: read.segment) }
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
    case .failure(let error) where error.isTransient:
      throw MemQError(
        .resourceExhausted, "the segment can't be read for now (\(error))", subject: place)
    case .failure(let error):
      throw MemQError(
        .logCorrupt, "the disk can't read it (\(error)); repair this replica from another one",
        subject: place)
    }
    self.engine.reading.bytes.wrappingAdd(Int64(count), ordering: .relaxed)
    self.engine.metrics.read(count)
    return buffer
  }

  /// Counts an error of a read, and logs it.
  private func noted(_ error: MemQError) -> MemQError {
    let measures = self.engine.reading
    measures.errors.wrappingAdd(1, ordering: .relaxed)
    self.engine.metrics.readFailed()
    let now = self.engine.clock.monotonic.nanoseconds
    let last = measures.loggedAt.load(ordering: .relaxed)
    let isDue = last == .min || now - last >= Self.logInterval.nanoseconds
    if isDue,
      measures.loggedAt.compareExchange(expected: last, desired: now, ordering: .relaxed).exchanged
    {
      self.engine.logger.error(
        "A read of the volume failed",
        metadata: ["volume": "\(self.engine.identity.volume)", "error": "\(error)"])
    }
    return error
  }

  /// The state of one pass.
  private struct Pass {
    let reader: SegmentReader
    let slot: SegmentSlot
    let segment: SegmentSequence
    let seal: HeaderSeal
    var reads: [Read]

    init(reader: SegmentReader, slot: SegmentSlot, segment: SegmentSequence, reads: [Read]) {
      self.reader = reader
      self.slot = slot
      self.segment = segment
      self.seal = HeaderSeal(volume: reader.engine.identity.volume, segment: segment)
      self.reads = reads
    }

    /// Reads a chunk; where the disk can't give it whole, run by run.
    mutating func take(_ chunk: ArraySlice<Run>) {
      let runs = chunk.filter { !self.reads[$0.read].isDone }
      guard let first = runs.first else { return }
      let start = first.entry.position
      let count = runs.reduce(0) { max($0, Int($1.entry.position - start) + $1.entry.byteCount) }
      do throws(MemQError) {
        let buffer = try self.reader.bytes(self.slot, self.segment, at: start, count)
        self.take(runs, from: buffer, at: start)
      } catch {
        guard runs.count > 1 else { return self.fail(first.read, error) }
        for index in runs.indices { self.take(runs[index...index][...]) }
      }
    }

    private mutating func fail(_ read: Int, _ error: MemQError) {
      self.reads[read].isDone = true
      self.reads[read].failure = self.reader.noted(error)
    }

    /// Batches of one partition that fill most of what was read stay in place; others are copied together, so that they don't keep
    /// the rest in memory.
    private mutating func take(_ runs: [Run], from buffer: ByteBuffer, at start: Int64) {
      var places: [(read: Int, range: Range<Int>)] = []
      var taken = 0
      var bytesOf: [Int: Int] = [:]
      for run in runs where !self.reads[run.read].isDone {
        let before = places.count
        self.find(run, in: buffer, Int(run.entry.position - start), &places)
        for place in places[before...] {
          taken += place.range.count
          bytesOf[run.read, default: 0] += place.range.count
        }
      }
      if bytesOf.count == 1, taken >= buffer.readableBytes / 4 * 3 {
        for place in places {
          self.reads[place.read].result.slices.append(
            buffer.getSlice(
              at: buffer.readerIndex + place.range.lowerBound, length: place.range.count)!
          )
        }
        return
      }
      var copies = bytesOf.mapValues { ByteBufferAllocator().buffer(capacity: $0) }
      for place in places {
        let at = buffer.readerIndex + place.range.lowerBound
        copies[place.read]!.writeImmutableBuffer(
          buffer.getSlice(at: at, length: place.range.count)!)
      }
      // Sliced when all are whole: a slice before would make the next write copy.
      for place in places {
        self.reads[place.read].result.slices.append(
          copies[place.read]!.readSlice(length: place.range.count)!)
      }
    }

    /// Verifies a run's batches and notes where their bytes are.
    private mutating func find(
      _ run: Run, in buffer: ByteBuffer, _ offset: Int,
      _ places: inout [(read: Int, range: Range<Int>)]
    ) {
      var read = self.reads[run.read]
      read.isReached = true
      // Nothing else holds the result meanwhile, so that appending does not copy it.
      self.reads[run.read].result = Volume.ReadResult(nextOffset: read.from)
      var found: [(read: Int, range: Range<Int>)] = []
      let failure: MemQError? = buffer.withUnsafeReadableBytes { whole in
        let bytes = UnsafeRawBufferPointer(
          rebasing: whole[offset..<(offset + run.entry.byteCount)])
        do throws(MemQError) {
          try FrameWalk.forEachBatch(
            in: bytes, run: run.entry, log: read.log, seal: self.seal, from: read.from,
            below: read.below
          ) { frame in
            let count = frame.payload.count
            guard read.byteCount == 0 || read.byteCount + count <= read.maxBytes else {
              read.isDone = true
              return false
            }
            read.byteCount += count
            let batch = UnsafeRawBufferPointer(rebasing: bytes[frame.payload])
            read.result.batches.append(
              .init(summary: frame.header.summary(of: batch), byteCount: count))
            read.result.nextOffset = frame.header.endOffset
            let at = offset + frame.payload.lowerBound
            found.append((run.read, at..<(at + count)))
            return true
          }
          return nil
        } catch {
          return error
        }
      }
      self.reads[run.read] = read
      places += found
      if let failure { self.fail(run.read, failure) }
    }
  }
}
