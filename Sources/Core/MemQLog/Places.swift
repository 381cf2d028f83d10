// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One segment file. Its number never changes; the file is recycled through many lives.
public struct SegmentSlot: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(_ rawValue: UInt32) { self.rawValue = rawValue }
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// One life of a segment file. Rises with each life over the whole volume; the first is 1, none is 0.
public struct SegmentSequence: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  public static let none = SegmentSequence(0)
  public var description: String { String(self.rawValue) }
  public var next: Self { Self(self.rawValue + 1) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A byte of a volume's log: places are ordered as the log is.
public struct LogPlace: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let segment: SegmentSequence
  /// Bytes from the start of the segment file.
  public let position: Int64
  public init(_ segment: SegmentSequence, _ position: Int64) {
    self.segment = segment
    self.position = position
  }
  public static let start = LogPlace(.none, 0)
  public var description: String { "segment \(self.segment) position \(self.position)" }
  public static func < (a: Self, b: Self) -> Bool {
    a.segment != b.segment ? a.segment < b.segment : a.position < b.position
  }
}

/// A partition's log on this volume. A partition dropped and opened again gets another; never reused. 0: none.
public struct LogID: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  public static let none = LogID(0)
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A group commit's number: rises by one over the volume's whole life.
public struct GroupNumber: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  public var description: String { String(self.rawValue) }
  public var next: Self { Self(self.rawValue + 1) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// A request of the driver, unique while the volume is open.
public struct RequestID: Hashable, Sendable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(_ rawValue: UInt64) { self.rawValue = rawValue }
  public var description: String { String(self.rawValue) }
}

/// The bytes of batch `index` of an append request; the driver keeps them, the core never sees them.
public struct PayloadID: Hashable, Sendable {
  public let request: RequestID
  public let index: Int
  public init(_ request: RequestID, _ index: Int) {
    self.request = request
    self.index = index
  }
}

/// Whose log this is, as its volume file states.
public struct VolumeIdentity: Hashable, Sendable {
  public var cluster: ClusterID
  public var volume: VolumeID
  /// Bytes of each segment file, set when the volume was made.
  public var segmentBytes: Int64
  /// How many times the volume had been opened before this time. Counted durably before the first write of each opening,
  /// so that a clean end of an earlier opening is never taken for this one's.
  public var openCount: UInt64

  public init(cluster: ClusterID, volume: VolumeID, segmentBytes: Int64, openCount: UInt64 = 0) {
    self.cluster = cluster
    self.volume = volume
    self.segmentBytes = segmentBytes
    self.openCount = openCount
  }
}

/// Sizes that the format fixes. Part of the format: never change them within a version.
public enum LogFormat {
  /// Version of every header here. 0: no compatibility between builds until the first release.
  public static let version: UInt8 = 0
  /// Groups begin at multiples of this, so a torn write of one never touches a block of another, and a scan
  /// after damage need only probe these places. 4 KiB: the block of every SSD and the page of the page cache.
  public static let blockBytes = 4096
  /// Where the first group of a segment begins: after the header's block.
  public static let firstGroupPosition: Int64 = 4096
  /// Smallest segment: room for a checkpoint, a batch and a footer.
  public static let segmentBytesMin: Int64 = 64 << 10
  /// Largest segment: positions in footers are 32 bits, signed.
  public static let segmentBytesMax: Int64 = 1 << 30

  /// `count` rounded up to whole blocks.
  static func blocks(_ count: Int) -> Int {
    (count + self.blockBytes - 1) / self.blockBytes * self.blockBytes
  }
}

/// How a volume's log behaves. Not part of the format.
public struct LogConfiguration: Sendable {
  /// A group takes no further frame beyond this. 4 MiB: about 4 ms of an SSD's bandwidth, so a sync stays short.
  public var groupBytesMax = 4 << 20
  /// Frames of one group: bounds the time one layout holds the core (about 200 ns each).
  public var groupFramesMax = 4_096
  /// Accepted and not yet durable bytes; appends beyond are refused, retriable.
  public var pendingBytesMax = 64 << 20
  /// While a group syncs, the next is written already once this much waits; below, it waits and fills.
  public var earlyWriteBytes = 1 << 20
  /// Idle time after a sync before a mark-only group makes the last groups' durability known.
  public var markIdle: Duration = .milliseconds(20)
  /// Idle time before an active segment of only reclaimable records is rolled, where a partition asks for an empty SSD.
  public var rollIdle: Duration = .seconds(1)
  /// How often time-based reclaim and refused allocations are looked at again.
  public var housekeeping: Duration = .seconds(1)
  /// Most segment files; nil: as many as the file system has room for.
  public var capacitySegments: Int?
  /// A run of one partition's frames is one index entry up to this many bytes.
  public var runBytesMax = 64 << 10
  /// A segment is sealed when its footer would pass this. 16 MiB of index for at most 1 GiB of log.
  public var footerBytesMax = 16 << 20
  /// What the cleaner copies per second; four times that below the first reserve. Nil: no limit.
  public var carryBytesPerSecond: Int? = 32 << 20
  /// One group of a cold segment: what the cleaner writes and syncs at a time. 1 MiB: about 1 ms of an SSD's bandwidth, so no
  /// group of users waits longer for the disk than for one more of its own.
  public var carryGroupBytes = 1 << 20
  /// Open partitions; a checkpoint of all of them must fit well into a segment, which may lower this.
  public var partitionsMax = 100_000
  /// Partitions of one slice of the work at a segment's end, about 100 us of one core; half of it where the index goes to the footer.
  package var rollSlice = 512
  /// Two syncs run at a time where one takes at least this long.
  package var syncsOverlapAbove: Duration = .microseconds(500)
  package var mutations: LogMutations = []

  public init() {}
}

/// When a partition's records may leave this volume.
public struct LocalRetention: Hashable, Sendable {
  /// At least this many newest bytes stay; 0: nothing has to. Nil: no limit by size.
  public var bytes: Int64?
  /// Records appended within this time stay. Nil: no limit by time.
  public var milliseconds: Int64?
  /// Whether uploaded records may go at all; without an object tier only a raised log start frees them.
  public var hasObjectTier: Bool
  /// The partition's cap: the most bytes of frames that only this disk has (with an object tier those not uploaded yet, without
  /// one all above the log start). Nil: no cap. See `VolumeCore.room(of:for:)`.
  public var capBytes: Int64?

  public init(
    bytes: Int64? = nil, milliseconds: Int64? = nil, hasObjectTier: Bool = false,
    capBytes: Int64? = nil
  ) {
    self.bytes = bytes
    self.milliseconds = milliseconds
    self.hasObjectTier = hasObjectTier
    self.capBytes = capBytes
  }
}

extension MemQError {
  /// Damage at or of `place`, below what was known durable: never cut, never served.
  static func corrupt(_ place: LogPlace, _ what: String) -> MemQError {
    MemQError(
      .logCorrupt, "\(what); repair this replica from another one", subject: place.description)
  }
}
