// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRecords
import MemQRPC
import MemQSystem
import NIOCore
import SwiftProtobuf

/// What all produce streams share.
struct ProduceContext: Sendable {
  let cluster: any IngestCluster
  let topics: TopicFinder
  let lanes: AppendLanes
  let gate: RecordGate
  let load: ProduceLoad
  let service: ServiceState
  let configuration: IngestConfiguration
  let metrics: IngestMetrics
}

/// One client's produce stream: takes requests, puts each in its partition's line, sends what may be sent, answers.
///
/// Everything happens on the call's event loop. Memory: requests that are not settled, bounded per stream and over all
/// streams by withholding flow-control credit.
final class ProduceStream: RPCServerHandler, @unchecked Sendable {
  /// One request from receipt to answer.
  struct Request {
    let clientID: UInt64
    let partition: TopicPartition
    let topic: String
    let acks: Memq_V1_Acks
    let isPlain: Bool
    let deadline: MonotonicInstant
    /// What it counts for in the bounds.
    let charge: Int
    let receivedAt: MonotonicInstant
    var batch: PreparedBatch
    /// Records that a leader had already (cut off after SEQUENCE_STRADDLES).
    var dropped: Int32 = 0
    var lastError: MemQError?
    /// An attempt ended so that nobody knows whether it was appended.
    var mayStand = false
  }

  /// A request counts for at least so much: its bookkeeping, and so that tiny ones are bounded, too.
  private static let chargeMin = 1 << 10
  /// A stream may always have so much in flight, even while all streams together are at their bound: who has something
  /// in flight hears of room when it settles.
  private static let floorBytes = 1 << 20
  /// How often holds and deadlines are looked at while something waits for time.
  private static let tickEvery = TimeAmount.milliseconds(5)

  let call: RPCServerCall
  let context: ProduceContext
  private var loop: any EventLoop { self.call.eventLoop }

  /// Received while the topic of the first of them is being looked up.
  private var inbox = Deque<(request: Hot<Memq_V1_ProduceRequest>, bytes: Int)>()
  private var isLookingUp = false
  private var topic: TopicImage?
  private var topicName = ""
  private var partitioner: Partitioner

  private var lines: [TopicPartition: ProduceLine] = [:]
  private var requests: [UInt64: Request] = [:]
  private var lastID: UInt64 = 0
  private var inFlightBytes = 0
  private var creditOwed = 0
  private var hasRoomForReplies = true
  private var isHalfClosed = false
  private var isOver = false
  private var tick: Scheduled<Void>?

  init(_ call: RPCServerCall, _ context: ProduceContext) {
    self.call = call
    self.context = context
    self.partitioner = Partitioner(turn: .random(in: 0..<(1 << 16)))
  }

  // MARK: The client's side

  func received(_ message: RPCMessage) {
    guard !self.isOver else { return }
    do throws(MemQError) {
      self.inbox.append((try Hot(decoding: message), message.byteCount))
    } catch {
      self.isOver = true
      return self.call.finish(error)
    }
    self.drainInbox()
  }

  func halfClosed() {
    self.isHalfClosed = true
    self.finishIfDone()
  }

  func writable() {
    self.hasRoomForReplies = true
    self.returnCredit()
  }

  func ended(_ status: RPCStatus) {
    self.isOver = true
    self.inbox.removeAll()
    self.tick?.cancel()
    self.tick = nil
    // What is on its way to a leader settles by itself and is then no longer counted; the rest goes now.
    for line in self.lines.values {
      for entry in line.entries where entry.state != .inFlight { self.forget(entry.id) }
    }
    self.lines.removeAll()
  }

  private func finishIfDone() {
    guard self.isHalfClosed, self.inbox.isEmpty, self.requests.isEmpty, !self.isOver else { return }
    self.isOver = true
    self.call.finish(.ok)
  }

  // MARK: Taking requests in

