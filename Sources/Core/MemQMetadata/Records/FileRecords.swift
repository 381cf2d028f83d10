// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// What a scan said. Raw values are those of memq.v1.VerdictKind.
public enum VerdictKind: UInt8, Sendable {
  case clean = 1
  case infected, notScanned, off
}

/// A scan's result.
public struct VerdictRecord: Hashable, Sendable {
  public var kind: VerdictKind
  public var signature: String
  public var reason: String
  public var engine: String
  public var databaseVersion: String
  /// 32 bytes or none.
  public var sha256: [UInt8]
  public var duration: Duration

  public init(
    kind: VerdictKind, signature: String = "", reason: String = "", engine: String = "",
    databaseVersion: String = "", sha256: [UInt8] = [], duration: Duration = .zero
  ) {
    self.kind = kind
    self.signature = signature
    self.reason = reason
    self.engine = engine
    self.databaseVersion = databaseVersion
    self.sha256 = sha256
    self.duration = duration
  }

  func write(to writer: inout ByteWriter) {
    writer.integer(self.kind.rawValue)
    for text in [self.signature, self.reason, self.engine, self.databaseVersion] {
      writer.text(text)
    }
    writer.data(self.sha256)
    writer.integer(self.duration.milliseconds)
  }
  init(from reader: inout ByteReader) throws(MemQError) {
    self.init(
      kind: try reader.choice(), signature: try reader.text(), reason: try reader.text(),
      engine: try reader.text(), databaseVersion: try reader.text(), sha256: try reader.data(),
      duration: .milliseconds(try reader.integer(Int64.self)))
  }
}

/// Where a file put stands. Raw values are those of memq.v1.UploadState.
public enum UploadState: UInt8, Sendable, CaseIterable {
  case open = 1
  case sealed, judged, publishing, published, abandoned, quarantined

  public var name: String { String(describing: self) }

  public var shelf: UploadShelf {
    switch self {
    case .open, .sealed, .judged, .publishing: .active
    case .quarantined: .quarantined
    case .published, .abandoned: .done
    }
  }
}

/// Everything about one file put, but for an inline body: that stands under its own key.
public struct UploadRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 14
  public var id: UploadID
  public var topic: TopicID
  public var name: String
  public var state: UploadState
  /// -1: not declared.
  public var declaredSize: Int64
  /// Bytes acknowledged as durable; the size once sealed.
  public var offset: Int64
  public var digestState: [UInt8]
  /// 32 bytes from sealed on.
  public var sha256: [UInt8]
  public var contentType: String
  public var attributes: SortedMap<String, String>
  /// Empty: inline.
  public var bodyKey: String
  public var verdict: VerdictRecord?
  public var producerID: ProducerID
  public var partition: PartitionIndex
  /// -1 before it is published.
  public var recordOffset: Offset
  public var version: Int64
  public var updatedAt: Timestamp
  public var createdAt: Timestamp
  public var reason: String
  public var driver: NodeID?

  public init(
    id: UploadID, topic: TopicID, name: String, state: UploadState, declaredSize: Int64 = -1,
    offset: Int64 = 0, digestState: [UInt8] = [], sha256: [UInt8] = [], contentType: String = "",
    attributes: SortedMap<String, String> = [:], bodyKey: String = "",
    verdict: VerdictRecord? = nil, producerID: ProducerID = .none,
    partition: PartitionIndex = PartitionIndex(0), recordOffset: Offset = Offset(-1),
    version: Int64 = 0, updatedAt: Timestamp = .none, createdAt: Timestamp = .none,
    reason: String = "", driver: NodeID? = nil
  ) {
    self.id = id
    self.topic = topic
    self.name = name
    self.state = state
    self.declaredSize = declaredSize
    self.offset = offset
    self.digestState = digestState
    self.sha256 = sha256
    self.contentType = contentType
    self.attributes = attributes
    self.bodyKey = bodyKey
    self.verdict = verdict
    self.producerID = producerID
    self.partition = partition
    self.recordOffset = recordOffset
    self.version = version
    self.updatedAt = updatedAt
    self.createdAt = createdAt
    self.reason = reason
    self.driver = driver
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.id)
    writer.id(self.topic)
    writer.text(self.name)
    writer.integer(self.state.rawValue)
    writer.integer(self.declaredSize)
    writer.integer(self.offset)
    writer.data(self.digestState)
    writer.data(self.sha256)
    writer.text(self.contentType)
    writer.texts(self.attributes)
    writer.text(self.bodyKey)
    writer.optional(self.verdict) { $1.write(to: &$0) }
    writer.integer(self.producerID.rawValue)
    writer.integer(self.partition.rawValue)
    writer.offset(self.recordOffset)
    writer.integer(self.version)
    writer.time(self.updatedAt)
    writer.time(self.createdAt)
    writer.text(self.reason)
    writer.optional(self.driver) { $0.node($1) }
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.init(
      id: try reader.id(), topic: try reader.id(), name: try reader.text(),
      state: try reader.choice(), declaredSize: try reader.integer(),
      offset: try reader.integer(), digestState: try reader.data(), sha256: try reader.data(),
      contentType: try reader.text(), attributes: try reader.texts(), bodyKey: try reader.text(),
      verdict: try reader.optional { r throws(MemQError) in try VerdictRecord(from: &r) },
      producerID: ProducerID(try reader.integer()),
      partition: PartitionIndex(try reader.integer()), recordOffset: try reader.offset(),
      version: try reader.integer(), updatedAt: try reader.time(), createdAt: try reader.time(),
      reason: try reader.text(),
      driver: try reader.optional { r throws(MemQError) in try r.node() })
  }
}

