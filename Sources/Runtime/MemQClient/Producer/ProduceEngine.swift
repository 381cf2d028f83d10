// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQModel
import MemQRPC
import MemQRecords
import NIOCore

/// The wire's side of a producer: one stream to a server, opened again when it breaks. Everything but `wake` and `flush` happens on the
/// event loop.
final class ProduceEngine: @unchecked Sendable {
  struct Identity {
    var topic: String
    var partitions: Int
    /// `.none`: without sequences.
    var producerID: ProducerID
    var epoch: ProducerEpoch
    var compression: Compression
  }

  private struct Flush {
    let lastID: Int64
    var records: Int
    let continuation: UnsafeContinuation<Void, Never>
  }

  /// How often deadlines are looked at while something is unacknowledged.
  private static let tickInterval: TimeAmount = .milliseconds(250)

  let loop: any EventLoop
  let accumulator: RecordAccumulator
  private let servers: Servers
  private let identity: Identity
  private let configuration: Producer.Configuration
  private let logger: Logger

  private var lanes: [PartitionLane]
  /// Lanes that hold batches.
  private var busy: Set<Int> = []
  /// Which partition a request went to.
  private var requests: [UInt64: Int] = [:]
  private var nextRequest: UInt64 = 1
  private var call: RPCClientCall?
  private var callAddress = ""
  private var generation = 0
  private var hasRoom = true
  private var reconnectAt: NIODeadline?
  private var backoff = Backoff()
  private var firstLane = 0
  private var isFetchingEpoch = false
  private var isClosing = false
  private var timer: (at: NIODeadline, task: Scheduled<Void>)?
  private var flushes: [Flush] = []
  /// First failure of a record that has no handler, since the last `flush`.
  private var unheard: MemQError?
  /// Called when the stream has ended, by who closes the producer.
  private var onStreamEnd: ((RPCStatus) -> Void)?

  init(
    servers: Servers, identity: Identity, configuration: Producer.Configuration,
    accumulator: RecordAccumulator, logger: Logger
  ) {
    self.servers = servers
    self.identity = identity
    self.configuration = configuration
    self.accumulator = accumulator
    self.logger = logger
    self.loop = servers.channel(.produce).channel.eventLoop
    self.lanes = (0..<identity.partitions).map { _ in
      PartitionLane(
        producerID: identity.producerID, epoch: identity.epoch,
        inFlightMax: configuration.inFlightMax)
    }
  }

  /// From any thread: the accumulator has something.
  func wake() {
    self.loop.execute { self.pump() }
  }

  /// Returns when everything appended before is done, one way or the other.
  ///
  /// - Throws: the first failure of a record that has no handler.
  func flush() async throws(MemQError) {
    await withUnsafeContinuation { continuation in
      self.loop.execute {
        let (lastID, records) = self.accumulator.closeAll()
        guard records > 0 else { return continuation.resume() }
        self.flushes.append(Flush(lastID: lastID, records: records, continuation: continuation))
        self.pump()
      }
    }
    let failure = await self.takeUnheard()
    if let failure { throw failure }
  }

  private func takeUnheard() async -> MemQError? {
    await withUnsafeContinuation { continuation in
      self.loop.execute {
        defer { self.unheard = nil }
        continuation.resume(returning: self.unheard)
      }
    }
  }

  // MARK: Sending

  private func pump() {
    self.loop.preconditionInEventLoop()
    self.accumulator.beginLook()
    let now = NIODeadline.now()
    let active = self.accumulator.activePartitions()
    // Turns: with a full stream the partition that comes first must not be the same each time.
    self.firstLane = self.lanes.isEmpty ? 0 : (self.firstLane + 1) % self.lanes.count
    var wakeAt = NIODeadline.distantFuture
    for index in self.inTurn(active) {
      self.pump(lane: index, now)
      if let at = self.lanes[index].wakeAt, at > now, self.lanes[index].hasWaiting {
        wakeAt = min(wakeAt, at)
      }
      if let at = self.accumulator.lingersUntil(index), at > now { wakeAt = min(wakeAt, at) }
    }
    if !self.busy.isEmpty || !active.isEmpty { wakeAt = min(wakeAt, now + Self.tickInterval) }
    if let at = self.reconnectAt, at > now { wakeAt = min(wakeAt, at) }
    self.schedule(wakeAt)
  }

