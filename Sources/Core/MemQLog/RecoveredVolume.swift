// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A partition as recovery found it.
public struct RecoveredPartition: Hashable, Sendable {
  public var partition: TopicPartition
  public var logStart: Offset
  /// Exclusive.
  public var end: Offset
  /// The lowest offset still on this volume.
  public var localStart: Offset
  public var epochs: [EpochStart]
  /// As of the last checkpoint or idle mark: the true one is this or higher.
  public var highWatermark: Offset
  /// As of the last checkpoint or idle mark.
  public var uploadedOffset: Offset
  /// The producers' state for all records below `producerSnapshotEnd`.
  public var producerSnapshot: [UInt8]?
  /// Without a snapshot, where what is left of the log begins.
  public var producerSnapshotEnd: Offset
  /// The batches at and above `producerSnapshotEnd` that have a producer id, in order.
  public var batchesAfterSnapshot: [BatchSummary]
  /// Something of it below what was durable does not read: it must not be served, nor voted with. Its bytes stay.
  public var damage: MemQError?
  /// With damage: the records below are whole, and may be read by whom nothing better is at hand.
  public var damagedFrom: Offset?

  public init(
    partition: TopicPartition, logStart: Offset, end: Offset, localStart: Offset,
    epochs: [EpochStart], highWatermark: Offset, uploadedOffset: Offset,
    producerSnapshot: [UInt8]?, producerSnapshotEnd: Offset, batchesAfterSnapshot: [BatchSummary]
  ) {
    self.partition = partition
    self.logStart = logStart
    self.end = end
    self.localStart = localStart
    self.epochs = epochs
    self.highWatermark = highWatermark
    self.uploadedOffset = uploadedOffset
    self.producerSnapshot = producerSnapshot
    self.producerSnapshotEnd = producerSnapshotEnd
    self.batchesAfterSnapshot = batchesAfterSnapshot
  }
}

/// A volume's log as recovery found it: what `VolumeCore` goes on from.
public struct RecoveredVolume: Sendable {
  /// By partition.
  public internal(set) var partitions: [RecoveredPartition] = []
  /// The last opening ended in order; its active segment goes on.
  public internal(set) var cleanShutdown = false
  /// Bytes after the log's end that had been written and were never durable.
  public internal(set) var discardedGroups = false
  /// Where the log ends; `.start` in a volume without a segment.
  public internal(set) var end = LogPlace.start
  /// Segments that had to be read through because their footer did not hold.
  public internal(set) var segmentsReadThrough = 0

  /// Damage below what was durable, each with its place, where recovery went on all the same.
  public internal(set) var damages: [MemQError] = []

  /// What may be gone besides, of which nothing is left that names it.
  public internal(set) var unnamed: UnnamedLosses = []

  var logs: [PartitionLog] = []
  var segments: [LiveSegment] = []
  var cold: [LiveSegment] = []
  /// Segments that the log needs and whose files are gone, where that was accepted.
  var missing: [Checkpoint.Segment] = []
  var freeSlots: [SegmentSlot] = []
  var slotCount: UInt32 = 0
  var nextLog = LogID(1)
  var nextSequence = SegmentSequence(1)
  var nextGroup = GroupNumber(1)
  var checkpointSegment = SegmentSequence.none
  var endChecksum: UInt32 = 0

  /// A fresh volume's.
  public init() {}

  /// Whether the volume has never had a durable segment.
  public var isEmpty: Bool { self.end == .start }
}

/// How far recovery is.
public struct RecoveryProgress: Hashable, Sendable {
  public var segmentsDone: Int
  public var segmentsTotal: Int

  public init(segmentsDone: Int, segmentsTotal: Int) {
    self.segmentsDone = segmentsDone
    self.segmentsTotal = segmentsTotal
  }
}
