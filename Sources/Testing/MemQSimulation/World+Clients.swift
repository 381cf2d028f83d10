// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

extension World {
  private static let answerTimeout = 700 * millisecond
  /// Sequences a probe leaves out. More than a producer sends: the network may keep the probe back for seconds, and once all before
  /// it were sent it would be the next batch (20007291).
  private static let gap: Int64 = 1 << 24

  /// Sends the batch that waits, or a new one; now and then something to be refused before it.
  func clientStep(_ number: Int) {
    if self.clients[number].pending == nil {
      guard !self.clients[number].isStopped else { return }
      if self.clients[number].isIdempotent { self.beforeNewBatch(number) }
      let count = self.clients[number].random.number(1...5)
      let values = self.clients[number].newValues(count)
      self.clients[number].pending = SimClient.Pending(values: values, attempt: 0)
    } else if self.clients[number].isIdempotent && self.clients[number].random.chance(200) {
      // A retry cut differently: more records in it than were sent before.
      let count = self.clients[number].random.number(1...3)
      let more = self.clients[number].newValues(count)
      self.clients[number].pending!.values += more
    }
    self.clients[number].attempts += 1
    let client = self.clients[number]
    self.clients[number].pending!.attempt = client.attempts
    self.scheduler.schedule(
      .clientTimeout(number, attempt: client.attempts), after: Self.answerTimeout)
    guard let leader = client.leader else {
      return self.send(
        .whereIs(client: number, partition: client.partition), from: .client(number),
        to: .metadata(client.attempts % Self.instances))
    }
    self.sendBatch(
      number, to: leader, client.pending!.values, client.producerID, epoch: client.epoch,
      sequence: client.isIdempotent ? client.sequence(of: client.pending!.values[0]) : -1)
  }

  private func sendBatch(
    _ number: Int, to leader: Int, _ values: [UInt64], _ producer: ProducerID, epoch: Int16,
    sequence: Int64
  ) {
    let client = self.clients[number]
    self.send(
      .produce(
        client: number, partition: client.partition,
        ProduceRequest(
          attempt: client.attempts, values: values, producerID: producer,
          producerEpoch: producer == .none ? .none : ProducerEpoch(epoch),
          baseSequence: Int32(truncatingIfNeeded: sequence), acks: client.acks,
          leaderEpoch: client.leaderEpoch)),
      from: .client(number), to: .node(leader))
  }

  /// All before was acknowledged: the producer may begin a new epoch, or try what must be refused.
  private func beforeNewBatch(_ number: Int) {
    self.clients[number].probe = nil
    guard !self.shadow.mayLose[self.clients[number].partition],
      let leader = self.clients[number].leader, self.clients[number].acknowledged > 0,
      self.clients[number].random.chance(50)
    else { return }
    let kind = self.clients[number].random.pick([SimClient.Probe.gap, .stranger, .zombie])
    if kind == .zombie && self.clients[number].epoch == 0 {
      return self.clients[number].raiseEpoch()
    }
    self.clients[number].attempts += 1
    let client = self.clients[number]
    self.clients[number].probe = (kind, client.attempts)
    let next = Int64(client.nextSequence) - Int64(client.epochBase)
    let values = [UInt64.max]
    switch kind {
    case .gap:
      self.sendBatch(
        number, to: leader, values, client.producerID, epoch: client.epoch,
        sequence: next + Self.gap)
    case .stranger:
      self.sendBatch(
        number, to: leader, values, ProducerID(1_000_000 + Int64(client.attempts)), epoch: 0,
        sequence: 7)
    case .zombie:
      self.sendBatch(
        number, to: leader, values, client.producerID, epoch: client.epoch - 1, sequence: next)
    }
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
      if let probe = self.clients[number].probe, probe.attempt == attempt {
        return try self.probeAnswered(number, probe.kind, outcome)
      }
      guard let pending = self.clients[number].pending, pending.attempt == attempt else { return }
      try self.clientAnswered(number, pending, outcome)
    default: break
    }
  }

  private func probeAnswered(
    _ number: Int, _ probe: SimClient.Probe, _ outcome: AppendOutcome
  ) throws(Shadow.Broken) {
    switch outcome {
    case .appended, .duplicate:
      throw Shadow.Broken(
        rule: "a batch was taken that must be refused", detail: "client \(number): \(probe)")
    case .refused: break
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
      let client = self.clients[number]
      let sent = pending.values.prefix { client.sequence(of: $0) <= Int64(last) }
      try self.shadow.acknowledge(
        client.partition, base: nil, Array(sent), by: client.leaderEpoch)
      self.clients[number].pending!.values.removeFirst(sent.count)
      self.clientStep(number)
    case .refused(.outOfOrderSequence), .refused(.unknownProducer), .refused(.producerFenced):
      if self.shadow.hasLost(self.clients[number].partition) {
        // What its sequence goes on from may be lost: it begins a new epoch.
        self.clients[number].raiseEpoch(from: pending.values[0])
        return self.clientStep(number)
      }
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
      try self.shadow.acknowledge(
        self.clients[number].partition, base: base, values, by: self.clients[number].leaderEpoch)
    }
    self.clients[number].pending = nil
    self.clients[number].acknowledged += 1
    self.scheduler.schedule(
      .client(number),
      after: Int64(self.clients[number].random.number(0..<self.clients[number].pauseMax)))
  }
}