  private func drainInbox() {
    while !self.isLookingUp, let (request, bytes) = self.inbox.first {
      if !request.header.topic.isEmpty { self.topicName = request.header.topic }
      guard let topic = self.currentTopic() else { return self.lookUp(self.topicName) }
      self.inbox.removeFirst()
      self.take(request, bytes, topic)
    }
    self.finishIfDone()
  }

  /// The image's current topic of that name; nil when it has none.
  private func currentTopic() -> TopicImage? {
    let image = self.context.cluster.image
    if let known = self.topic, known.name == self.topicName, let same = image.topics[known.id] {
      self.topic = same
      return same
    }
    self.topic = image.topic(named: self.topicName)
    return self.topic
  }

  private func lookUp(_ name: String) {
    self.isLookingUp = true
    Task {
      let found: Result<TopicImage, MemQError>
      do throws(MemQError) {
        found = .success(try await self.context.topics.find(name))
      } catch {
        found = .failure(error)
      }
      self.call.execute { self.lookedUp(found) }
    }
  }

  private func lookedUp(_ found: Result<TopicImage, MemQError>) {
    self.isLookingUp = false
    guard !self.isOver, let (request, bytes) = self.inbox.popFirst() else { return }
    self.creditOwed += bytes
    switch found {
    case .success(let topic): self.take(request, bytes, topic, owesCredit: false)
    case .failure(let error): self.refuse(request.header, error)
    }
    self.returnCredit()
    self.drainInbox()
  }

  private func take(
    _ request: Hot<Memq_V1_ProduceRequest>, _ bytes: Int, _ topic: TopicImage,
    owesCredit: Bool = true
  ) {
    if owesCredit { self.creditOwed += bytes }
    defer { self.returnCredit() }
    do throws(MemQError) {
      let accepted = try self.accept(request, bytes, topic)
      self.enter(accepted, isGated: topic.settings.scanPolicy == .gate, settings: topic.settings)
    } catch {
      self.refuse(request.header, error)
    }
  }

  private func accept(
    _ request: Hot<Memq_V1_ProduceRequest>, _ bytes: Int, _ topic: TopicImage
  ) throws(MemQError) -> Request {
    if let refusal = self.context.service.refusal { throw refusal }
    let header = request.header
    let firstKey = header.records.first.flatMap { $0.hasKey ? $0.key : nil }
    let partition = try self.partitioner.choose(
      wanted: header.partition, key: firstKey, among: topic.partitionCount, topic: topic.name)
    let timeout = try self.timeout(header.timeoutMs)
    let encoder = RecordEncoder(
      settings: topic.settings, topic: "\(topic.name)/\(partition)",
      checksRecords: self.context.configuration.checksRecords)
    let now = self.context.service.clock.monotonic
    return Request(
      clientID: header.requestID, partition: TopicPartition(topic.id, partition),
      topic: topic.name, acks: try self.acks(header.acks), isPlain: request.payload.isEmpty,
      deadline: now + timeout, charge: max(bytes, Self.chargeMin), receivedAt: now,
      batch: try encoder.prepare(request, now: self.context.service.clock.wall))
  }

  private func timeout(_ milliseconds: Int32) throws(MemQError) -> Duration {
    guard milliseconds >= 0 else {
      throw MemQError(
        .invalidArgument, "a timeout is not negative", subject: "timeout_ms", limit: 0,
        actual: Int64(milliseconds))
    }
    guard milliseconds > 0 else { return self.context.configuration.produceTimeout }
    return min(.milliseconds(Int64(milliseconds)), self.context.configuration.produceTimeoutMax)
  }

  private func acks(_ wanted: Memq_V1_Acks) throws(MemQError) -> Memq_V1_Acks {
    switch wanted {
    case .unspecified: return .all
    case .none, .leader, .all: return wanted
    case .UNRECOGNIZED(let value):
      throw MemQError(.invalidArgument, "no such acks", subject: "acks", actual: Int64(value))
    }
  }

