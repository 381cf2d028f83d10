// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import MemQAPI
import MemQClient
import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
import NIOCore
import NIOPosix
import SwiftProtobuf
import Synchronization

/// A server of one topic in memory, strict about sequences, with faults on order.
final class FakeServer: Sendable {
  enum Fault {
    /// Answered with this error; nothing is appended.
    case refuse(MemQError)
    /// The stream breaks before the append.
    case dropBefore
    /// The stream breaks after the append: the client does not know.
    case dropAfter
  }

  struct Producer {
    var epoch: Int32 = -1
    var last: Int32 = -1
  }

  struct Partition {
    var records: [Record] = []
    var batches: [(base: Int64, end: Int64, bytes: [UInt8])] = []
    var producers: [Int64: Producer] = [:]
    var logStart: Int64 = 0
    /// Of what is appended now.
    var epoch: Int64 = 1
    /// Of each record.
    var epochs: [Int64] = []

    /// Another leader, without the records from `offset` on.
    mutating func lose(from offset: Int64) {
      self.batches.removeAll { $0.end > offset }
      let end = Int(self.batches.last?.end ?? 0)
      self.records.removeSubrange(end...)
      self.epochs.removeSubrange(end...)
      self.producers = [:]
      self.epoch += 1
    }
  }

  struct State {
    var partitions: [Partition]
    var produceRequests = 0
    /// What produce requests were given, in milliseconds.
    var timeouts: [Int32] = []
    var epoch: Int32 = 0
    var largestBatch = 0
    var messageBytesMax = Limits.recordBatchBytesDefault
    var committed: [Int32: Int64] = [:]
    /// Leader epochs of commits.
    var committedEpochs: [Int32: Int64] = [:]
    var groupEpoch: Int64 = 0
    var memberID = ""
    var assigned: [Int32] = []
    /// What heartbeats said that is read.
    var reading: [[Int32]] = []
    var commits: [[(Int32, Int64)]] = []
    var fetches = 0
    /// Offsets that were asked for.
    var asked: Set<Int64> = []
    /// Of an offset that does not exist it tells the nearest, but not where the log lies.
    var hidesMarks = false
    var uploads: [[UInt8]: Upload] = [:]
    var files: [String: (info: Memq_V1_FileInfo, bytes: [UInt8])] = [:]
    var putStreams = 0
    var getStreams = 0
  }

  struct Upload {
    var bytes: [UInt8] = []
    var durable = 0
  }

  static let topic = "events"
  static let topicID = TopicID(UniqueID(high: 1, low: 2))

  let state: Mutex<State>
  /// By the number of the produce request, from 1.
  let fault: @Sendable (Int) -> Fault?
  /// By the number of the fetch, from 1.
  let fetchFault: @Sendable (Int) -> MemQError?
  /// Chunks of a put after which its stream breaks, by the number of the stream, from 1.
  let putBreak: @Sendable (Int) -> Int?
  /// The same for a get.
  let getBreak: @Sendable (Int) -> Int?
  /// Whether a put's or get's stream stands still behind its first message, by its number.
  let stalls: @Sendable (Int) -> Bool

  init(
    partitions: Int = 1, fault: @escaping @Sendable (Int) -> Fault? = { _ in nil },
    fetchFault: @escaping @Sendable (Int) -> MemQError? = { _ in nil },
    putBreak: @escaping @Sendable (Int) -> Int? = { _ in nil },
    getBreak: @escaping @Sendable (Int) -> Int? = { _ in nil },
    stalls: @escaping @Sendable (Int) -> Bool = { _ in false }
  ) {
    self.state = Mutex(State(partitions: (0..<partitions).map { _ in Partition() }))
    self.fault = fault
    self.fetchFault = fetchFault
    self.putBreak = putBreak
    self.getBreak = getBreak
    self.stalls = stalls
  }

