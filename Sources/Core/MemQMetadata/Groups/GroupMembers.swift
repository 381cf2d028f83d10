// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

extension MetadataState {
  // MARK: Coming

  /// A new member; the partitions are shared anew.
  ///
  /// - Parameter gone: members whose connection broke and that were not heard since: they go, so that a reader that was killed and
  ///   starts again goes on at once.
  /// - Throws: `.groupNameInvalid`, `.topicNotFound`, `.partitionNotFound`, `.limitReached`, `.invalidArgument`.
  public func joinGroup(
    _ join: GroupJoin, gone: [String] = []
  ) throws(MemQError) -> Plan<GroupPlace> {
    var member = try self.member(join)
    let known = self.groups[join.group]
    try self.checkRoom(for: join.group, known: known)
    var group = known?.value ?? GroupRecord(name: join.group)
    if let same = group.members[member.id] { return Plan(outcome: GroupPlace(same)) }
    for id in gone { group.members[id] = nil }
    if !join.instanceID.isEmpty,
      let before = group.members.values.first(where: { $0.instanceID == join.instanceID })
    {
      member.owned = before.owned.map { .init($0.partition, since: group.epoch + 1) }
      member.target = before.target
      group.members[before.id] = nil
    }
    guard group.members.count < GroupLimits.membersMax else {
      throw MemQError(
        .limitReached, "the group has its largest number of members", subject: join.group,
        limit: Int64(GroupLimits.membersMax), actual: Int64(group.members.count + 1))
    }
    group.members[member.id] = member
    let topics = self.topics(of: group)
    let partitions = topics.reduce(0) { $0 + $1.partitionCount }
    guard partitions <= GroupLimits.partitionsMax else {
      throw MemQError(
        .limitReached, "the topics of a group have too many partitions", subject: join.group,
        limit: Int64(GroupLimits.partitionsMax), actual: Int64(partitions))
    }
    group.retarget(topics)
    // A successor reads nothing yet: what it is not to keep needs no giving back.
    group.members[member.id]!.owned = group.members[member.id]!.kept
    group.settle(after: known?.value)
    let transaction = try self.replacing(known, with: group)
    return Plan([transaction], outcome: GroupPlace(group.members[member.id]!))
  }

  private func member(_ join: GroupJoin) throws(MemQError) -> GroupRecord.Member {
    try Self.checkGroupName(join.group)
    func timeout(
      _ given: Duration, _ fallback: Duration, _ range: ClosedRange<Duration>, _ what: String
    ) throws(MemQError) -> Duration {
      guard given != .zero else { return fallback }
      guard range.contains(given) else {
        throw MemQError(
          .invalidArgument,
          "a \(what) timeout is \(range.lowerBound.milliseconds) to \(range.upperBound.milliseconds) ms",
          subject: join.group, limit: range.upperBound.milliseconds, actual: given.milliseconds)
      }
      return given
    }
    func check(_ actual: Int, _ limit: Int, _ what: String) throws(MemQError) {
      guard actual <= limit else {
        throw MemQError(
          .invalidArgument, what, subject: join.group, limit: Int64(limit), actual: Int64(actual))
      }
    }
    try check(join.topics.count, GroupLimits.topicsMax, "a member reads at most 100 topics")
    try check(
      join.clientID.utf8.count, GroupLimits.clientIDBytesMax,
      "a client's name has at most 255 bytes")
    try check(
      join.instanceID.utf8.count, GroupLimits.instanceIDBytesMax,
      "an instance id has at most 255 bytes")
    try check(
      join.memberID.utf8.count, GroupLimits.memberIDBytesMax, "a member id has at most 255 bytes")
    try check(join.only.count, GroupLimits.onlyMax, "a member names at most 10,000 partitions")
    var ids: [TopicID] = []
    for name in join.topics { ids.append(try self.topic(named: name).value.id) }
    for partition in join.only {
      guard ids.contains(partition.topic) else {
        throw MemQError(
          .invalidArgument, "a partition of a topic that the member does not read",
          subject: "\(partition)")
      }
      _ = try self.partition(partition)
    }
    let prefix = [join.instanceID, join.clientID, "member"].first { !$0.isEmpty }!
    var member = GroupRecord.Member(
      id: join.memberID.isEmpty ? "\(prefix)-\(join.nonce)" : join.memberID,
      clientID: join.clientID, topics: join.topics,
      sessionTimeout: try timeout(
        join.sessionTimeout, GroupLimits.sessionTimeoutDefault, GroupLimits.sessionTimeouts,
        "session"),
      rebalanceTimeout: try timeout(
        join.rebalanceTimeout, GroupLimits.rebalanceTimeoutDefault, GroupLimits.rebalanceTimeouts,
        "rebalance"))
    member.instanceID = join.instanceID
    member.host = join.host
    member.only = Set(join.only).sorted()
    return member
  }

