// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Walks the unpacked records of one batch without copying them. Every step is checked: foreign bytes give
/// `.recordBatchInvalid`, never a trap.
public struct RecordCursor {
  /// One record's parts, as places in the bytes.
  public struct Parts: Hashable, Sendable {
    public var timestampDelta: Int64
    public var offsetDelta: Int32
    /// Nil: null.
    public var key: Range<Int>?
    /// Nil: null.
    public var value: Range<Int>?
    /// Name and value of each header.
    public var headers: [(name: Range<Int>, value: Range<Int>?)]

    public static func == (a: Self, b: Self) -> Bool {
      a.timestampDelta == b.timestampDelta && a.offsetDelta == b.offsetDelta && a.key == b.key
        && a.value == b.value && a.headers.elementsEqual(b.headers, by: ==)
    }
    public func hash(into hasher: inout Hasher) {
      hasher.combine(self.offsetDelta)
      hasher.combine(self.key)
      hasher.combine(self.value)
    }
  }

  private let bytes: UnsafeRawBufferPointer
  private var at = 0
  private var remaining: Int32

  /// - Parameter bytes: the records alone, unpacked. They must outlive the cursor.
  public init(_ bytes: UnsafeRawBufferPointer, count: Int32) {
    self.bytes = bytes
    self.remaining = count
  }

  /// The next record; nil after the last.
  ///
  /// - Throws: `.recordBatchInvalid`.
  public mutating func next() throws(MemQError) -> Parts? {
    guard self.remaining > 0 else {
      guard self.at == self.bytes.count else { throw self.bad("bytes follow the last record") }
      return nil
    }
    self.remaining -= 1
    let length = try self.varint("record length")
    guard length >= 0, length <= self.bytes.count - self.at else { throw self.bad("record length") }
    let end = self.at + Int(length)
    guard length > 0 else { throw self.bad("record length") }
    self.at += 1  // The record's own attributes: unused.
    let timestampDelta = try self.varint("timestamp")
    let offsetDelta = try self.varint("offset delta")
    guard let offset = Int32(exactly: offsetDelta), offset >= 0 else {
      throw self.bad("offset delta")
    }
    let key = try self.bytes("key", end: end)
    let value = try self.bytes("value", end: end)
    let count = try self.varint("header count")
    // A header takes at least two bytes: a forged count can't reserve memory.
    guard count >= 0, count <= (end - self.at) / 2 else { throw self.bad("header count") }
    var headers: [(name: Range<Int>, value: Range<Int>?)] = []
    for _ in 0..<count {
      guard let name = try self.bytes("header name", end: end) else {
        throw self.bad("header name")
      }
      headers.append((name, try self.bytes("header value", end: end)))
    }
    guard self.at == end else { throw self.bad("record length") }
    return Parts(
      timestampDelta: timestampDelta, offsetDelta: offset, key: key, value: value, headers: headers)
  }

  private mutating func varint(_ what: String) throws(MemQError) -> Int64 {
    guard let value = Varint.read(self.bytes, &self.at) else { throw self.bad(what) }
    return value
  }

  private mutating func bytes(_ what: String, end: Int) throws(MemQError) -> Range<Int>? {
    let length = try self.varint(what)
    guard length >= 0 else {
      guard length == -1 else { throw self.bad(what) }
      return nil
    }
    guard self.at <= end, length <= end - self.at else { throw self.bad(what) }
    defer { self.at += Int(length) }
    return self.at..<(self.at + Int(length))
  }

  private func bad(_ what: String) -> MemQError {
    MemQError(
      .recordBatchInvalid, "a record of the batch is malformed: \(what)", actual: Int64(self.at))
  }
}
