// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// A sealed segment's index: for each partition log its runs, and where it cut earlier segments.
public struct Footer: Hashable, Sendable {
  public struct Entry: Hashable, Sendable {
    public var log: LogID
    public var partition: TopicPartition
    public var cutTo: Offset?
    /// Where the runs begin, or, without runs, where the log ended.
    public var baseOffset: Offset
    public var runs: [RunEntry]
  }

  /// By log id, rising.
  public var entries: [Entry]

  /// One footer frame's payload stays below this.
  static let partBytes = 1 << 20
  static let entryBytes = 56
  static let runBytes = 40

  /// A footer's group for that much payload, at most: each part repeats one entry's head.
  static func groupBytes(_ payloadBytes: Int) -> Int {
    let parts = payloadBytes / (Self.partBytes - 2 * Self.entryBytes) + 1
    return LogFormat.blocks(
      GroupHeader.byteCount + parts * (FrameHeader.byteCount + Self.entryBytes) + payloadBytes)
  }

  /// The payloads of the footer's frames, at least one.
  func encoded() -> [[UInt8]] {
    let bytes = self.entries.reduce(0) { $0 + Self.entryBytes + $1.runs.count * Self.runBytes }
    var parts = Parts(reserving: bytes)
    // By index: the elements stay where they are, uncounted.
    for index in self.entries.indices {
      parts.add(runs: self.entries[index].runs.count) { taken, bytes in
        Self.encode(self.entries[index], taken, into: &bytes)
      }
    }
    return parts.all
  }

  private static func encode(
    _ entry: Entry, _ runs: Range<Int>, into bytes: inout [UInt8]
  ) {
    bytes.store(entry.log.rawValue)
    bytes.store(entry.partition.topic.value.high)
    bytes.store(entry.partition.topic.value.low)
    bytes.store(entry.partition.partition.rawValue)
    bytes.store(UInt32(entry.cutTo == nil ? 0 : 1))
    bytes.store(entry.cutTo?.rawValue ?? 0)
    bytes.store(entry.baseOffset.rawValue)
    bytes.store(UInt64(runs.count))
    for index in runs { Self.encode(entry.runs[index], into: &bytes) }
  }

  static func encode(_ run: RunEntry, into bytes: inout [UInt8]) {
    bytes.store(UInt32(run.position))
    bytes.store(UInt32(run.byteCount) | (run.hasProducers ? 1 << 31 : 0))
    bytes.store(run.baseOffset.rawValue)
    bytes.store(run.endOffset - run.baseOffset)
    bytes.store(run.maxTimestamp.milliseconds)
    bytes.store(run.maxAppendTime.milliseconds)
  }

  /// - Throws: `.corruptMessage` when the bytes aren't a footer's.
  init(parts: [[UInt8]]) throws(MemQError) {
    self.entries = []
    for part in parts {
      var reader = ByteReader(part)
      while reader.remaining > 0 { try self.decodeEntry(&reader) }
    }
  }

  init(entries: [Entry]) { self.entries = entries }

  private mutating func decodeEntry(_ reader: inout ByteReader) throws(MemQError) {
    let log = LogID(try reader.integer())
    let topic: TopicID = try reader.id()
    let partition = TopicPartition(topic, PartitionIndex(try reader.integer()))
    let hasCut: UInt32 = try reader.integer()
    let cutTo = Offset(try reader.integer())
    let base = Offset(try reader.integer())
    let count: UInt64 = try reader.integer()
    guard count <= UInt64(reader.remaining / Self.runBytes) else {
      throw MemQError(.corruptMessage, "a footer names more runs than it has")
    }
    var runs: [RunEntry] = []
    runs.reserveCapacity(Int(count))
    for _ in 0..<count { runs.append(try Self.decodeRun(&reader)) }
    if let last = self.entries.indices.last, self.entries[last].log == log {
      self.entries[last].runs += runs
    } else {
      self.entries.append(
        Entry(
          log: log, partition: partition, cutTo: hasCut == 0 ? nil : cutTo, baseOffset: base,
          runs: runs))
    }
  }

  private static func decodeRun(_ reader: inout ByteReader) throws(MemQError) -> RunEntry {
    let position: UInt32 = try reader.integer()
    let bytes: UInt32 = try reader.integer()
    let base: Int64 = try reader.integer()
    let count: Int64 = try reader.integer()
    let maxTimestamp: Int64 = try reader.integer()
    let maxAppendTime: Int64 = try reader.integer()
    let (end, overflow) = base.addingReportingOverflow(count)
    guard !overflow, count >= 0 else {
      throw MemQError(.corruptMessage, "a footer's run has no legal end")
    }
    return RunEntry(
      position: Int64(position), byteCount: Int(bytes & ~(1 << 31)), baseOffset: Offset(base),
      endOffset: Offset(end), maxTimestamp: Timestamp(milliseconds: maxTimestamp),
      maxAppendTime: Timestamp(milliseconds: maxAppendTime), hasProducers: bytes >> 31 == 1)
  }

  /// The runs of a partition log, found by binary search; empty when it has none here.
  public func runs(of log: LogID) -> [RunEntry] {
    var low = 0
    var high = self.entries.count
    while low < high {
      let middle = (low + high) / 2
      if self.entries[middle].log < log { low = middle + 1 } else { high = middle }
    }
    guard low < self.entries.count, self.entries[low].log == log else { return [] }
    return self.entries[low].runs
  }

  /// About the memory it holds: what the cache is charged.
  public var memoryBytes: Int {
    self.entries.reduce(64) { $0 + 96 + $1.runs.count * MemoryLayout<RunEntry>.stride }
  }
}
