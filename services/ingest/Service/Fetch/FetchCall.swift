// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import NIOCore

/// One fetch: reads what is there from every partition, waits when there was nothing, sends, ends.
struct FetchCall: Sendable {
  static let positionsMax = 1_000
  static let bytesMax = 64 << 20
  static let bytesDefault = 4 << 20
  static let waitMax: Duration = .seconds(60)
  /// Partitions that may wait at their leaders at once; beyond, the fetch looks again every `pollEvery`.
  static let waitersMax = 64
  static let pollEvery: Duration = .milliseconds(100)

  let reader: LogReader
  let clock: any MemQClock
  let metrics: IngestMetrics
  let readsMax: Int
  let topic: TopicImage
  let request: Memq_V1_FetchRequest
  let writer: TypedWriter<Hot<Memq_V1_FetchResponse>>

  private struct Position: Sendable {
    let partition: PartitionIndex
    var offset: Offset
    /// Leader epoch of the record before it; nil: not known.
    var lastEpoch: LeaderEpoch?
  }

  /// What became of one partition in one round.
  private struct Read: Sendable {
    var index: Int
    var offset: Offset
    var lastEpoch: LeaderEpoch?
    var sentBytes = 0
    var failed = false
  }

  /// - Throws: `.invalidArgument`, `.partitionNotFound`; failures of single partitions stand in the messages.
  func run() async throws(MemQError) {
    var positions = try self.positions()
    let wait = try self.wait()
    let deadline = self.clock.monotonic + wait
    let wanted = max(1, Int(self.request.minBytes))
    let bytes = self.request.maxBytes == 0 ? Self.bytesDefault : Int(self.request.maxBytes)
    let budget = FetchBudget(bytes: bytes, reads: min(positions.count, self.readsMax))
    var first = true
    while true {
      // A reader that went away: its reads end at once, and without this the rounds would spin until the deadline.
      if Task.isCancelled { throw MemQError(.cancelled, "the fetch was given up") }
      let left = max(.zero, deadline - self.clock.monotonic)
      let holds = !first && positions.count <= Self.waitersMax
      let isLast = left == .zero || (first && wait == .zero)
      if !first, !holds, !isLast { try await pause(min(left, Self.pollEvery)) }
      let reads = try await self.round(
        positions, budget, wait: holds ? left : .zero, stopsAtFirst: holds, tellsEmpty: isLast)
      for read in reads {
        positions[read.index].offset = read.offset
        positions[read.index].lastEpoch = read.lastEpoch
      }
      if isLast || budget.sent >= min(wanted, bytes) || reads.contains(where: \.failed) { return }
      first = false
    }
  }

  private func positions() throws(MemQError) -> [Position] {
    func refuse(_ message: String, _ field: String, _ limit: Int64, _ actual: Int64) -> MemQError {
      MemQError(.invalidArgument, message, subject: field, limit: limit, actual: actual)
    }
    guard (0...Int32(Self.bytesMax)).contains(self.request.maxBytes) else {
      throw refuse(
        "max_bytes is up to 64 MiB", "max_bytes", Int64(Self.bytesMax), Int64(self.request.maxBytes)
      )
    }
    guard !self.request.positions.isEmpty, self.request.positions.count <= Self.positionsMax else {
      throw refuse(
        "a fetch names 1 to 1,000 partitions", "positions", Int64(Self.positionsMax),
        Int64(self.request.positions.count))
    }
    var positions: [Position] = []
    var seen: Set<Int32> = []
    for position in self.request.positions {
      _ = try self.topic.partition(position.partition)
      guard seen.insert(position.partition).inserted else {
        throw refuse("a partition stands twice", "positions", 1, Int64(position.partition))
      }
      guard position.offset >= 0 else {
        throw refuse("an offset is not negative", "offset", 0, position.offset)
      }
      positions.append(
        Position(
          partition: PartitionIndex(position.partition), offset: Offset(position.offset),
          lastEpoch: position.hasLastEpoch && position.lastEpoch >= 0
            ? LeaderEpoch(position.lastEpoch) : nil))
    }
    return positions
  }

  private func wait() throws(MemQError) -> Duration {
    let wait = Duration.milliseconds(Int64(self.request.waitMaxMs))
    guard wait >= .zero, wait <= Self.waitMax else {
      throw MemQError(
        .invalidArgument, "wait_max_ms is 0 to 60,000", subject: "wait_max_ms", limit: 60_000,
        actual: Int64(self.request.waitMaxMs))
    }
    return wait
  }

  /// Reads every partition once, several at a time. The order turns, so that with a small budget the last are not starved.
  private func round(
    _ positions: [Position], _ budget: FetchBudget, wait: Duration, stopsAtFirst: Bool,
    tellsEmpty: Bool
  ) async throws(MemQError) -> [Read] {
    let start = Int.random(in: 0..<positions.count)
    let atOnce = stopsAtFirst ? positions.count : self.readsMax
    let result: Result<[Read], MemQError> = await withTaskGroup(
      of: Result<Read, MemQError>.self
    ) { group in
      var reads: [Read] = []
      var started = 0
      var failure: MemQError?
      while reads.count < started || started < positions.count {
        if started < positions.count, started - reads.count < atOnce, failure == nil {
          let index = (start + started) % positions.count
          started += 1
          group.addTask {
            await self.read(index, positions[index], budget, wait: wait, tellsEmpty: tellsEmpty)
          }
          continue
        }
        guard let next = await group.next() else { break }
        switch next {
        case .success(let read):
          reads.append(read)
          if stopsAtFirst, read.sentBytes > 0 || read.failed { group.cancelAll() }
        case .failure(let error):
          // The client is gone: the rest is not wanted any more.
          failure = error
          started = positions.count
          group.cancelAll()
        }
      }
      return failure.map { .failure($0) } ?? .success(reads)
    }
    return try result.get()
  }

