// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQRecords

extension Consumer {
  /// Where to begin a partition for which the group has no committed offset.
  public enum Start: Hashable, Sendable {
    case beginning
    /// The high watermark at the start: only what comes from now on.
    case end
    case offset(Offset)
    /// The first record with this timestamp or a later one; the end when there is none.
    case timestamp(Timestamp)
  }

  /// What to do when an offset does not exist (any more).
  ///
  /// Where the log lost records that were handed out (an unclean election) all but `fail` go on at the end of what is still the same, so
  /// nothing of the new history is passed over (``Configuration/onTruncation``).
  public enum Reset: Hashable, Sendable {
    /// Go on at the nearest one that does.
    case nearest
    case beginning
    case end
    /// Throw `.offsetOutOfRange` or `.logTruncated`.
    case fail
  }

  public struct Configuration: Sendable {
    /// Nil: all of the topic, or those that the group assigns. With a group: its members share these.
    public var partitions: [PartitionIndex]?
    /// Shares the topic with the other members of this group, commits offsets under its name and begins at those that are there. Nil: no
    /// group.
    public var group: String?
    /// A lasting name of this member, unique in the group: who joins under it takes over at once what the one before had, and that one
    /// ends with `.groupMemberFenced`. Nil: each consumer is another member.
    public var instanceID: String?
    /// Told whenever the group gives or takes partitions. Partitions are given back when this has returned, and what it marked as consumed
    /// is committed.
    public var onAssignment: (@Sendable (AssignmentChange) async -> Void)?
    /// Told when the log lost records that `next` had handed out, before anything that stands in their place is handed out. Not with
    /// ``Reset/fail``: then `next` throws.
    public var onTruncation: (@Sendable (TruncatedPartition) async -> Void)?
    public var start = Start.beginning
    public var reset = Reset.nearest
    /// End (`next` returns nil) at the high watermarks that stand when the consumer is made.
    public var stopsAtEnd = false
    /// One fetch: at most so many bytes, but at least one batch.
    public var fetchBytesMax = 4 << 20
    /// How long the server holds a fetch that finds nothing.
    public var fetchWaitMax: Duration = .seconds(5)
    /// Fetched ahead of the reader; nothing more is fetched while this much is unread.
    public var prefetchBytesMax = 8 << 20
    /// True: what `next` handed out counts as consumed when `next` is called again. False: `markConsumed` says so.
    public var marksAutomatically = true
    /// How often consumed offsets are committed in the background; nil: only by `commit` and `close`.
    public var commitInterval: Duration? = .seconds(5)
    /// Silence after which the group gives this member up.
    public var sessionTimeout: Duration = .seconds(45)
    /// How long this member may take to give partitions back; half of it is the application's, to mark what it was handed out.
    public var rebalanceTimeout: Duration = .seconds(60)
    /// How long to look for a server again before `next` throws.
    public var reconnectTimeout: Duration = .seconds(120)

    public init() {}
  }
}

/// What became of a group member's partitions.
public enum AssignmentChange: Hashable, Sendable {
  /// They are read from now on.
  case assigned([PartitionIndex])
  /// They go to another member; nothing more of them is handed out.
  case revoked([PartitionIndex])
  /// Another member may read them already: nothing can be committed any more. What was not committed is read again.
  case lost([PartitionIndex])
}

/// A partition's log lost records that were handed out: an unclean election, with the topic's leave.
public struct TruncatedPartition: Hashable, Sendable {
  public var partition: PartitionIndex
  /// Records below it had been handed out.
  public var read: Offset
  /// Records below it are still the same, as far as is known; it goes on here, with others.
  public var next: Offset

  public init(partition: PartitionIndex, read: Offset, next: Offset) {
    self.partition = partition
    self.read = read
    self.next = next
  }
}

/// A piece of one partition: records in order, without a gap.
public struct ConsumedRecords: Hashable, Sendable {
  public var partition: PartitionIndex
  public var records: [Record]
  /// Where the partition goes on.
  public var nextOffset: Offset
  /// Committed below it, as of this fetch.
  public var highWatermark: Offset
  /// Read from the object tier.
  public var isFromObjects: Bool
}
