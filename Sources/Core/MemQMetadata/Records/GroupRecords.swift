// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A consumer group: its members, what each is to have, and what each has.
///
/// `Groups/GroupReconciliation.swift` says how it moves on.
public struct GroupRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 11

  /// A partition that a member was given and has not said to be back.
  public struct Owned: Hashable, Sendable {
    public var partition: TopicPartition
    /// The member epoch that brought it.
    public var since: Int64

    public init(_ partition: TopicPartition, since: Int64) {
      self.partition = partition
      self.since = since
    }
  }

  public struct Member: Hashable, Sendable {
    public var id: String
    /// The client's lasting name for this member; empty: none. Whoever joins under it takes this member's place.
    public var instanceID = ""
    public var clientID: String
    /// Where its client runs, for people.
    public var host = ""
    /// By name.
    public var topics: [String]
    /// Only these partitions of its topics, ascending; empty: all.
    public var only: [TopicPartition] = []
    /// Rises whenever what it may read changes; its requests carry it.
    public var epoch: Int64 = 0
    /// Silence after which it counts as gone.
    public var sessionTimeout: Duration
    /// How long it may take to give partitions back.
    public var rebalanceTimeout: Duration
    /// What no other member may have, ascending.
    public var owned: [Owned] = []
    /// What it shall have, ascending.
    public var target: [TopicPartition] = []

    public init(
      id: String, clientID: String, topics: [String], sessionTimeout: Duration,
      rebalanceTimeout: Duration
    ) {
      self.id = id
      self.clientID = clientID
      self.topics = topics
      self.sessionTimeout = sessionTimeout
      self.rebalanceTimeout = rebalanceTimeout
    }
  }

  public var name: String
  /// Rises with each change of the group.
  public var epoch: Int64
  /// What the targets were made for, by name.
  public var topics: [GroupTopic] = []
  public var members: SortedMap<String, Member> = [:]

  public init(name: String, epoch: Int64 = 0) {
    self.name = name
    self.epoch = epoch
  }

  public func write(to writer: inout ByteWriter) {
    writer.text(self.name)
    writer.integer(self.epoch)
    writer.list(self.topics) { writer, topic in
      writer.text(topic.name)
      writer.id(topic.id)
      writer.integer(Int32(topic.partitionCount))
    }
    writer.list(self.members.values) { $1.write(to: &$0) }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.name = try reader.text()
    self.epoch = try reader.integer()
    self.topics = try reader.list { r throws(MemQError) in
      GroupTopic(
        name: try r.text(), id: try r.id(), partitionCount: Int(try r.integer(Int32.self)))
    }
    let members = try reader.list { r throws(MemQError) in try Member(from: &r) }
    for member in members { self.members[member.id] = member }
  }
}

extension GroupRecord.Member {
  fileprivate func write(to writer: inout ByteWriter) {
    writer.text(self.id)
    writer.text(self.instanceID)
    writer.text(self.clientID)
    writer.text(self.host)
    writer.list(self.topics) { $0.text($1) }
    writer.partitions(self.only)
    writer.integer(self.epoch)
    writer.integer(self.sessionTimeout.milliseconds)
    writer.integer(self.rebalanceTimeout.milliseconds)
    // Neighbours that came together share one run.
    var runs: [ArraySlice<GroupRecord.Owned>] = []
    var begin = 0
    for index in self.owned.indices {
      let next = index + 1
      if next == self.owned.count || self.owned[next].since != self.owned[begin].since {
        runs.append(self.owned[begin..<next])
        begin = next
      }
    }
    writer.list(runs) { writer, run in
      writer.integer(run.first!.since)
      writer.partitions(run.map(\.partition))
    }
    // At rest they are the same.
    let isSettled = self.owned.map(\.partition) == self.target
    writer.optional(isSettled ? nil : self.target) { $0.partitions($1) }
  }

  fileprivate init(from reader: inout ByteReader) throws(MemQError) {
    self.id = try reader.text()
    self.instanceID = try reader.text()
    self.clientID = try reader.text()
    self.host = try reader.text()
    self.topics = try reader.list { r throws(MemQError) in try r.text() }
    self.only = try reader.partitions()
    self.epoch = try reader.integer()
    self.sessionTimeout = .milliseconds(try reader.integer(Int64.self))
    self.rebalanceTimeout = .milliseconds(try reader.integer(Int64.self))
    let runs = try reader.list { r throws(MemQError) in
      let since: Int64 = try r.integer()
      return try r.partitions().map { GroupRecord.Owned($0, since: since) }
    }
    self.owned = runs.flatMap { $0 }
    let owned = self.owned
    self.target =
      try reader.optional { r throws(MemQError) in try r.partitions() } ?? owned.map(\.partition)
  }
}

