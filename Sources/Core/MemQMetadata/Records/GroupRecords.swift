// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A consumer group and its member.
public struct GroupRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 11

  public struct Member: Hashable, Sendable {
    public var id: String
    public var clientID: String
    /// By name.
    public var topics: [String]
    /// Silence after which it counts as gone.
    public var sessionTimeout: Duration

    public init(id: String, clientID: String, topics: [String], sessionTimeout: Duration) {
      self.id = id
      self.clientID = clientID
      self.topics = topics
      self.sessionTimeout = sessionTimeout
    }
  }

  public var name: String
  /// Rises with each join.
  public var epoch: Int64
  public var member: Member?

  public init(name: String, epoch: Int64, member: Member?) {
    self.name = name
    self.epoch = epoch
    self.member = member
  }

  public func write(to writer: inout ByteWriter) {
    writer.text(self.name)
    writer.integer(self.epoch)
    writer.optional(self.member) { writer, member in
      writer.text(member.id)
      writer.text(member.clientID)
      writer.list(member.topics) { $0.text($1) }
      writer.integer(member.sessionTimeout.milliseconds)
    }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.name = try reader.text()
    self.epoch = try reader.integer()
    self.member = try reader.optional { r throws(MemQError) in
      Member(
        id: try r.text(), clientID: try r.text(),
        topics: try r.list { r throws(MemQError) in try r.text() },
        sessionTimeout: .milliseconds(try r.integer(Int64.self)))
    }
  }
}

/// One partition's committed offset.
public struct CommittedOffset: Hashable, Sendable {
  public var offset: Offset
  /// Free text of the client.
  public var metadata: String
  public var committedAt: Timestamp

  public init(offset: Offset, metadata: String, committedAt: Timestamp) {
    self.offset = offset
    self.metadata = metadata
    self.committedAt = committedAt
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
