// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// How a record batch's records are packed. Raw values are those of Kafka's batch attributes (3 bits).
public enum Compression: Int16, Sendable, CaseIterable {
  case none = 0
  /// RFC 1952, level 6.
  case gzip = 1
  /// Blocks of raw snappy inside the xerial framing, which is what Kafka's clients speak.
  case snappy = 2
  /// The LZ4 frame format: independent blocks of 64 KiB, no content checksum.
  case lz4 = 3
  /// Zstandard, level 3.
  case zstd = 4

  /// The topic setting's spelling: "none", "gzip", …
  public var name: String { String(describing: self) }

  /// By the topic setting's spelling; nil for another word.
  public init?(name: some StringProtocol) {
    guard let found = Self.allCases.first(where: { $0.name == name }) else { return nil }
    self = found
  }

  /// Packs `bytes` and appends the result to `output`.
  ///
  /// - Throws: `.internalError` when the library fails (out of memory).
  public func compress(
    _ bytes: UnsafeRawBufferPointer, onto output: inout [UInt8]
  ) throws(MemQError) {
    switch self {
    case .none: output.append(contentsOf: bytes)
    case .gzip: try Gzip.compress(bytes, onto: &output)
    case .snappy: try Snappy.compress(bytes, onto: &output)
    case .lz4: try LZ4.compress(bytes, onto: &output)
    case .zstd: try Zstd.compress(bytes, onto: &output)
    }
  }

  /// Unpacks `bytes`. Foreign bytes never trap and never cost more memory than about twice `maxBytes`.
  ///
  /// - Throws: `.recordBatchInvalid` for bytes that are not of this format, `.recordBatchTooLarge` when the result
  ///   would pass `maxBytes`.
  public func decompress(
    _ bytes: UnsafeRawBufferPointer, maxBytes: Int
  ) throws(MemQError) -> [UInt8] {
    switch self {
    case .none:
      guard bytes.count <= maxBytes else { throw tooLarge(maxBytes) }
      return Array(bytes)
    case .gzip: return try Gzip.decompress(bytes, maxBytes: maxBytes)
    case .snappy: return try Snappy.decompress(bytes, maxBytes: maxBytes)
    case .lz4: return try LZ4.decompress(bytes, maxBytes: maxBytes)
    case .zstd: return try Zstd.decompress(bytes, maxBytes: maxBytes)
    }
  }
}

/// The records are not what the batch's attributes say.
func badCompression(_ format: String, _ what: String) -> MemQError {
  MemQError(.recordBatchInvalid, "the records are not \(format): \(what)")
}

func tooLarge(_ maxBytes: Int) -> MemQError {
  MemQError(
    .recordBatchTooLarge, "the records unpack to more bytes than allowed", limit: Int64(maxBytes))
}

func libraryFailed(_ format: String) -> MemQError {
  MemQError(.internalError, "\(format) could not compress")
}

/// Output that doubles as it fills, up to a bound: what a decompressor writes into.
struct GrowingOutput {
  private(set) var bytes: [UInt8]
  private(set) var count = 0
  private let maxBytes: Int

  init(expecting estimate: Int, maxBytes: Int) {
    self.maxBytes = maxBytes
    self.bytes = [UInt8](repeating: 0, count: max(0, min(max(estimate, 4096), maxBytes)))
  }

  /// Lets `body` write into the free part; it returns how many bytes it wrote.
  mutating func write<R>(
    _ body: (UnsafeMutableRawBufferPointer) -> (written: Int, result: R)
  ) throws(MemQError) -> R {
    if self.count == self.bytes.count {
      guard self.count < self.maxBytes else { throw tooLarge(self.maxBytes) }
      let more = min(max(self.count, 4096), self.maxBytes - self.count)
      self.bytes.append(contentsOf: repeatElement(0, count: more))
    }
    let start = self.count
    let (written, result) = self.bytes.withUnsafeMutableBytes { all in
      body(UnsafeMutableRawBufferPointer(rebasing: all[start...]))
    }
    self.count += written
    return result
  }

  /// Whether the next write would need more than the bound allows.
  var isFull: Bool { self.count == self.maxBytes }

  consuming func finish() -> [UInt8] {
    self.bytes.removeLast(self.bytes.count - self.count)
    return self.bytes
  }
}