  func checkRoom(for name: String, known: Versioned<GroupRecord>?) throws(MemQError) {
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

  // MARK: Staying

  /// The group of a member in good standing.
  ///
  /// - Throws: `.groupMemberUnknown`, `.groupMemberFenced` when another has joined under its instance id.
  public func member(
    of session: GroupSession
  ) throws(MemQError) -> (group: Versioned<GroupRecord>, member: GroupRecord.Member) {
    let group = self.groups[session.group]
    if let group, let member = group.value.members[session.memberID], session.epoch >= 0,
      session.epoch <= member.epoch
    {
      return (group, member)
    }
    let isReplaced =
      !session.instanceID.isEmpty
      && group?.value.members.values.contains {
        $0.instanceID == session.instanceID && $0.id != session.memberID
      } ?? false
    throw isReplaced
      ? MemQError(
        .groupMemberFenced, "another member has joined under the same instance id",
        subject: session.group, limit: group?.value.epoch, actual: session.epoch)
      : MemQError(
        .groupMemberUnknown, "the member is not in the group any more; join again",
        subject: session.group, limit: group?.value.epoch, actual: session.epoch)
  }

  /// A sign of life.
  ///
  /// - Parameter reading: all that the member reads at the moment, what it is about to give back included; nil: as it said before.
  /// - Throws: `.groupMemberUnknown`, `.groupMemberFenced`.
  public func heartbeatGroup(
    _ session: GroupSession, reading: [TopicPartition]?
  ) throws(MemQError) -> Plan<GroupPlace> {
    let (known, member) = try self.member(of: session)
    // Of an earlier epoch it tells nothing of what is so now; the answer brings the epoch, and the next heartbeat says it anew.
    guard let reading, member.isRevoking, session.epoch == member.epoch else {
      return Plan(outcome: GroupPlace(member))
    }
    var group = known.value
    group.members[member.id]!.release(allBut: reading.sorted())
    guard group.members[member.id]!.owned.count < member.owned.count else {
      return Plan(outcome: GroupPlace(member))
    }
    group.settle(after: known.value)
    return Plan(
      [self.replace(known, with: group)], outcome: GroupPlace(group.members[member.id]!))
  }

  // MARK: Going

  /// A clean goodbye.
  ///
  /// - Throws: `.groupMemberUnknown`, `.groupMemberFenced`.
  public func leaveGroup(_ session: GroupSession) throws(MemQError) -> Plan<Void> {
    let (known, member) = try self.member(of: session)
    return Plan([self.removing(member.id, from: known)], outcome: ())
  }

  /// Takes out a member that fell silent or kept others waiting for too long.
  ///
  /// - Returns: false when it is not there any more.
  public func expireMember(_ key: GroupMemberKey) -> Plan<Bool> {
    guard let known = self.groups[key.group], known.value.members[key.memberID] != nil else {
      return Plan(outcome: false)
    }
    return Plan([self.removing(key.memberID, from: known)], outcome: true)
  }

  private func removing(_ id: String, from known: Versioned<GroupRecord>) -> Transaction {
    var group = known.value
    group.members[id] = nil
    group.retarget(self.topics(of: group))
    group.settle(after: known.value)
    return self.replace(known, with: group)
  }

  // MARK: Topics

  /// The topics that members read and that exist, by name.
  private func topics(of group: GroupRecord) -> [GroupTopic] {
    var topics: SortedMap<String, GroupTopic> = [:]
    for member in group.members.values {
      for name in member.topics where topics[name] == nil {
        guard let topic = try? self.topic(named: name).value else { continue }
        topics[name] = GroupTopic(name: name, id: topic.id, partitionCount: topic.partitionCount)
      }
    }
    return topics.values
  }

  /// Groups whose topics have grown, come or gone since their targets were made.
  public var outdatedGroups: [String] {
    self.groups.values.filter { group in
      !group.value.members.isEmpty && self.topics(of: group.value) != group.value.topics
    }.map(\.value.name)
  }

  /// Shares the partitions as the topics are now. A group whose topics have grown beyond its limit stays as it is.
  public func refreshGroup(_ name: String) -> Plan<Bool> {
    guard let known = self.groups[name], !known.value.members.isEmpty else {
      return Plan(outcome: false)
    }
    let topics = self.topics(of: known.value)
    guard topics != known.value.topics,
      topics.reduce(0, { $0 + $1.partitionCount }) <= GroupLimits.partitionsMax
    else { return Plan(outcome: false) }
    var group = known.value
    group.retarget(topics)
    group.settle(after: known.value)
    return Plan([self.replace(known, with: group)], outcome: true)
  }

  /// For what makes a group larger.
  private func replacing(
    _ known: Versioned<GroupRecord>?, with group: GroupRecord
  ) throws(MemQError) -> Transaction {
    let size = group.encoded(for: .group(group.name)).count
    guard size <= GroupLimits.recordBytesMax else {
      throw MemQError(
        .limitReached, "the group's record is too large: fewer members, topics or partitions",
        subject: group.name, limit: Int64(GroupLimits.recordBytesMax), actual: Int64(size))
    }
    return self.replace(known, with: group)
  }

  private func replace(_ known: Versioned<GroupRecord>?, with group: GroupRecord) -> Transaction {
    var transaction = Transaction()
    transaction.replace(.group(group.name), known, with: group)
    return transaction
  }
}
