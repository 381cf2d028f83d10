// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Appends fixed-width big-endian integers and length-prefixed bytes: the small codec of metadata values and footers.
public struct ByteWriter: Sendable {
  @usableFromInline var storage: [UInt8] = []
  @inlinable public var bytes: [UInt8] { self.storage }

  public init() {}

  /// - Parameter byteCount: what will be written, about: only saves reallocation.
  public init(reserving byteCount: Int) { self.storage.reserveCapacity(byteCount) }

  @inlinable
  public mutating func integer<T: FixedWidthInteger>(_ value: T) {
    withUnsafeBytes(of: value.bigEndian) { self.storage.append(contentsOf: $0) }
  }
  public mutating func flag(_ value: Bool) { self.storage.append(value ? 1 : 0) }
  public mutating func raw(_ value: some Sequence<UInt8>) { self.storage.append(contentsOf: value) }
  /// 32-bit length, then the bytes.
  public mutating func data(_ value: some Collection<UInt8>) {
    self.integer(UInt32(value.count))
    self.storage.append(contentsOf: value)
  }
  public mutating func text(_ value: String) { self.data(Array(value.utf8)) }
  @inlinable
  public mutating func id<Tag>(_ value: TaggedID<Tag>) {
    self.integer(value.value.high)
    self.integer(value.value.low)
  }
  /// 32-bit count, then each element.
  @inlinable
  public mutating func list<C: Collection>(
    _ values: C, _ body: (inout ByteWriter, C.Element) -> Void
  ) {
    self.integer(UInt32(values.count))
    for value in values { body(&self, value) }
  }
  public mutating func optional<T>(_ value: T?, _ body: (inout ByteWriter, T) -> Void) {
    self.flag(value != nil)
    if let value { body(&self, value) }
  }
}

/// Reads what `ByteWriter` wrote. Every read is checked: foreign bytes give `.corruptMessage`, never a trap.
public struct ByteReader: Sendable {
  @usableFromInline let bytes: [UInt8]
  @usableFromInline var position: Int
  @usableFromInline let end: Int

  public init(_ bytes: [UInt8]) {
    self.bytes = bytes
    self.position = 0
    self.end = bytes.count
  }

  @inlinable public var remaining: Int { self.end - self.position }

  @inlinable mutating func take(_ count: Int) throws(MemQError) -> Range<Int> {
    guard count >= 0, count <= self.remaining else {
      throw MemQError(
        .corruptMessage, "\(count) bytes are needed at position \(self.position)",
        limit: Int64(self.end), actual: Int64(self.position) + Int64(count))
    }
    defer { self.position += count }
    return self.position..<(self.position + count)
  }

  @inlinable
  public mutating func integer<T: FixedWidthInteger>(_: T.Type = T.self) throws(MemQError) -> T {
    let range = try self.take(MemoryLayout<T>.size)
    return self.bytes.withUnsafeBytes {
      T(bigEndian: $0.loadUnaligned(fromByteOffset: range.lowerBound, as: T.self))
    }
  }
  @inlinable
  public mutating func flag() throws(MemQError) -> Bool {
    let value: UInt8 = try self.integer()
    guard value <= 1 else { throw MemQError(.corruptMessage, "a flag is \(value)") }
    return value == 1
  }
  public mutating func raw(_ count: Int) throws(MemQError) -> [UInt8] {
    Array(self.bytes[try self.take(count)])
  }
  public mutating func data() throws(MemQError) -> [UInt8] {
    let count: UInt32 = try self.integer()
    return try self.raw(Int(count))
  }
  public mutating func text() throws(MemQError) -> String {
    let raw = try self.data()
    guard let text = String(validating: raw, as: UTF8.self) else {
      throw MemQError(.corruptMessage, "a text is not UTF-8")
    }
    return text
  }
  @inlinable
  public mutating func id<Tag>(
    _: TaggedID<Tag>.Type = TaggedID<Tag>.self
  ) throws(MemQError) -> TaggedID<Tag> {
    TaggedID(UniqueID(high: try self.integer(), low: try self.integer()))
  }
  @inlinable
  public mutating func list<T>(
    _ body: (inout ByteReader) throws(MemQError) -> T
  ) throws(MemQError) -> [T] {
    let count: UInt32 = try self.integer()
    // An element takes at least one byte: a forged count can't reserve memory.
    guard Int(count) <= self.remaining else {
      throw MemQError(
        .corruptMessage, "a list is longer than its bytes", limit: Int64(self.remaining),
        actual: Int64(count))
    }
    var values: [T] = []
    values.reserveCapacity(Int(count))
    for _ in 0..<count { values.append(try body(&self)) }
    return values
  }
  @inlinable
  public mutating func optional<T>(
    _ body: (inout ByteReader) throws(MemQError) -> T
  ) throws(MemQError) -> T? {
    try self.flag() ? try body(&self) : nil
  }
  public func finish() throws(MemQError) {
    guard self.remaining == 0 else {
      throw MemQError(.corruptMessage, "\(self.remaining) bytes follow the end")
    }
  }
}
