// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Integers in memory, each in as few bytes as it needs: seven bits to a byte, lowest first.
extension [UInt8] {
  mutating func pack(_ value: UInt64) {
    var rest = value
    while rest >= 0x80 {
      self.append(UInt8(truncatingIfNeeded: rest) | 0x80)
      rest >>= 7
    }
    self.append(UInt8(truncatingIfNeeded: rest))
  }

  /// Small ones of either sign take few bytes.
  mutating func pack(signed value: Int64) {
    self.pack(UInt64(bitPattern: (value << 1) ^ (value >> 63)))
  }

  func unpack(_ at: inout Int) -> UInt64 {
    var value: UInt64 = 0
    var shift: UInt64 = 0
    while true {
      let byte = self[at]
      at += 1
      value |= UInt64(byte & 0x7F) << shift
      if byte < 0x80 { return value }
      shift += 7
    }
  }

  func unpackSigned(_ at: inout Int) -> Int64 {
    let value = self.unpack(&at)
    return Int64(bitPattern: value >> 1) ^ -Int64(bitPattern: value & 1)
  }

  /// Makes room ahead, an eighth at a time: doubling would leave half of an index empty.
  mutating func reserve(more bytes: Int) {
    guard self.capacity - self.count < bytes else { return }
    self.reserveCapacity(self.count + self.count / 8 + bytes)
  }
}

extension [UInt8] {
  /// Appends the integer, big-endian.
  @inline(__always)
  mutating func store<T: FixedWidthInteger>(_ value: T) {
    Swift.withUnsafeBytes(of: value.bigEndian) { self.append(contentsOf: $0) }
  }
}

/// Places in the core's table of partition logs, a byte or two each. The log at one may be another by now: one that has no span
/// in the segment then.
struct LogPlaces: Hashable, Sendable, Sequence {
  private var bytes: [UInt8] = []
  private var last = 0
  private(set) var count = 0

  var isEmpty: Bool { self.count == 0 }

  mutating func append(_ place: Int) {
    self.bytes.reserve(more: 10)
    self.bytes.pack(signed: Int64(place - self.last))
    self.last = place
    self.count += 1
  }

  /// In order and each once: takes least.
  mutating func sort() {
    var sorted = LogPlaces()
    sorted.bytes.reserveCapacity(self.count + 16)
    var previous: Int?
    for place in Array(self).sorted() where place != previous {
      sorted.append(place)
      previous = place
    }
    self = sorted
  }

  /// Between two of them, to go on from.
  struct Cursor: Hashable, Sendable {
    fileprivate var at = 0
    fileprivate var place = 0

    var isAtStart: Bool { self.at == 0 }
  }

  func next(_ cursor: inout Cursor) -> Int? {
    guard cursor.at < self.bytes.count else { return nil }
    cursor.place += Int(self.bytes.unpackSigned(&cursor.at))
    return cursor.place
  }

  struct Iterator: IteratorProtocol {
    fileprivate let places: LogPlaces
    fileprivate var cursor = Cursor()

    mutating func next() -> Int? { self.places.next(&self.cursor) }
  }

  func makeIterator() -> Iterator { Iterator(places: self) }
}
