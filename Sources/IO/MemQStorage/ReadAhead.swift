// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel

/// What was read beyond a sequential reader's wish, for its next reads. A reader is sequential once it begins where another
/// read ended.
struct ReadAhead {
  private struct Place: Hashable {
    let partition: TopicPartition
    let offset: Offset
  }

  private struct Buffer {
    var result: Volume.ReadResult
    /// Of the whole it was a part of: its buffers live as long as the last part.
    let byteCount: Int
    let serial: UInt64
  }

  /// Buffers, and ends of reads that are remembered: few bytes each.
  private static let placesMax = 1_024
  /// One over-read: some milliseconds of an SSD's bandwidth.
  static let windowBytes = 4 << 20

  private var buffers: [Place: Buffer] = [:]
  private var order: Deque<(place: Place, serial: UInt64)> = []
  private var ends: Set<Place> = []
  private var endOrder: Deque<Place> = []
  private let bytesMax: Int
  private(set) var bytes = 0
  private var nextSerial: UInt64 = 0
  /// Rises with each truncate and drop: what was read before may be gone.
  private(set) var cuts: UInt64 = 0

  init(bytesMax: Int) { self.bytesMax = bytesMax }

  /// How much to read for a reader at `from`.
  func wantedBytes(_ partition: TopicPartition, from: Offset, maxBytes: Int) -> Int {
    guard self.ends.contains(Place(partition: partition, offset: from)) else { return maxBytes }
    return max(maxBytes, min(Self.windowBytes, self.bytesMax))
  }

  /// Takes out what a read from `from` gets; nil: nothing was read ahead for it.
  mutating func take(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) -> Volume.ReadResult? {
    let place = Place(partition: partition, offset: from)
    guard let buffer = self.buffers[place], buffer.result.batches[0].summary.endOffset <= below
    else { return nil }
    self.buffers[place] = nil
    self.bytes -= buffer.byteCount
    let (taken, rest) = buffer.result.split(maxBytes: maxBytes, below: below)
    if rest.batches.isEmpty {
      self.noteEnd(partition, taken.nextOffset)
    } else {
      self.keep(rest, of: partition, at: taken.nextOffset, byteCount: buffer.byteCount)
    }
    return taken
  }

  /// A read from the disk ended at `offset`; `rest` goes on from there.
  ///
  /// - Parameter cuts: as it was when the read's place was found.
  mutating func ended(
    _ partition: TopicPartition, at offset: Offset, rest: Volume.ReadResult, byteCount: Int,
    cuts: UInt64
  ) {
    if rest.batches.isEmpty || cuts != self.cuts || byteCount > self.bytesMax {
      self.noteEnd(partition, offset)
    } else {
      self.keep(rest, of: partition, at: offset, byteCount: byteCount)
    }
  }

  /// Forgets the partition, which was truncated or dropped.
  mutating func cut(_ partition: TopicPartition) {
    self.cuts += 1
    guard !self.buffers.isEmpty else { return }
    for place in self.order where place.place.partition == partition {
      guard self.buffers[place.place]?.serial == place.serial else { continue }
      self.bytes -= self.buffers.removeValue(forKey: place.place)!.byteCount
    }
  }

  private mutating func keep(
    _ rest: Volume.ReadResult, of partition: TopicPartition, at offset: Offset, byteCount: Int
  ) {
    let place = Place(partition: partition, offset: offset)
    if let other = self.buffers[place] { self.bytes -= other.byteCount }
    self.buffers[place] = Buffer(result: rest, byteCount: byteCount, serial: self.nextSerial)
    self.order.append((place, self.nextSerial))
    self.nextSerial += 1
    self.bytes += byteCount
    while self.bytes > self.bytesMax || self.order.count > Self.placesMax,
      let oldest = self.order.popFirst()
    {
      guard let buffer = self.buffers[oldest.place], buffer.serial == oldest.serial else {
        continue
      }
      self.buffers[oldest.place] = nil
      self.bytes -= buffer.byteCount
    }
  }

  private mutating func noteEnd(_ partition: TopicPartition, _ offset: Offset) {
    let place = Place(partition: partition, offset: offset)
    guard self.ends.insert(place).inserted else { return }
    self.endOrder.append(place)
    if self.endOrder.count > Self.placesMax { self.ends.remove(self.endOrder.removeFirst()) }
  }
}

extension Volume.ReadResult {
  /// The first batches up to `maxBytes`, at least one, that end at or below `below`, and the rest. Precondition: one slice per batch.
  func split(maxBytes: Int, below: Offset = .max) -> (first: Self, rest: Self) {
    var count = 0
    var bytes = 0
    while count < self.batches.count, self.batches[count].summary.endOffset <= below,
      count == 0 || bytes + self.batches[count].byteCount <= maxBytes
    {
      bytes += self.batches[count].byteCount
      count += 1
    }
    guard count < self.batches.count else { return (self, Self(nextOffset: self.nextOffset)) }
    let end = count > 0 ? self.batches[count - 1].summary.endOffset : self.nextOffset
    return (
      Self(
        slices: Array(self.slices[..<count]), nextOffset: end,
        batches: Array(self.batches[..<count])),
      Self(
        slices: Array(self.slices[count...]), nextOffset: self.nextOffset,
        batches: Array(self.batches[count...]))
    )
  }
}
