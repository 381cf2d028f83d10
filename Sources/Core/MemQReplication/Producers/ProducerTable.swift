// Part of MemQ. SPDX-License-Identifier: Apache-2.0

package import MemQModel

/// Idempotent producers of one partition: for each the epoch and its last batches.
///
/// A pure function of the batches applied, so that every replica holds the same table. Forgetting goes by
/// the table's own clock, the highest append time seen: a clock that goes back forgets nothing early.
/// Two lists in order of last use keep ordinary producers (capped) apart from files' (kept by time).
package struct ProducerTable: Sendable {
  package struct KeptBatch: Hashable, Sendable {
    package var baseSequence: Int32
    package var baseOffset: Offset
    package var endOffset: Offset
    var lastSequence: Int32 {
      Sequence.advance(self.baseSequence, by: self.endOffset - self.baseOffset - 1)
    }
  }

  struct Entry: Sendable {
    var id: ProducerID
    var epoch: ProducerEpoch
    /// Oldest first; never empty.
    var batches: [KeptBatch]
    var usedAt: Timestamp
    var earlier: Int
    var later: Int
  }

  /// Both ends of a list through the entries, in order of last use.
  struct UseOrder: Sendable {
    var first = none
    var last = none
    var count = 0
  }

  static let none = -1

  let limits: ProducerLimits
  private(set) var clock = Timestamp.none
  private(set) var entries: [Entry] = []
  private var free: [Int] = []
  private var places: [ProducerID: Int] = [:]
  private(set) var producers = UseOrder()
  private(set) var files = UseOrder()

  init(limits: ProducerLimits) { self.limits = limits }

  package var count: Int { self.producers.count + self.files.count }

  /// Judges a batch that would be appended now; changes nothing.
  func judge(
    _ id: ProducerID, _ epoch: ProducerEpoch, base: Int32, count: Int64
  ) -> SequenceVerdict {
    precondition(id.rawValue >= 0 && base >= 0, "only an idempotent batch is judged")
    if id.isFile && base != 0 { return .fileSequenceInvalid }
    guard let place = self.places[id] else {
      if id.isFile, self.files.count >= self.limits.filesMax,
        !self.isExpired(self.files.first, after: self.limits.fileKeptMin)
      {
        return .filesFull(limit: self.limits.filesMax)
      }
      return base == 0 ? .fresh : .unknownProducer
    }
    let entry = self.entries[place]
    let newest = entry.batches[entry.batches.count - 1]
    let last = newest.lastSequence
    if epoch < entry.epoch { return .fenced(current: entry.epoch, restsOn: newest.endOffset) }
    if epoch > entry.epoch {
      return base == 0 ? .fresh : .outOfOrder(last: -1, restsOn: newest.endOffset)
    }
    if id.isFile { return .duplicate(base: newest.baseOffset, restsOn: newest.endOffset) }
    let behind = Sequence.distance(from: base, to: Sequence.advance(last, by: 1))
    if behind == 0 { return .fresh }
    if behind < 0 { return .outOfOrder(last: last, restsOn: newest.endOffset) }
    if behind < count { return .straddles(last: last, restsOn: newest.endOffset) }
    return Self.duplicate(of: base, count: count, in: entry.batches)
  }

  private static func duplicate(
    of base: Int32, count: Int64, in batches: [KeptBatch]
  ) -> SequenceVerdict {
    var first: Offset?
    var end = batches[0].baseOffset
    let last = Sequence.advance(base, by: count - 1)
    for batch in batches {
      let length = batch.endOffset - batch.baseOffset
      let into = -Sequence.distance(from: base, to: batch.baseSequence)
      if into >= 0 && into < length { first = batch.baseOffset + into }
      if -Sequence.distance(from: last, to: batch.baseSequence) >= 0 { end = batch.endOffset }
    }
    return .duplicate(base: first, restsOn: end)
  }

  /// Takes over a batch of the log. The log is the truth: nothing is refused here.
  mutating func apply(_ batch: BatchSummary) {
    self.clock = Swift.max(self.clock, batch.appendTime)
    guard batch.producerID.rawValue >= 0, batch.baseSequence >= 0 else { return }
    let kept = KeptBatch(
      baseSequence: batch.baseSequence, baseOffset: batch.baseOffset, endOffset: batch.endOffset)
    if let place = self.places[batch.producerID] {
      self.unlink(place)
      if self.entries[place].epoch == batch.producerEpoch {
        if self.entries[place].batches.count == self.limits.batchesKept {
          self.entries[place].batches.removeFirst()
        }
        self.entries[place].batches.append(kept)
      } else {
        self.entries[place].epoch = batch.producerEpoch
        self.entries[place].batches = [kept]
      }
      self.link(place)
    } else {
      self.insert(batch.producerID, batch.producerEpoch, [kept], usedAt: self.clock)
    }
    self.forget()
  }

  mutating func insert(
    _ id: ProducerID, _ epoch: ProducerEpoch, _ batches: [KeptBatch], usedAt: Timestamp
  ) {
    let entry = Entry(
      id: id, epoch: epoch, batches: batches, usedAt: usedAt, earlier: Self.none, later: Self.none)
    let place: Int
    if let reused = self.free.popLast() {
      place = reused
      self.entries[place] = entry
    } else {
      place = self.entries.count
      self.entries.append(entry)
    }
    self.places[id] = place
    self.link(place, usedAt: usedAt)
  }

  /// What is known, apart from the times: for each producer its epoch and batches, by id.
  var contents: [ProducerContents] {
    self.entries.indices.lazy
      .filter { self.places[self.entries[$0].id] == $0 }
      .map {
        ProducerContents(
          id: self.entries[$0].id, epoch: self.entries[$0].epoch, batches: self.entries[$0].batches)
      }
      .sorted { $0.id < $1.id }
  }

  mutating func setClock(_ clock: Timestamp) { self.clock = clock }
  func contains(_ id: ProducerID) -> Bool { self.places[id] != nil }

  /// Drops what expired, and the longest unused beyond the cap.
  private mutating func forget() {
    while self.producers.first != Self.none,
      self.producers.count > self.limits.producersMax
        || self.isExpired(self.producers.first, after: self.limits.expiry)
    {
      self.remove(self.producers.first)
    }
    while self.files.first != Self.none,
      self.isExpired(self.files.first, after: self.limits.fileExpiry)
        || (self.files.count > self.limits.filesMax
          && self.isExpired(self.files.first, after: self.limits.fileKeptMin))
    {
      self.remove(self.files.first)
    }
  }

  private func isExpired(_ place: Int, after expiry: Duration) -> Bool {
    self.clock.milliseconds - self.entries[place].usedAt.milliseconds > expiry.milliseconds
  }

  private mutating func remove(_ place: Int) {
    self.unlink(place)
    self.places[self.entries[place].id] = nil
    self.entries[place].batches = []
    self.free.append(place)
  }

  private mutating func link(_ place: Int, usedAt: Timestamp? = nil) {
    self.entries[place].usedAt = usedAt ?? self.clock
    self.withOrder(of: place) { order, entries in
      entries[place].earlier = order.last
      entries[place].later = Self.none
      if order.last == Self.none { order.first = place } else { entries[order.last].later = place }
      order.last = place
      order.count += 1
    }
  }

  private mutating func unlink(_ place: Int) {
    self.withOrder(of: place) { order, entries in
      let (earlier, later) = (entries[place].earlier, entries[place].later)
      if earlier == Self.none { order.first = later } else { entries[earlier].later = later }
      if later == Self.none { order.last = earlier } else { entries[later].earlier = earlier }
      order.count -= 1
    }
  }

  private mutating func withOrder(of place: Int, _ body: (inout UseOrder, inout [Entry]) -> Void) {
    if self.entries[place].id.isFile {
      body(&self.files, &self.entries)
    } else {
      body(&self.producers, &self.entries)
    }
  }
}

/// One producer as the table knows it.
package struct ProducerContents: Hashable, Sendable {
  package var id: ProducerID
  package var epoch: ProducerEpoch
  package var batches: [ProducerTable.KeptBatch]
}

extension ProducerID {
  /// From 2^62 up the number stands for one file's publication.
  package static let firstFile = ProducerID(1 << 62)
  package var isFile: Bool { self >= Self.firstFile }
}
