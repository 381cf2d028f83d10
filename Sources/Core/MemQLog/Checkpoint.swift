// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// The state of everything on a volume at one place of its log.
struct Checkpoint: Hashable, Sendable {
  struct Partition: Hashable, Sendable {
    var log: LogID
    var partition: TopicPartition
    var state: LogState
    var highWatermark: Offset
    var uploadedOffset: Offset
    var snapshot: SnapshotPlace?
    /// See `PartitionLog.coldEnd`.
    var coldEnd = Offset.zero
    /// See `PartitionLog.coldCuts`.
    var coldCuts: [ColdCut] = []
  }

  struct Segment: Hashable, Sendable {
    var sequence: SegmentSequence
    var slot: SegmentSlot
    var end: Int64
    var state = State.needed

    enum State: UInt8 {
      case needed = 0
      /// Out of the log and about to be retired; so are all hot ones before it. At most a snapshot in it counts until then.
      case freed = 1
      case cold = 2
    }
  }

  var nextLog: LogID
  /// The segments before this one that are still needed, oldest first, then the cold ones, oldest first.
  var segments: [Segment]
  /// By log id, rising.
  var partitions: [Partition]

  /// One checkpoint frame's payload stays about below this.
  static let partBytes = 256 << 10

  /// The payloads of the checkpoint's frames, at least one.
  func encoded() -> [[UInt8]] {
    var bodies = Bodies()
    // By index: the elements stay where they are, uncounted.
    for index in self.partitions.indices { bodies.append(self.partitions[index]) }
    return Self.payloads(nextLog: self.nextLog, segments: self.segments, bodies)
  }

  /// Partitions as they stand in a checkpoint's parts.
  struct Bodies: Sendable {
    fileprivate var done: [ByteWriter] = []
    fileprivate var last = ByteWriter()

    mutating func append(_ partition: Partition) {
      if self.last.bytes.count >= Checkpoint.partBytes {
        self.done.append(self.last)
        self.last = ByteWriter(reserving: Checkpoint.partBytes + 1_024)
      }
      Checkpoint.encode(partition, into: &self.last)
    }
  }

  /// The payloads of a checkpoint's frames, at least one.
  static func payloads(
    nextLog: LogID, segments: [Segment], _ bodies: Bodies
  ) -> [[UInt8]] {
    var head = ByteWriter()
    head.integer(nextLog.rawValue)
    head.list(segments) { writer, segment in
      writer.integer(segment.sequence.rawValue)
      writer.integer(segment.slot.rawValue)
      writer.integer(segment.end)
      writer.integer(segment.state.rawValue)
    }
    let all = bodies.done + [bodies.last]
    return all.enumerated().map { index, body in
      var part = ByteWriter(
        reserving: 8 + body.bytes.count + (index == 0 ? head.bytes.count : 0))
      part.integer(UInt32(index))
      part.integer(UInt32(all.count))
      if index == 0 { part.raw(head.bytes) }
      part.raw(body.bytes)
      return part.bytes
    }
  }

  fileprivate static func encode(_ partition: Partition, into writer: inout ByteWriter) {
    writer.integer(partition.log.rawValue)
    writer.id(partition.partition.topic)
    writer.integer(partition.partition.partition.rawValue)
    writer.integer(partition.state.logStart.rawValue)
    writer.integer(partition.state.end.rawValue)
    writer.integer(partition.highWatermark.rawValue)
    writer.integer(partition.uploadedOffset.rawValue)
    writer.integer(partition.coldEnd.rawValue)
    writer.list(partition.coldCuts) { writer, cut in
      writer.integer(cut.through.rawValue)
      writer.integer(cut.end.rawValue)
    }
    writer.epochs(partition.state.epochs)
    writer.optional(partition.snapshot) { writer, snapshot in
      writer.integer(snapshot.place.segment.rawValue)
      writer.integer(snapshot.place.position)
      writer.integer(UInt32(snapshot.payloadBytes))
      writer.integer(snapshot.end.rawValue)
    }
  }

  /// - Throws: `.corruptMessage` when the parts aren't a whole checkpoint's.
  init(parts: [[UInt8]]) throws(MemQError) {
    self.nextLog = .none
    self.segments = []
    self.partitions = []
    for (index, part) in parts.enumerated() {
      var reader = ByteReader(part)
      let number: UInt32 = try reader.integer()
      let count: UInt32 = try reader.integer()
      guard number == UInt32(index), count == UInt32(parts.count) else {
        throw MemQError(
          .corruptMessage, "part \(number) of \(count) of a checkpoint at place \(index)")
      }
      if index == 0 {
        self.nextLog = LogID(try reader.integer())
        self.segments = try reader.list { (reader) throws(MemQError) in
          var segment = Segment(
            sequence: SegmentSequence(try reader.integer()),
            slot: SegmentSlot(try reader.integer()), end: try reader.integer())
          let state: UInt8 = try reader.integer()
          guard let known = Segment.State(rawValue: state) else {
            throw MemQError(.corruptMessage, "a checkpoint's segment has state \(state)")
          }
          segment.state = known
          return segment
        }
      }
      while reader.remaining > 0 { self.partitions.append(try Self.decode(&reader)) }
    }
  }

  init(nextLog: LogID, segments: [Segment], partitions: [Partition]) {
    self.nextLog = nextLog
    self.segments = segments
    self.partitions = partitions
  }

  private static func decode(_ reader: inout ByteReader) throws(MemQError) -> Partition {
    let log = LogID(try reader.integer())
    let topic: TopicID = try reader.id()
    let partition = TopicPartition(topic, PartitionIndex(try reader.integer()))
    let logStart = Offset(try reader.integer())
    let end = Offset(try reader.integer())
    let highWatermark = Offset(try reader.integer())
    let uploaded = Offset(try reader.integer())
    let coldEnd = Offset(try reader.integer())
    let coldCuts = try reader.list { (reader) throws(MemQError) in
      ColdCut(through: SegmentSequence(try reader.integer()), end: Offset(try reader.integer()))
    }
    let epochs = try reader.epochs()
    let snapshot = try reader.optional { (reader) throws(MemQError) in
      SnapshotPlace(
        place: LogPlace(SegmentSequence(try reader.integer()), try reader.integer()),
        payloadBytes: Int(try reader.integer(UInt32.self)), end: Offset(try reader.integer()))
    }
    return Partition(
      log: log, partition: partition,
      state: LogState(logStart: logStart, end: end, epochs: epochs),
      highWatermark: highWatermark, uploadedOffset: uploaded, snapshot: snapshot,
      coldEnd: coldEnd, coldCuts: coldCuts)
  }
}

/// Where a partition's newest producer snapshot stands.
struct SnapshotPlace: Hashable, Sendable {
  /// Of its frame's header.
  var place: LogPlace
  var payloadBytes: Int
  /// It holds the producers of all records below.
  var end: Offset
}

extension ByteWriter {
  mutating func epochs(_ epochs: [EpochStart]) {
    self.list(epochs) { writer, entry in
      writer.integer(entry.epoch.rawValue)
      writer.integer(entry.start.rawValue)
    }
  }
}

extension ByteReader {
  mutating func epochs() throws(MemQError) -> [EpochStart] {
    try self.list { (reader) throws(MemQError) in
      EpochStart(epoch: LeaderEpoch(try reader.integer()), start: Offset(try reader.integer()))
    }
  }
}
