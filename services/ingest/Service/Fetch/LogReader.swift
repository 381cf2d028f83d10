// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore

/// A piece of one partition's committed log, from its leader or from objects.
struct LogPiece: Sendable {
  /// Whole record batches; may begin below the offset asked for.
  var batches: RPCMessage
  var nextOffset: Offset
  /// Leader epoch of the record before `nextOffset`; nil: not known.
  var lastEpoch: LeaderEpoch?
  var marks: LogMarks
  var isFromObjects: Bool
  /// The reader has read what the log does not have: the only piece, without batches. `nextOffset` is where it goes on.
  var truncation: LogTruncation?
}

/// Reads partitions wherever their records are.
struct LogReader: Sendable {
  let cluster: any IngestCluster
  let objects: ObjectReader
  let marks: PartitionMarks
  let clock: any MemQClock

  /// How long a read that does not wait for records may take, retries included.
  static let patience: Duration = .seconds(10)

  /// Reads from `offset` on and hands each piece to `take` until that returns false.
  ///
  /// - Parameters:
  ///   - lastEpoch: leader epoch of the record before `offset`, as the reader read it: whoever has the log compares it with its own. Nil: it
  ///     is not compared.
  ///   - wait: how long to wait for a first record.
  /// - Throws: `.offsetOutOfRange` (limit: the nearest offset that exists), and what leader, objects and `take` throw.
  func read(
    _ partition: TopicPartition, from offset: Offset, after lastEpoch: LeaderEpoch? = nil,
    maxBytes: Int, wait: Duration,
    take: (LogPiece) async throws(MemQError) -> Bool
  ) async throws(MemQError) {
    if let known = self.knownMarks(partition), ReadPlace.of(offset, known) == .objects,
      let piece = try await self.fromObjects(partition, offset, lastEpoch, maxBytes, known)
    {
      _ = try await take(piece)
      return
    }
    let deadline = self.clock.monotonic + wait + Self.patience
    var attempts = 0
    while true {
      attempts += 1
      do throws(MemQError) {
        return try await self.fromLeader(partition, offset, lastEpoch, maxBytes, wait, take)
      } catch {
        if error.code == .offsetOutOfRange {
          return try await self.elsewhere(partition, offset, lastEpoch, maxBytes, take)
        }
        let step = RetryDecision.step(
          after: error, attempts: attempts, now: self.clock.monotonic, deadline: deadline,
          isIdempotent: false, hasFailedPredecessor: false, jitter: .random(in: 0..<1))
        guard case .again(let pause) = step else { throw error }
        do {
          try await Task.sleep(for: pause)
        } catch {
          throw MemQError(.cancelled, "the read was given up")
        }
      }
    }
  }

  /// Marks may be old; what the cluster says is deleted is not read again.
  private func knownMarks(_ partition: TopicPartition) -> LogMarks? {
    guard var marks = self.marks[partition] else { return nil }
    if let known = self.cluster.image.partitions[partition] {
      marks.logStart = max(marks.logStart, known.logStart)
    }
    return marks
  }

  private func fromLeader(
    _ partition: TopicPartition, _ offset: Offset, _ lastEpoch: LeaderEpoch?, _ maxBytes: Int,
    _ wait: Duration,
    _ take: (LogPiece) async throws(MemQError) -> Bool
  ) async throws(MemQError) {
    let (known, node) = try self.cluster.image.leader(of: partition)
    var request = Memq_V1_ReadRequest()
    request.topicPartition = partition.wire
    request.offset = offset.rawValue
    request.maxBytes = Int32(clamping: maxBytes)
    request.minBytes = 1
    request.waitMaxMs = Int32(clamping: wait.milliseconds)
    request.leaderEpoch = known.leaderEpoch.rawValue
    if let lastEpoch { request.lastEpoch = lastEpoch.rawValue }
    let options = RPCCallOptions(timeout: wait + Self.patience)
    let pieces = try await self.cluster.channel(to: node, lane: .read)
      .streamHot(ReplicationMethods.read, request, options)
    var hasTaken = false
    do throws(MemQError) {
      while let piece = try await pieces.next() {
        let header = piece.header
        let marks = LogMarks(
          logStart: Offset(header.logStartOffset), localStart: Offset(header.localStartOffset),
          highWatermark: Offset(header.highWatermark))
        self.marks.note(partition, marks)
        hasTaken = true
        let more = try await take(
          LogPiece(
            batches: piece.payload, nextOffset: Offset(header.nextOffset),
            lastEpoch: header.hasLastEpoch ? LeaderEpoch(header.lastEpoch) : nil, marks: marks,
            isFromObjects: false,
            truncation: header.hasTruncation ? LogTruncation(header.truncation) : nil))
        guard more else { return }
      }
    } catch {
      // What was handed on stands; the reader goes on from there by itself.
      guard hasTaken, error.isRetriable else { throw error }
    }
  }

