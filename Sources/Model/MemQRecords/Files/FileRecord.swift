// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The value of a record that stands for a file (docs/formats/file-record.md). Its key is the file's name; a null
/// value is the file's tombstone.
public struct FileRecord: Hashable, Sendable {
  /// Name and value of the record header that marks such records.
  public static let headerName = "memq.file"
  public static let headerValue: [UInt8] = [UInt8(ascii: "0")]

  /// What a scanner said when the file was published.
  public struct Verdict: Hashable, Sendable {
    /// Raw values are those of memq.v1.VerdictKind.
    public enum Kind: UInt8, Sendable { case clean = 1, infected, notScanned, off }

    public var kind: Kind
    public var signature: String
    public var reason: String
    /// Name and version of the engine; empty when nobody looked.
    public var engine: String
    public var databaseVersion: String
    public var durationMilliseconds: Int64

    public init(
      kind: Kind, signature: String = "", reason: String = "", engine: String = "",
      databaseVersion: String = "", durationMilliseconds: Int64 = 0
    ) {
      self.kind = kind
      self.signature = signature
      self.reason = reason
      self.engine = engine
      self.databaseVersion = databaseVersion
      self.durationMilliseconds = durationMilliseconds
    }
  }

  /// Where the file's bytes are.
  public enum Body: Hashable, Sendable {
    /// In the record: up to 256 KiB.
    case inline([UInt8])
    /// In the object store, under this key of the cluster's bucket.
    case object(key: String)
  }

  public var uploadID: UploadID
  /// Bytes.
  public var size: Int64
  /// SHA-256 of the whole, 32 bytes.
  public var digest: [UInt8]
  /// Media type; may be empty.
  public var contentType: String
  public var verdict: Verdict
  public var attributes: SortedMap<String, String>
  public var body: Body

  public init(
    uploadID: UploadID, size: Int64, digest: [UInt8], contentType: String, verdict: Verdict,
    attributes: SortedMap<String, String> = [:], body: Body
  ) {
    precondition(digest.count == 32)
    self.uploadID = uploadID
    self.size = size
    self.digest = digest
    self.contentType = contentType
    self.verdict = verdict
    self.attributes = attributes
    self.body = body
  }

  private static let magic: UInt32 = 0x4D51_4652  // "MQFR"
  private static let version: UInt8 = 0

  /// The record value.
  public func encoded() -> [UInt8] {
    var writer = ByteWriter()
    writer.integer(Self.magic)
    writer.integer(Self.version)
    writer.id(self.uploadID)
    writer.integer(self.size)
    writer.raw(self.digest)
    writer.text(self.contentType)
    writer.integer(self.verdict.kind.rawValue)
    writer.text(self.verdict.signature)
    writer.text(self.verdict.reason)
    writer.text(self.verdict.engine)
    writer.text(self.verdict.databaseVersion)
    writer.integer(self.verdict.durationMilliseconds)
    writer.list(Array(self.attributes)) { writer, pair in
      writer.text(pair.0)
      writer.text(pair.1)
    }
    switch self.body {
    case .inline(let bytes):
      writer.integer(UInt8(0))
      writer.data(bytes)
    case .object(let key):
      writer.integer(UInt8(1))
      writer.text(key)
    }
    writer.integer(CRC32C.checksum(writer.bytes))
    return writer.bytes
  }

  /// - Throws: `.corruptMessage` for bytes that are not a file record, `.feature` for a later version of one.
  public init(_ bytes: [UInt8]) throws(MemQError) {
    guard bytes.count >= 9 else {
      throw MemQError(.corruptMessage, "not a file record", limit: 9, actual: Int64(bytes.count))
    }
    var reader = ByteReader(bytes.dropLast(4))
    guard try reader.integer(UInt32.self) == Self.magic else {
      throw MemQError(.corruptMessage, "not a file record: its magic is wrong")
    }
    let version = try reader.integer(UInt8.self)
    guard version == Self.version else {
      throw MemQError(
        .feature, "a file record of a later version", limit: Int64(Self.version),
        actual: Int64(version))
    }
    var trailer = ByteReader(Array(bytes.suffix(4)))
    guard try trailer.integer(UInt32.self) == CRC32C.checksum(bytes.dropLast(4)) else {
      throw MemQError(.corruptMessage, "the file record's CRC-32C is wrong")
    }
    self.uploadID = try reader.id()
    self.size = try reader.integer()
    self.digest = try reader.raw(32)
    self.contentType = try reader.text()
    self.verdict = try Verdict(&reader)
    let pairs = try reader.list { reader throws(MemQError) in (try reader.text(), try reader.text())
    }
    self.attributes = [:]
    for (name, value) in pairs { self.attributes[name] = value }
    switch try reader.integer(UInt8.self) {
    case 0: self.body = .inline(try reader.data())
    case 1: self.body = .object(key: try reader.text())
    case let kind: throw MemQError(.corruptMessage, "a body of unknown kind \(kind)")
    }
    try reader.finish()
  }
}

extension FileRecord.Verdict {
  fileprivate init(_ reader: inout ByteReader) throws(MemQError) {
    let raw = try reader.integer(UInt8.self)
    guard let kind = Kind(rawValue: raw) else {
      throw MemQError(.corruptMessage, "a verdict of unknown kind \(raw)")
    }
    self.init(
      kind: kind, signature: try reader.text(), reason: try reader.text(),
      engine: try reader.text(), databaseVersion: try reader.text(),
      durationMilliseconds: try reader.integer())
  }
}