  /// A client of this server.
  func client() -> MemQClient {
    let router = self.router()
    return MemQClient(servers: ["in-process"]) { _, _ in
      RPCInProcessChannel(router: router, group: MultiThreadedEventLoopGroup.singleton)
    }
  }

  func values(_ partition: Int = 0) -> [String] {
    self.state.withLock { state in
      state.partitions[partition].records.map { String(decoding: $0.value ?? [], as: UTF8.self) }
    }
  }

  func router() -> RPCRouter {
    var router = RPCRouter()
    router.handle(MetadataMethods.describeTopic) { request, _ in try self.describe(request) }
    router.handle(IngestMethods.initProducer) { request, _ in
      self.state.withLock { state in
        if request.producerID > 0 { state.epoch += 1 }
        var response = Memq_V1_InitProducerResponse()
        response.producerID = 77
        response.producerEpoch = state.epoch
        return response
      }
    }
    router.handleHotBidirectional(IngestMethods.produce) { requests, _, writer in
      while let request = try await requests.next() {
        if let response = try self.produce(request) { try await writer.send(response) }
      }
    }
    self.addReads(&router)
    self.addGroups(&router)
    self.addFiles(&router)
    return router
  }

  private func describe(
    _ request: Memq_V1_DescribeTopicRequest
  ) throws -> Memq_V1_DescribeTopicResponse {
    guard request.name == Self.topic else {
      throw MemQError(.topicNotFound, "there is no such topic", subject: request.name)
    }
    return self.state.withLock { state in
      var response = Memq_V1_DescribeTopicResponse()
      response.topic.name = Self.topic
      response.topic.topicID = Data(Self.topicID.bytes)
      response.topic.partitionCount = Int32(state.partitions.count)
      response.effectiveSettings["max.message.bytes"] = String(state.messageBytesMax)
      return response
    }
  }

  // MARK: Produce

  private func produce(_ request: Hot<Memq_V1_ProduceRequest>) throws -> Memq_V1_ProduceResponse? {
    var response = Memq_V1_ProduceResponse()
    response.requestID = request.header.requestID
    response.partition = request.header.partition
    let number = self.state.withLock { state in
      state.produceRequests += 1
      state.timeouts.append(request.header.timeoutMs)
      return state.produceRequests
    }
    let fault = self.fault(number)
    if case .dropBefore? = fault { throw RPCStatus(.unavailable, "the connection broke") }
    if case .refuse(let error)? = fault {
      response.error = Memq_V1_ErrorDetail(error)
      return response
    }
    do {
      let (base, isDuplicate) = try self.append(
        Int(request.header.partition), Array(buffer: request.payload.contiguous()))
      response.baseOffset = base
      response.duplicate = isDuplicate
    } catch let error as MemQError {
      response.error = Memq_V1_ErrorDetail(error)
      response.baseOffset = -1
    }
    if case .dropAfter? = fault { throw RPCStatus(.unavailable, "the connection broke") }
    return request.header.acks == .none ? nil : response
  }

  private func append(_ index: Int, _ bytes: [UInt8]) throws -> (Int64, Bool) {
    let header = try bytes.withUnsafeBytes { raw in
      try RecordBatchHeader.validate(raw, maxBytes: self.state.withLock { $0.messageBytesMax })
    }
    let records = try bytes.withUnsafeBytes { try RecordBatch.records($0) }
    return try self.state.withLock { state in
      var partition = state.partitions[index]
      defer { state.partitions[index] = partition }
      if header.isIdempotent {
        var known = partition.producers[header.producerID.rawValue] ?? Producer()
        let epoch = Int32(header.producerEpoch.rawValue)
        if epoch > known.epoch { known = Producer(epoch: epoch, last: -1) }
        guard epoch == known.epoch else { throw MemQError(.producerFenced, "an old epoch") }
        if header.lastSequence <= known.last { return (-1, true) }
        guard header.baseSequence == known.last + 1 else {
          throw MemQError(
            .outOfOrderSequence, "a gap", limit: Int64(known.last + 1),
            actual: Int64(header.baseSequence))
        }
        known.last = header.lastSequence
        partition.producers[header.producerID.rawValue] = known
      }
      state.largestBatch = max(state.largestBatch, bytes.count)
      let base = Int64(partition.records.count)
      var stamped = bytes
      stamped.withUnsafeMutableBytes {
        RecordBatchHeader.stamp(
          $0, baseOffset: Offset(base), leaderEpoch: LeaderEpoch(partition.epoch))
      }
      partition.epochs += records.map { _ in partition.epoch }
      partition.batches.append((base, base + Int64(records.count), stamped))
      partition.records += records
      return (base, false)
    }
  }

