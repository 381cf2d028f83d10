// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension PartitionLeader {
  mutating func append(
    _ request: AppendRequest, at now: MonotonicInstant, into effects: inout [ReplicationEffect]
  ) {
    if let refusal = self.refusal(of: request, at: now) {
      effects.append(.reply(token: request.token, .refused(refusal)))
      return
    }
    switch self.verdict(on: request) {
    case .fresh:
      self.write(request, into: &effects)
    case .duplicate(let base, let end):
      self.reply(request, .duplicate(base: base), after: end, into: &effects)
    case .straddles(let last, let end):
      self.reply(request, .refused(.sequenceStraddles(last: last)), after: end, into: &effects)
    case .outOfOrder(let last, let end):
      self.reply(request, .refused(.outOfOrderSequence(last: last)), after: end, into: &effects)
    case .fenced(let current, let end):
      self.reply(request, .refused(.producerFenced(current: current)), after: end, into: &effects)
    case .unknownProducer:
      effects.append(.reply(token: request.token, .refused(.unknownProducer)))
    case .fileSequenceInvalid:
      effects.append(.reply(token: request.token, .refused(.fileSequenceInvalid)))
    case .filesFull(let limit):
      effects.append(.reply(token: request.token, .refused(.overloaded(limit: limit))))
    }
  }

  /// Reasons that rest on nothing in the log; nil: go on.
  private func refusal(of request: AppendRequest, at now: MonotonicInstant) -> AppendRefusal? {
    if let known = request.leaderEpoch, known != self.epoch {
      return known < self.epoch
        ? .fencedLeaderEpoch(current: self.epoch) : .unknownLeaderEpoch(current: self.epoch)
    }
    // Nothing is taken up after its deadline: the sender may have told somebody that it failed.
    if request.deadline <= now { return .outcomeUnknown }
    if request.acks == .all && !self.isLargeEnough {
      return .notEnoughReplicas(inSync: self.isr.committed.count, minimum: self.minISR)
    }
    if self.pendingReplies >= self.configuration.pendingRepliesMax {
      return .overloaded(limit: self.configuration.pendingRepliesMax)
    }
    if self.log.producers.batchesAboveSnapshot >= self.configuration.uncommittedBatchesMax {
      return .overloaded(limit: self.configuration.uncommittedBatchesMax)
    }
    return nil
  }

  private func verdict(on request: AppendRequest) -> SequenceVerdict {
    guard request.producerID.rawValue >= 0, request.baseSequence >= 0,
      !self.weaknesses.contains(.skipSequenceCheck)
    else { return .fresh }
    return self.log.producers.judge(
      request.producerID, request.producerEpoch, base: request.baseSequence,
      count: request.recordCount)
  }

  private mutating func write(
    _ request: AppendRequest, into effects: inout [ReplicationEffect]
  ) {
    let base = self.log.end
    let end = base + request.recordCount
    let batch = BatchSummary(
      baseOffset: base, endOffset: end, leaderEpoch: self.epoch, producerID: request.producerID,
      producerEpoch: request.producerEpoch, baseSequence: request.baseSequence,
      maxTimestamp: request.maxTimestamp, appendTime: request.appendTime)
    let number = self.log.append(batch)
    effects.append(.write(number, batch, token: request.token))
    let outcome = AppendOutcome.appended(base: base, end: end, at: request.appendTime)
    self.reply(request, outcome, after: end, into: &effects)
    if self.weaknesses.contains(.ackBeforeSync) { self.advanceHighWatermark(into: &effects) }
  }

  /// Answers once the log is as safe below `end` as the request's acks ask for. That holds for refusals
  /// too: telling a producer its last sequence acknowledges what it sent before.
  private mutating func reply(
    _ request: AppendRequest, _ outcome: AppendOutcome, after end: Offset,
    into effects: inout [ReplicationEffect]
  ) {
    var acks = request.acks
    if acks == .all && self.weaknesses.contains(.answerBeforeCommit) { acks = .leader }
    if case .appended = outcome {
    } else if self.weaknesses.contains(.answerDuplicatesAtOnce) {
      acks = .none
    }
    switch acks {
    case .none:
      effects.append(.reply(token: request.token, outcome))
    case .leader:
      guard end > self.countedEnd else {
        return effects.append(.reply(token: request.token, outcome))
      }
      self.durableReplies.add(request.token, after: end, outcome, deadline: request.deadline)
    case .all:
      guard end > self.highWatermark else {
        return effects.append(.reply(token: request.token, outcome))
      }
      self.committedReplies.add(request.token, after: end, outcome, deadline: request.deadline)
    }
  }
}
