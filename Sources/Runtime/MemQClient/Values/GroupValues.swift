// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One consumer group.
public struct GroupInfo: Hashable, Sendable {
  public enum State: String, Hashable, Sendable {
    /// No member.
    case empty
    /// Partitions are on their way from member to member.
    case reconciling
    /// Every member has what it is to have.
    case stable
  }

  public struct Member: Hashable, Sendable {
    public var id: String
    /// Nil: none.
    public var instanceID: String?
    public var clientID: String
    /// Where its client runs.
    public var host: String
    public var epoch: Int64
    public var topics: [String]
    /// What it may read.
    public var assigned: [TopicPartition]
    /// What it has to give back.
    public var revoking: [TopicPartition]
    /// What it is still to get.
    public var waiting: [TopicPartition]
    public var sessionTimeout: Duration
  }

  public struct Commit: Hashable, Sendable {
    public var topicPartition: TopicPartition
    /// The next offset to read; nil: a member reads it, and nothing is committed.
    public var offset: Offset?
    public var committedAt: Timestamp
    /// Where the partition ends for readers; nil: not known.
    public var highWatermark: Offset?
    /// Leader epoch of the record before the offset, as its reader read it; nil: not known.
    public var leaderEpoch: LeaderEpoch?

    /// Records that are committed in the log and not by the group.
    public var lag: Int64? {
      guard let highWatermark, let offset else { return nil }
      return max(0, highWatermark - offset)
    }
  }

  public var name: String
  public var epoch: Int64
  public var state: State
  public var members: [Member]
  public var commits: [Commit]
}

/// Where uploads stand, and what they cost.
public struct UploadStatus: Hashable, Sendable {
  public struct Partition: Hashable, Sendable {
    public var topic: String
    public var partition: PartitionIndex
    /// First offset that exists.
    public var logStart: Offset
    /// First offset on the leader's SSD.
    public var localStart: Offset
    /// Below it the object tier is the log.
    public var uploaded: Offset
    public var highWatermark: Offset
    /// Bytes on the leader's SSD.
    public var localBytes: Int64
  }

  public struct Group: Hashable, Sendable {
    public var id: Int
    /// The uploader that holds the lease; nil: nobody.
    public var holder: NodeID?
    public var leaseEpoch: LeaseEpoch
    public var objects: Int64
    public var objectBytes: Int64
    public var billedRequests: Int64
  }

  public var partitions: [Partition]
  public var groups: [Group]
  /// Objects that hold records.
  public var objects: Int64
  public var objectBytes: Int64
  /// Requests the object store bills, ever.
  public var billedRequests: Int64
  /// File bodies written by this uploader since its start.
  public var bodies: Int64
  public var bodyBytes: Int64
}

/// What a flush uploaded.
public struct FlushResult: Hashable, Sendable {
  public var objects: Int64
  public var records: Int64
  public var bytes: Int64
}

/// One move of a rebalance plan.
public struct PlanMove: Hashable, Sendable {
  /// `leadership` or `replica`.
  public var kind: String
  public var topic: String
  public var partition: PartitionIndex
  /// Nil: from nobody.
  public var from: NodeID?
  public var to: NodeID
  public var goal: String
  public var reason: String
  /// "planned", "done", "failed: …", "skipped: …".
  public var state: String
}

/// A plan that is not running.
public struct RebalancePlan: Hashable, Sendable {
  public struct Balance: Hashable, Sendable {
    public var node: NodeID
    public var leaders: Int
    public var replicas: Int
    public var leadersAfter: Int
    public var replicasAfter: Int
  }

  public var moves: [PlanMove]
  public var balance: [Balance]
  /// What it cannot mend, a sentence each.
  public var unmet: [String]
}

/// The running or last plan.
public struct RebalanceStatus: Hashable, Sendable {
  /// 0: there has been none.
  public var planID: Int64
  /// `idle`, `running`, `cancelled` or `done`.
  public var state: String
  public var moves: [PlanMove]
}
