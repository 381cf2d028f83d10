// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What makes the cluster this one.
public struct ClusterRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 1
  public var id: ClusterID
  public var incarnation: Incarnation
  public var incarnationID: UniqueID
  public var createdAt: Timestamp

  public init(
    id: ClusterID, incarnation: Incarnation, incarnationID: UniqueID, createdAt: Timestamp
  ) {
    self.id = id
    self.incarnation = incarnation
    self.incarnationID = incarnationID
    self.createdAt = createdAt
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.id)
    writer.epoch(self.incarnation)
    writer.raw(self.incarnationID.bytes)
    writer.time(self.createdAt)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.id = try reader.id()
    self.incarnation = try reader.epoch()
    self.incarnationID = UniqueID(bytes: try reader.raw(16))!
    self.createdAt = try reader.time()
  }
}

/// The metadata instance that decides.
public struct ControllerRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 19
  public var uuid: NodeUUID
  /// Where other instances and nodes reach it.
  public var address: String

  public init(uuid: NodeUUID, address: String) {
    self.uuid = uuid
    self.address = address
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.uuid)
    writer.text(self.address)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.uuid = try reader.id()
    self.address = try reader.text()
  }
}

/// The next number to give out.
public struct CounterRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 2
  public var next: Int64

  public init(next: Int64) { self.next = next }

  public func write(to writer: inout ByteWriter) { writer.integer(self.next) }
  public init(from reader: inout ByteReader) throws(MemQError) { self.next = try reader.integer() }
}

extension NodeImage: StoredRecord {
  public static var kind: UInt8 { 3 }

  public func write(to writer: inout ByteWriter) {
    writer.node(self.id)
    writer.id(self.uuid)
    writer.integer(self.service.rawValue)
    writer.text(self.address)
    writer.text(self.adminAddress)
    writer.text(self.rack)
    writer.text(self.host)
    writer.integer(self.pid)
    writer.epoch(self.epoch)
    writer.integer(self.state.rawValue)
    writer.list(self.volumes) { writer, volume in
      writer.id(volume.id)
      writer.integer(volume.state.rawValue)
      writer.integer(volume.capacityBytes)
      writer.text(volume.problem)
    }
    writer.flag(self.restartedUncleanly)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.init(
      id: try reader.node(), uuid: try reader.id(), service: try reader.choice(),
      address: try reader.text(), adminAddress: try reader.text(), rack: try reader.text(),
      host: try reader.text(), pid: try reader.integer(), epoch: try reader.epoch(),
      state: try reader.choice(),
      volumes: try reader.list { r throws(MemQError) in
        VolumeImage(
          try r.id(), try r.choice(), capacityBytes: try r.integer(), problem: try r.text())
      },
      restartedUncleanly: try reader.flag())
  }
}

extension TopicImage: StoredRecord {
  public static var kind: UInt8 { 4 }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.id)
    writer.text(self.name)
    writer.integer(Int32(self.partitionCount))
    writer.integer(Int32(self.replicationFactor))
    writer.time(self.createdAt)
    writer.list(Array(self.given)) { writer, setting in
      writer.text(setting.0)
      writer.text(setting.1)
    }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    let id: TopicID = try reader.id()
    let name = try reader.text()
    let partitionCount: Int32 = try reader.integer()
    let replicationFactor: Int32 = try reader.integer()
    let createdAt = try reader.time()
    var given: SortedMap<String, String> = [:]
    for (name, value) in try reader.list({ r throws(MemQError) in (try r.text(), try r.text()) }) {
      given[name] = value
    }
    try self.init(
      id: id, name: name, partitionCount: Int(partitionCount),
      replicationFactor: Int(replicationFactor), given: given, createdAt: createdAt)
  }
}

/// Which topic a name means.
public struct TopicNameRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 5
  public var id: TopicID

  public init(id: TopicID) { self.id = id }

  public func write(to writer: inout ByteWriter) { writer.id(self.id) }
  public init(from reader: inout ByteReader) throws(MemQError) { self.id = try reader.id() }
}

/// A deleted topic of which partitions, offsets or files may be left; as a tombstone, one of which only a node's disk may hold any.
public struct GraveRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 6
  public var id: TopicID
  public var name: String
  public var deletedAt: Timestamp

  public init(id: TopicID, name: String, deletedAt: Timestamp) {
    self.id = id
    self.name = name
    self.deletedAt = deletedAt
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.id)
    writer.text(self.name)
    writer.time(self.deletedAt)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.id = try reader.id()
    self.name = try reader.text()
    self.deletedAt = try reader.time()
  }
}

/// The uploaded offset is not part of it: the upload group's record holds that.
extension PartitionImage: StoredRecord {
  public static var kind: UInt8 { 7 }

  public func write(to writer: inout ByteWriter) {
    writer.partition(self.id)
    writer.optional(self.leader) { $0.node($1) }
    writer.epoch(self.leaderEpoch)
    writer.epoch(self.epoch)
    writer.replicas(self.replicas)
    writer.list(self.inSync) { $0.node($1) }
    writer.list(self.eligible) { $0.node($1) }
    writer.epoch(self.historyEpoch)
    writer.integer(self.uploadGroup)
    writer.integer(self.logStart.rawValue)
    writer.optional(self.reassignment) {
      $0.replicas($1.target)
      $0.replicas($1.original)
    }
    writer.list(self.damaged) {
      $0.node($1.node)
      $0.offset($1.from)
    }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.init(
      id: try reader.partition(),
      leader: try reader.optional { r throws(MemQError) in try r.node() },
      leaderEpoch: try reader.epoch(), epoch: try reader.epoch(),
      replicas: try reader.replicas(),
      inSync: try reader.list { r throws(MemQError) in try r.node() },
      eligible: try reader.list { r throws(MemQError) in try r.node() },
      historyEpoch: try reader.epoch(), uploadGroup: try reader.integer(),
      logStart: Offset(try reader.integer()),
      reassignment: try reader.optional { r throws(MemQError) in
        PartitionReassignment(target: try r.replicas(), original: try r.replicas())
      },
      damaged: try reader.list { r throws(MemQError) in
        DamagedReplica(try r.node(), from: try r.offset())
      })
  }
}

extension ByteWriter {
  fileprivate mutating func replicas(_ replicas: [ReplicaID]) {
    self.list(replicas) {
      $0.node($1.node)
      $0.id($1.volume)
    }
  }
}

extension ByteReader {
  fileprivate mutating func replicas() throws(MemQError) -> [ReplicaID] {
    try self.list { r throws(MemQError) in ReplicaID(try r.node(), try r.id()) }
  }
}
