// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// One object of a snapshot: entries of the store, or changes that happened while they were read (docs/formats/metadata-snapshot.md).
public struct SnapshotPart: Hashable, Sendable {
  public enum Kind: UInt8, Sendable {
    case entries = 1
    case changes = 2
  }

  private static let magic: UInt32 = 0x4D51_4D53  // MQMS
  private static let version: UInt16 = 0

  public var kind: Kind
  /// An entry is a change that has a value.
  public var changes: [StoreChange]

  public init(_ kind: Kind, _ changes: [StoreChange]) {
    self.kind = kind
    self.changes = changes
  }

  public var encoded: [UInt8] {
    var writer = ByteWriter()
    writer.integer(Self.magic)
    writer.integer(Self.version)
    writer.integer(self.kind.rawValue)
    writer.list(self.changes) { writer, change in
      writer.data(change.key.bytes)
      writer.integer(change.revision.rawValue)
      writer.optional(change.value) { $0.data($1) }
    }
    writer.integer(CRC32C.checksum(writer.bytes))
    return writer.bytes
  }

  /// - Throws: `.corruptMessage`.
  public init(_ bytes: [UInt8]) throws(MemQError) {
    var reader = try checked(bytes, Self.magic, Self.version, "a part of a metadata snapshot")
    guard let kind = Kind(rawValue: try reader.integer()) else {
      throw MemQError(.corruptMessage, "a part of a metadata snapshot is of no known kind")
    }
    self.kind = kind
    self.changes = try reader.list { reader throws(MemQError) in
      StoreChange(
        key: StoreKey(try reader.data()), value: nil, revision: Revision(try reader.integer())
      ).with(try reader.optional { reader throws(MemQError) in try reader.data() })
    }
    try reader.finish()
  }
}

/// What a snapshot is of, and which parts it has; written last, so that a snapshot without one is none.
public struct SnapshotManifest: Hashable, Sendable {
  public struct Part: Hashable, Sendable {
    public var byteCount: Int64
    public var crc32c: UInt32

    public init(byteCount: Int64, crc32c: UInt32) {
      self.byteCount = byteCount
      self.crc32c = crc32c
    }
  }

  private static let magic: UInt32 = 0x4D51_4D4D  // MQMM
  private static let version: UInt16 = 0

  public var cluster: ClusterRecord
  /// Where its reading began: its name.
  public var begun: Revision
  /// It holds everything up to here.
  public var revision: Revision
  public var createdAt: Timestamp
  public var parts: [Part]

  public init(
    cluster: ClusterRecord, begun: Revision, revision: Revision, createdAt: Timestamp,
    parts: [Part]
  ) {
    self.cluster = cluster
    self.begun = begun
    self.revision = revision
    self.createdAt = createdAt
    self.parts = parts
  }

  public var encoded: [UInt8] {
    var writer = ByteWriter()
    writer.integer(Self.magic)
    writer.integer(Self.version)
    self.cluster.write(to: &writer)
    writer.integer(self.begun.rawValue)
    writer.integer(self.revision.rawValue)
    writer.time(self.createdAt)
    writer.list(self.parts) { writer, part in
      writer.integer(part.byteCount)
      writer.integer(part.crc32c)
    }
    writer.integer(CRC32C.checksum(writer.bytes))
    return writer.bytes
  }

  /// - Throws: `.corruptMessage`.
  public init(_ bytes: [UInt8]) throws(MemQError) {
    var reader = try checked(bytes, Self.magic, Self.version, "a metadata snapshot's manifest")
    self.cluster = try ClusterRecord(from: &reader)
    self.begun = Revision(try reader.integer())
    self.revision = Revision(try reader.integer())
    self.createdAt = try reader.time()
    self.parts = try reader.list { reader throws(MemQError) in
      Part(byteCount: try reader.integer(), crc32c: try reader.integer())
    }
    try reader.finish()
  }
}

extension StoreChange {
  fileprivate func with(_ value: [UInt8]?) -> StoreChange {
    StoreChange(key: self.key, value: value, revision: self.revision)
  }
}

/// A reader behind magic and version of bytes that end with their checksum.
private func checked(
  _ bytes: [UInt8], _ magic: UInt32, _ version: UInt16, _ what: String
) throws(MemQError) -> ByteReader {
  guard bytes.count >= 10 else {
    throw MemQError(.corruptMessage, "\(what) is too short", actual: Int64(bytes.count))
  }
  var tail = ByteReader(Array(bytes.suffix(4)))
  let stated: UInt32 = try tail.integer()
  guard CRC32C.checksum(bytes.dropLast(4)) == stated else {
    throw MemQError(.corruptMessage, "\(what) has a wrong checksum")
  }
  var reader = ByteReader(Array(bytes.dropLast(4)))
  guard try reader.integer(UInt32.self) == magic, try reader.integer(UInt16.self) == version else {
    throw MemQError(.corruptMessage, "\(what) is of another format or version")
  }
  return reader
}