  // MARK: Fetch

  private func addReads(_ router: inout RPCRouter) {
    router.handleHotServerStream(IngestMethods.fetch) { request, _, writer in
      let number = self.state.withLock { state in
        state.fetches += 1
        return state.fetches
      }
      if let error = self.fetchFault(number) { throw error }
      for position in request.positions {
        try await writer.send(self.fetch(position))
      }
      // An idle server holds the call; this one answers at once but not in a busy loop.
      if !self.hasMore(request) { try await Task.sleep(for: .milliseconds(20)) }
    }
    router.handle(IngestMethods.offsets) { request, _ in
      self.state.withLock { state in
        var response = Memq_V1_ListOffsetsResponse()
        let wanted =
          request.partitions.isEmpty ? Array(0..<Int32(state.partitions.count)) : request.partitions
        for partition in wanted {
          var answer = Memq_V1_PartitionOffset()
          answer.topicPartition.partition = partition
          let log = state.partitions[Int(partition)]
          answer.offset = request.spec == .earliest ? log.logStart : Int64(log.records.count)
          response.offsets.append(answer)
        }
        return response
      }
    }
  }

  private func hasMore(_ request: Memq_V1_FetchRequest) -> Bool {
    self.state.withLock { state in
      request.positions.contains {
        $0.offset < Int64(state.partitions[Int($0.partition)].records.count)
      }
    }
  }

  private func fetch(_ position: Memq_V1_FetchPosition) -> Hot<Memq_V1_FetchResponse> {
    self.state.withLock { state in
      let log = state.partitions[Int(position.partition)]
      state.asked.insert(position.offset)
      var header = Memq_V1_FetchResponse()
      header.partition = position.partition
      header.highWatermark = Int64(log.records.count)
      header.logStartOffset = log.logStart
      header.nextOffset = position.offset
      if position.hasLastEpoch, position.offset > 0,
        Self.parted(position, log, &header)
      {
        return Hot(header)
      }
      guard position.offset >= log.logStart, position.offset <= header.highWatermark else {
        header.error = Memq_V1_ErrorDetail(
          MemQError(
            .offsetOutOfRange, "no such offset",
            limit: position.offset < log.logStart ? log.logStart : header.highWatermark,
            actual: position.offset))
        if state.hidesMarks { (header.logStartOffset, header.highWatermark) = (-1, -1) }
        return Hot(header)
      }
      // Two batches at a time: several fetches are needed.
      let batches = log.batches.filter { $0.end > position.offset }.prefix(2)
      header.nextOffset = batches.last?.end ?? position.offset
      return Hot(header, payload: RPCMessage(bytes: batches.flatMap(\.bytes)))
    }
  }

  /// Whether the reader has read what the log does not have.
  private static func parted(
    _ position: Memq_V1_FetchPosition, _ log: Partition, _ header: inout Memq_V1_FetchResponse
  ) -> Bool {
    let before = Int(position.offset) - 1
    if before < log.epochs.count, log.epochs[before] == position.lastEpoch { return false }
    let end = log.epochs.count { $0 <= position.lastEpoch }
    header.nextOffset = Int64(end)
    if end > 0 { header.lastEpoch = log.epochs[end - 1] }
    header.truncation = .with {
      $0.epoch = end > 0 ? log.epochs[end - 1] : -1
      $0.endOffset = Int64(end)
      $0.resumeOffset = Int64(end)
      if end > 0 { $0.resumeEpoch = log.epochs[end - 1] }
    }
    header.error = Memq_V1_ErrorDetail(
      MemQError(.logTruncated, "lost", limit: Int64(end), actual: position.offset))
    return true
  }

