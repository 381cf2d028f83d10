// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// A value of the store. Its bytes: kind, version, fields, CRC-32C over the key and all before it, so that neither damage
/// nor a value under another's key passes. Integers are big-endian (docs/formats/metadata-store.md).
public protocol StoredRecord: Sendable {
  /// Differs for each type.
  static var kind: UInt8 { get }
  func write(to writer: inout ByteWriter)
  init(from reader: inout ByteReader) throws(MemQError)
}

/// Version of all values. Versions are not compatible before the first release.
private let version: UInt8 = 0

extension StoredRecord {
  public func encoded(for key: StoreKey) -> [UInt8] {
    var writer = ByteWriter()
    writer.integer(Self.kind)
    writer.integer(version)
    self.write(to: &writer)
    writer.integer(CRC32C.checksum(writer.bytes, seed: CRC32C.checksum(key.bytes)))
    return writer.bytes
  }

  /// Reads what `encoded` gave.
  ///
  /// - Throws: `.corruptMessage` with the key as subject.
  public init(_ value: [UInt8], for key: StoreKey) throws(MemQError) {
    func corrupt(_ what: String) -> MemQError {
      MemQError(.corruptMessage, "damaged metadata: \(what)", subject: key.description)
    }
    guard value.count >= 6 else { throw corrupt("\(value.count) bytes") }
    let body = value.dropLast(4)
    var tail = ByteReader(Array(value.suffix(4)))
    let stated: UInt32 = try tail.integer()
    guard CRC32C.checksum(body, seed: CRC32C.checksum(key.bytes)) == stated else {
      throw corrupt("the checksum is wrong")
    }
    guard body[0] == Self.kind else { throw corrupt("kind \(body[0]) instead of \(Self.kind)") }
    guard body[1] == version else { throw corrupt("unknown version \(body[1])") }
    var reader = ByteReader(Array(body.dropFirst(2)))
    do {
      try self.init(from: &reader)
      try reader.finish()
    } catch {
      throw corrupt(error.message)
    }
  }

  public init(_ entry: StoredEntry) throws(MemQError) {
    try self.init(entry.value, for: entry.key)
  }
}

/// A record with the revision that wrote it: what a condition compares.
public struct Versioned<Value: Sendable>: Sendable {
  public var value: Value
  public var revision: Revision

  public init(_ value: Value, _ revision: Revision) {
    self.value = value
    self.revision = revision
  }
}

extension Versioned where Value: StoredRecord {
  public init(_ entry: StoredEntry) throws(MemQError) {
    self.init(try Value(entry), entry.revision)
  }
}

extension Transaction {
  public mutating func put(_ key: StoreKey, _ record: some StoredRecord) {
    self.put(key, record.encoded(for: key))
  }
  /// Puts `record` where nothing stands.
  public mutating func create(_ key: StoreKey, _ record: some StoredRecord) {
    self.require(.absent(key))
    self.put(key, record)
  }
  /// Puts `record` where `old` stands: nil, nothing.
  public mutating func replace<T>(
    _ key: StoreKey, _ old: Versioned<T>?, with record: some StoredRecord
  ) {
    self.require(.revision(key, old?.revision ?? .zero))
    self.put(key, record)
  }
}

// The codec's small helpers.
extension ByteWriter {
  mutating func offset(_ value: Offset) { self.integer(value.rawValue) }
  mutating func epoch(_ value: some EpochValue) { self.integer(value.rawValue) }
  mutating func node(_ value: NodeID) { self.integer(value.rawValue) }
  mutating func time(_ value: Timestamp) { self.integer(value.milliseconds) }
  mutating func partition(_ value: TopicPartition) {
    self.id(value.topic)
    self.integer(value.partition.rawValue)
  }
}

extension ByteReader {
  mutating func offset() throws(MemQError) -> Offset { Offset(try self.integer()) }
  mutating func epoch<T: EpochValue>(_: T.Type = T.self) throws(MemQError) -> T {
    T(try self.integer())
  }
  mutating func node() throws(MemQError) -> NodeID { NodeID(try self.integer()) }
  mutating func time() throws(MemQError) -> Timestamp {
    Timestamp(milliseconds: try self.integer())
  }
  mutating func partition() throws(MemQError) -> TopicPartition {
    TopicPartition(try self.id(), PartitionIndex(try self.integer()))
  }
  mutating func choice<T: RawRepresentable<UInt8>>(_: T.Type = T.self) throws(MemQError) -> T {
    let raw: UInt8 = try self.integer()
    guard let value = T(rawValue: raw) else {
      throw MemQError(.corruptMessage, "\(raw) is no \(T.self)")
    }
    return value
  }
}