  /// Partitions with something to do, each once.
  private func inTurn(_ active: [Int]) -> [Int] {
    let sorted = self.busy.union(active).sorted()
    let at = sorted.firstIndex { $0 >= self.firstLane } ?? 0
    return Array(sorted[at...]) + sorted[..<at]
  }

  private func pump(lane index: Int, _ now: NIODeadline) {
    self.fetchEpochIfWanted(index)
    let repeatable = now - TimeAmount(self.configuration.deliveryTimeout - self.answerTime * 2)
    while self.hasRoom, self.openIfNeeded(now), self.lanes[index].hasRoom(now) {
      if !self.lanes[index].hasWaiting {
        guard let batch = self.accumulator.take(index, now) else { return }
        if let error = batch.lastError {
          self.complete(batch, .failure(error))
          continue
        }
        self.lanes[index].add(batch)
        self.busy.insert(index)
      }
      // Refused, and too late for another attempt to be answered in time: that stays what is known of it.
      if self.lanes[index].isTooLateToRepeat(createdBefore: repeatable) { return }
      guard let batch = self.lanes[index].send(request: self.nextRequest, at: now) else { return }
      self.send(batch, index)
    }
  }

  private func send(_ batch: ProduceBatch, _ index: Int) {
    let request = self.nextRequest
    self.nextRequest += 1
    var header = Memq_V1_ProduceRequest()
    header.requestID = request
    header.topic = self.identity.topic
    header.partition = batch.partition.rawValue
    switch self.configuration.acks {
    case .none: header.acks = .none
    case .leader: header.acks = .leader
    case .all: header.acks = .all
    }
    header.timeoutMs = self.timeout(of: batch)
    let message = Hot(header, payload: RPCMessage(batch.bytes)).encoded()
    self.hasRoom = self.call!.send(message)
    if self.configuration.acks == .none, let sent = self.lanes[index].forget(request: request) {
      self.complete(sent, .success(nil))
    } else {
      self.requests[request] = index
    }
  }

  /// What a request may take: less than its records are waited for, so that the server's answer, which may come at the very end of that
  /// time, still says what became of them. Milliseconds.
  private func timeout(of batch: ProduceBatch) -> Int32 {
    let left =
      (batch.createdAt + TimeAmount(self.configuration.deliveryTimeout) - .now())
      .nanoseconds / 1_000_000
    let answered = Swift.max(left - self.answerTime.milliseconds, left / 2)
    return Int32(
      clamping: Swift.max(1, Swift.min(self.configuration.requestTimeout.milliseconds, answered)))
  }

  /// How long before the end of a delivery's time the server has to answer. Short beside it, and yet more than a busy machine's pauses.
  private var answerTime: Duration {
    Swift.min(.seconds(1), self.configuration.deliveryTimeout / 5)
  }

  // MARK: The stream

  /// True: there is a stream to send on.
  private func openIfNeeded(_ now: NIODeadline) -> Bool {
    if self.call != nil { return true }
    if let at = self.reconnectAt, at > now { return false }
    self.reconnectAt = nil
    let (address, channel) = self.servers.channel(.produce)
    self.generation += 1
    self.callAddress = address
    self.call = channel.start(IngestMethods.produce.rpc) { call in
      StreamHandler(engine: self, call, generation: self.generation)
    }
    return true
  }

  fileprivate func received(_ message: RPCMessage, generation: Int) {
    guard generation == self.generation, self.call != nil else { return }
    self.backoff.reset()
    do {
      self.answered(try Memq_V1_ProduceResponse(decoding: message))
    } catch {
      self.breakStream(error)
    }
    self.pump()
  }

  private func answered(_ response: Memq_V1_ProduceResponse) {
    guard let index = self.requests.removeValue(forKey: response.requestID) else { return }
    let result: Result<Offset?, MemQError> =
      response.hasError
      ? .failure(MemQError(response.error))
      : .success(response.baseOffset < 0 ? nil : Offset(response.baseOffset))
    let verdict = self.lanes[index].answered(
      request: response.requestID, result, at: .now())
    switch verdict {
    case .done(let batch, let result): self.complete(batch, result)
    case .again, .stale: break
    case .tooLarge(let batch, let at, let error): self.split(batch, at, error, lane: index)
    }
  }

  private func split(_ batch: ProduceBatch, _ at: Int, _ error: MemQError, lane index: Int) {
    do {
      let halves = try batch.halves(self.identity.compression)
      self.lanes[index].putBack(halves, of: batch, at: at)
    } catch {
      self.complete(batch, .failure(error))
    }
  }

