// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import DequeModule
import MemQModel
import NIOCore

/// The newest batches of each partition, without gaps to the partition's end. What is not durable is always here.
struct TailCache {
  private struct Entry {
    let batch: StoredBatch
    /// Rises over the volume.
    let serial: UInt64
  }

  private var entries: [TopicPartition: Deque<Entry>] = [:]
  /// Oldest first; stale where the batch was cut since.
  private var order: Deque<(partition: TopicPartition, serial: UInt64)> = []
  private let bytesMax: Int
  private(set) var bytes = 0
  private var count = 0
  /// Places kept for batches, stale ones counted.
  var placeCount: Int { self.order.count }
  private var nextSerial: UInt64 = 0
  private var durableBelow: UInt64 = 0

  init(bytesMax: Int) { self.bytesMax = bytesMax }

  /// Returns one above its serial, for `durable(below:)`.
  mutating func append(_ batch: StoredBatch, to partition: TopicPartition) -> UInt64 {
    self.entries[partition, default: []].append(Entry(batch: batch, serial: self.nextSerial))
    self.order.append((partition, self.nextSerial))
    self.bytes += batch.memoryBytes
    self.count += 1
    self.nextSerial += 1
    if self.order.count > 2 * self.count + Self.stalePlacesMax { self.dropStalePlaces() }
    self.shrink(by: 4)
    return self.nextSerial
  }

  /// Behind one batch that stays, others that were trimmed leave their places: they go once they are the most.
  private static let stalePlacesMax = 1_024

  private mutating func dropStalePlaces() {
    var live: Deque<(partition: TopicPartition, serial: UInt64)> = []
    for place in self.order {
      guard let entries = self.entries[place.partition], let first = entries.first,
        let last = entries.last, place.serial >= first.serial, place.serial <= last.serial
      else { continue }
      live.append(place)
    }
    self.order = live
  }

  /// Batches with lower serials are durable: they may be forgotten. Most of that is spread over the appends that make it necessary: all
  /// at once it would keep the next write waiting.
  mutating func durable(below serial: UInt64) {
    self.durableBelow = max(self.durableBelow, serial)
    self.shrink(by: 64)
  }

  /// Forgets what is durable above the limit, oldest first.
  mutating func shrink(by count: Int = .max) {
    var left = count
    // Batches that were cut or trimmed leave their place in the order behind.
    while left > 0, let oldest = self.order.first, oldest.serial < self.durableBelow,
      self.entries[oldest.partition]?.first.map({ $0.serial > oldest.serial }) ?? true
    {
      self.order.removeFirst()
      left -= 1
    }
    while left > 0, self.bytes > self.bytesMax, let oldest = self.order.first,
      oldest.serial < self.durableBelow
    {
      self.order.removeFirst()
      left -= 1
      guard let entry = self.entries[oldest.partition]?.first, entry.serial == oldest.serial else {
        continue
      }
      self.bytes -= entry.batch.memoryBytes
      self.count -= 1
      self.entries[oldest.partition]!.removeFirst()
      if self.entries[oldest.partition]!.isEmpty { self.entries[oldest.partition] = nil }
    }
  }

  /// From here on the partition is in the cache; nil: nothing is.
  func start(of partition: TopicPartition) -> Offset? {
    self.entries[partition]?.first?.batch.summary.baseOffset
  }

  /// Forgets what ends above `end`.
  mutating func cut(_ partition: TopicPartition, to end: Offset) {
    while let last = self.entries[partition]?.last, last.batch.summary.endOffset > end {
      self.bytes -= last.batch.memoryBytes
      self.count -= 1
      self.entries[partition]!.removeLast()
    }
    if self.entries[partition]?.isEmpty == true { self.entries[partition] = nil }
  }

  /// Forgets what ends at or below `start`.
  mutating func trim(_ partition: TopicPartition, to start: Offset) {
    while let first = self.entries[partition]?.first, first.batch.summary.endOffset <= start {
      self.bytes -= first.batch.memoryBytes
      self.count -= 1
      self.entries[partition]!.removeFirst()
    }
    if self.entries[partition]?.isEmpty == true { self.entries[partition] = nil }
  }

  mutating func drop(_ partition: TopicPartition) { self.cut(partition, to: Offset(.min)) }

  /// Batches from the one that holds `from`; nil when it isn't here.
  func read(
    _ partition: TopicPartition, from: Offset, below: Offset, maxBytes: Int
  ) -> Volume.ReadResult? {
    guard let entries = self.entries[partition], let first = entries.first,
      first.batch.summary.baseOffset <= from
    else { return nil }
    var low = 0
    var high = entries.count
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].batch.summary.endOffset <= from { low = middle + 1 } else { high = middle }
    }
    var result = Volume.ReadResult(nextOffset: from)
    var bytes = 0
    while low < entries.count {
      let batch = entries[low].batch
      guard batch.summary.endOffset <= below, bytes == 0 || bytes + batch.byteCount <= maxBytes
      else {
        break
      }
      bytes += batch.byteCount
      result.slices += batch.slices
      result.batches.append(.init(summary: batch.summary, byteCount: batch.byteCount))
      result.nextOffset = batch.summary.endOffset
      low += 1
    }
    return result
  }

  /// The first batch here whose max timestamp is at or above `timestamp`.
  func offset(_ partition: TopicPartition, forTimestamp timestamp: Timestamp) -> Offset? {
    self.entries[partition]?.first { $0.batch.summary.maxTimestamp >= timestamp }?
      .batch.summary.baseOffset
  }
}
