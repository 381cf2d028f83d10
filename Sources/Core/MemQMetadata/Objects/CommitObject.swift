// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One range of one partition inside an object.
public struct UploadedRange: Hashable, Sendable {
  public var partition: TopicPartition
  public var base: Offset
  /// Exclusive.
  public var end: Offset
  public var historyEpoch: HistoryEpoch
  /// Of its last record; `.none`: not told.
  public var lastEpoch: LeaderEpoch

  public init(
    partition: TopicPartition, base: Offset, end: Offset, historyEpoch: HistoryEpoch,
    lastEpoch: LeaderEpoch = .none
  ) {
    self.partition = partition
    self.base = base
    self.end = end
    self.historyEpoch = historyEpoch
    self.lastEpoch = lastEpoch
  }
}

/// An object to announce; its record's sequence is ignored.
public struct ObjectCommit: Hashable, Sendable {
  public var node: NodeID
  public var nodeEpoch: NodeEpoch
  public var object: ObjectRecord
  public var ranges: [UploadedRange]
  public var billedRequests: Int64

  public init(
    node: NodeID, nodeEpoch: NodeEpoch, object: ObjectRecord, ranges: [UploadedRange],
    billedRequests: Int64
  ) {
    self.node = node
    self.nodeEpoch = nodeEpoch
    self.object = object
    self.ranges = ranges
    self.billedRequests = billedRequests
  }
}

/// What became of it.
public struct ObjectCommitOutcome: Hashable, Sendable {
  /// 0: every range was refused.
  public var sequence: Int64
  /// Indices of the refused ranges.
  public var refused: [Int32]
  /// Where the request's partitions stand now.
  public var positions: [(TopicPartition, UploadPosition)] {
    self.positionMap.map { ($0.0, $0.1) }
  }
  var positionMap: SortedMap<TopicPartition, UploadPosition>
}

/// An object's plan holds at most 512 partitions; several runs of each are rare.
private let rangesPerObjectMax = 4_096
private let objectKeyBytesMax = 1_024

extension MetadataState {
  /// Announces an object. A range counts when it begins at its partition's next offset and was read under the current
  /// history epoch; the others are refused, one by one, in the same transaction.
  ///
  /// - Parameter known: what stands under the object's id. The same commit again is answered as before.
  /// - Throws: `.leaseLost`, `.objectBarred`, `.invalidArgument`.
  public func commitObject(
    _ commit: ObjectCommit, known: ObjectIDRecord?
  ) throws(MemQError) -> Plan<ObjectCommitOutcome> {
    try self.check(commit)
    let id = commit.object.group
    guard let group = self.uploadGroups[id] else {
      throw MemQError(.leaseLost, "no such upload group", subject: "upload group \(id)")
    }
    if let known {
      guard !known.isBarred else {
        throw MemQError(
          .objectBarred, "the collector has barred this object", subject: "\(commit.object.id)")
      }
      return Plan(
        outcome: ObjectCommitOutcome(
          sequence: known.sequence, refused: known.refused,
          positionMap: self.positions(of: commit, in: group.value)))
    }
    try self.checkLease(commit, group.value.group)
    var record = group.value
    var refused: [Int32] = []
    for (index, range) in commit.ranges.enumerated() where !record.take(range) {
      refused.append(Int32(index))
    }
    record.group.billedRequests += commit.billedRequests
    var transaction = Transaction()
    var sequence: Int64 = 0
    if refused.count < commit.ranges.count {
      sequence = record.group.objectSequence + 1
      record.group.objectSequence = sequence
      record.group.objectCount += 1
      record.group.objectBytes += commit.object.byteCount
      var object = commit.object
      object.sequence = sequence
      transaction.put(.object(id, sequence), object)
      transaction.require(.absent(.objectID(object.id)))
      transaction.put(
        .objectID(object.id),
        ObjectIDRecord(
          group: id, sequence: sequence, refused: refused, leaseEpoch: object.leaseEpoch))
    }
    transaction.replace(.uploadGroup(id), group, with: record)
    return Plan(
      [transaction],
      outcome: ObjectCommitOutcome(
        sequence: sequence, refused: refused, positionMap: self.positions(of: commit, in: record)))
  }