  fileprivate func writable(generation: Int) {
    guard generation == self.generation else { return }
    self.hasRoom = true
    self.pump()
  }

  fileprivate func ended(_ status: RPCStatus, generation: Int) {
    guard generation == self.generation, self.call != nil else { return }
    self.call = nil
    self.hasRoom = true
    self.requests = [:]
    self.onStreamEnd?(status)
    self.onStreamEnd = nil
    guard !self.isClosing else { return }
    let error =
      status.isOK ? MemQError(.shuttingDown, "the server ended the stream") : MemQError(status)
    if Self.isFinal(status, error) {
      for index in self.lanes.indices {
        for batch in self.lanes[index].takeOutstanding() { self.complete(batch, .failure(error)) }
      }
    } else {
      for index in self.lanes.indices { self.lanes[index].streamLost(error) }
      self.servers.failed(self.callAddress)
    }
    self.logger.debug(
      "Produce stream ended",
      metadata: ["server": "\(self.callAddress)", "error": "\(error)"])
    self.reconnectAt = .now() + TimeAmount(self.backoff.step())
    self.pump()
  }

  /// An error that a repetition would meet again. A broken connection shows up under many codes; only a status that carries a reason of
  /// ours, or says that the request itself is wrong, is final.
  private static func isFinal(_ status: RPCStatus, _ error: MemQError) -> Bool {
    guard !status.isOK, !error.isRetriable else { return false }
    switch status.code {
    case .invalidArgument, .notFound, .permissionDenied, .failedPrecondition, .unimplemented,
      .unauthenticated, .alreadyExists, .outOfRange, .resourceExhausted:
      return true
    case .ok, .cancelled, .unknown, .deadlineExceeded, .aborted, .internal, .unavailable, .dataLoss:
      return !status.details.isEmpty
    }
  }

  /// The server says nonsense, or nothing: another stream.
  private func breakStream(_ error: MemQError) {
    guard let call = self.call else { return }
    self.logger.warning("Produce stream given up", metadata: ["error": "\(error)"])
    call.cancel()
    self.ended(RPCStatus(.unavailable, error.message), generation: self.generation)
  }

  // MARK: Epochs

  private func fetchEpochIfWanted(_ index: Int) {
    guard self.lanes[index].wantsEpoch, !self.isFetchingEpoch else { return }
    self.isFetchingEpoch = true
    var request = Memq_V1_InitProducerRequest()
    request.producerID = self.lanes[index].producerID.rawValue
    let (servers, loop, deadline) = (self.servers, self.loop, self.configuration.deliveryTimeout)
    let asked = request
    Task {
      let result: Result<Memq_V1_InitProducerResponse, MemQError>
      do throws(MemQError) {
        result = .success(
          try await servers.call(
            IngestMethods.initProducer, asked, timeout: .seconds(10), retryFor: deadline))
      } catch {
        result = .failure(error)
      }
      loop.execute { self.gotEpoch(result) }
    }
  }

  private func gotEpoch(_ result: Result<Memq_V1_InitProducerResponse, MemQError>) {
    self.isFetchingEpoch = false
    switch result {
    case .success(let response):
      let epoch = ProducerEpoch(Int16(clamping: response.producerEpoch))
      for index in self.lanes.indices where self.lanes[index].wantsEpoch {
        self.lanes[index].renew(ProducerID(response.producerID), epoch)
      }
    case .failure(let error):
      self.failAll(error)
    }
    self.pump()
  }

  // MARK: Time

  private func schedule(_ at: NIODeadline) {
    if let timer = self.timer {
      if timer.at <= at && timer.at > .now() { return }
      timer.task.cancel()
      self.timer = nil
    }
    guard at < .distantFuture else { return }
    let task = self.loop.scheduleTask(deadline: at) {
      self.timer = nil
      self.tick()
    }
    self.timer = (at, task)
  }

  private func tick() {
    let now = NIODeadline.now()
    let expired = now - TimeAmount(self.configuration.deliveryTimeout)
    for index in self.lanes.indices {
      for batch in self.lanes[index].takeExpired(before: expired) { self.expire(batch) }
    }
    for index in self.accumulator.activePartitions() {
      while let batch = self.accumulator.takeExpired(index, before: expired) { self.expire(batch) }
    }
    // The server answers at its deadline; a stream that is silent well past it is dead.
    let silent = now - TimeAmount(self.configuration.requestTimeout) - .seconds(5)
    if self.lanes.contains(where: { $0.isOverdue(before: silent) }) {
      self.breakStream(MemQError(.deadlineExceeded, "the server did not answer in time"))
    }
    self.pump()
  }

