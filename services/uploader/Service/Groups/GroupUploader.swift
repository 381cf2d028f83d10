// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQMetadata
import MemQModel
import MemQRPC
import MemQObjectStore
import MemQPacking
import MemQRecords
import MemQSystem
import NIOCore

/// Owns one upload group while its lease lasts: asks the packer, keeps the bytes, and runs what it decides.
///
/// Nothing here decides what is uploaded. Reads and uploads run in tasks of their own and come back as events; those of
/// an earlier life of a run are told by its number.
actor GroupUploader {
  /// One partition's share of the object being gathered.
  private struct Gathered {
    var run: RunBuilder
    var batches: [ByteBuffer] = []
  }

  private typealias FlushWaiter = CheckedContinuation<
    Result<UploadPacker.FlushTotals, MemQError>, Never
  >

  nonisolated let group: Int32
  let context: UploaderContext
  private(set) var leaseEpoch: LeaseEpoch
  private var packer: UploadPacker
  /// All partitions of the group as metadata told them last, those without an object tier included.
  private(set) var positions: SortedMap<TopicPartition, UploadPacker.Position> = [:]
  private var gathered: SortedMap<TopicPartition, Gathered> = [:]
  /// Raised when a run is dropped: reads under way for it no longer count.
  private var runNumbers: SortedMap<TopicPartition, UInt64> = [:]
  private var lastNumber: UInt64 = 0
  private var holdsPermit = false
  private var permitTask: Task<Void, Never>?
  private var flushes: [UploadPacker.FlushID: FlushWaiter] = [:]
  private var lastFlush: UploadPacker.FlushID = 0
  /// The object being written or announced.
  private(set) var inFlight: ObjectID?
  private var upload: Task<Void, Never>?
  private var isEnded = false
  /// Grows while uploads of this group fail one after another.
  private var backoff: JitteredBackoff
  /// Nothing new begins: the uploader drains.
  private var isDraining = false

  init(group: Int32, leaseEpoch: LeaseEpoch, context: UploaderContext) {
    self.group = group
    self.leaseEpoch = leaseEpoch
    self.context = context
    var configuration = UploadPacker.Configuration()
    configuration.objectBytes = context.configuration.objectBytes
    configuration.readBytes = Int(min(4 << 20, context.configuration.objectBytes))
    configuration.lingerMax = context.configuration.linger
    self.packer = UploadPacker(configuration: configuration)
    self.backoff = JitteredBackoff(
      first: .milliseconds(100), max: .seconds(30), entropy: context.entropy)
  }

  // MARK: Events from outside

  /// The lease was granted or renewed. Partitions whose topics have no object tier are not packed.
  func leased(_ positions: [UploadPacker.Position]) {
    guard !self.isEnded else { return }
    self.positions = [:]
    for position in positions { self.positions[position.partition] = position }
    let image = self.context.cluster.image
    self.handle(
      .leased(
        self.leaseEpoch,
        positions.filter { image.topics[$0.partition.topic]?.settings.hasObjectTier ?? false }))
  }

  /// The lease is gone; the end of this owner. Work under way ends by itself and changes nothing any more.
  func lost() {
    guard !self.isEnded else { return }
    self.handle(.leaseLost)
    self.isEnded = true
    self.upload?.cancel()
    let waiters = self.flushes
    self.flushes = [:]
    for waiter in waiters.values {
      waiter.resume(
        returning: .failure(
          MemQError(
            .leaseLost, "the upload group passed to another uploader",
            subject: "upload group \(self.group)")))
    }
  }

  func observed(_ reports: SortedMap<TopicPartition, LeaderReport>) {
    guard !self.isEnded, !self.isDraining else { return }
    let image = self.context.cluster.image
    let progress = self.positions.compactMap { partition, position in
      reports[partition].map { report in
        let next = self.packer.nextOffset(partition) ?? position.nextOffset
        let waiting = max(0, report.highWatermark - next) * report.bytesPerRecord
        let cap = image.topics[partition.topic]?.settings.localRetentionBytes ?? 0
        return UploadPacker.Progress(
          partition: report.partition, logStart: report.logStart,
          highWatermark: report.highWatermark, bytesPerRecord: report.bytesPerRecord,
          isUrgent: cap > 0 && waiting >= cap / 2)
      }
    }
    self.handle(.observed(progress))
  }

  var waitingBytes: Int64 { self.packer.waitingBytes }

  /// Whether the lease's positions hold all of them.
  func knows(_ partitions: [TopicPartition]) -> Bool {
    partitions.allSatisfy { self.packer.nextOffset($0) != nil }
  }

  /// Uploads what is committed by these reports and waits until it is announced.
  ///
  /// - Throws: `.leaseLost`, `.deadlineExceeded`, `.cancelled`.
  func flush(
    _ committed: [UploadPacker.Progress], timeout: Duration
  ) async throws(MemQError) -> UploadPacker.FlushTotals {
    guard !self.isEnded, !self.isDraining else {
      throw MemQError(
        .leaseLost, "the upload group passes to another uploader",
        subject: "upload group \(self.group)")
    }
    self.lastFlush += 1
    let id = self.lastFlush
    let timer = Task {
      try? await Task.sleep(for: timeout)
      if !Task.isCancelled {
        self.cancelFlush(
          id, MemQError(.deadlineExceeded, "the upload did not end in time; it goes on"))
      }
    }
    defer { timer.cancel() }
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { (waiter: FlushWaiter) in
        self.flushes[id] = waiter
        self.handle(.observed(committed))
        self.handle(
          .flushRequested(
            id,
            committed.map {
              UploadPacker.FlushTarget(partition: $0.partition, endOffset: $0.highWatermark)
            }))
        if Task.isCancelled { self.cancelFlush(id, Self.gaveUp) }
      }
    } onCancel: {
      Task { await self.cancelFlush(id, Self.gaveUp) }
    }
    return try result.get()
  }

  private static let gaveUp = MemQError(.cancelled, "the caller gave up")

  private func cancelFlush(_ id: UploadPacker.FlushID, _ error: MemQError) {
    guard let waiter = self.flushes.removeValue(forKey: id) else { return }
    self.handle(.flushCancelled(id))
    waiter.resume(returning: .failure(error))
  }

  /// Begins nothing new and waits for the object under way, until the caller gives up.
  func drain() async {
    self.isDraining = true
    await self.upload?.value
    self.lost()
  }

  // MARK: The packer and its effects

  private func handle(_ event: UploadPacker.Event) {
    var effects: [UploadPacker.Effect] = []
    self.packer.handle(event, at: self.context.clock.monotonic, into: &effects)
    for effect in effects { self.perform(effect) }
    self.releaseIdlePermit()
  }

  private func perform(_ effect: UploadPacker.Effect) {
    switch effect {
    case .read(let partition, let from, let maxBytes, let history):
      self.read(partition, from, maxBytes, history)
    case .discard(let partition):
      self.gathered[partition] = nil
      self.runNumbers[partition] = nil
    case .discardAll:
      self.gathered = [:]
      self.runNumbers = [:]
      self.releasePermit()
    case .upload(let ranges): self.begin(ranges)
    case .flushed(let id, let totals):
      self.flushes.removeValue(forKey: id)?.resume(returning: .success(totals))
    }
  }

  private func read(
    _ partition: TopicPartition, _ from: Offset, _ maxBytes: Int, _ history: HistoryEpoch
  ) {
    if self.gathered[partition] == nil {
      self.gathered[partition] = Gathered(
        run: RunBuilder(
          partition: partition, baseOffset: from, historyEpoch: history,
          leaseEpoch: self.leaseEpoch))
      self.lastNumber += 1
      self.runNumbers[partition] = self.lastNumber
    }
    let number = self.runNumbers[partition]
    RPCScope.beyondCall {
      Task {
        await self.waitForPermit()
        let reader = RangeReader(cluster: self.context.cluster, timeout: .seconds(30))
        let result = await Outcome { () async throws(MemQError) in
          try await reader.read(partition, from: from, maxBytes: maxBytes)
        }
        self.took(partition, number, result)
      }
    }
  }

  private func took(
    _ partition: TopicPartition, _ number: UInt64?, _ result: Outcome<[GatheredBatch]>
  ) {
    guard !self.isEnded, number != nil, self.runNumbers[partition] == number,
      var gathered = self.gathered[partition]
    else { return }
    let before = gathered.run.byteCount
    do throws(MemQError) {
      for batch in try result.get() {
        try batch.bytes.reading { bytes throws(MemQError) in
          try gathered.run.append(batch.header, bytes)
        }
        gathered.batches.append(batch.bytes)
      }
      self.gathered[partition] = gathered
      self.handle(
        .read(
          partition, end: gathered.run.endOffset, byteCount: gathered.run.byteCount - before))
    } catch {
      // What was gathered by earlier reads stays; what came with this one does not count.
      self.context.metrics.failed(.read)
      self.context.logger.warning(
        "A partition can't be read for its upload",
        metadata: ["partition": "\(partition)", "error": "\(error)"])
      self.handle(.readFailed(partition))
    }
  }

  // MARK: Permits

  /// The first read of an object waits for room in memory; the others wait with it.
  private func waitForPermit() async {
    guard !self.holdsPermit else { return }
    if let waiting = self.permitTask { return await waiting.value }
    let permits = self.context.objectPermits
    let task = Task {
      await permits.take()
      self.permitTask = nil
      if self.isEnded || self.gathered.isEmpty {
        await permits.give()
      } else {
        self.holdsPermit = true
      }
    }
    self.permitTask = task
    await task.value
  }

  private func releasePermit() {
    guard self.holdsPermit else { return }
    self.holdsPermit = false
    let permits = self.context.objectPermits
    Task { await permits.give() }
  }

  /// A fill that brought nothing ends without an upload.
  private func releaseIdlePermit() {
    guard self.upload == nil, !self.packer.isFilling else { return }
    self.gathered = [:]
    self.runNumbers = [:]
    self.releasePermit()
  }

  // MARK: Uploads

  private func begin(_ ranges: [UploadPacker.Range]) {
    var runs: [RunBuilder] = []
    var batches: [ByteBuffer] = []
    // Ranges come in the order of their partitions, which is the object's.
    for range in ranges {
      guard let gathered = self.gathered[range.partition] else {
        preconditionFailure("a range was not gathered")
      }
      precondition(
        gathered.run.baseOffset == range.baseOffset && gathered.run.endOffset == range.endOffset)
      runs.append(gathered.run)
      batches += gathered.batches
    }
    self.gathered = [:]
    self.runNumbers = [:]
    let id = self.context.entropy.identifier(ObjectID.self)
    self.inFlight = id
    let upload = ObjectUpload(
      id: id, group: self.group, leaseEpoch: self.leaseEpoch, runs: runs, batches: batches,
      ranges: ranges, context: self.context)
    self.upload = RPCScope.beyondCall {
      Task {
        let result = await Outcome { () async throws(MemQError) in try await upload.run() }
        await self.finished(result, ranges)
      }
    }
  }

  private func finished(
    _ result: Outcome<ObjectUpload.Commit>, _ ranges: [UploadPacker.Range]
  ) async {
    let isFruitless: Bool
    switch result {
    case .success(let commit): isFruitless = commit.refused.count == ranges.count
    case .failure: isFruitless = true
    }
    // One fruitless object after another must not run up the bill.
    if isFruitless, !self.isEnded { try? await Task.sleep(for: self.backoff.next()) }
    self.inFlight = nil
    self.upload = nil
    self.releasePermit()
    guard !self.isEnded else { return }
    if !isFruitless { self.backoff.reset() }
    switch result {
    case .success(let commit): self.handle(.committed(refused: commit.refused, commit.positions))
    case .failure(let error):
      self.context.logger.warning(
        "An object was not announced; its ranges are uploaded again",
        metadata: ["upload.group": "\(self.group)", "error": "\(error)"])
      self.handle(.uploadFailed)
    }
  }
}

typealias Outcome<Value> = Result<Value, MemQError>
