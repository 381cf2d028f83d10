// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A member that wants a group.
public struct GroupJoin: Hashable, Sendable {
  public var group: String
  public var topics: [String]
  public var clientID: String
  /// Zero: 45 s.
  public var sessionTimeout: Duration
  /// Unique; the member's name is made of it.
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
  public var assigned: [TopicPartition]
}

/// A member, as its requests name it.
public struct GroupSession: Hashable, Sendable {
  public var group: String
  /// Empty, with epoch -1: an administrator.
  public var memberID: String
  public var epoch: Int64

  public init(group: String, memberID: String, epoch: Int64) {
    self.group = group
    self.memberID = memberID
    self.epoch = epoch
  }

  public var isAdministrator: Bool { self.memberID.isEmpty && self.epoch == -1 }
}

/// One offset to commit.
public struct OffsetCommit: Hashable, Sendable {
  public var partition: TopicPartition
  public var offset: Offset
  public var metadata: String

  public init(partition: TopicPartition, offset: Offset, metadata: String) {
    self.partition = partition
    self.offset = offset
    self.metadata = metadata
  }
}

/// Where chunks of offsets stand: group, topic and chunk number.
public struct OffsetChunkID: Hashable, Sendable, Comparable {
  public var topic: TopicID
  public var chunk: Int32

  public static func < (a: Self, b: Self) -> Bool {
    a.topic != b.topic ? a.topic < b.topic : a.chunk < b.chunk
  }
}

/// Limits of groups.
public enum GroupLimits {
  public static let sessionTimeoutDefault: Duration = .seconds(45)
  public static let sessionTimeouts: ClosedRange<Duration> = .seconds(1)...(.seconds(600))
  public static let topicsMax = 100
  public static let clientIDBytesMax = 255
  public static let offsetsPerCommitMax = 10_000
  public static let offsetMetadataBytesMax = 1_024
}

extension MetadataState {
  // MARK: Members

  /// A new member takes the group over; the earlier one is fenced by the epoch.
  ///
  /// - Throws: `.groupNameInvalid`, `.topicNotFound`, `.limitReached`, `.invalidArgument`.
  public func joinGroup(_ join: GroupJoin) throws(MemQError) -> Plan<GroupPlace> {
    try Self.checkGroupName(join.group)
    let timeout =
      join.sessionTimeout == .zero ? GroupLimits.sessionTimeoutDefault : join.sessionTimeout
    guard GroupLimits.sessionTimeouts.contains(timeout) else {
      throw MemQError(
        .invalidArgument, "a session timeout is 1,000 to 600,000 ms", subject: join.group,
        limit: GroupLimits.sessionTimeouts.upperBound.milliseconds, actual: timeout.milliseconds)
    }
    guard join.topics.count <= GroupLimits.topicsMax else {
      throw MemQError(
        .invalidArgument, "a member reads at most 100 topics", subject: join.group,
        limit: Int64(GroupLimits.topicsMax), actual: Int64(join.topics.count))
    }
    guard join.clientID.utf8.count <= GroupLimits.clientIDBytesMax else {
      throw MemQError(
        .invalidArgument, "a client's name has at most 255 bytes", subject: join.group,
        limit: Int64(GroupLimits.clientIDBytesMax), actual: Int64(join.clientID.utf8.count))
    }
    var assigned: [TopicPartition] = []
    for name in join.topics {
      let topic = try self.topic(named: name).value
      for index in 0..<topic.partitionCount {
        assigned.append(TopicPartition(topic.id, PartitionIndex(Int32(index))))
      }
    }
    let known = self.groups[join.group]
    try self.checkRoom(for: join.group, known: known)
    let member = GroupRecord.Member(
      id: "\(join.clientID.isEmpty ? "member" : join.clientID)-\(join.nonce)",
      clientID: join.clientID, topics: join.topics, sessionTimeout: timeout)
    let record = GroupRecord(
      name: join.group, epoch: (known?.value.epoch ?? 0) + 1, member: member)
    var transaction = Transaction()
    transaction.replace(.group(join.group), known, with: record)
    return Plan(
      [transaction],
      outcome: GroupPlace(
        memberID: member.id, epoch: record.epoch, sessionTimeout: timeout, assigned: assigned))
  }

