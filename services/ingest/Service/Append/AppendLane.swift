// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQAPI
import MemQModel
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOCore

/// One append stream from one event loop to one leader, shared by every produce stream of that loop.
///
/// Requests leave in the order they came; replies find theirs by request id. When the stream breaks, what was given to it
/// fails with `.outcomeUnknown` (it may or may not have been appended), what never left with `.unavailable`, and the next
/// request opens a new one. Bounded by the bytes in flight that produce streams are allowed together. Everything here happens
/// on `loop`.
final class AppendLane: @unchecked Sendable {
  private struct Waiting {
    let deadline: MonotonicInstant
    let done: (AppendResult) -> Void
  }

  /// How long after a request's deadline the leader's own answer is still waited for.
  private static let grace: Duration = .milliseconds(500)
  private static let sweepEvery = TimeAmount.milliseconds(250)

  private let loop: any EventLoop
  private let clock: any MemQClock
  private let open: () throws(MemQError) -> any RPCChannel
  private let isAlive: () -> Bool
  private var stream: LaneStream?
  private var isWritable = true
  private var unsent = Deque<(id: UInt64, message: RPCMessage, isAnswered: Bool)>()
  /// Requests the stream has no room for. On the loop.
  var unsentCount: Int { self.unsent.count }
  private var waiting: [UInt64: Waiting] = [:]
  private var lastID: UInt64 = 0
  private var sweep: Scheduled<Void>?

  /// - Parameters:
  ///   - open: the channel to the leader, asked for each new stream.
  ///   - isAlive: whether the cluster still counts on the leader's node: one that hangs keeps its connections.
  init(
    loop: any EventLoop, clock: any MemQClock,
    open: @escaping () throws(MemQError) -> any RPCChannel, isAlive: @escaping () -> Bool
  ) {
    self.loop = loop
    self.clock = clock
    self.open = open
    self.isAlive = isAlive
  }

  /// Sends a batch; `done` is called once, on the loop, later. Without acknowledgement it is called when the batch was
  /// given to the stream.
  func append(_ job: AppendJob, done: @escaping (AppendResult) -> Void) {
    self.loop.preconditionInEventLoop()
    do throws(MemQError) {
      try self.connect()
    } catch {
      return self.later { done(.failure(error)) }
    }
    self.lastID += 1
    let isAnswered = job.acks != .none
    self.waiting[self.lastID] = Waiting(deadline: job.deadline, done: done)
    self.unsent.append((self.lastID, self.encode(job, self.lastID), isAnswered))
    self.flush()
    self.scheduleSweep()
  }

  private func encode(_ job: AppendJob, _ id: UInt64) -> RPCMessage {
    var header = Memq_V1_AppendRequest()
    header.requestID = id
    header.topicPartition = job.partition.wire
    header.leaderEpoch = job.leaderEpoch.rawValue
    header.acks = job.acks
    let left = (job.deadline - self.clock.monotonic).milliseconds
    header.timeoutMs = Int32(clamping: max(1, left))
    return Hot(header, payload: job.batch).encoded()
  }

  private func connect() throws(MemQError) {
    guard self.stream == nil else { return }
    let channel = try self.open()
    _ = channel.start(ReplicationMethods.append.rpc) { call in
      let handler = LaneStream(self, call)
      self.stream = handler
      return handler
    }
    self.isWritable = true
  }

  private func flush() {
    guard let call = self.stream?.call else { return }
    while self.isWritable, let next = self.unsent.popFirst() {
      // Timed out while it waited: nobody is left to tell.
      guard let waiting = self.waiting[next.id] else { continue }
      self.isWritable = call.send(next.message)
      guard !next.isAnswered else { continue }
      self.waiting[next.id] = nil
      self.later { waiting.done(.success(AppendReply())) }
    }
  }

  private func later(_ body: @escaping () -> Void) {
    let body = UnsafeTransfer(body)
    self.loop.execute { body.value() }
  }

  // MARK: The stream's side

  fileprivate func onLoop(_ body: @escaping @Sendable () -> Void) {
    if self.loop.inEventLoop { body() } else { self.loop.execute(body) }
  }