  private func check(_ commit: ObjectCommit) throws(MemQError) {
    guard commit.ranges.count <= rangesPerObjectMax else {
      throw MemQError(
        .invalidArgument, "too many ranges in one object", subject: "ranges",
        limit: Int64(rangesPerObjectMax), actual: Int64(commit.ranges.count))
    }
    let size = commit.object.key.utf8.count
    guard size >= 1, size <= objectKeyBytesMax else {
      throw MemQError(
        .invalidArgument, "an object's key has 1 to 1,024 bytes", subject: "key",
        limit: Int64(objectKeyBytesMax), actual: Int64(size))
    }
    guard commit.billedRequests >= 0, commit.object.byteCount >= 0, commit.object.footerBytes >= 0
    else {
      throw MemQError(
        .invalidArgument, "counts are not negative", subject: "\(commit.object.id)")
    }
  }

  private func checkLease(_ commit: ObjectCommit, _ group: UploadGroupImage) throws(MemQError) {
    let node = self.nodes[commit.node]?.value
    guard group.holder == commit.node, group.leaseEpoch == commit.object.leaseEpoch,
      node?.epoch == commit.nodeEpoch, node?.state.isLive == true
    else {
      throw MemQError(
        .leaseLost, "the lease is held by another or ran out",
        subject: "upload group \(group.id)", limit: group.leaseEpoch.rawValue,
        actual: commit.object.leaseEpoch.rawValue)
    }
  }

  private func positions(
    of commit: ObjectCommit, in record: UploadGroupRecord
  ) -> SortedMap<TopicPartition, UploadPosition> {
    var positions: SortedMap<TopicPartition, UploadPosition> = [:]
    for range in commit.ranges {
      if let position = record.positions[range.partition] { positions[range.partition] = position }
    }
    return positions
  }

  // MARK: The collector

  /// Forbids a later commit of an object id.
  ///
  /// - Returns: true when it is committed already, and stays.
  public func barObject(
    _ id: ObjectID, group: Int32, known: ObjectIDRecord?
  ) -> Plan<Bool> {
    if let known { return Plan(outcome: !known.isBarred) }
    var transaction = Transaction()
    transaction.require(.absent(.objectID(id)))
    let epoch = self.uploadGroups[group]?.value.group.leaseEpoch ?? .zero
    transaction.put(
      .objectID(id), ObjectIDRecord(group: group, sequence: 0, refused: [], leaseEpoch: epoch))
    return Plan([transaction], outcome: false)
  }

  /// Takes an object out of the list and of its group's counts, before its bytes go: a crash in between leaves bytes that
  /// nobody announced, and those are found. Or takes a bar away, which stays while the lease lives under which the object
  /// could still be committed.
  ///
  /// - Parameters:
  ///   - known: what stands under the object's id.
  ///   - object: what stands under its group and number.
  /// - Throws: `.objectNotFound`, `.invalidArgument` when group or number are another object's.
  public func removeObject(
    _ id: ObjectID, group: Int32, sequence: Int64, known: ObjectIDRecord?, object: ObjectRecord?
  ) throws(MemQError) -> Plan<Void> {
    guard let known else {
      throw MemQError(.objectNotFound, "no such object", subject: "\(id)")
    }
    guard known.group == group, known.sequence == sequence else {
      throw MemQError(
        .invalidArgument, "the object has another group or number", subject: "\(id)",
        limit: known.sequence, actual: sequence)
    }
    if known.isBarred { return self.removeBars([(id, known)]) }
    var transaction = Transaction()
    if let object, let owner = self.uploadGroups[group] {
      var record = owner.value
      record.group.objectCount -= 1
      record.group.objectBytes -= object.byteCount
      transaction.replace(.uploadGroup(group), owner, with: record)
    }
    transaction.require(.exists(.objectID(id)))
    transaction.delete(.object(group, sequence))
    transaction.delete(.objectID(id))
    return Plan([transaction], outcome: ())
  }

  /// Takes bars away that forbid nothing any more: the lease under which their object was written has passed on. Others
  /// stay, and so do ids that are committed.
  public func removeBars(_ known: [(ObjectID, ObjectIDRecord)]) -> Plan<Void> {
    var transaction = Transaction()
    for (id, record) in known where record.isBarred {
      let epoch = self.uploadGroups[record.group]?.value.group.leaseEpoch ?? .zero
      if epoch > record.leaseEpoch { transaction.delete(.objectID(id)) }
    }
    return Plan(transaction.operations.isEmpty ? [] : [transaction], outcome: ())
  }
}

extension UploadGroupRecord {
  /// Moves a partition on by a range. False: it does not continue where the partition stands.
  fileprivate mutating func take(_ range: UploadedRange) -> Bool {
    guard let position = self.positions[range.partition], position.next == range.base,
      position.historyEpoch == range.historyEpoch, range.end > range.base
    else { return false }
    self.positions[range.partition]!.next = range.end
    self.positions[range.partition]!.lastEpoch = range.lastEpoch
    return true
  }
}