  /// Fails only when the client can't be told any more.
  private func read(
    _ index: Int, _ position: Position, _ budget: FetchBudget, wait: Duration, tellsEmpty: Bool
  ) async -> Result<Read, MemQError> {
    var read = Read(index: index, offset: position.offset, lastEpoch: position.lastEpoch)
    guard var reserved = budget.reserve() else { return .success(read) }
    defer { budget.giveBack(reserved) }
    let partition = TopicPartition(self.topic.id, position.partition)
    var lost: MemQError?
    do throws(MemQError) {
      try await self.reader.read(
        partition, from: position.offset, after: position.lastEpoch, maxBytes: reserved, wait: wait
      ) { piece throws(MemQError) in
        if let truncation = piece.truncation {
          read.failed = true
          do throws(MemQError) {
            try await self.send(truncation, piece.marks, position)
          } catch {
            lost = error
            throw error
          }
          return false
        }
        let bytes = piece.batches.byteCount
        if bytes > 0, !budget.spend(bytes, reserved: &reserved) { return false }
        do throws(MemQError) {
          try await self.send(piece, position, from: read.offset, tellsEmpty: tellsEmpty)
        } catch {
          lost = error
          throw error
        }
        read.sentBytes += bytes
        if bytes > 0 {
          read.offset = piece.nextOffset
          read.lastEpoch = piece.lastEpoch
        }
        return true
      }
      if let lost { return .failure(lost) }
    } catch {
      if let lost { return .failure(lost) }
      if error.code == .cancelled { return .success(read) }
      read.failed = true
      do throws(MemQError) {
        try await self.send(error, position)
      } catch {
        return .failure(error)
      }
    }
    return .success(read)
  }

  private func send(
    _ piece: LogPiece, _ position: Position, from offset: Offset, tellsEmpty: Bool
  ) async throws(MemQError) {
    var header = Memq_V1_FetchResponse()
    header.partition = position.partition.rawValue
    header.highWatermark = piece.marks.highWatermark.rawValue
    header.logStartOffset = piece.marks.logStart.rawValue
    header.nextOffset = piece.nextOffset.rawValue
    if let epoch = piece.lastEpoch { header.lastEpoch = epoch.rawValue }
    header.fromObjects = piece.isFromObjects
    guard !piece.batches.isEmpty else {
      if tellsEmpty { try await self.writer.send(Hot(header)) }
      return
    }
    self.metrics.fetched(piece.batches.byteCount, fromObjects: piece.isFromObjects)
    guard self.request.format == .records else {
      return try await self.writer.send(Hot(header, payload: piece.batches))
    }
    try await self.sendRecords(piece.batches, header, from: offset)
  }

  /// One message per about 1 MiB of decoded records, so that none passes the message limit.
  private func sendRecords(
    _ batches: RPCMessage, _ header: Memq_V1_FetchResponse, from offset: Offset
  ) async throws(MemQError) {
    let bytes = batches.contiguous()
    var walk = RecordBatchIterator(Array(bytes.readableBytesView))
    var message = header
    var size = 0
    while let batch = try walk.next() {
      for record in try walk.records(of: batch) where record.offset >= offset {
        message.records.append(Memq_V1_Record(record))
        size += record.byteCountEstimate
        guard size >= 1 << 20 else { continue }
        message.nextOffset = record.offset.rawValue + 1
        message.lastEpoch = batch.header.leaderEpoch.rawValue
        try await self.writer.send(Hot(message))
        message = header
        size = 0
      }
    }
    // The last one carries the end of the batches, also where no record of theirs was wanted.
    try await self.writer.send(Hot(message))
  }

  private func send(
    _ truncation: LogTruncation, _ marks: LogMarks, _ position: Position
  ) async throws(MemQError) {
    let subject = "\(self.topic.name)/\(position.partition)"
    var header = Memq_V1_FetchResponse()
    header.partition = position.partition.rawValue
    header.highWatermark = marks.highWatermark.rawValue
    header.logStartOffset = marks.logStart.rawValue
    header.nextOffset = truncation.resume.rawValue
    if let epoch = truncation.resumeEpoch { header.lastEpoch = epoch.rawValue }
    header.truncation = Memq_V1_LogTruncation(truncation)
    header.error = Memq_V1_ErrorDetail(truncation.error(subject, at: position.offset))
    try await self.writer.send(Hot(header))
  }

  private func send(_ error: MemQError, _ position: Position) async throws(MemQError) {
    var named = error
    named.subject = "\(self.topic.name)/\(position.partition)"
    var header = Memq_V1_FetchResponse()
    header.partition = position.partition.rawValue
    header.nextOffset = position.offset.rawValue
    // -1: not known. An offset that does not exist was just compared with them.
    let marks =
      error.code == .offsetOutOfRange
      ? self.reader.marks[TopicPartition(self.topic.id, position.partition)] : nil
    header.highWatermark = marks?.highWatermark.rawValue ?? -1
    header.logStartOffset = marks?.logStart.rawValue ?? -1
    header.error = Memq_V1_ErrorDetail(named)
    try await self.writer.send(Hot(header))
  }
}

/// Sleeps.
func pause(_ duration: Duration) async throws(MemQError) {
  do {
    try await Task.sleep(for: duration)
  } catch {
    throw MemQError(.cancelled, "the call was given up")
  }
}

extension Record {
  /// About what it takes in a message.
  fileprivate var byteCountEstimate: Int {
    self.headers.reduce(32 + (self.key?.count ?? 0) + (self.value?.count ?? 0)) {
      $0 + $1.name.utf8.count + ($1.value?.count ?? 0) + 8
    }
  }
}
