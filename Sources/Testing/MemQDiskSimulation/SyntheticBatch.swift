// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQRecords

/// A record batch v2 whose header and CRC hold and whose records are any bytes.
public struct SyntheticBatch: Hashable, Sendable {
  public var summary: BatchSummary
  public var bytes: [UInt8]

  /// - Parameter bodyBytes: bytes after the 61 of the header.
  public init(
    _ summary: BatchSummary, bodyBytes: Int, using generator: inout some RandomNumberGenerator
  ) {
    self.summary = summary
    var writer = ByteWriter()
    writer.integer(UInt16(0))
    writer.integer(Int32(summary.recordCount - 1))
    writer.integer(summary.maxTimestamp.milliseconds)
    writer.integer(summary.maxTimestamp.milliseconds)
    writer.integer(summary.producerID.rawValue)
    writer.integer(summary.producerEpoch.rawValue)
    writer.integer(summary.baseSequence)
    writer.integer(Int32(summary.recordCount))
    var body: [UInt8] = []
    body.reserveCapacity(bodyBytes + 8)
    while body.count < bodyBytes {
      withUnsafeBytes(of: generator.next()) { body.append(contentsOf: $0) }
    }
    writer.raw(body.prefix(bodyBytes))
    let covered = writer.bytes
    var whole = ByteWriter()
    whole.integer(summary.baseOffset.rawValue)
    whole.integer(Int32(9 + covered.count))
    whole.integer(Int32(summary.leaderEpoch.rawValue))
    whole.integer(Int8(2))
    whole.integer(CRC32C.checksum(covered))
    whole.raw(covered)
    self.bytes = whole.bytes
  }

  /// The batch's own CRC.
  public var checksum: UInt32 {
    self.bytes[17..<21].reduce(0) { $0 << 8 | UInt32($1) }
  }
}
