// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// The named limits and times of replication; the same values hold for all partitions of a node.
public struct ReplicationConfiguration: Hashable, Sendable {
  /// A follower that hasn't been at the leader's end for this long leaves the ISR (Kafka's
  /// `replica.lag.time.max.ms`; shorter than Kafka's 30 s because pushes come without being asked for).
  public var replicaLagMax: Duration = .seconds(10)
  /// A follower that left the ISR may return this long after, doubled with each time it left again.
  public var rejoinDelay: Duration = .seconds(1)
  /// The doubling of `rejoinDelay` ends here: a flapping follower costs at most one change a minute.
  public var rejoinDelayMax: Duration = .seconds(60)
  /// Without an answer of metadata for this long an ISR proposal's outcome counts as unknown.
  public var proposalTimeout: Duration = .seconds(5)
  /// Pause after a refused or unanswered proposal, so that a refusal never becomes a hot loop.
  public var proposalPause: Duration = .milliseconds(500)
  /// Pause before a follower asks again that was turned away, or lost its stream: after an election the leader may hear of it
  /// later than its followers, and every pause here adds to the gap clients see.
  public var reopenPause: Duration = .milliseconds(100)
  /// A follower opens again when an open stays unanswered for this long.
  public var openTimeout: Duration = .seconds(2)
  /// Heartbeats (at most this far apart) carry the high watermark for idle partitions.
  public var heartbeatInterval: Duration = .milliseconds(100)
  /// A follower that hears nothing of its leader for this long opens again.
  public var silenceMax: Duration = .seconds(3)
  /// Appends of one partition that wait for their acknowledgement. Beyond: refused, retriable.
  public var pendingRepliesMax = 65_536
  /// Idempotent batches above the producer snapshot kept in memory (72 bytes each). The snapshot follows
  /// the high watermark, so this is reached only while that stands still. Beyond: refused, retriable.
  public var uncommittedBatchesMax = 200_000
  /// A new producer snapshot is made once this many committed idempotent batches lie above the last.
  public var snapshotBatches = 10_000
  public var producers = ProducerLimits()

  public init() {}
}

/// How much is remembered of idempotent producers, for each partition.
public struct ProducerLimits: Hashable, Sendable {
  /// Producers kept; beyond, the one not heard of for longest goes.
  public var producersMax = Limits.producersPerPartitionMax
  /// Batches kept per producer, to answer a repeated one with its offset.
  public var batchesKept = Limits.batchesPerProducerKept
  /// A producer not heard of for this long is forgotten.
  public var expiry: Duration = Limits.producerExpiry
  /// A file's publication is remembered this long, outside `producersMax`: an ingest node that was away for
  /// days may publish it again.
  public var fileExpiry: Duration = Limits.producerExpiry
  /// File publications remembered at once. Beyond, the oldest goes, unless it is younger than `fileKeptMin`: then
  /// the new one is refused, retriable.
  public var filesMax = 1_048_576
  /// No publication is forgotten earlier: longer than any append's deadline and metadata's own retry of it.
  public var fileKeptMin: Duration = .seconds(15 * 60)

  public init() {}

  /// The same within what a snapshot of `byteCount` holds: half for each kind. A table whose snapshot the volume doesn't
  /// take would keep its records on the disk for good.
  public func fitting(snapshotBytes byteCount: Int) -> ProducerLimits {
    var limits = self
    let half = (byteCount - ProducerTable.headBytes) / 2
    limits.producersMax = min(
      limits.producersMax, half / ProducerTable.entryBytes(batches: limits.batchesKept))
    limits.filesMax = min(limits.filesMax, half / ProducerTable.entryBytes(batches: 1))
    return limits
  }
}