  private func expire(_ batch: ProduceBatch) {
    let why = batch.lastError.map { "; the last attempt: \($0)" } ?? ""
    let seconds = self.configuration.deliveryTimeout.components.seconds
    let isOpen = batch.mayStand || batch.state != .waiting
    let error = MemQError(
      isOpen ? .outcomeUnknown : batch.lastError?.code ?? .deadlineExceeded,
      "not acknowledged within \(seconds) s after \(batch.attempts) attempts\(why)",
      subject: "\(self.identity.topic)/\(batch.partition)")
    self.complete(batch, .failure(error))
  }

  // MARK: The end of batches

  private func complete(_ batch: ProduceBatch, _ result: Result<Offset?, MemQError>) {
    var result = result
    if case .failure(var error) = result {
      if error.subject.isEmpty { error.subject = "\(self.identity.topic)/\(batch.partition)" }
      result = .failure(error)
      if batch.hasSilentRecords && self.unheard == nil { self.unheard = error }
      // Somebody else uses the producer's number, or its topic is gone: nothing will succeed any more.
      if error.code == .producerFenced || error.code == .topicDeleted {
        self.accumulator.fail(error)
      }
    }
    batch.complete(result)
    self.accumulator.release(batch)
    let index = Int(batch.partition.rawValue)
    if self.lanes[index].batches.isEmpty { self.busy.remove(index) }
    self.countDown(batch)
  }

  private func countDown(_ batch: ProduceBatch) {
    guard !self.flushes.isEmpty else { return }
    for index in self.flushes.indices where batch.id <= self.flushes[index].lastID {
      self.flushes[index].records -= batch.recordCount
    }
    let done = self.flushes.filter { $0.records <= 0 }
    self.flushes.removeAll { $0.records <= 0 }
    for flush in done { flush.continuation.resume() }
  }

  private func failAll(_ error: MemQError) {
    self.accumulator.fail(error)
    for index in self.lanes.indices {
      for batch in self.lanes[index].takeAll() { self.complete(batch, .failure(error)) }
    }
    _ = self.accumulator.closeAll()
    for index in self.accumulator.activePartitions() {
      while let batch = self.accumulator.take(index, .now()) {
        self.complete(batch, .failure(error))
      }
    }
  }

  // MARK: Closing

  /// Ends the stream behind everything sent on it; what is not done by then fails.
  ///
  /// - Returns: how the stream ended; nil when there was none.
  func close(timeout: Duration) async -> RPCStatus? {
    await withUnsafeContinuation { continuation in
      self.loop.execute {
        self.isClosing = true
        guard let call = self.call else {
          self.finish()
          return continuation.resume(returning: nil)
        }
        call.halfClose()
        let limit = self.loop.scheduleTask(in: TimeAmount(timeout)) { call.cancel() }
        self.onStreamEnd = { status in
          limit.cancel()
          self.finish()
          continuation.resume(returning: status)
        }
      }
    }
  }

  private func finish() {
    self.failAll(MemQError(.cancelled, "the producer was closed"))
    self.timer?.task.cancel()
    self.timer = nil
  }
}

/// One stream's handler: brings events to the engine's loop, with the stream's number.
private final class StreamHandler: RPCClientHandler, @unchecked Sendable {
  private let engine: ProduceEngine
  private let generation: Int
  /// Let go at the end: the call holds its handler.
  private var call: RPCClientCall?

  init(engine: ProduceEngine, _ call: RPCClientCall, generation: Int) {
    self.engine = engine
    self.call = call
    self.generation = generation
  }

  func received(_ message: RPCMessage) {
    self.call?.consumed(message.byteCount)
    self.hop { $0.received(message, generation: $1) }
  }

  func writable() {
    self.hop { $0.writable(generation: $1) }
  }

  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    self.hop { $0.ended(status, generation: $1) }
    self.call = nil
  }

  private func hop(_ body: @escaping @Sendable (ProduceEngine, Int) -> Void) {
    let (engine, generation) = (self.engine, self.generation)
    // Never inside the engine's own call of `send`: its state is half changed then.
    engine.loop.execute { body(engine, generation) }
  }
}
