// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import MemQRuntime
import NIOCore
import SwiftProtobuf
import Synchronization

@testable import MemQIngestService

/// A leader of everything, in memory, with a leader's rules for sequences and a list of faults to play.
final class FakeLeader: Sendable {
  enum Fault {
    /// Refuses the next append.
    case refuse(ErrorCode)
    /// Appends the next one, but loses the answer and ends the stream.
    case loseReply
    /// Ends the stream before the next append.
    case breakStream
  }

  struct Log {
    var batches: [[UInt8]] = []
    var end: Int64 = 0
    /// Below it the "SSD" has nothing.
    var localStart: Int64 = 0
    /// What it says to who reads with this last epoch.
    var truncated: (lastEpoch: Int64, answer: LogTruncation)?
    /// Last epochs that readers named, by offset.
    var lastEpochs: [Int64: Int64] = [:]
    /// Next sequence by producer.
    var producers: [Int64: Int32] = [:]
  }

  private struct State {
    var logs: [TopicPartition: Log] = [:]
    var faults: [Fault] = []
    var received = 0
    var isHeld = false
  }

  private let state = Mutex(State())

  var received: Int { self.state.withLock { $0.received } }
  func play(_ faults: [Fault]) { self.state.withLock { $0.faults += faults } }
  func hold(_ held: Bool) { self.state.withLock { $0.isHeld = held } }
  func log(_ partition: TopicPartition) -> Log {
    self.state.withLock { $0.logs[partition] ?? Log() }
  }
  func change(_ partition: TopicPartition, _ body: (inout Log) -> Void) {
    self.state.withLock { body(&$0.logs[partition, default: Log()]) }
  }

  /// Every record of a partition, decoded.
  func records(_ partition: TopicPartition) throws -> [Record] {
    var all: [Record] = []
    for batch in self.log(partition).batches {
      all += try batch.withUnsafeBytes { try RecordBatch.records($0) }
    }
    return all
  }

  func register(on router: inout RPCRouter) {
    router.handleHotBidirectional(ReplicationMethods.append) { reader, _, writer in
      while let request = try await reader.next() {
        while self.state.withLock({ $0.isHeld }) { try await Task.sleep(for: .milliseconds(1)) }
        let (reply, breaks) = self.append(request)
        if breaks { throw MemQError(.unavailable, "the stream broke") }
        if let reply { try await writer.send(reply) }
      }
    }
    router.handleHotServerStream(ReplicationMethods.read) { request, _, writer in
      try await self.read(request, writer)
    }
    router.handle(ReplicationMethods.listOffsets) { request, _ in try self.offsets(request) }
  }

  private func append(
    _ request: Hot<Memq_V1_AppendRequest>
  ) -> (reply: Memq_V1_AppendResponse?, breaks: Bool) {
    self.state.withLock { state in
      state.received += 1
      var reply = Memq_V1_AppendResponse()
      reply.requestID = request.header.requestID
      reply.baseOffset = -1
      let fault = state.faults.isEmpty ? nil : state.faults.removeFirst()
      if case .refuse(let code) = fault {
        reply.error = Memq_V1_ErrorDetail(MemQError(code, "as the test wants"))
        return (reply, false)
      }
      if case .breakStream = fault { return (nil, true) }
      let partition = try! TopicPartition(request.header.topicPartition)
      do throws(MemQError) {
        try Self.append(request.payload, to: &state.logs[partition, default: Log()], &reply)
      } catch {
        reply.error = Memq_V1_ErrorDetail(error)
      }
      if case .loseReply = fault { return (nil, true) }
      return (request.header.acks == .none ? nil : reply, false)
    }
  }

