// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Where the upload of a partition stands.
public struct UploadPosition: Hashable, Sendable {
  /// First offset not uploaded.
  public var next: Offset
  public var historyEpoch: HistoryEpoch
  /// Leader epoch of the last record uploaded; `.none`: nothing is, or it was not told.
  public var lastEpoch: LeaderEpoch

  public init(
    next: Offset = .zero, historyEpoch: HistoryEpoch = .zero, lastEpoch: LeaderEpoch = .none
  ) {
    self.next = next
    self.historyEpoch = historyEpoch
    self.lastEpoch = lastEpoch
  }
}

/// An upload group with the positions of its partitions.
public struct UploadGroupRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 8
  public var group: UploadGroupImage
  public var positions: SortedMap<TopicPartition, UploadPosition>

  public init(
    group: UploadGroupImage, positions: SortedMap<TopicPartition, UploadPosition> = [:]
  ) {
    self.group = group
    self.positions = positions
  }

  public func write(to writer: inout ByteWriter) {
    writer.integer(self.group.id)
    writer.optional(self.group.holder) { $0.node($1) }
    writer.epoch(self.group.leaseEpoch)
    writer.integer(self.group.objectSequence)
    writer.integer(self.group.objectCount)
    writer.integer(self.group.objectBytes)
    writer.integer(self.group.billedRequests)
    writer.list(Array(self.positions)) { writer, position in
      writer.partition(position.0)
      writer.offset(position.1.next)
      writer.epoch(position.1.historyEpoch)
      writer.epoch(position.1.lastEpoch)
    }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.group = UploadGroupImage(
      id: try reader.integer(),
      holder: try reader.optional { r throws(MemQError) in try r.node() },
      leaseEpoch: try reader.epoch(), objectSequence: try reader.integer(),
      objectCount: try reader.integer(), objectBytes: try reader.integer(),
      billedRequests: try reader.integer())
    self.positions = [:]
    let entries = try reader.list { r throws(MemQError) in
      (
        try r.partition(),
        UploadPosition(
          next: try r.offset(), historyEpoch: try r.epoch(), lastEpoch: try r.epoch())
      )
    }
    for (partition, position) in entries { self.positions[partition] = position }
  }
}

/// One committed object.
public struct ObjectRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 9
  public var id: ObjectID
  public var group: Int32
  /// Number in the group, from 1.
  public var sequence: Int64
  public var key: String
  public var byteCount: Int64
  public var footerBytes: Int64
  public var minTimestamp: Timestamp
  public var maxTimestamp: Timestamp
  public var leaseEpoch: LeaseEpoch
  /// Nothing in it was appended later.
  public var announcedAt: Timestamp

  public init(
    id: ObjectID, group: Int32, sequence: Int64, key: String, byteCount: Int64, footerBytes: Int64,
    minTimestamp: Timestamp, maxTimestamp: Timestamp, leaseEpoch: LeaseEpoch,
    announcedAt: Timestamp = .none
  ) {
    self.id = id
    self.group = group
    self.sequence = sequence
    self.key = key
    self.byteCount = byteCount
    self.footerBytes = footerBytes
    self.minTimestamp = minTimestamp
    self.maxTimestamp = maxTimestamp
    self.leaseEpoch = leaseEpoch
    self.announcedAt = announcedAt
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.id)
    writer.integer(self.group)
    writer.integer(self.sequence)
    writer.text(self.key)
    writer.integer(self.byteCount)
    writer.integer(self.footerBytes)
    writer.time(self.minTimestamp)
    writer.time(self.maxTimestamp)
    writer.epoch(self.leaseEpoch)
    writer.time(self.announcedAt)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.init(
      id: try reader.id(), group: try reader.integer(), sequence: try reader.integer(),
      key: try reader.text(), byteCount: try reader.integer(), footerBytes: try reader.integer(),
      minTimestamp: try reader.time(), maxTimestamp: try reader.time(),
      leaseEpoch: try reader.epoch(), announcedAt: try reader.time())
  }
}

/// What became of an object id: committed, with which ranges refused, or barred.
public struct ObjectIDRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 10
  public var group: Int32
  /// 0: barred.
  public var sequence: Int64
  /// Indices of the commit's ranges that were refused.
  public var refused: [Int32]
  /// The group's lease epoch at that time.
  public var leaseEpoch: LeaseEpoch

  public init(group: Int32, sequence: Int64, refused: [Int32], leaseEpoch: LeaseEpoch) {
    self.group = group
    self.sequence = sequence
    self.refused = refused
    self.leaseEpoch = leaseEpoch
  }

  public var isBarred: Bool { self.sequence == 0 }

  public func write(to writer: inout ByteWriter) {
    writer.integer(self.group)
    writer.integer(self.sequence)
    writer.list(self.refused) { $0.integer($1) }
    writer.epoch(self.leaseEpoch)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.init(
      group: try reader.integer(), sequence: try reader.integer(),
      refused: try reader.list { r throws(MemQError) in try r.integer() },
      leaseEpoch: try reader.epoch())
  }
}
