// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One offset to commit.
public struct OffsetCommit: Hashable, Sendable {
  public var partition: TopicPartition
  public var offset: Offset
  public var metadata: String
  /// Leader epoch of the record before the offset; nil: not known.
  public var leaderEpoch: LeaderEpoch?

  public init(
    partition: TopicPartition, offset: Offset, metadata: String, leaderEpoch: LeaderEpoch? = nil
  ) {
    self.partition = partition
    self.offset = offset
    self.metadata = metadata
    self.leaderEpoch = leaderEpoch
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

/// A member's or an administrator's commit.
public struct OffsetCommitRequest: Hashable, Sendable {
  public var session: GroupSession
  public var commits: [OffsetCommit]

  public init(session: GroupSession, commits: [OffsetCommit]) {
    self.session = session
    self.commits = commits
  }
}

/// Commits to one group that are written together.
public struct OffsetBatch: Sendable {
  public var requests: [OffsetCommitRequest]
  /// What stands under their chunks.
  public var known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>>

  public init(
    _ requests: [OffsetCommitRequest],
    known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>>
  ) {
    self.requests = requests
    self.known = known
  }
}

extension MetadataState {
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

  /// Stores the offsets of commits to several groups, as few transactions as they fit into.
  ///
  /// - Parameter batch: for each group its commits and what stands under their chunks.
  /// - Returns: for each group what `commitOffsets` of one group returns.
  public func commitOffsets(
    _ batch: [OffsetBatch], at now: Timestamp
  ) -> Plan<[[MemQError?]]> {
    var transactions: [Transaction] = []
    var outcomes: [[MemQError?]] = []
    for group in batch {
      let plan = self.commitOffsets(group.requests, known: group.known, at: now)
      outcomes.append(plan.outcome)
      for transaction in plan.transactions {
        if transactions.last?.hasRoom(for: transaction, bytesMax: Self.transactionBytesMax) ?? false
        {
          transactions[transactions.count - 1].take(transaction)
        } else {
          transactions.append(transaction)
        }
      }
    }
    return Plan(transactions, outcome: outcomes)
  }

  private static let transactionBytesMax = 1 << 20

  /// Stores the offsets of several commits to one group, in their order. Each is taken or refused as a whole.
  ///
  /// - Parameter known: what stands under the chunks.
  /// - Returns: the refusals, one for each commit; nil: taken. The codes: `.groupMemberUnknown`, `.groupMemberFenced`,
  ///   `.partitionNotAssigned`, `.staleMemberEpoch`, `.groupNotEmpty`, `.groupNameInvalid`, `.limitReached`, `.topicDeleted`.
  public func commitOffsets(
    _ requests: [OffsetCommitRequest],
    known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>>, at now: Timestamp
  ) -> Plan<[MemQError?]> {
    var chunks: SortedMap<OffsetChunkID, OffsetChunkRecord> = [:]
    var refusals: [MemQError?] = []
    for request in requests {
      do throws(MemQError) {
        try self.checkCommit(request)
        refusals.append(nil)
      } catch {
        refusals.append(error)
        continue
      }
      for commit in request.commits {
        let topic = commit.partition.topic
        let id = OffsetChunkID(
          topic: topic, chunk: OffsetChunkRecord.chunk(of: commit.partition.partition))
        if chunks[id] == nil { chunks[id] = known[id]?.value ?? OffsetChunkRecord(topic: topic) }
        chunks[id]!.offsets[commit.partition.partition] = CommittedOffset(
          offset: commit.offset, metadata: commit.metadata, committedAt: now,
          leaderEpoch: commit.leaderEpoch)
      }
    }
    guard let name = requests.first?.session.group, !chunks.isEmpty else {
      return Plan(outcome: refusals)
    }
    return Plan(self.storing(chunks, of: name, known), outcome: refusals)
  }

  /// Each transaction holds only while the group is as it is now: nobody came or went, so the commits are still legal.
  private func storing(
    _ chunks: SortedMap<OffsetChunkID, OffsetChunkRecord>, of name: String,
    _ known: SortedMap<OffsetChunkID, Versioned<OffsetChunkRecord>>
  ) -> [Transaction] {
    let group = self.groups[name]
    var transactions: [Transaction] = []
    var current = Transaction()
    if group == nil { current.put(.group(name), GroupRecord(name: name)) }
    for (id, record) in chunks {
      if current.conditions.isEmpty {
        // The first transaction makes the group that an administrator names; those behind it follow it.
        current.require(
          group.map { .revision(.group(name), $0.revision) }
            ?? (transactions.isEmpty ? .absent(.group(name)) : .exists(.group(name))))
      }
      current.require(.exists(.topic(id.topic)))
      current.replace(.offsets(name, id.topic, chunk: id.chunk), known[id], with: record)
      // A chunk may bring two conditions.
      if current.operations.count == Self.chunksPerTransaction {
        transactions.append(current)
        current = Transaction()
      }
    }
    return transactions + [current]
  }

  /// With texts of 1,024 bytes everywhere 16 chunks have 1.1 MiB; a request of etcd has at most 1.5.
  private static let chunksPerTransaction = 16

  private func checkCommit(_ request: OffsetCommitRequest) throws(MemQError) {
    for commit in request.commits { _ = try self.topic(commit.partition.topic) }
    let session = request.session
    guard session.isAdministrator else {
      let member = try self.member(of: session).member
      for commit in request.commits {
        guard let since = member.epoch(of: commit.partition) else {
          throw MemQError(
            .partitionNotAssigned, "the member does not have that partition",
            subject: "\(session.group): \(commit.partition)", limit: member.epoch,
            actual: session.epoch)
        }
        guard session.epoch >= since else {
          throw MemQError(
            .staleMemberEpoch, "the commit is from before the member got the partition",
            subject: "\(session.group): \(commit.partition)", limit: since, actual: session.epoch)
        }
      }
      return
    }
    try Self.checkGroupName(session.group)
    let group = self.groups[session.group]
    try self.checkRoom(for: session.group, known: group)
    for commit in request.commits where group?.value.isTaken(commit.partition) ?? false {
      throw MemQError(
        .groupNotEmpty, "a member reads the partition; its offset can be set when nobody does",
        subject: "\(session.group): \(commit.partition)")
    }
  }

  /// Forgets a group. Its offsets are taken out before, by key.
  ///
  /// - Throws: `.groupNotFound`, `.groupNotEmpty`.
  public func deleteGroup(_ name: String, offsets: [StoreKey]) throws(MemQError) -> Plan<Void> {
    guard let group = self.groups[name] else {
      throw MemQError(.groupNotFound, "no such group", subject: name)
    }
    guard group.value.members.isEmpty else {
      throw MemQError(.groupNotEmpty, "the group has a live member", subject: name)
    }
    return Plan(
      Self.deletions(of: offsets, while: .revision(.group(name), group.revision))
        + [Transaction([.revision(.group(name), group.revision)], [.delete(.group(name))])],
      outcome: ())
  }

  /// Takes out offsets that a commit has left after the group's deletion had begun, so that no later group of that name goes on at them.
  ///
  /// - Parameter offsets: those found after the group's own key was gone: from then on there are none without a new group.
  public func clearDeletedGroup(_ name: String, offsets: [StoreKey]) -> Plan<Void> {
    guard self.groups[name] == nil else { return Plan(outcome: ()) }
    return Plan(Self.deletions(of: offsets, while: .absent(.group(name))), outcome: ())
  }

  private static func deletions(of keys: [StoreKey], while condition: Condition) -> [Transaction] {
    stride(from: 0, to: keys.count, by: clearingKeysPerTransaction).map { first in
      Transaction(
        [condition], keys[first...].prefix(clearingKeysPerTransaction).map { .delete($0) })
    }
  }
}