  /// The leader does not have the offset: it stands in objects, or nowhere.
  private func elsewhere(
    _ partition: TopicPartition, _ offset: Offset, _ lastEpoch: LeaderEpoch?, _ maxBytes: Int,
    _ take: (LogPiece) async throws(MemQError) -> Bool
  ) async throws(MemQError) {
    let marks = try await self.askMarks(partition)
    switch ReadPlace.of(offset, marks) {
    case .objects:
      if let piece = try await self.fromObjects(
        partition, offset, lastEpoch, maxBytes, marks)
      {
        _ = try await take(piece)
        return
      }
      throw MemQError(
        .unavailable, "the record is neither on the SSD nor, yet, in an object; retry",
        subject: "\(partition)")
    case .leader:
      // It was written or moved in just this moment.
      throw MemQError(
        .unavailable, "the log moved while it was read; retry", subject: "\(partition)")
    case .outOfRange(let nearest):
      throw MemQError(
        .offsetOutOfRange,
        offset < nearest
          ? "the offset is below the log start, the records are gone"
          : "the offset is above the high watermark, nothing is committed there",
        subject: "\(partition)", limit: nearest.rawValue, actual: offset.rawValue)
    }
  }

  /// Nil when no object holds the offset.
  private func fromObjects(
    _ partition: TopicPartition, _ offset: Offset, _ lastEpoch: LeaderEpoch?, _ maxBytes: Int,
    _ marks: LogMarks
  ) async throws(MemQError) -> LogPiece? {
    guard let known = self.cluster.image.partitions[partition] else {
      throw MemQError(.topicDeleted, "the topic was deleted meanwhile", subject: "\(partition)")
    }
    do throws(MemQError) {
      let read = try await self.objects.read(
        partition, group: known.uploadGroup, from: offset, maxBytes: maxBytes)
      // What was uploaded stays, but a reader may have read what was lost before it was uploaded.
      if let lastEpoch,
        let truncation = try await self.objects.truncation(
          partition, group: known.uploadGroup, forReaderAt: offset, lastEpoch: lastEpoch,
          logStart: marks.logStart)
      {
        return LogPiece(
          batches: RPCMessage(), nextOffset: truncation.resume, marks: marks, isFromObjects: true,
          truncation: truncation)
      }
      return LogPiece(
        batches: RPCMessage(read.batches), nextOffset: read.nextOffset, lastEpoch: read.lastEpoch,
        marks: marks, isFromObjects: true)
    } catch {
      guard error.code == .offsetOutOfRange else { throw error }
      return nil
    }
  }

  /// Asks the leader where the partition's log lies now.
  func askMarks(_ partition: TopicPartition) async throws(MemQError) -> LogMarks {
    let answer = try await self.askLeader([partition], .localStart, .none)
    guard let offset = answer.first else {
      throw MemQError(.internalError, "the leader did not answer for its partition")
    }
    guard !offset.hasError else { throw MemQError(offset.error) }
    let marks = LogMarks(
      logStart: Offset(offset.logStartOffset), localStart: Offset(offset.offset),
      highWatermark: Offset(offset.highWatermark))
    self.marks.note(partition, marks)
    return marks
  }

  /// Offsets of partitions that one node leads.
  func askLeader(
    _ partitions: [TopicPartition], _ spec: Memq_V1_OffsetSpec, _ time: Timestamp
  ) async throws(MemQError) -> [Memq_V1_PartitionOffset] {
    let (_, node) = try self.cluster.image.leader(of: partitions[0])
    var request = Memq_V1_ListOffsetsRequest()
    request.partitions = partitions.map(\.wire)
    request.spec = spec
    request.timestampMs = time.milliseconds
    let channel = try self.cluster.channel(to: node, lane: .control)
    return try await channel.call(
      ReplicationMethods.listOffsets, request, timeout: Self.patience
    ).offsets
  }

  /// Repeats what another leader, or the same a moment later, may answer.
  func retrying<R: Sendable>(
    _ body: () async throws(MemQError) -> R
  ) async throws(MemQError) -> R {
    let deadline = self.clock.monotonic + Self.patience
    var attempts = 0
    while true {
      attempts += 1
      do throws(MemQError) {
        return try await body()
      } catch {
        let step = RetryDecision.step(
          after: error, attempts: attempts, now: self.clock.monotonic, deadline: deadline,
          isIdempotent: false, hasFailedPredecessor: false, jitter: .random(in: 0..<1))
        guard case .again(let wait) = step else { throw error }
        try await pause(wait)
      }
    }
  }
}
