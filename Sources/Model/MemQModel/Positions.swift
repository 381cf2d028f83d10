// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// A record's number in its partition: 0 for the first ever. End offsets are exclusive.
public struct Offset: Hashable, Sendable, Comparable, CustomStringConvertible {
  public var rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
  public static let zero = Offset(0)
  public static let max = Offset(.max)
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  public static func + (a: Self, records: Int64) -> Self { Self(a.rawValue + records) }
  /// The number of offsets from `b` to `a`.
  public static func - (a: Self, b: Self) -> Int64 { a.rawValue - b.rawValue }
}

/// A counter that only rises; each kind is a type of its own so that they never mix.
public protocol EpochValue: Hashable, Sendable, Comparable, CustomStringConvertible {
  var rawValue: Int64 { get }
  init(_ rawValue: Int64)
}

extension EpochValue {
  public var description: String { String(self.rawValue) }
  public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  public var next: Self { Self(self.rawValue + 1) }
  public static var zero: Self { Self(0) }
}

/// Rises with each election of the partition; stamped on every batch (32 bits on the wire of a record batch).
public struct LeaderEpoch: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
  /// "No epoch": what a log without records states.
  public static let none = LeaderEpoch(-1)
}

/// Rises with each accepted change of the partition's record in metadata (leader, ISR, replicas).
public struct PartitionEpoch: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Rises each time a node registers; requests of an earlier life are refused.
public struct NodeEpoch: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Rises only when committed data may have changed (an unclean election, a recovery).
public struct HistoryEpoch: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Rises each time a lease passes to another holder (or to the same one again).
public struct LeaseEpoch: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Rises with each restore or recovery of the whole cluster.
public struct Incarnation: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// A position in the metadata store's history. Restarts after a restore: compare only within one incarnation.
public struct Revision: EpochValue {
  public let rawValue: Int64
  public init(_ rawValue: Int64) { self.rawValue = rawValue }
}

/// Milliseconds since 1970-01-01T00:00:00Z, by the writer's wall clock. For people and retention; never for order.
public struct Timestamp: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let milliseconds: Int64
  public init(milliseconds: Int64) { self.milliseconds = milliseconds }
  public static let none = Timestamp(milliseconds: -1)
  public var description: String { String(self.milliseconds) }
  public static func < (a: Self, b: Self) -> Bool { a.milliseconds < b.milliseconds }
}

/// Nanoseconds since an arbitrary start; never goes back while a process lives. For deadlines and waits.
public struct MonotonicInstant: Hashable, Sendable, Comparable, CustomStringConvertible {
  public let nanoseconds: Int64
  public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }
  public static let zero = MonotonicInstant(nanoseconds: 0)
  public var description: String { "\(self.nanoseconds / 1_000_000) ms" }
  public static func < (a: Self, b: Self) -> Bool { a.nanoseconds < b.nanoseconds }
  public static func + (a: Self, d: Duration) -> Self {
    Self(nanoseconds: a.nanoseconds + d.nanoseconds)
  }
  public static func - (a: Self, b: Self) -> Duration {
    .nanoseconds(a.nanoseconds - b.nanoseconds)
  }
}

extension Duration {
  /// The whole duration in nanoseconds; saturates at Int64's bounds (292 years).
  public var nanoseconds: Int64 {
    let (seconds, attoseconds) = self.components
    let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
    guard !overflow else { return seconds < 0 ? .min : .max }
    return product + attoseconds / 1_000_000_000
  }
  public var milliseconds: Int64 { self.nanoseconds / 1_000_000 }
}