  private static func append(
    _ message: RPCMessage, to log: inout Log, _ reply: inout Memq_V1_AppendResponse
  ) throws(MemQError) {
    var batch = Array(message.contiguous().readableBytesView)
    let header = try batch.withUnsafeBytes { bytes in
      Result { () throws(MemQError) in try RecordBatchHeader.validate(bytes, maxBytes: 8 << 20) }
    }.get()
    if header.isIdempotent {
      let id = header.producerID.rawValue
      guard let next = log.producers[id] ?? (header.baseSequence == 0 ? 0 : nil) else {
        throw MemQError(.unknownProducer, "not known")
      }
      if header.baseSequence > next { throw MemQError(.outOfOrderSequence, "a gap") }
      if header.baseSequence < next {
        guard header.lastSequence < next else {
          throw MemQError(.sequenceStraddles, "straddles", limit: Int64(next) - 1)
        }
        reply.duplicate = true
        return try Self.find(id, header.baseSequence, log, &reply)
      }
      log.producers[id] = header.lastSequence + 1
    }
    reply.baseOffset = log.end
    batch.withUnsafeMutableBytes {
      RecordBatchHeader.stamp($0, baseOffset: Offset(log.end), leaderEpoch: LeaderEpoch(0))
    }
    log.batches.append(batch)
    log.end += Int64(header.recordCount)
    reply.endOffset = log.end
  }

  private static func find(
    _ producer: Int64, _ sequence: Int32, _ log: Log, _ reply: inout Memq_V1_AppendResponse
  ) throws(MemQError) {
    for batch in log.batches {
      let header = try batch.withUnsafeBytes { bytes in
        Result { () throws(MemQError) in try RecordBatchHeader(parsing: bytes) }
      }.get()
      if header.producerID.rawValue == producer, header.baseSequence == sequence {
        reply.baseOffset = header.baseOffset.rawValue
        reply.endOffset = header.endOffset.rawValue
      }
    }
  }

  private func read(
    _ request: Memq_V1_ReadRequest, _ writer: TypedWriter<Hot<Memq_V1_ReadResponse>>
  ) async throws(MemQError) {
    let partition = try TopicPartition(request.topicPartition)
    var waited: Int32 = 0
    if request.hasLastEpoch {
      self.change(partition) { $0.lastEpochs[request.offset] = request.lastEpoch }
    }
    while true {
      let log = self.log(partition)
      if request.hasLastEpoch, let truncated = log.truncated,
        truncated.lastEpoch == request.lastEpoch
      {
        var header = Memq_V1_ReadResponse()
        header.highWatermark = log.end
        header.truncation = Memq_V1_LogTruncation(truncated.answer)
        return try await writer.send(Hot(header))
      }
      guard request.offset >= log.localStart, request.offset <= log.end else {
        throw MemQError(.offsetOutOfRange, "not here", limit: log.localStart)
      }
      if log.end == request.offset, waited < request.waitMaxMs {
        waited += 2
        try await pause(.milliseconds(2))
        continue
      }
      var header = Memq_V1_ReadResponse()
      header.highWatermark = log.end
      header.localStartOffset = log.localStart
      header.nextOffset = request.offset
      var payload = RPCMessage()
      for batch in log.batches {
        let parsed = try! batch.withUnsafeBytes { try RecordBatchHeader(parsing: $0) }
        guard parsed.endOffset.rawValue > request.offset else { continue }
        if !payload.isEmpty, payload.byteCount + batch.count > request.maxBytes { break }
        payload.append(ByteBuffer(bytes: batch))
        header.nextOffset = parsed.endOffset.rawValue
        header.lastEpoch = parsed.leaderEpoch.rawValue
      }
      return try await writer.send(Hot(header, payload: payload))
    }
  }

  private func offsets(
    _ request: Memq_V1_ListOffsetsRequest
  ) throws(MemQError) -> Memq_V1_ListOffsetsResponse {
    var response = Memq_V1_ListOffsetsResponse()
    for partition in request.partitions {
      let log = self.log(try TopicPartition(partition))
      response.offsets.append(
        .with {
          $0.topicPartition = partition
          $0.highWatermark = log.end
          switch request.spec {
          case .latest: $0.offset = log.end
          case .localStart: $0.offset = log.localStart
          default: $0.offset = 0
          }
        })
    }
    return response
  }
}
