// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// Finds where `retention.ms` and `retention.bytes` let logs begin, from all objects of an upload group in their order.
///
/// Whole runs at a time, as the SSD goes by whole segments: what is kept is never less than the topic asks for.
public struct ObjectRetention: Sendable {
  /// What is kept of one partition.
  public struct Limits: Hashable, Sendable {
    /// Runs of objects that were announced before may go, as all of them was appended earlier; nil: age does not count.
    public var expiresBefore: Timestamp?
    /// Bytes to keep, the newest; nil: any number.
    public var bytes: Int64?
    /// Bytes of the log that are in no object.
    public var bytesNotUploaded: Int64

    public init(expiresBefore: Timestamp?, bytes: Int64?, bytesNotUploaded: Int64 = 0) {
      self.expiresBefore = expiresBefore
      self.bytes = bytes
      self.bytesNotUploaded = bytesNotUploaded
    }
  }

  private struct Run: Sendable {
    var endOffset: Offset
    var byteCount: Int64
    var announcedAt: Timestamp
  }

  /// Runs in memory, over all partitions, 24 bytes each. Beyond, a partition's newest are counted as one: it keeps more.
  public static let runsMax = 1_000_000

  private var runs: [TopicPartition: [Run]] = [:]
  private var count = 0

  public init() {}

  /// Takes the next object, oldest first.
  ///
  /// - Parameter announcedAt: none: its age is not known, and it stays.
  public mutating func add(_ footer: ObjectFooter, announcedAt: Timestamp) {
    for run in footer.runs { self.add(run, announcedAt) }
  }

  private mutating func add(_ run: ObjectRun, _ announcedAt: Timestamp) {
    var list = self.runs[run.partition] ?? []
    if let last = list.last, run.baseOffset < last.endOffset || self.count >= Self.runsMax {
      // A second claim to the same offsets adds no records.
      let bytes = run.baseOffset < last.endOffset ? 0 : run.byteCount
      list[list.count - 1].endOffset = max(last.endOffset, run.endOffset)
      list[list.count - 1].byteCount += bytes
      list[list.count - 1].announcedAt = announcedAt
    } else {
      list.append(
        Run(endOffset: run.endOffset, byteCount: run.byteCount, announcedAt: announcedAt))
      self.count += 1
    }
    self.runs[run.partition] = list
  }

  /// The partitions seen, in no order.
  public var partitions: [TopicPartition] { Array(self.runs.keys) }

  /// Where the partition's log may begin: the end of the runs that may go; nil: none may.
  public func start(of partition: TopicPartition, _ limits: Limits) -> Offset? {
    guard let runs = self.runs[partition] else { return nil }
    var kept = runs.reduce(limits.bytesNotUploaded) { $0 + $1.byteCount }
    var start: Offset?
    for run in runs {
      let isOld =
        limits.expiresBefore.map { run.announcedAt != .none && run.announcedAt < $0 } ?? false
      let isOver = limits.bytes.map { kept - run.byteCount >= $0 } ?? false
      guard isOld || isOver else { break }
      kept -= run.byteCount
      start = run.endOffset
    }
    return start
  }
}