  private func checkRoom(
    for name: String, known: Versioned<GroupRecord>?
  ) throws(MemQError) {
    guard known != nil || self.groups.count < self.limits.groupsMax else {
      throw MemQError(
        .limitReached, "the cluster has its largest number of groups", subject: name,
        limit: Int64(self.limits.groupsMax), actual: Int64(self.groups.count + 1))
    }
  }

  public static func checkGroupName(_ name: String) throws(MemQError) {
    let size = name.utf8.count
    let isPrintable = name.unicodeScalars.allSatisfy { scalar in
      scalar.value >= 0x20 && !(0x7F...0x9F).contains(scalar.value)
    }
    guard size >= 1, size <= Limits.groupNameBytesMax, isPrintable else {
      throw MemQError(
        .groupNameInvalid, "a group's name has 1 to 255 bytes of printable characters",
        subject: isPrintable ? name : "", limit: Int64(Limits.groupNameBytesMax),
        actual: Int64(size))
    }
  }

  /// The group of a member in good standing.
  ///
  /// - Throws: `.groupMemberFenced`.
  public func group(of session: GroupSession) throws(MemQError) -> Versioned<GroupRecord> {
    guard let group = self.groups[session.group], let member = group.value.member,
      member.id == session.memberID, group.value.epoch == session.epoch
    else {
      throw MemQError(
        .groupMemberFenced, "the member is not in the group any more; join again",
        subject: session.group, limit: self.groups[session.group]?.value.epoch,
        actual: session.epoch)
    }
    return group
  }

  /// A clean goodbye.
  ///
  /// - Throws: `.groupMemberFenced`.
  public func leaveGroup(_ session: GroupSession) throws(MemQError) -> Plan<Void> {
    let group = try self.group(of: session)
    return Plan([self.emptied(group)], outcome: ())
  }

  /// Takes out a member that fell silent; nothing when another one has joined meanwhile.
  public func expireMember(of name: String, epoch: Int64) -> Plan<Bool> {
    guard let group = self.groups[name], group.value.member != nil, group.value.epoch == epoch
    else { return Plan(outcome: false) }
    return Plan([self.emptied(group)], outcome: true)
  }

  private func emptied(_ group: Versioned<GroupRecord>) -> Transaction {
    var next = group.value
    next.member = nil
    var transaction = Transaction()
    transaction.replace(.group(next.name), group, with: next)
    return transaction
  }

  // MARK: Offsets

  /// The chunks that a commit touches, each once, in order.
  ///
  /// - Throws: `.topicNotFound`, `.topicDeleted`, `.partitionNotFound`, `.invalidArgument`.
  public func chunks(of commits: [OffsetCommit]) throws(MemQError) -> [OffsetChunkID] {
    guard commits.count <= GroupLimits.offsetsPerCommitMax else {
      throw MemQError(
        .invalidArgument, "too many offsets in one commit", subject: "offsets",
        limit: Int64(GroupLimits.offsetsPerCommitMax), actual: Int64(commits.count))
    }
    var chunks: SortedMap<OffsetChunkID, Bool> = [:]
    for commit in commits {
      let topic = try self.topic(commit.partition.topic).value
      let index = Int(commit.partition.partition.rawValue)
      guard index >= 0, index < topic.partitionCount else {
        throw MemQError(
          .partitionNotFound, "the topic has fewer partitions", subject: topic.name,
          limit: Int64(topic.partitionCount), actual: Int64(index))
      }
      guard commit.offset >= .zero else {
        throw MemQError(
          .invalidArgument, "an offset is not negative", subject: "\(topic.name)/\(index)",
          actual: commit.offset.rawValue)
      }
      guard commit.metadata.utf8.count <= GroupLimits.offsetMetadataBytesMax else {
        throw MemQError(
          .invalidArgument, "an offset's text has at most 1,024 bytes",
          subject: "\(topic.name)/\(index)", limit: Int64(GroupLimits.offsetMetadataBytesMax),
          actual: Int64(commit.metadata.utf8.count))
      }
      let chunk = OffsetChunkRecord.chunk(of: commit.partition.partition)
      chunks[OffsetChunkID(topic: commit.partition.topic, chunk: chunk)] = true
    }
    return chunks.keys
  }