  // MARK: Groups

  private func addGroups(_ router: inout RPCRouter) {
    router.handle(IngestMethods.joinGroup) { request, _ in
      self.state.withLock { state in
        state.groupEpoch += 1
        state.memberID = request.memberID
        state.assigned = (0..<Int32(state.partitions.count)).map { $0 }
        var response = Memq_V1_JoinGroupResponse()
        response.memberID = request.memberID
        response.memberEpoch = state.groupEpoch
        response.assigned = state.assigned.map(Self.wire)
        return response
      }
    }
    router.handle(IngestMethods.heartbeatGroup) { request, _ in
      try self.checkMember(request.memberID)
      var response = self.heartbeat(request)
      // An idle server holds the call; this one looks again every now and then.
      for _ in 0..<50 where !response.hasAssigned && request.waitMaxMs > 0 {
        guard (try? await Task.sleep(for: .milliseconds(10))) != nil else { break }
        try self.checkMember(request.memberID)
        response = self.heartbeat(request)
      }
      return response
    }
    router.handle(IngestMethods.leaveGroup) { _, _ in Memq_V1_LeaveGroupResponse() }
    router.handle(IngestMethods.commitOffsets) { request, _ in
      try self.checkMember(request.memberID)
      self.state.withLock { state in
        for offset in request.offsets {
          state.committed[offset.topicPartition.partition] = offset.offset
          state.committedEpochs[offset.topicPartition.partition] =
            offset.hasLeaderEpoch ? offset.leaderEpoch : nil
        }
        state.commits.append(request.offsets.map { ($0.topicPartition.partition, $0.offset) })
      }
      return Memq_V1_CommitOffsetsResponse()
    }
    router.handle(IngestMethods.fetchOffsets) { request, _ in
      self.state.withLock { state in
        var response = Memq_V1_FetchOffsetsResponse()
        for wanted in request.partitions {
          guard let offset = state.committed[wanted.partition] else { continue }
          var answer = Memq_V1_GroupOffset()
          answer.topicPartition = wanted
          answer.offset = offset
          if let epoch = state.committedEpochs[wanted.partition] { answer.leaderEpoch = epoch }
          response.offsets.append(answer)
        }
        return response
      }
    }
  }

  /// What the group says to its one member.
  private func heartbeat(
    _ request: Memq_V1_HeartbeatGroupRequest
  ) -> Memq_V1_HeartbeatGroupResponse {
    self.state.withLock { state in
      if request.hasReading { state.reading.append(request.reading.partitions.map(\.partition)) }
      var response = Memq_V1_HeartbeatGroupResponse()
      response.memberEpoch = state.groupEpoch
      if request.memberEpoch != state.groupEpoch {
        response.assigned.partitions = state.assigned.map(Self.wire)
      }
      return response
    }
  }

  /// The group gives its member other partitions.
  func assign(_ partitions: [Int32]) {
    self.state.withLock { state in
      state.groupEpoch += 1
      state.assigned = partitions
    }
  }

  private static func wire(_ partition: Int32) -> Memq_V1_TopicPartition {
    var wire = Memq_V1_TopicPartition()
    wire.topicID = Data(Self.topicID.bytes)
    wire.partition = partition
    return wire
  }

  private func checkMember(_ memberID: String) throws {
    guard memberID == self.state.withLock({ $0.memberID }) else {
      throw MemQError(.groupMemberUnknown, "the member is not in the group any more")
    }
  }
}