/// An inline body of a put that is not published yet.
public struct InlineBodyRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 15
  public var bytes: [UInt8]

  public init(bytes: [UInt8]) { self.bytes = bytes }

  public func write(to writer: inout ByteWriter) { writer.data(self.bytes) }
  public init(from reader: inout ByteReader) throws(MemQError) { self.bytes = try reader.data() }
}

/// One published file.
public struct FileRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 16
  public var topic: TopicID
  public var name: String
  /// From 1, rising with each publication of the name.
  public var version: Int64
  public var byteCount: Int64
  public var sha256: [UInt8]
  public var contentType: String
  public var verdict: VerdictRecord?
  public var partition: PartitionIndex
  public var offset: Offset
  public var bodyKey: String
  public var publishedAt: Timestamp
  public var attributes: SortedMap<String, String>
  public var upload: UploadID

  /// The file that a published upload makes.
  public init(_ upload: UploadRecord, version: Int64, publishedAt: Timestamp) {
    self.topic = upload.topic
    self.name = upload.name
    self.version = version
    self.byteCount = upload.offset
    self.sha256 = upload.sha256
    self.contentType = upload.contentType
    self.verdict = upload.verdict
    self.partition = upload.partition
    self.offset = upload.recordOffset
    self.bodyKey = upload.bodyKey
    self.publishedAt = publishedAt
    self.attributes = upload.attributes
    self.upload = upload.id
  }

  public func write(to writer: inout ByteWriter) {
    writer.id(self.topic)
    writer.text(self.name)
    writer.integer(self.version)
    writer.integer(self.byteCount)
    writer.data(self.sha256)
    writer.text(self.contentType)
    writer.optional(self.verdict) { $1.write(to: &$0) }
    writer.integer(self.partition.rawValue)
    writer.offset(self.offset)
    writer.text(self.bodyKey)
    writer.time(self.publishedAt)
    writer.texts(self.attributes)
    writer.id(self.upload)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.topic = try reader.id()
    self.name = try reader.text()
    self.version = try reader.integer()
    self.byteCount = try reader.integer()
    self.sha256 = try reader.data()
    self.contentType = try reader.text()
    self.verdict = try reader.optional { r throws(MemQError) in try VerdictRecord(from: &r) }
    self.partition = PartitionIndex(try reader.integer())
    self.offset = try reader.offset()
    self.bodyKey = try reader.text()
    self.publishedAt = try reader.time()
    self.attributes = try reader.texts()
    self.upload = try reader.id()
  }
}

/// A body whose bytes are to go.
public struct DroppingBodyRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 17
  public var since: Timestamp

  public init(since: Timestamp) { self.since = since }

  public func write(to writer: inout ByteWriter) { writer.time(self.since) }
  public init(from reader: inout ByteReader) throws(MemQError) { self.since = try reader.time() }
}

/// A person's decision about a quarantined file.
public struct AuditRecord: StoredRecord, Hashable {
  public static let kind: UInt8 = 18
  public var at: Timestamp
  public var actor: String
  public var reason: String
  /// True: released; false: deleted.
  public var isRelease: Bool
  /// The put as it was.
  public var upload: UploadRecord

  public init(
    at: Timestamp, actor: String, reason: String, isRelease: Bool, upload: UploadRecord
  ) {
    self.at = at
    self.actor = actor
    self.reason = reason
    self.isRelease = isRelease
    self.upload = upload
  }

  public func write(to writer: inout ByteWriter) {
    writer.time(self.at)
    writer.text(self.actor)
    writer.text(self.reason)
    writer.flag(self.isRelease)
    self.upload.write(to: &writer)
  }
  public init(from reader: inout ByteReader) throws(MemQError) {
    self.at = try reader.time()
    self.actor = try reader.text()
    self.reason = try reader.text()
    self.isRelease = try reader.flag()
    self.upload = try UploadRecord(from: &reader)
  }
}

extension ByteWriter {
  fileprivate mutating func texts(_ map: SortedMap<String, String>) {
    self.list(Array(map)) { writer, entry in
      writer.text(entry.0)
      writer.text(entry.1)
    }
  }
}

extension ByteReader {
  fileprivate mutating func texts() throws(MemQError) -> SortedMap<String, String> {
    var map: SortedMap<String, String> = [:]
    for (name, value) in try self.list({ r throws(MemQError) in (try r.text(), try r.text()) }) {
      map[name] = value
    }
    return map
  }
}