  private func enter(_ request: Request, isGated: Bool, settings: TopicSettings) {
    self.lastID += 1
    let id = self.lastID
    self.requests[id] = request
    self.inFlightBytes += request.charge
    self.context.load.add(request.charge)
    self.context.metrics.produced(request.batch, bytes: request.batch.message.byteCount)
    self.lines[request.partition, default: ProduceLine()]
      .add(id, ready: !isGated, deadline: request.deadline)
    if isGated { self.scan(id, request, settings) }
    self.pump(request.partition)
  }

  private func scan(_ id: UInt64, _ request: Request, _ settings: TopicSettings) {
    let gate = self.context.gate
    let name = "\(request.topic)/\(request.partition.partition)"
    Task {
      var failure: MemQError?
      do throws(MemQError) {
        try await gate.check(
          request.batch.message, of: request.partition, name: name, settings: settings)
      } catch {
        failure = error
      }
      self.call.execute { [failure] in self.scanned(id, request.partition, failure) }
    }
  }

  private func scanned(_ id: UInt64, _ partition: TopicPartition, _ failure: MemQError?) {
    guard self.requests[id] != nil, self.lines[partition] != nil else { return }
    if let failure {
      self.settle(id, .failure(failure))
    } else {
      self.lines[partition]!.becameReady(id)
    }
    self.pump(partition)
  }

  // MARK: Sending

  private func pump(_ partition: TopicPartition) {
    guard self.lines[partition] != nil else { return }
    let now = self.context.service.clock.monotonic
    while let id = self.lines[partition]?.takeNext(at: now) { self.send(id) }
    guard let line = self.lines[partition] else { return }
    if line.isEmpty {
      self.lines[partition] = nil
    } else if line.waitsForTime {
      self.scheduleTick()
    }
  }

  private func send(_ id: UInt64) {
    guard let request = self.requests[id] else { return }
    do throws(MemQError) {
      let (known, node) = try self.context.cluster.image.leader(of: request.partition)
      let job = AppendJob(
        partition: request.partition, leaderEpoch: known.leaderEpoch, acks: request.acks,
        deadline: request.deadline, batch: request.batch.message)
      self.context.lanes.lane(to: node, on: self.loop).append(job) { self.replied(id, $0) }
    } catch {
      self.failed(id, error)
    }
  }

  private func replied(_ id: UInt64, _ result: AppendResult) {
    guard let request = self.requests[id] else { return }
    guard self.lines[request.partition] != nil else { return self.forget(id) }
    switch result {
    case .success(let reply): self.settle(id, .success(reply))
    case .failure(let error): self.failed(id, error)
    }
    self.pump(request.partition)
  }

  /// It was refused or lost: again, cut, or answered so.
  private func failed(_ id: UInt64, _ error: MemQError) {
    guard let request = self.requests[id], let line = self.lines[request.partition] else { return }
    let now = self.context.service.clock.monotonic
    if error.code == .sequenceStraddles, self.cut(id, request, error) {
      self.lines[request.partition]!.again(id, notBefore: now)
      return
    }
    let step = RetryDecision.step(
      after: error, attempts: line.attempts(of: id), now: now, deadline: request.deadline,
      isIdempotent: request.batch.isIdempotent, hasFailedPredecessor: line.hasFailedPredecessor(id),
      jitter: .random(in: 0..<1))
    switch step {
    case .again(let wait):
      self.requests[id]!.lastError = error
      if error.code.leavesOutcomeOpen { self.requests[id]!.mayStand = true }
      self.lines[request.partition]!.again(id, notBefore: now + wait)
      self.context.metrics.retried(error.code)
    case .giveUp: self.settle(id, .failure(error))
    }
  }

