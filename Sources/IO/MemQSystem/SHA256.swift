// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CCrypto
public import MemQModel

/// SHA-256 whose state can be stored and taken up again: a resumed file put never reads its first bytes back.
///
/// libcrypto does the work (SHA-NI where the processor has it).
public struct SHA256: Sendable {
  /// Bytes of a stored state: 8 words, the bit count and up to 63 pending bytes with their number (docs/formats/upload.md).
  public static let stateByteCount = 112

  private var context = SHA256_CTX()

  public init() { SHA256_Init(&self.context) }

  /// Takes up a state that `state` gave.
  ///
  /// - Throws: `.corruptMessage` for anything else.
  public init(state: [UInt8]) throws(MemQError) {
    self.init()
    guard state.count == Self.stateByteCount, state[104] < 64 else {
      throw MemQError(
        .corruptMessage, "not a SHA-256 state", limit: Int64(Self.stateByteCount),
        actual: Int64(state.count))
    }
    var reader = ByteReader(state)
    let words = try (0..<8).map { _ throws(MemQError) -> UInt32 in try reader.integer() }
    withUnsafeMutableBytes(of: &self.context.h) {
      $0.copyBytes(from: words.withUnsafeBytes(Array.init))
    }
    let bits: UInt64 = try reader.integer()
    self.context.Nl = UInt32(truncatingIfNeeded: bits)
    self.context.Nh = UInt32(truncatingIfNeeded: bits >> 32)
    let pending = try reader.raw(64)
    withUnsafeMutableBytes(of: &self.context.data) { $0.copyBytes(from: pending) }
    self.context.num = UInt32(try reader.integer(UInt8.self))
  }

  /// The state as bytes: everything fed so far, in 112 bytes.
  public var state: [UInt8] {
    var writer = ByteWriter()
    var copy = self.context
    withUnsafeBytes(of: &copy.h) {
      for word in $0.bindMemory(to: UInt32.self) { writer.integer(word) }
    }
    writer.integer(UInt64(copy.Nh) << 32 | UInt64(copy.Nl))
    withUnsafeBytes(of: &copy.data) { bytes in
      let count = Int(copy.num)
      writer.raw(bytes.prefix(count))
      writer.raw([UInt8](repeating: 0, count: 64 - count))
    }
    writer.integer(UInt8(copy.num))
    writer.raw([UInt8](repeating: 0, count: 7))
    return writer.bytes
  }

  public mutating func update(_ bytes: UnsafeRawBufferPointer) {
    guard let base = bytes.baseAddress else { return }
    SHA256_Update(&self.context, base, bytes.count)
  }

  public mutating func update(_ bytes: [UInt8]) { bytes.withUnsafeBytes { self.update($0) } }

  /// The digest of everything fed so far; feeding may go on.
  public func digest() -> [UInt8] {
    var copy = self.context
    return [UInt8](unsafeUninitializedCapacity: 32) { buffer, count in
      SHA256_Final(buffer.baseAddress, &copy)
      count = 32
    }
  }

  public static func digest(of bytes: [UInt8]) -> [UInt8] {
    var hash = SHA256()
    hash.update(bytes)
    return hash.digest()
  }
}
