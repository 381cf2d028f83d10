// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// 128 random bits that name something for ever: a topic, an upload, a cluster.
///
/// The text form is RFC 9562's: 32 lowercase hex digits in groups of 8-4-4-4-12.
public struct UniqueID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let high: UInt64
  public let low: UInt64

  public init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  /// Makes a version 4 identifier from 128 random bits.
  public init(random high: UInt64, _ low: UInt64) {
    self.high = (high & ~0xF000) | 0x4000
    self.low = (low & ~(0b11 << 62)) | (0b10 << 62)
  }

  /// Nil unless `text` is the canonical 36-character form (either case).
  public init?(_ text: some StringProtocol) {
    var digits: (UInt64, UInt64) = (0, 0)
    var count = 0
    for (position, byte) in text.utf8.enumerated() {
      if position == 8 || position == 13 || position == 18 || position == 23 {
        guard byte == UInt8(ascii: "-") else { return nil }
        continue
      }
      guard let digit = hexValue(byte), count < 32 else { return nil }
      if count < 16 {
        digits.0 = digits.0 << 4 | UInt64(digit)
      } else {
        digits.1 = digits.1 << 4 | UInt64(digit)
      }
      count += 1
    }
    guard count == 32, text.utf8.count == 36 else { return nil }
    self.init(high: digits.0, low: digits.1)
  }

  /// Nil unless `bytes` are exactly 16, most significant first.
  public init?(bytes: some Collection<UInt8>) {
    guard bytes.count == 16 else { return nil }
    var high: UInt64 = 0
    var low: UInt64 = 0
    for (position, byte) in bytes.enumerated() {
      if position < 8 { high = high << 8 | UInt64(byte) } else { low = low << 8 | UInt64(byte) }
    }
    self.init(high: high, low: low)
  }

  /// The 16 bytes, most significant first.
  public var bytes: [UInt8] {
    (0..<16).map { i in
      UInt8(truncatingIfNeeded: (i < 8 ? self.high : self.low) >> UInt64(56 - 8 * (i % 8)))
    }
  }

  public var description: String {
    let hex = hexText(self.bytes)
    var text = ""
    for (position, character) in hex.enumerated() {
      if position == 8 || position == 12 || position == 16 || position == 20 { text += "-" }
      text.append(character)
    }
    return text
  }

  public static func < (a: Self, b: Self) -> Bool {
    a.high != b.high ? a.high < b.high : a.low < b.low
  }

  /// All bits zero: "none" in formats that have no room for an optional.
  public static let zero = UniqueID(high: 0, low: 0)
}

/// A distinct identifier over `UniqueID`: the phantom tag keeps a topic's id from being used as a volume's.
public struct TaggedID<Tag>: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let value: UniqueID

  public init(_ value: UniqueID) { self.value = value }
  public init?(_ text: some StringProtocol) {
    guard let value = UniqueID(text) else { return nil }
    self.value = value
  }
  public init?(bytes: some Collection<UInt8>) {
    guard let value = UniqueID(bytes: bytes) else { return nil }
    self.value = value
  }

  public var bytes: [UInt8] { self.value.bytes }
  public var description: String { self.value.description }
  public static func < (a: Self, b: Self) -> Bool { a.value < b.value }
}

public enum TopicTag {}
public enum ClusterTag {}
public enum VolumeTag {}
public enum UploadTag {}
public enum ObjectTag {}
public enum NodeNameTag {}

/// A topic for ever: a topic deleted and made again under its name is another one.
public typealias TopicID = TaggedID<TopicTag>
/// A cluster, from its first start on.
public typealias ClusterID = TaggedID<ClusterTag>
/// One SSD log: the identity of a disk's content, not of its path.
public typealias VolumeID = TaggedID<VolumeTag>
/// One attempt to put one file; chosen by the client, so that a retry is recognised.
public typealias UploadID = TaggedID<UploadTag>
/// One object of the object tier.
public typealias ObjectID = TaggedID<ObjectTag>
/// A process's own lasting name (kept on its disk, or made at each start when it has none).
public typealias NodeUUID = TaggedID<NodeNameTag>

/// A service instance's number, unique in the cluster over all services and given by metadata. Positive.
public struct NodeID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: Int32
  public init(_ rawValue: Int32) { self.rawValue = rawValue }
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A partition's place in its topic: 0 up to the topic's partition count, exclusive.
public struct PartitionIndex: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: Int32
  public init(_ rawValue: Int32) { self.rawValue = rawValue }
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A partition of a topic, named for ever.
public struct TopicPartition: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let topic: TopicID
  public let partition: PartitionIndex
  public init(_ topic: TopicID, _ partition: PartitionIndex) {
    self.topic = topic
    self.partition = partition
  }
  public var description: String { "\(self.topic)/\(self.partition)" }
  public static func < (a: Self, b: Self) -> Bool {
    a.topic != b.topic ? a.topic < b.topic : a.partition < b.partition
  }
}

/// A replica: a partition's copy on one volume of one node. An empty disk under an old node is another replica.
public struct ReplicaID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let node: NodeID
  public let volume: VolumeID
  public init(_ node: NodeID, _ volume: VolumeID) {
    self.node = node
    self.volume = volume
  }
  public var description: String { "\(self.node)@\(self.volume)" }
  public static func < (a: Self, b: Self) -> Bool {
    a.node != b.node ? a.node < b.node : a.volume < b.volume
  }
}

/// An idempotent producer's number, given by metadata. Negative: none.
public struct ProducerID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
  public static let none = ProducerID(-1)
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// The life of a producer id; an older one is fenced.
public struct ProducerEpoch: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: Int16
  public init(_ rawValue: Int16) { self.rawValue = rawValue }
  public static let none = ProducerEpoch(-1)
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

func hexValue(_ byte: UInt8) -> UInt8? {
  switch byte {
  case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
  case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
  case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
  default: nil
  }
}

/// Lowercase hexadecimal, two digits a byte.
public func hexText(_ bytes: some Sequence<UInt8>) -> String {
  let digits = Array("0123456789abcdef".utf8)
  var text: [UInt8] = []
  for byte in bytes {
    text.append(digits[Int(byte >> 4)])
    text.append(digits[Int(byte & 15)])
  }
  return String(decoding: text, as: UTF8.self)
}

/// The bytes of hexadecimal text; nil for an odd length or another character.
public func hexBytes(_ text: some StringProtocol) -> [UInt8]? {
  var bytes: [UInt8] = []
  var pending: UInt8?
  for character in text.utf8 {
    guard let value = hexValue(character) else { return nil }
    if let high = pending {
      bytes.append(high << 4 | value)
      pending = nil
    } else {
      pending = value
    }
  }
  return pending == nil ? bytes : nil
}
