// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// How much must have happened before a producer is answered.
public enum Acks: Hashable, Sendable {
  /// Answered when the leader has taken the batch; nothing is promised.
  case none
  /// Durable on the leader.
  case leader
  /// Durable on every in-sync replica.
  case all
}

/// A replica in one life of its node.
public struct ReplicaMember: Hashable, Sendable {
  public var id: ReplicaID
  public var nodeEpoch: NodeEpoch
  public init(_ id: ReplicaID, _ nodeEpoch: NodeEpoch) {
    self.id = id
    self.nodeEpoch = nodeEpoch
  }
}

/// What metadata says about one partition. Lists are sorted by replica.
public struct PartitionAssignment: Hashable, Sendable {
  public var leaderEpoch: LeaderEpoch
  public var partitionEpoch: PartitionEpoch
  public var leader: ReplicaID?
  public var replicas: [ReplicaMember]
  public var isr: [ReplicaID]
  /// `min.insync.replicas`; at least 1.
  public var minISR: Int

  public init(
    leaderEpoch: LeaderEpoch, partitionEpoch: PartitionEpoch, leader: ReplicaID?,
    replicas: [ReplicaMember], isr: [ReplicaID], minISR: Int
  ) {
    precondition(minISR >= 1, "min.insync.replicas is at least 1")
    self.leaderEpoch = leaderEpoch
    self.partitionEpoch = partitionEpoch
    self.leader = leader
    self.replicas = replicas.sorted { $0.id < $1.id }
    self.isr = isr.sorted()
    self.minISR = minISR
  }

  public func nodeEpoch(of replica: ReplicaID) -> NodeEpoch? {
    self.replicas.first { $0.id == replica }?.nodeEpoch
  }
}

/// Counts a follower's opens of one partition; answers and pushes of an earlier open are dropped.
public struct OpenNumber: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Counts one replica's writes to its volume, which makes them durable in this order.
public struct WriteNumber: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Follower → leader: "send me this partition from `end` on; my log ends so". All below `end` is durable.
public struct OpenRequest: Hashable, Sendable {
  public var follower: ReplicaMember
  public var leaderEpoch: LeaderEpoch
  public var number: OpenNumber
  public var end: Offset
  /// The epoch the follower's log ends in; `.none` for an empty log.
  public var lastEpoch: LeaderEpoch
  /// The follower's log begins above 0 and it doesn't know what came before: the answer is to tell.
  public var needsHistory: Bool

  public init(
    follower: ReplicaMember, leaderEpoch: LeaderEpoch, number: OpenNumber, end: Offset,
    lastEpoch: LeaderEpoch, needsHistory: Bool = false
  ) {
    self.needsHistory = needsHistory
    self.follower = follower
    self.leaderEpoch = leaderEpoch
    self.number = number
    self.end = end
    self.lastEpoch = lastEpoch
  }
}

/// Leader → follower: the answer to one open.
public struct OpenAnswer: Hashable, Sendable {
  public enum Result: Hashable, Sendable {
    /// The logs agree; pushes follow from here.
    case accepted(from: Offset)
    /// The leader's largest epoch not above the one asked for, and where it ends: cut there, ask again.
    case diverged(EpochEnd)
    case rejected(OpenRejection)
  }
  public var follower: ReplicaID
  public var leaderEpoch: LeaderEpoch
  public var number: OpenNumber
  public var result: Result
  /// Comes with `.accepted` where it was asked for.
  public var history: LogHistory?

  public init(
    follower: ReplicaID, leaderEpoch: LeaderEpoch, number: OpenNumber, result: Result,
    history: LogHistory? = nil
  ) {
    self.history = history
    self.follower = follower
    self.leaderEpoch = leaderEpoch
    self.number = number
    self.result = result
  }
}

/// What a log remembers of records that a replica beginning above 0 doesn't hold. Without it such a replica would take a
/// repeated batch for a new one, and could not be compared by epochs.
public struct LogHistory: Hashable, Sendable {
  /// Epochs that begin at or below the follower's end.
  public var epochs: [EpochStart]
  /// A producer snapshot; empty: no producer is known.
  public var producers: [UInt8]
  /// The exclusive end of what the snapshot covers: the follower's end, or above it where the leader's own snapshot
  /// covers more already. All it covers is committed.
  public var producersEnd: Offset

