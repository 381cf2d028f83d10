// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// The fixed parts of an object (docs/formats/object.md): header, trailer, and the limits of both.
public enum ObjectLayout {
  /// Version written and the only one read.
  public static let version: UInt16 = 0
  static let headerMagic = Array("MEMQOBJT".utf8)
  static let trailerMagic = Array("MEMQOEND".utf8)

  /// Magic, version, flags, identity, CRC-32C.
  public static let headerByteCount = 8 + 2 + 2 + ObjectIdentity.byteCount + 4
  /// Footer position and length and CRC-32C, object length, version, flags, own CRC-32C, magic.
  public static let trailerByteCount = 8 + 4 + 4 + 8 + 2 + 2 + 4 + 8

  /// Blocks are cut at the first batch end past this: one ranged read of 1 MiB costs about what its request does.
  public static let blockByteCount = 1 << 20
  /// Footer and trailer together. 64 MiB holds the producer snapshots of a full group; more is refused before memory is taken.
  public static let footerByteCountMax = 64 << 20
  /// Largest object: a single PUT without multipart (stores bill every part).
  public static let objectByteCountMax: Int64 = 1 << 30

  static func header(_ identity: ObjectIdentity) -> [UInt8] {
    var writer = ByteWriter()
    writer.raw(Self.headerMagic)
    writer.integer(Self.version)
    writer.integer(UInt16(0))
    identity.write(into: &writer)
    writer.integer(CRC32C.checksum(writer.bytes))
    return writer.bytes
  }

  /// Reads and checks an object's first bytes.
  ///
  /// - Throws: `.objectCorrupt`; `.feature` for a newer version.
  public static func identity(inHeader bytes: [UInt8]) throws(MemQError) -> ObjectIdentity {
    guard bytes.count >= Self.headerByteCount else {
      throw corrupt("the header is cut", limit: Self.headerByteCount, actual: bytes.count)
    }
    let bytes = Array(bytes.prefix(Self.headerByteCount))
    var reader = ByteReader(bytes)
    guard try reader.raw(8) == Self.headerMagic else {
      throw corrupt("the header's magic is wrong")
    }
    try Self.checkVersion(try reader.integer(), flags: try reader.integer())
    let identity = try ObjectIdentity(from: &reader)
    let crc: UInt32 = try reader.integer()
    guard crc == CRC32C.checksum(bytes.dropLast(4)) else {
      throw corrupt("the header's CRC-32C is wrong")
    }
    return identity
  }

  static func checkVersion(_ version: UInt16, flags: UInt16) throws(MemQError) {
    guard version == Self.version else {
      throw MemQError(
        .feature, "this build does not read this version of the object format",
        limit: Int64(Self.version), actual: Int64(version))
    }
    guard flags == 0 else {
      throw MemQError(
        .feature, "this build does not know these flags of an object", limit: 0,
        actual: Int64(flags))
    }
  }
}

func corrupt(_ message: String, limit: Int? = nil, actual: Int? = nil) -> MemQError {
  MemQError(.objectCorrupt, message, limit: limit.map(Int64.init), actual: actual.map(Int64.init))
}