  /// Stores offsets for a member in good standing, or for an administrator while the group has none.
  ///
  /// More than 100 chunks take several transactions; each is fenced by itself.
  ///
  /// - Parameter known: what stands under the chunks.
  /// - Throws: `.groupMemberFenced`, `.groupNotEmpty`, `.groupNameInvalid`, `.limitReached`.
  public func commitOffsets(
    _ session: GroupSession, _ commits: [OffsetCommit],
    known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>>, at now: Timestamp
  ) throws(MemQError) -> Plan<Void> {
    let group = try self.committingGroup(session)
    var chunks: SortedMap<OffsetChunkID, OffsetChunkRecord> = [:]
    for commit in commits {
      let topic = commit.partition.topic
      let id = OffsetChunkID(
        topic: topic, chunk: OffsetChunkRecord.chunk(of: commit.partition.partition))
      if chunks[id] == nil { chunks[id] = known[id]?.value ?? OffsetChunkRecord(topic: topic) }
      chunks[id]!.offsets[commit.partition.partition] = CommittedOffset(
        offset: commit.offset, metadata: commit.metadata, committedAt: now)
    }
    var transactions: [Transaction] = []
    var current = Transaction()
    for (id, record) in chunks {
      if current.isEmpty, let group {
        current.require(.revision(.group(session.group), group.revision))
      } else if current.isEmpty {
        current.require(.absent(.group(session.group)))
        current.put(.group(session.group), GroupRecord(name: session.group, epoch: 0, member: nil))
      }
      current.require(.exists(.topic(id.topic)))
      current.replace(
        .offsets(session.group, id.topic, chunk: id.chunk), known[id], with: record)
      // A chunk may bring two conditions.
      if current.operations.count == 60 {
        transactions.append(current)
        current = Transaction()
      }
    }
    return Plan(transactions + [current], outcome: ())
  }

  /// Nil: an administrator makes the group.
  private func committingGroup(
    _ session: GroupSession
  ) throws(MemQError) -> Versioned<GroupRecord>? {
    guard session.isAdministrator else { return try self.group(of: session) }
    try Self.checkGroupName(session.group)
    let group = self.groups[session.group]
    guard group?.value.member == nil else {
      throw MemQError(
        .groupNotEmpty, "offsets can be reset when the group has no live member",
        subject: session.group)
    }
    try self.checkRoom(for: session.group, known: group)
    return group
  }

  /// Forgets a group. Its offsets are taken out before, by key.
  ///
  /// - Throws: `.groupNotFound`, `.groupNotEmpty`.
  public func deleteGroup(_ name: String, offsets: [StoreKey]) throws(MemQError) -> Plan<Void> {
    guard let group = self.groups[name] else {
      throw MemQError(.groupNotFound, "no such group", subject: name)
    }
    guard group.value.member == nil else {
      throw MemQError(.groupNotEmpty, "the group has a live member", subject: name)
    }
    var transactions: [Transaction] = []
    var current = Transaction([.revision(.group(name), group.revision)])
    for key in offsets {
      current.delete(key)
      if current.operations.count == clearingKeysPerTransaction {
        transactions.append(current)
        current = Transaction([.revision(.group(name), group.revision)])
      }
    }
    current.delete(.group(name))
    return Plan(transactions + [current], outcome: ())
  }
}
