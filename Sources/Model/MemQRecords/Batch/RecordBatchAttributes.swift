// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// The 16 attribute bits of a record batch v2, as Kafka numbers them.
public struct RecordBatchAttributes: RawRepresentable, Hashable, Sendable {
  public var rawValue: Int16

  public init(rawValue: Int16) { self.rawValue = rawValue }

  public init(_ compression: Compression) { self.rawValue = compression.rawValue }

  /// Bits 0–2; nil for a value nobody has defined.
  public var compression: Compression? { Compression(rawValue: self.rawValue & 0b111) }
  /// Bit 3: timestamps are the leader's append time, all equal to the batch's max timestamp.
  public var hasAppendTime: Bool { self.rawValue & 0b1000 != 0 }
  /// Bit 4: part of a transaction.
  public var isTransactional: Bool { self.rawValue & 0b1_0000 != 0 }
  /// Bit 5: markers of the log's own, not records of anybody.
  public var isControl: Bool { self.rawValue & 0b10_0000 != 0 }
  /// Bit 6: the base timestamp is a delete horizon (a compactor's note).
  public var hasDeleteHorizon: Bool { self.rawValue & 0b100_0000 != 0 }
}