  fileprivate func received(_ message: RPCMessage, on handler: LaneStream) {
    guard handler === self.stream else { return }
    handler.call.consumed(message.byteCount)
    guard let reply = try? Memq_V1_AppendResponse(decoding: message) else {
      // Replies can't be matched any more.
      handler.call.cancel()
      return
    }
    self.waiting.removeValue(forKey: reply.requestID)?.done(reply.result)
  }

  fileprivate func writable(_ handler: LaneStream) {
    guard handler === self.stream else { return }
    self.isWritable = true
    self.flush()
  }

  fileprivate func ended(_ status: RPCStatus, on handler: LaneStream) {
    guard handler === self.stream else { return }
    self.stream = nil
    let firstUnsent = self.unsent.first?.id ?? .max
    self.unsent.removeAll()
    let error = MemQError(status)
    let message = "the stream to the leader ended: \(error.message)"
    // Whatever the reason was: the leader may have appended what it did not answer, and one that is not idempotent must not
    // be sent again then.
    let sent = MemQError(
      status.isUnsent ? .unavailable : .outcomeUnknown, message, subject: error.subject)
    let unsent = MemQError(.unavailable, message, subject: error.subject)
    let lost = self.waiting.sorted { $0.key < $1.key }
    self.waiting.removeAll()
    for (id, waiting) in lost { waiting.done(.failure(id < firstUnsent ? sent : unsent)) }
  }

  // MARK: Time

  private func scheduleSweep() {
    guard self.sweep == nil, !self.waiting.isEmpty else { return }
    self.sweep = self.loop.scheduleTask(in: Self.sweepEvery) { [weak self] in
      guard let self else { return }
      self.sweep = nil
      self.giveUpIfDead()
      self.failLate()
      self.scheduleSweep()
    }
  }

  /// What waits for a node that the cluster gave up is better asked of the next leader.
  private func giveUpIfDead() {
    guard let stream = self.stream, !self.isAlive() else { return }
    stream.call.cancel()
    self.ended(RPCStatus(.unavailable, "the cluster has given the leader's node up"), on: stream)
  }

  private func failLate() {
    let now = self.clock.monotonic
    for (id, waiting) in self.waiting where waiting.deadline + Self.grace < now {
      self.waiting[id] = nil
      waiting.done(
        .failure(
          MemQError(.outcomeUnknown, "the leader did not answer in time; an idempotent retry tells")
        ))
    }
    // A leader that takes nothing for long must not make a heap of what nobody waits for.
    self.unsent.removeAll { self.waiting[$0.id] == nil }
  }

  /// Ends the stream; what is on it fails.
  func close() {
    self.onLoop { self.stream?.call.cancel() }
  }
}

/// Receives for one life of a lane's stream, on whatever loop the call lives.
private final class LaneStream: RPCClientHandler, @unchecked Sendable {
  private let lane: AppendLane
  let call: RPCClientCall

  init(_ lane: AppendLane, _ call: RPCClientCall) {
    self.lane = lane
    self.call = call
  }

  func received(_ message: RPCMessage) {
    self.lane.onLoop { self.lane.received(message, on: self) }
  }
  func writable() {
    self.lane.onLoop { self.lane.writable(self) }
  }
  func ended(_ status: RPCStatus, trailers: RPCMetadata) {
    self.lane.onLoop { self.lane.ended(status, on: self) }
  }
}

/// Carries a value to a later turn of the same loop.
struct UnsafeTransfer<Value>: @unchecked Sendable {
  let value: Value
  init(_ value: Value) { self.value = value }
}

extension Memq_V1_AppendResponse {
  fileprivate var result: AppendResult {
    guard !self.hasError else { return .failure(MemQError(self.error)) }
    return .success(
      AppendReply(
        base: self.baseOffset >= 0 ? Offset(self.baseOffset) : nil,
        end: self.baseOffset >= 0 ? Offset(self.endOffset) : nil, isDuplicate: self.duplicate,
        appendTime: Timestamp(milliseconds: self.appendTimeMs)))
  }
}
