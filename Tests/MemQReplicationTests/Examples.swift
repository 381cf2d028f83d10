// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQReplication

func replica(_ number: Int32) -> ReplicaID {
  ReplicaID(NodeID(number), VolumeID(UniqueID(high: 0, low: UInt64(number))))
}

func member(_ number: Int32, life: Int64 = 1) -> ReplicaMember {
  ReplicaMember(replica(number), NodeEpoch(life))
}

func assignment(
  leader: Int32?, epoch: Int64 = 1, partitionEpoch: Int64 = 1, isr: [Int32] = [1, 2, 3],
  replicas: [Int32] = [1, 2, 3], minISR: Int = 2
) -> PartitionAssignment {
  PartitionAssignment(
    leaderEpoch: LeaderEpoch(epoch), partitionEpoch: PartitionEpoch(partitionEpoch),
    leader: leader.map(replica), replicas: replicas.map { member($0) }, isr: isr.map(replica),
    minISR: minISR)
}

/// A replica with its effects, and shorthands for what its owner does.
struct Subject {
  var core: PartitionReplica
  var now = MonotonicInstant(nanoseconds: 1_000_000_000)
  var token: UInt64 = 0
  var lastWrite = WriteNumber.zero

  init(
    _ number: Int32, log: ReplicaLog? = nil,
    configuration: ReplicationConfiguration = ReplicationConfiguration()
  ) {
    let log = log ?? ReplicaLog(emptyAt: .zero, limits: configuration.producers)
    self.core = PartitionReplica(member(number), log: log, configuration: configuration)
  }

  @discardableResult
  mutating func handle(_ event: PartitionReplica.Event) -> [ReplicationEffect] {
    var effects: [ReplicationEffect] = []
    self.core.handle(event, at: self.now, into: &effects)
    for effect in effects {
      switch effect {
      case .startEpoch(let number, _), .write(let number, _, _), .truncate(let number, _, _):
        self.lastWrite = number
      default: break
      }
    }
    return effects
  }

  @discardableResult
  mutating func sync() -> [ReplicationEffect] { self.handle(.durable(through: self.lastWrite)) }

  /// Appends `records`; the token of the n-th append is n.
  @discardableResult
  mutating func append(
    _ records: Int64, acks: Acks = .all, producer: Int64 = -1, epoch: Int16 = 0,
    sequence: Int32 = -1, time: Int64 = 1_000, wait: Duration = .seconds(30)
  ) -> [ReplicationEffect] {
    self.token += 1
    return self.handle(
      .leader(
        .append(
          AppendRequest(
            token: self.token, recordCount: records, producerID: ProducerID(producer),
            producerEpoch: ProducerEpoch(epoch), baseSequence: sequence,
            appendTime: Timestamp(milliseconds: time), acks: acks, deadline: self.now + wait))))
  }

  @discardableResult
  mutating func open(
    from number: Int32, _ open: Int64 = 1, end: Int64, lastEpoch: Int64 = -1, epoch: Int64 = 1,
    life: Int64 = 1
  ) -> [ReplicationEffect] {
    self.handle(
      .leader(
        .opened(
          OpenRequest(
            follower: member(number, life: life), leaderEpoch: LeaderEpoch(epoch),
            number: OpenNumber(open), end: Offset(end), lastEpoch: LeaderEpoch(lastEpoch)))))
  }

  @discardableResult
  mutating func position(
    of number: Int32, _ open: Int64 = 1, end: Int64, epoch: Int64 = 1, life: Int64 = 1
  ) -> [ReplicationEffect] {
    self.handle(
      .leader(
        .positioned(
          FollowerPosition(
            follower: member(number, life: life), leaderEpoch: LeaderEpoch(epoch),
            number: OpenNumber(open), durableEnd: Offset(end)))))
  }

  @discardableResult
  mutating func pass(_ time: Duration) -> [ReplicationEffect] {
    self.now = self.now + time
    return self.handle(.tick)
  }
}

extension [ReplicationEffect] {
  var outcomes: [UInt64: AppendOutcome] {
    var outcomes: [UInt64: AppendOutcome] = [:]
    for case .reply(let token, let outcome) in self { outcomes[token] = outcome }
    return outcomes
  }
  var highWatermark: Offset? {
    var offset: Offset?
    for case .highWatermark(let moved) in self { offset = moved }
    return offset
  }
  var proposal: ISRProposal? {
    for case .propose(let proposal) in self { return proposal }
    return nil
  }
  var answer: OpenAnswer.Result? {
    for case .answer(let answer) in self { return answer.result }
    return nil
  }
  var cut: Offset? {
    for case .truncate(_, let end, _) in self { return end }
    return nil
  }
  var open: OpenRequest? {
    for case .open(let request) in self { return request }
    return nil
  }
}

extension AppendOutcome {
  static func at(_ base: Int64, _ end: Int64, time: Int64 = 1_000) -> Self {
    .appended(base: Offset(base), end: Offset(end), at: Timestamp(milliseconds: time))
  }
}

/// A log with the given (epoch, start, end) runs, all durable.
func log(
  _ runs: [(epoch: Int64, start: Int64)], end: Int64, highWatermark: Int64 = 0
) throws
  -> ReplicaLog
{
  ReplicaLog(
    start: .zero, end: Offset(end), highWatermark: Offset(highWatermark), uploadedOffset: .zero,
    epochs: try EpochCache(
      runs.map { EpochStart(epoch: LeaderEpoch($0.epoch), start: Offset($0.start)) }),
    producers: ProducerState(at: .zero, limits: ProducerLimits()))
}