extension ByteWriter {
  /// Partitions in order, each topic's id once: 4 bytes a partition.
  fileprivate mutating func partitions(_ partitions: [TopicPartition]) {
    let runs = partitions.chunkedByTopic()
    self.list(runs) { writer, run in
      writer.id(run.first!.topic)
      writer.list(run) { $0.integer($1.partition.rawValue) }
    }
  }
}

extension ByteReader {
  fileprivate mutating func partitions() throws(MemQError) -> [TopicPartition] {
    try self.list { r throws(MemQError) in
      let topic: TopicID = try r.id()
      return try r.list { r throws(MemQError) in
        TopicPartition(topic, PartitionIndex(try r.integer()))
      }
    }.flatMap { $0 }
  }
}

extension [TopicPartition] {
  fileprivate func chunkedByTopic() -> [ArraySlice<TopicPartition>] {
    var runs: [ArraySlice<TopicPartition>] = []
    var begin = 0
    for index in self.indices
    where index + 1 == self.count || self[index + 1].topic != self[begin].topic {
      runs.append(self[begin...index])
      begin = index + 1
    }
    return runs
  }
}

/// One partition's committed offset.
public struct CommittedOffset: Hashable, Sendable {
  public var offset: Offset
  /// Free text of the client.
  public var metadata: String
  public var committedAt: Timestamp
  /// Leader epoch of the record before the offset, as its reader read it (KIP-320); nil: not known.
  public var leaderEpoch: LeaderEpoch?

  public init(
    offset: Offset, metadata: String, committedAt: Timestamp, leaderEpoch: LeaderEpoch? = nil
  ) {
    self.offset = offset
    self.metadata = metadata
    self.committedAt = committedAt
    self.leaderEpoch = leaderEpoch
  }
}

/// A group's offsets for up to 64 neighbouring partitions of one topic.
public struct OffsetChunkRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 12
  /// 64 with texts of 1,024 bytes stay well below etcd's 1.5 MiB; without, one commit writes 2 KiB.
  public static let partitionsPerChunk: Int32 = 64

  public var topic: TopicID
  public var offsets: SortedMap<PartitionIndex, CommittedOffset>

  public init(topic: TopicID, offsets: SortedMap<PartitionIndex, CommittedOffset> = [:]) {
    self.topic = topic
    self.offsets = offsets
  }

  public static func chunk(of partition: PartitionIndex) -> Int32 {
    partition.rawValue / Self.partitionsPerChunk
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.topic)
    writer.list(Array(self.offsets)) { writer, entry in
      writer.integer(entry.0.rawValue)
      writer.offset(entry.1.offset)
      writer.text(entry.1.metadata)
      writer.time(entry.1.committedAt)
    }
    let epochs = self.offsets.compactMap { partition, offset in
      offset.leaderEpoch.map { (partition, $0) }
    }
    // Absent, as in values from before there were any, where none is known.
    guard !epochs.isEmpty else { return }
    writer.list(epochs) { writer, entry in
      writer.integer(entry.0.rawValue)
      writer.integer(entry.1.rawValue)
    }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.topic = try reader.id()
    self.offsets = [:]
    let entries = try reader.list { r throws(MemQError) in
      (
        PartitionIndex(try r.integer()),
        CommittedOffset(
          offset: try r.offset(), metadata: try r.text(), committedAt: try r.time())
      )
    }
    for (partition, offset) in entries { self.offsets[partition] = offset }
    guard reader.remaining > 0 else { return }
    let epochs = try reader.list { r throws(MemQError) in
      (PartitionIndex(try r.integer()), LeaderEpoch(try r.integer()))
    }
    for (partition, epoch) in epochs { self.offsets[partition]?.leaderEpoch = epoch }
  }
}

/// The latest epoch of a producer id that was given a second life.
public struct ProducerEpochRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 13
  public var epoch: ProducerEpoch

  public init(epoch: ProducerEpoch) { self.epoch = epoch }

  public func write(to writer: inout ByteWriter) { writer.integer(self.epoch.rawValue) }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.epoch = ProducerEpoch(try reader.integer())
  }
}