  public init(epochs: [EpochStart], producers: [UInt8], producersEnd: Offset) {
    self.epochs = epochs
    self.producers = producers
    self.producersEnd = producersEnd
  }
}

/// Why an open was not taken up.
public enum OpenRejection: Hashable, Sendable {
  /// The follower's leader epoch is older than the leader's.
  case fencedLeaderEpoch(current: LeaderEpoch)
  /// The follower knows a newer leader epoch than the leader.
  case unknownLeaderEpoch(current: LeaderEpoch)
  /// An earlier life of the follower's node asks.
  case staleNodeEpoch(current: NodeEpoch)
  /// The leader has not seen this life of the node yet. Ask again.
  case unknownNodeEpoch(current: NodeEpoch)
  case notAReplica
  /// The leader's epoch start is not durable yet. Ask again.
  case notReady
  /// What the follower needs is no longer on the leader's volume: start afresh at this offset.
  case belowLocalStart(Offset)
}

/// An epoch and its exclusive end offset in some log.
public struct EpochEnd: Hashable, Sendable {
  /// `.none` when the log has no epoch as low as the one asked for.
  public var epoch: LeaderEpoch
  public var end: Offset
  public init(epoch: LeaderEpoch, end: Offset) {
    self.epoch = epoch
    self.end = end
  }
}

/// Leader → follower: one record batch, in log order. The bytes travel beside it.
public struct Push: Hashable, Sendable {
  public var leaderEpoch: LeaderEpoch
  public var number: OpenNumber
  public var batch: BatchSummary
  public var highWatermark: Offset

  public init(
    leaderEpoch: LeaderEpoch, number: OpenNumber, batch: BatchSummary, highWatermark: Offset
  ) {
    self.leaderEpoch = leaderEpoch
    self.number = number
    self.batch = batch
    self.highWatermark = highWatermark
  }
}

/// Leader → follower: the high watermark of a partition that may be idle.
public struct Heartbeat: Hashable, Sendable {
  public var leaderEpoch: LeaderEpoch
  public var number: OpenNumber
  public var highWatermark: Offset
  /// All below has been pushed on this open; a follower whose log ends earlier has missed something.
  public var pushedThrough: Offset

  public init(
    leaderEpoch: LeaderEpoch, number: OpenNumber, highWatermark: Offset, pushedThrough: Offset
  ) {
    self.leaderEpoch = leaderEpoch
    self.number = number
    self.highWatermark = highWatermark
    self.pushedThrough = pushedThrough
  }
}

/// Follower → leader: all below `durableEnd` is durable on the follower's volume.
public struct FollowerPosition: Hashable, Sendable {
  public var follower: ReplicaMember
  public var leaderEpoch: LeaderEpoch
  public var number: OpenNumber
  public var durableEnd: Offset

  public init(
    follower: ReplicaMember, leaderEpoch: LeaderEpoch, number: OpenNumber, durableEnd: Offset
  ) {
    self.follower = follower
    self.leaderEpoch = leaderEpoch
    self.number = number
    self.durableEnd = durableEnd
  }
}

/// Leader → metadata: "make this the ISR", by compare-and-set on the partition epoch.
public struct ISRProposal: Hashable, Sendable {
  /// Numbers the proposals of one leadership; the answer carries it.
  public var number: Int64
  public var leader: ReplicaMember
  public var leaderEpoch: LeaderEpoch
  /// The proposal is void once the partition's epoch is another.
  public var base: PartitionEpoch
  /// With the node epoch in which each was found in sync: a later life is refused.
  public var isr: [ReplicaMember]
}

/// How metadata answered an `ISRProposal`.
public enum ISRAnswer: Hashable, Sendable {
  /// With the `min.insync.replicas` by which metadata decided who stays eligible.
  case accepted(PartitionEpoch, isr: [ReplicaID], minISR: Int)
  /// Definitely not applied by this attempt.
  case refused
  /// No answer: it may have been applied, or may be later.
  case unknown
}
