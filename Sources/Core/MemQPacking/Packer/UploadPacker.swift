// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Decides, for one upload group and one lease, which partitions' committed ranges go into the next object, and when.
///
/// ```
/// idle ── due ──> filling ── nothing left to read ──> committing ── outcome ──> idle
/// ```
/// Due: enough bytes wait for a whole object, or the first of them has waited for `lingerMax`, or a partition nears its cap on the SSD,
/// or a flush asks. While a group is idle nothing is read and nothing is held in memory. It knows lengths and offsets, never bytes: the owner
/// keeps those, and drops them where an effect says so.
///
/// Invariants: a partition's position moves only when metadata accepted a range; one read per partition at a time; at
/// most `readsMax` reads and `objectBytes` (and one batch of each of them) in memory.
public struct UploadPacker: Sendable {
  public struct Configuration: Hashable, Sendable {
    /// An object is full at so many bytes of batches. 64 MiB: under 20 requests a GiB with room for idle hours.
    public var objectBytes: Int64 = 64 << 20
    /// The oldest waiting record goes into an object after this long.
    public var lingerMax: Duration = .seconds(60)
    /// Bytes asked for by one read.
    public var readBytes = 4 << 20
    /// Reads at a time.
    public var readsMax = 4
    /// After a fill that brought nothing, or a failed upload, wait this long.
    public var pause: Duration = .seconds(1)
    public init() {}
  }

  /// Where metadata says a partition's upload stands.
  public struct Position: Hashable, Sendable {
    public var partition: TopicPartition
    /// First offset not uploaded.
    public var nextOffset: Offset
    public var historyEpoch: HistoryEpoch
    public init(partition: TopicPartition, nextOffset: Offset, historyEpoch: HistoryEpoch) {
      self.partition = partition
      self.nextOffset = nextOffset
      self.historyEpoch = historyEpoch
    }
  }

  /// What a partition's leader says of it.
  public struct Progress: Hashable, Sendable {
    public var partition: TopicPartition
    public var logStart: Offset
    public var highWatermark: Offset
    /// Average size of its records, for the estimate of what waits.
    public var bytesPerRecord: Int64
    /// What waits takes half of what the partition may have on the SSD alone: its producers are about to be slowed.
    public var isUrgent: Bool
    public init(
      partition: TopicPartition, logStart: Offset, highWatermark: Offset, bytesPerRecord: Int64,
      isUrgent: Bool = false
    ) {
      self.partition = partition
      self.logStart = logStart
      self.highWatermark = highWatermark
      self.bytesPerRecord = bytesPerRecord
      self.isUrgent = isUrgent
    }
  }

  /// One partition's share of an object.
  public struct Range: Hashable, Sendable {
    public var partition: TopicPartition
    public var baseOffset: Offset
    /// Exclusive.
    public var endOffset: Offset
    public var historyEpoch: HistoryEpoch
    public var byteCount: Int64

    public init(
      partition: TopicPartition, baseOffset: Offset, endOffset: Offset, historyEpoch: HistoryEpoch,
      byteCount: Int64
    ) {
      self.partition = partition
      self.baseOffset = baseOffset
      self.endOffset = endOffset
      self.historyEpoch = historyEpoch
      self.byteCount = byteCount
    }
  }

  public enum Event: Hashable, Sendable {
    /// The lease was granted, or renewed: the group's partitions, all of them.
    case leased(LeaseEpoch, [Position])
    /// It passed to somebody else, or ran out: the end of this packer.
    case leaseLost
    /// What leaders say, of some partitions.
    case observed([Progress])
    /// Upload these partitions up to these offsets now.
    case flushRequested(FlushID, [FlushTarget])
    /// Nobody waits for it any more.
    case flushCancelled(FlushID)
    /// A read brought batches up to `end`; none when `end` is where it began.
    case read(TopicPartition, end: Offset, byteCount: Int64)
    case readFailed(TopicPartition)
    /// Metadata's answer to the commit: indices of refused ranges, and where partitions stand.
    case committed(refused: [Int], [Position])
    /// The object was not announced and never will be.
    case uploadFailed
    /// Time passed.
    case ticked
  }

  public enum Effect: Hashable, Sendable {
    /// Read committed batches from `from` on and add them to the partition's run.
    case read(TopicPartition, from: Offset, maxBytes: Int, HistoryEpoch)
    /// Drop what was gathered of the partition; a read under way no longer counts.
    case discard(TopicPartition)
    /// Drop everything gathered.
    case discardAll
    /// Write and announce one object of these ranges, in this order.
    case upload([Range])
    /// Everything a flush asked for is announced.
    case flushed(FlushID, FlushTotals)
  }

