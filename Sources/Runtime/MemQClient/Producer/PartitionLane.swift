// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import NIOCore

/// Decides, for one partition of one producer, what is sent next and what an answer means. Time is an argument.
///
/// Batches leave in order. When one must be sent again nothing more leaves until every answer is there; then all that is left goes again
/// from the first one, with the same sequences, so that order holds and nothing is appended twice.
///
/// A refused batch leaves a gap in the sequence. The server then refuses what follows as out of order, which says for certain that it was
/// not appended: the lane asks for a new producer epoch and numbers what is left from 0.
struct PartitionLane {
  enum Verdict {
    /// The batch is done, one way or the other.
    case done(ProduceBatch, Result<Offset?, MemQError>)
    /// It will be sent again.
    case again
    /// The server finds it too large: it was taken out of this place, to be put back there in halves.
    case tooLarge(ProduceBatch, at: Int, MemQError)
    /// Nobody waits for this answer any more.
    case stale
  }

  /// All batches without an answer, in order.
  private(set) var batches = Deque<ProduceBatch>()
  private(set) var outstanding = 0
  private(set) var producerID: ProducerID
  private(set) var epoch: ProducerEpoch
  private(set) var needsEpoch = false
  private var nextSequence: Int32 = 0
  private let inFlightMax: Int
  /// Something must be sent again: wait until nothing is outstanding.
  private var isRewinding = false
  private var retryAt: NIODeadline?
  private var backoff = Backoff()

  /// - Parameter producerID: `.none`: without sequences.
  init(producerID: ProducerID, epoch: ProducerEpoch, inFlightMax: Int) {
    self.producerID = producerID
    self.epoch = epoch
    self.inFlightMax = inFlightMax
  }

  private var usesSequences: Bool { self.producerID != .none }

  /// Whether one more batch may leave now.
  func hasRoom(_ now: NIODeadline) -> Bool {
    guard self.outstanding < self.inFlightMax, !self.needsEpoch else { return false }
    if self.isRewinding && self.outstanding > 0 { return false }
    if let retryAt = self.retryAt { return retryAt <= now }
    return true
  }

  /// When `hasRoom` may turn true by time alone.
  var wakeAt: NIODeadline? { self.outstanding == 0 && !self.needsEpoch ? self.retryAt : nil }

  /// Whether a batch is here that was not sent, or must be sent again.
  var hasWaiting: Bool { self.batches.count > self.outstanding }

  /// A new producer epoch may be asked for: no answer is missing.
  var wantsEpoch: Bool { self.needsEpoch && self.outstanding == 0 }

  /// Takes a batch behind the others.
  mutating func add(_ batch: ProduceBatch) {
    var batch = batch
    if self.usesSequences { self.number(&batch) }
    self.batches.append(batch)
  }

  private mutating func number(_ batch: inout ProduceBatch) {
    batch.stamp(self.producerID, self.epoch, sequence: self.nextSequence)
    self.nextSequence = ProduceBatch.sequence(self.nextSequence, after: batch.recordCount)
  }

  /// The next batch to send as `request`; nil when there is none or it may not leave yet.
  mutating func send(request: UInt64, at now: NIODeadline) -> ProduceBatch? {
    guard self.hasWaiting, self.hasRoom(now) else { return nil }
    self.isRewinding = false
    self.retryAt = nil
    // What is outstanding stands in front of what waits.
    self.batches[self.outstanding].state = .outstanding(request: request, sentAt: now)
    self.batches[self.outstanding].attempts += 1
    self.outstanding += 1
    return self.batches[self.outstanding - 1]
  }

  /// Whether the next batch to send was refused before, so that nothing of it stands, and is older than `cutoff`.
  func isTooLateToRepeat(createdBefore cutoff: NIODeadline) -> Bool {
    guard self.hasWaiting else { return false }
    let next = self.batches[self.outstanding]
    return next.attempts > 0 && !next.mayStand && next.lastError != nil && next.createdAt < cutoff
  }

  /// Takes the batch sent as `request` out without an answer: with `acks` none there is none.
  mutating func forget(request: UInt64) -> ProduceBatch? {
    guard let at = self.index(of: request) else { return nil }
    self.outstanding -= 1
    return self.batches.remove(at: at)
  }

  private func index(of request: UInt64) -> Int? {
    self.batches.firstIndex {
      if case .outstanding(request, _) = $0.state { true } else { false }
    }
  }

