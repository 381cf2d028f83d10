// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

extension World {
  private static let answerTimeout = 700 * millisecond

  /// Sends the batch that waits, or a new one.
  func clientStep(_ number: Int) {
    if self.clients[number].pending == nil {
      guard !self.clients[number].isStopped else { return }
      let values = self.clients[number].newValues(self.random.number(1...5))
      self.clients[number].pending = SimClient.Pending(values: values, attempt: 0)
    } else if self.clients[number].isIdempotent && self.random.chance(200) {
      // A retry cut differently: more records in it than were sent before.
      let more = self.clients[number].newValues(self.random.number(1...3))
      self.clients[number].pending!.values += more
    }
    self.clients[number].attempts += 1
    let client = self.clients[number]
    self.clients[number].pending!.attempt = client.attempts
    self.scheduler.schedule(
      .clientTimeout(number, attempt: client.attempts), after: Self.answerTimeout)
    guard let leader = client.leader else {
      return self.send(
        .whereIs(client: number, partition: client.partition), from: .client(number), to: .metadata)
    }
    let values = client.pending!.values
    self.send(
      .produce(
        client: number, partition: client.partition,
        ProduceRequest(
          attempt: client.attempts, values: values, producerID: client.producerID,
          baseSequence: client.isIdempotent
            ? Int32(truncatingIfNeeded: values[0] & 0xFFFF_FFFF) : -1,
          acks: client.acks, leaderEpoch: client.leaderEpoch)),
      from: .client(number), to: .node(leader))
  }

  func clientTimeout(_ number: Int, _ attempt: Int) {
    guard self.clients[number].pending?.attempt == attempt else { return }
    self.clients[number].leader = nil
    self.clientStep(number)
  }

  func clientReceived(_ number: Int, _ message: Message) throws(Shadow.Broken) {
    switch message {
    case .leaderIs(let node, let epoch):
      guard epoch >= self.clients[number].leaderEpoch, self.clients[number].leader == nil,
        self.clients[number].pending != nil
      else { return }
      self.clients[number].leader = node
      self.clients[number].leaderEpoch = epoch
      if node != nil { self.clientStep(number) }
    case .produced(let attempt, let outcome):
      guard let pending = self.clients[number].pending, pending.attempt == attempt else { return }
      try self.clientAnswered(number, pending, outcome)
    default: break
    }
  }

  private func clientAnswered(
    _ number: Int, _ pending: SimClient.Pending, _ outcome: AppendOutcome
  ) throws(Shadow.Broken) {
    self.log("client \(number): \(outcome)")
    switch outcome {
    case .appended(let base, _, _):
      try self.acknowledged(number, pending.values, base: Int(base.rawValue))
    case .duplicate(let base):
      try self.acknowledged(number, pending.values, base: base.map { Int($0.rawValue) })
    case .refused(.sequenceStraddles(let last)):
      let sent = pending.values.prefix { Int64($0 & 0xFFFF_FFFF) <= Int64(last) }
      try self.shadow.acknowledge(self.clients[number].partition, base: nil, Array(sent))
      self.clients[number].pending!.values.removeFirst(sent.count)
      self.clientStep(number)
    case .refused(.outOfOrderSequence), .refused(.unknownProducer), .refused(.producerFenced):
      // Every earlier record of this producer was acknowledged by the epoch it names or an earlier one.
      throw Shadow.Broken(
        rule: "a producer's acknowledged sequences were forgotten",
        detail: "client \(number): \(outcome)")
    case .refused:
      // Asked again after a pause, by the timeout.
      self.clients[number].leader = nil
    }
  }

  private func acknowledged(
    _ number: Int, _ values: [UInt64], base: Int?
  ) throws(Shadow.Broken) {
    if self.clients[number].acks == .all {
      try self.shadow.acknowledge(self.clients[number].partition, base: base, values)
    }
    self.clients[number].pending = nil
    self.clients[number].acknowledged += 1
    self.scheduler.schedule(
      .client(number), after: Int64(self.random.number(0..<self.clients[number].pauseMax)))
  }
}
