// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// The payload of a `coldSegment` frame: a durable cold segment belongs to the log from this frame on.
public struct ColdSegment: Hashable, Sendable {
  /// A partition log that has records in it.
  public struct Entry: Hashable, Sendable {
    public var log: LogID
    /// Where the log's records in cold segments end now, exclusive.
    public var coldEnd: Offset
    /// Not all that was copied still belonged to the log: what the segment has at or above `coldEnd` never counts.
    public var hasDead: Bool

    public init(log: LogID, coldEnd: Offset, hasDead: Bool = false) {
      self.log = log
      self.coldEnd = coldEnd
      self.hasDead = hasDead
    }
  }

  public var sequence: SegmentSequence
  public var slot: SegmentSlot
  /// Where its groups end.
  public var end: Int64
  /// By log id, rising.
  public var entries: [Entry]

  static func byteCount(entries: Int) -> Int { 24 + 17 * entries }

  public init(sequence: SegmentSequence, slot: SegmentSlot, end: Int64, entries: [Entry]) {
    self.sequence = sequence
    self.slot = slot
    self.end = end
    self.entries = entries
  }

  public func encoded() -> [UInt8] {
    var writer = ByteWriter()
    writer.integer(self.sequence.rawValue)
    writer.integer(self.slot.rawValue)
    writer.integer(self.end)
    writer.list(self.entries) { writer, entry in
      writer.integer(entry.log.rawValue)
      writer.integer(entry.coldEnd.rawValue)
      writer.integer(UInt8(entry.hasDead ? 1 : 0))
    }
    return writer.bytes
  }

  /// - Throws: `.corruptMessage` when the bytes aren't one's.
  public init(decoding bytes: [UInt8]) throws(MemQError) {
    var reader = ByteReader(bytes)
    self.sequence = SegmentSequence(try reader.integer())
    self.slot = SegmentSlot(try reader.integer())
    self.end = try reader.integer()
    self.entries = try reader.list { (reader) throws(MemQError) in
      Entry(
        log: LogID(try reader.integer()), coldEnd: Offset(try reader.integer()),
        hasDead: try reader.integer(UInt8.self) != 0)
    }
    try reader.finish()
  }
}
