// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

extension UploadPacker {
  // MARK: The lease

  mutating func lease(_ epoch: LeaseEpoch, _ positions: [Position], _ effects: inout [Effect]) {
    if let old = self.leaseEpoch, old != epoch { self.loseLease(&effects) }
    self.leaseEpoch = epoch
    var renewed: SortedMap<TopicPartition, Partition> = [:]
    for position in positions {
      let old = self.partitions[position.partition]
      var position = position
      // Under one lease and history a position only rises: a lower one is an answer that was overtaken by a commit's.
      if let old, old.position.historyEpoch == position.historyEpoch {
        position.nextOffset = max(position.nextOffset, old.position.nextOffset)
      }
      renewed[position.partition] = Partition(position: position, progress: old?.progress)
    }
    let changed = self.partitions.filter { partition, old in
      guard let new = renewed[partition] else { return true }
      return new.position != old.position
    }
    self.partitions = renewed
    for (partition, _) in changed { self.drop(partition, &effects) }
    self.forgetTargets()
  }

  mutating func loseLease(_ effects: inout [Effect]) {
    self.leaseEpoch = nil
    self.partitions = [:]
    self.waitingSince = nil
    self.lastFilled = nil
    if case .idle = self.phase { return }
    self.phase = .idle
    effects.append(.discardAll)
  }

  /// A partition went, or its history or position changed under the object being gathered. One that is being announced
  /// needs nothing: metadata judges each range by what holds then.
  private mutating func drop(_ partition: TopicPartition, _ effects: inout [Effect]) {
    guard case .filling(var fill) = self.phase else { return }
    if let read = fill.reads.removeValue(forKey: partition) { fill.room += read.maxBytes }
    if let range = fill.ranges.removeValue(forKey: partition) { fill.room += range.byteCount }
    fill.queue.removeAll { $0.partition == partition }
    self.phase = .filling(fill)
    effects.append(.discard(partition))
  }

  // MARK: Leaders

  mutating func observe(_ progress: [Progress], at now: MonotonicInstant) {
    for progress in progress {
      guard var partition = self.partitions[progress.partition] else { continue }
      partition.progress = progress
      self.partitions[progress.partition] = partition
    }
    guard case .idle = self.phase else { return }
    self.noteWaiting(at: now)
  }

  // MARK: The commit

  mutating func commit(_ refused: [Int], _ positions: [Position], at now: MonotonicInstant) {
    guard case .committing(let ranges) = self.phase else { return }
    self.phase = .idle
    let accepted = ranges.indices.filter { !refused.contains($0) }.map { ranges[$0] }
    for range in accepted {
      guard var partition = self.partitions[range.partition] else { continue }
      partition.position.nextOffset = max(partition.position.nextOffset, range.endOffset)
      self.partitions[range.partition] = partition
    }
    // Metadata's word is the last, also where it differs from what was expected.
    for position in positions {
      guard var partition = self.partitions[position.partition] else { continue }
      partition.position = position
      self.partitions[position.partition] = partition
    }
    if accepted.isEmpty { self.pausedUntil = now + self.configuration.pause }
    self.addToFlushes(accepted)
    self.noteWaiting(at: now)
  }

  mutating func failUpload(at now: MonotonicInstant) {
    guard case .committing = self.phase else { return }
    self.phase = .idle
    self.pausedUntil = now + self.configuration.pause
    self.noteWaiting(at: now)
  }

  // MARK: Flushes

  private mutating func addToFlushes(_ accepted: [Range]) {
    guard !accepted.isEmpty else { return }
    for id in self.flushes.keys {
      self.flushes[id]?.totals.objects += 1
      self.flushes[id]?.totals.records += accepted.reduce(0) { $0 + ($1.endOffset - $1.baseOffset) }
      self.flushes[id]?.totals.byteCount += accepted.reduce(0) { $0 + $1.byteCount }
    }
  }

  /// Partitions that are gone need no upload.
  private mutating func forgetTargets() {
    for id in self.flushes.keys {
      self.flushes[id]?.targets.removeAll { self.partitions[$0.partition] == nil }
    }
  }

  mutating func answerFlushes(_ effects: inout [Effect]) {
    for (id, flush) in self.flushes {
      let isDone = flush.targets.allSatisfy { target in
        guard let partition = self.partitions[target.partition] else { return true }
        return partition.start >= target.endOffset
      }
      guard isDone else { continue }
      self.flushes[id] = nil
      effects.append(.flushed(id, flush.totals))
    }
  }
}
