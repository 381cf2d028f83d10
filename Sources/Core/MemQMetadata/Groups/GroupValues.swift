// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A member that wants to join a group.
public struct GroupJoin: Hashable, Sendable {
  public var group: String
  /// By name; each must exist.
  public var topics: [String]
  /// Only these partitions of them; empty: all.
  public var only: [TopicPartition] = []
  public var clientID: String
  /// Chosen by the client; a join that comes again under it changes nothing. Empty: made here.
  public var memberID = ""
  /// The client's lasting name for this member; empty: none.
  public var instanceID = ""
  /// Where the client runs, for people.
  public var host = ""
  /// Zero: 45 s.
  public var sessionTimeout: Duration
  /// Zero: 60 s.
  public var rebalanceTimeout: Duration = .zero
  /// Unique; a member's name is made of it.
  public var nonce: UniqueID

  public init(
    group: String, topics: [String], clientID: String, sessionTimeout: Duration, nonce: UniqueID
  ) {
    self.group = group
    self.topics = topics
    self.clientID = clientID
    self.sessionTimeout = sessionTimeout
    self.nonce = nonce
  }
}

/// A member's place in its group.
public struct GroupPlace: Hashable, Sendable {
  public var memberID: String
  public var epoch: Int64
  public var sessionTimeout: Duration
  /// What it may read, ascending.
  public var assigned: [TopicPartition]
  /// Whether more is to come, as soon as others have given it back.
  public var isWaiting: Bool

  public init(_ member: GroupRecord.Member) {
    self.memberID = member.id
    self.epoch = member.epoch
    self.sessionTimeout = member.sessionTimeout
    self.assigned = member.assigned
    self.isWaiting = member.isWaiting
  }
}

/// A member, as its requests name it.
public struct GroupSession: Hashable, Sendable {
  public var group: String
  /// Empty, with epoch -1: an administrator.
  public var memberID: String
  /// The latest member epoch it was told.
  public var epoch: Int64
  /// Of a member that joined under one.
  public var instanceID: String

  public init(group: String, memberID: String, epoch: Int64, instanceID: String = "") {
    self.group = group
    self.memberID = memberID
    self.epoch = epoch
    self.instanceID = instanceID
  }

  public var isAdministrator: Bool { self.memberID.isEmpty && self.epoch == -1 }
}

/// A member of a group, for tables of members.
public struct GroupMemberKey: Hashable, Sendable, Comparable {
  public var group: String
  public var memberID: String

  public init(group: String, memberID: String) {
    self.group = group
    self.memberID = memberID
  }

  public static func < (a: Self, b: Self) -> Bool {
    a.group != b.group ? a.group < b.group : a.memberID < b.memberID
  }
}

/// Limits of groups.
public enum GroupLimits {
  public static let sessionTimeoutDefault: Duration = .seconds(45)
  public static let sessionTimeouts: ClosedRange<Duration> = .seconds(1)...(.seconds(600))
  public static let rebalanceTimeoutDefault: Duration = .seconds(60)
  public static let rebalanceTimeouts: ClosedRange<Duration> = .seconds(1)...(.seconds(3_600))
  public static let topicsMax = 100
  public static let clientIDBytesMax = 255
  public static let memberIDBytesMax = 255
  public static let instanceIDBytesMax = 255
  /// Each holds a call open.
  public static let membersMax = 1_000
  /// Over all topics that the members read.
  public static let partitionsMax = 20_000
  /// Partitions that a member names.
  public static let onlyMax = 10_000
  /// The group's own record after a join. It must fit a request of etcd (1.5 MiB) also when its partitions are scattered most
  /// (36 bytes each) and half of them are on the move.
  public static let recordBytesMax = 1 << 20
  public static let offsetsPerCommitMax = 10_000
  public static let offsetMetadataBytesMax = 1_024
}