  /// The server answered.
  mutating func answered(
    request: UInt64, _ result: Result<Offset?, MemQError>, at now: NIODeadline
  ) -> Verdict {
    guard let at = self.index(of: request) else { return .stale }
    self.outstanding -= 1
    switch result {
    case .success:
      self.backoff.reset()
      return .done(self.batches.remove(at: at), result)
    case .failure(let error):
      return self.refused(at, error, now)
    }
  }

  private mutating func refused(_ at: Int, _ error: MemQError, _ now: NIODeadline) -> Verdict {
    switch error.code {
    case .duplicateSequence:
      self.backoff.reset()
      return .done(self.batches.remove(at: at), .success(nil))
    case .outOfOrderSequence where self.usesSequences, .unknownProducer where self.usesSequences:
      // With an earlier batch unanswered, or to be sent again, this one only came too early.
      if at == 0 { self.needsEpoch = true }
      self.rewind(at, error, now)
      return .again
    case .recordBatchTooLarge where self.batches[at].recordCount > 1:
      self.holdRest(from: at, now)
      return .tooLarge(self.batches.remove(at: at), at: at, error)
    default:
      guard error.isRetriable else { return .done(self.batches.remove(at: at), .failure(error)) }
      self.rewind(at, error, now)
      return .again
    }
  }

  private mutating func rewind(_ at: Int, _ error: MemQError, _ now: NIODeadline) {
    self.batches[at].lastError = error
    if error.code.leavesOutcomeOpen { self.batches[at].mayStand = true }
    self.holdRest(from: at, now)
  }

  /// Nothing leaves before the answers to what was sent are there and the back-off has passed.
  private mutating func holdRest(from at: Int, _ now: NIODeadline) {
    self.batches[at].state = .waiting
    if self.retryAt == nil { self.retryAt = now + TimeAmount(self.backoff.step()) }
    self.isRewinding = true
  }

  /// Puts the halves of `batch` where it stood, with its sequences.
  mutating func putBack(_ halves: [ProduceBatch], of batch: ProduceBatch, at: Int) {
    var halves = halves
    var sequence = batch.sequence
    if self.usesSequences {
      for index in halves.indices {
        halves[index].stamp(self.producerID, self.epoch, sequence: sequence)
        sequence = ProduceBatch.sequence(sequence, after: halves[index].recordCount)
      }
    }
    self.batches.insert(contentsOf: halves, at: at)
  }

  /// The stream is gone: no answer will come. What became of the batches nobody knows, so they go again.
  mutating func streamLost(_ error: MemQError) {
    guard self.outstanding > 0 else { return }
    for at in self.batches.indices where self.batches[at].state != .waiting {
      self.batches[at].state = .waiting
      self.batches[at].lastError = error
      self.batches[at].mayStand = true
    }
    self.outstanding = 0
    self.isRewinding = false
    self.retryAt = nil
  }

  /// Takes out all that is outstanding: the stream ended with an error that a repetition would meet again.
  mutating func takeOutstanding() -> [ProduceBatch] {
    let taken = self.batches.filter { $0.state != .waiting }
    self.batches.removeAll { $0.state != .waiting }
    self.outstanding = 0
    return Array(taken)
  }

  /// Takes everything out.
  mutating func takeAll() -> [ProduceBatch] {
    defer {
      self.batches = []
      self.outstanding = 0
    }
    return Array(self.batches)
  }

  /// Takes out what was there before `cutoff` and is not acknowledged.
  mutating func takeExpired(before cutoff: NIODeadline) -> [ProduceBatch] {
    var taken: [ProduceBatch] = []
    while let first = self.batches.first, first.createdAt < cutoff {
      if first.state != .waiting { self.outstanding -= 1 }
      taken.append(self.batches.removeFirst())
    }
    return taken
  }

  /// A request has been without an answer since before `cutoff`.
  func isOverdue(before cutoff: NIODeadline) -> Bool {
    self.batches.contains {
      if case .outstanding(_, let sentAt) = $0.state { sentAt < cutoff } else { false }
    }
  }

  /// Goes on under a new epoch: what is left is numbered from 0.
  ///
  /// - Precondition: nothing is outstanding.
  mutating func renew(_ id: ProducerID, _ epoch: ProducerEpoch) {
    precondition(self.outstanding == 0)
    self.producerID = id
    self.epoch = epoch
    self.nextSequence = 0
    self.needsEpoch = false
    self.isRewinding = false
    self.retryAt = nil
    for at in self.batches.indices {
      var batch = self.batches[at]
      self.number(&batch)
      self.batches[at] = batch
    }
  }
}