  /// Leaves only what the leader does not have yet. False: nothing to cut.
  private func cut(_ id: UInt64, _ request: Request, _ error: MemQError) -> Bool {
    guard request.isPlain, let last = error.limit.flatMap({ Int32(exactly: $0) }) else {
      return false
    }
    let rest = try? request.batch.message.contiguous().withBytes { bytes throws(MemQError) in
      try SequenceCut.rest(of: bytes, after: last)
    }
    guard let rest else { return false }
    self.requests[id]!.batch.message = RPCMessage(ByteBuffer(bytes: rest.batch))
    self.requests[id]!.dropped += Int32(rest.dropped)
    return true
  }

  // MARK: Answering

  private func settle(_ id: UInt64, _ result: AppendResult) {
    guard let request = self.requests[id] else { return }
    var result = result
    if case .failure(let error) = result, request.mayStand, error.isRetriable {
      // That the last attempt was refused says nothing of an earlier one.
      result = .failure(
        MemQError(
          .outcomeUnknown, "an earlier attempt was not confirmed; the last one: \(error)",
          subject: error.subject))
    }
    let succeeded = if case .success = result { true } else { false }
    self.lines[request.partition]?.settle(id, succeeded: succeeded)
    self.forget(id)
    self.context.metrics.settled(
      result, request, took: self.context.service.clock.monotonic - request.receivedAt)
    if request.acks != .none {
      self.reply(Memq_V1_ProduceResponse(request, result))
    }
    self.returnCredit()
    self.finishIfDone()
  }

  private func forget(_ id: UInt64) {
    guard let request = self.requests.removeValue(forKey: id) else { return }
    self.inFlightBytes -= request.charge
    self.context.load.remove(request.charge)
  }

  /// Answers a request that never entered a line.
  private func refuse(_ header: Memq_V1_ProduceRequest, _ error: MemQError) {
    self.context.metrics.refused(error.code)
    guard header.acks != .none else { return }
    self.reply(
      .with {
        $0.requestID = header.requestID
        $0.partition = header.partition
        $0.baseOffset = -1
        $0.error = Memq_V1_ErrorDetail(error)
      })
  }

  private func reply(_ response: Memq_V1_ProduceResponse) {
    guard !self.isOver else { return }
    self.hasRoomForReplies = self.call.send(response.encoded())
  }

  /// Lets the client send on, as far as the bounds allow.
  private func returnCredit() {
    guard self.creditOwed > 0, self.hasRoomForReplies, !self.isOver,
      self.inFlightBytes < self.context.configuration.streamBytesMax,
      self.inFlightBytes < Self.floorBytes || !self.context.load.isFull
    else { return }
    self.call.consumed(self.creditOwed)
    self.creditOwed = 0
  }

  // MARK: Time

  private func scheduleTick() {
    guard self.tick == nil, !self.isOver else { return }
    self.tick = self.loop.scheduleTask(in: Self.tickEvery) {
      self.tick = nil
      self.ticked()
    }
  }

  private func ticked() {
    let now = self.context.service.clock.monotonic
    for partition in Array(self.lines.keys) {
      for id in self.lines[partition]?.expired(at: now) ?? [] {
        let last = self.requests[id]?.lastError
        self.settle(
          id,
          .failure(
            last
              ?? MemQError(
                .deadlineExceeded, "the request's time was over before it could be appended")))
      }
      self.pump(partition)
    }
  }
}

extension Memq_V1_ProduceResponse {
  fileprivate init(_ request: ProduceStream.Request, _ result: AppendResult) {
    self.init()
    self.requestID = request.clientID
    self.partition = request.partition.partition.rawValue
    self.recordCount = request.batch.recordCount
    self.baseOffset = -1
    switch result {
    case .success(let reply):
      // A batch that was cut began at an offset that nobody knows any more.
      if let base = reply.base, request.dropped == 0 { self.baseOffset = base.rawValue }
      self.duplicate = reply.isDuplicate
      self.appendTimeMs = reply.appendTime.milliseconds
    case .failure(let error): self.error = Memq_V1_ErrorDetail(error)
    }
  }
}
