// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension UploadPacker {
  /// The object being gathered.
  struct Fill: Hashable {
    /// Partitions still to read, the next one last; each with the high watermark seen at the start of the fill.
    var queue: [Wanted]
    /// Reads under way with what they may bring.
    var reads: SortedMap<TopicPartition, Read> = [:]
    var ranges: SortedMap<TopicPartition, Range> = [:]
    /// Bytes left in the object, less what reads under way may bring.
    var room: Int64

    struct Read: Hashable {
      var from: Offset
      /// The partition is done there.
      var below: Offset
      var maxBytes: Int64
    }

    struct Wanted: Hashable {
      var partition: TopicPartition
      var below: Offset
    }
  }

  mutating func advance(at now: MonotonicInstant, _ effects: inout [Effect]) {
    self.answerFlushes(&effects)
    if self.isDue(at: now) { self.beginFill() }
    guard case .filling(var fill) = self.phase else { return }
    self.issueReads(&fill, &effects)
    self.phase = .filling(fill)
    if fill.reads.isEmpty { self.endFill(fill, at: now, &effects) }
  }

  private func isDue(at now: MonotonicInstant) -> Bool {
    guard case .idle = self.phase, self.leaseEpoch != nil, now >= self.pausedUntil else {
      return false
    }
    if !self.flushes.isEmpty { return self.partitions.values.contains { $0.waiting > 0 } }
    if self.waitingBytes >= self.configuration.objectBytes { return true }
    if self.partitions.values.contains(where: { $0.waiting > 0 && $0.progress?.isUrgent == true }) {
      return true
    }
    return self.waitingSince.map { now >= $0 + self.configuration.lingerMax } ?? false
  }

  private mutating func beginFill() {
    let waiting = self.partitions.filter { $0.1.waiting > 0 }.map { partition, state in
      Fill.Wanted(partition: partition, below: state.progress?.highWatermark ?? .zero)
    }
    let turn = waiting.firstIndex { entry in self.lastFilled.map { entry.partition > $0 } ?? true }
    let start = turn ?? 0
    self.waitingSince = nil
    self.phase = .filling(
      Fill(
        queue: (waiting[start...] + waiting[..<start]).reversed(),
        room: self.configuration.objectBytes))
  }

  private func issueReads(_ fill: inout Fill, _ effects: inout [Effect]) {
    while fill.reads.count < self.configuration.readsMax, fill.room > 0,
      let wanted = fill.queue.popLast()
    {
      let (partition, below) = (wanted.partition, wanted.below)
      guard let state = self.partitions[partition] else { continue }
      let from = fill.ranges[partition]?.endOffset ?? state.start
      guard from < below else { continue }
      let maxBytes = min(Int64(self.configuration.readBytes), fill.room)
      fill.room -= maxBytes
      fill.reads[partition] = Fill.Read(from: from, below: below, maxBytes: maxBytes)
      effects.append(
        .read(partition, from: from, maxBytes: Int(maxBytes), state.position.historyEpoch))
    }
  }

  mutating func take(_ partition: TopicPartition, end: Offset, _ byteCount: Int64) {
    guard case .filling(var fill) = self.phase, let read = fill.reads[partition],
      let state = self.partitions[partition]
    else { return }
    fill.reads[partition] = nil
    // A batch above `maxBytes` may take the room below zero: the object is full then.
    fill.room += read.maxBytes - byteCount
    if byteCount > 0 {
      var range =
        fill.ranges[partition]
        ?? Range(
          partition: partition, baseOffset: read.from, endOffset: read.from,
          historyEpoch: state.position.historyEpoch, byteCount: 0)
      range.endOffset = end
      range.byteCount += byteCount
      fill.ranges[partition] = range
      if end < read.below {
        fill.queue.append(Fill.Wanted(partition: partition, below: read.below))
      }
    }
    self.phase = .filling(fill)
  }

  /// What was read of the partition before stays in the object; the rest waits for the next one.
  mutating func giveUpReading(_ partition: TopicPartition) {
    guard case .filling(var fill) = self.phase, let read = fill.reads.removeValue(forKey: partition)
    else { return }
    fill.room += read.maxBytes
    self.phase = .filling(fill)
  }

  private mutating func endFill(
    _ fill: Fill, at now: MonotonicInstant, _ effects: inout [Effect]
  ) {
    guard !fill.ranges.isEmpty else {
      self.phase = .idle
      self.pausedUntil = now + self.configuration.pause
      self.noteWaiting(at: now)
      return
    }
    // Who was read last, or still waits for its first turn, comes first next time.
    self.lastFilled = fill.queue.last.flatMap { next in
      self.partitions.keys.last { $0 < next.partition }
    }
    let ranges = fill.ranges.map { $0.1 }
    self.phase = .committing(ranges)
    effects.append(.upload(ranges))
  }

  /// Starts the clock of the oldest waiting record, or stops it.
  mutating func noteWaiting(at now: MonotonicInstant) {
    guard self.partitions.values.contains(where: { $0.waiting > 0 }) else {
      self.waitingSince = nil
      return
    }
    if self.waitingSince == nil { self.waitingSince = now }
  }
}