  public typealias FlushID = UInt64

  /// Upload the partition up to here.
  public struct FlushTarget: Hashable, Sendable {
    public var partition: TopicPartition
    public var endOffset: Offset
    public init(partition: TopicPartition, endOffset: Offset) {
      self.partition = partition
      self.endOffset = endOffset
    }
  }

  /// What was announced while a flush waited.
  public struct FlushTotals: Hashable, Sendable {
    public var objects: Int64 = 0
    public var records: Int64 = 0
    public var byteCount: Int64 = 0
    public init() {}
    public init(objects: Int64, records: Int64, byteCount: Int64) {
      self.objects = objects
      self.records = records
      self.byteCount = byteCount
    }
  }

  struct Partition: Hashable {
    var position: Position
    /// Nil until a leader was heard.
    var progress: Progress?

    /// Where the next range begins: past what retention took before it was uploaded.
    var start: Offset { max(self.position.nextOffset, self.progress?.logStart ?? .zero) }
    var waiting: Int64 { max(0, (self.progress?.highWatermark ?? .zero) - self.start) }
    var waitingBytes: Int64 {
      let (bytes, overflow) = self.waiting.multipliedReportingOverflow(
        by: max(1, self.progress?.bytesPerRecord ?? 1))
      return overflow ? .max : bytes
    }
  }

  struct Flush: Hashable {
    var targets: [FlushTarget]
    var totals = FlushTotals()
  }

  enum Phase: Hashable {
    case idle
    case filling(Fill)
    case committing([Range])
  }

  public let configuration: Configuration
  var partitions: SortedMap<TopicPartition, Partition> = [:]
  var leaseEpoch: LeaseEpoch?
  var phase = Phase.idle
  var flushes: SortedMap<FlushID, Flush> = [:]
  /// When the oldest waiting record was first seen.
  var waitingSince: MonotonicInstant?
  /// Nothing begins before.
  var pausedUntil = MonotonicInstant.zero
  /// Fills begin after the partition the last one ended with, so that each gets its turn.
  var lastFilled: TopicPartition?

  public init(configuration: Configuration = Configuration()) {
    self.configuration = configuration
  }

  public mutating func handle(
    _ event: Event, at now: MonotonicInstant, into effects: inout [Effect]
  ) {
    switch event {
    case .leased(let epoch, let positions): self.lease(epoch, positions, &effects)
    case .leaseLost: self.loseLease(&effects)
    case .observed(let progress): self.observe(progress, at: now)
    case .flushRequested(let id, let targets): self.flushes[id] = Flush(targets: targets)
    case .flushCancelled(let id): self.flushes[id] = nil
    case .read(let partition, let end, let byteCount):
      self.take(partition, end: end, byteCount)
    case .readFailed(let partition): self.giveUpReading(partition)
    case .committed(let refused, let positions): self.commit(refused, positions, at: now)
    case .uploadFailed: self.failUpload(at: now)
    case .ticked: break
    }
    self.advance(at: now, &effects)
  }

  /// When `ticked` is due, if nothing happens before; nil: not at all.
  public var nextTick: MonotonicInstant? {
    guard case .idle = self.phase, self.leaseEpoch != nil else { return nil }
    guard self.partitions.values.contains(where: { $0.waiting > 0 }) else { return nil }
    if !self.flushes.isEmpty || self.waitingBytes >= self.configuration.objectBytes {
      return self.pausedUntil
    }
    return self.waitingSince.map { max($0 + self.configuration.lingerMax, self.pausedUntil) }
  }

  /// Whether reads are under way or about to be.
  public var isFilling: Bool {
    switch self.phase {
    case .filling: true
    case .idle, .committing: false
    }
  }

  /// Bytes that wait for their object, by estimate.
  public var waitingBytes: Int64 {
    self.partitions.values.reduce(0) { total, partition in
      let (sum, overflow) = total.addingReportingOverflow(partition.waitingBytes)
      return overflow ? .max : sum
    }
  }

  /// Where a partition's upload stands; nil when it is not the group's.
  public func nextOffset(_ partition: TopicPartition) -> Offset? {
    self.partitions[partition]?.position.nextOffset
  }
}
