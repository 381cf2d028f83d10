// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What a reader knows of the leader epochs of the records that it read of one partition. With it a log that changed behind the reader is
/// noticed, and the place found where the two part (KIP-320).
struct EpochTrail: Hashable, Sendable {
  /// Leaders change seldom; what is older only makes the place where histories part less exact.
  private static let entriesMax = 16

  /// Epochs rise; `start` is the first record that is known to have it.
  private(set) var entries: [EpochStart] = []
  /// Nothing is known of records from here on.
  private(set) var end = Offset.zero

  /// - Parameter lastEpoch: of the record before `offset`; nil: nothing is known.
  init(_ lastEpoch: LeaderEpoch?, before offset: Offset) {
    self.end = offset
    guard let lastEpoch, lastEpoch > .none, offset > .zero else { return }
    self.entries = [EpochStart(epoch: lastEpoch, start: Offset(offset.rawValue - 1))]
  }

  /// The epoch of the record before `offset`; nil: not known.
  func epoch(before offset: Offset) -> LeaderEpoch? {
    guard offset <= self.end else { return nil }
    return self.entries.last { $0.start < offset }?.epoch
  }

  /// Records of `epoch` were read, from `start` up to `end`, behind those that are known.
  mutating func note(_ epoch: LeaderEpoch, from start: Offset, to end: Offset) {
    self.end = end
    if let last = self.entries.last {
      if last.epoch == epoch { return }
      // Epochs never fall within one history.
      if last.epoch > epoch { self.entries = [] }
    }
    guard epoch > .none else { return self.entries = [] }
    self.entries.append(EpochStart(epoch: epoch, start: start))
    if self.entries.count > Self.entriesMax { self.entries.removeFirst() }
  }

  /// Finds the end of what reader and log have in common, as far as both know, and forgets what lies behind it. It lies below `offset`; whoever
  /// asks again from there finds the next place, if they parted still earlier.
  mutating func part(_ truncation: LogTruncation, at offset: Offset) -> Offset {
    var common = truncation.resume
    if let at = self.entries.lastIndex(where: { $0.epoch <= truncation.epoch }) {
      let ownEnd = at + 1 < self.entries.count ? self.entries[at + 1].start : offset
      common = min(truncation.end, ownEnd)
    } else if let first = self.entries.first {
      common = min(truncation.resume, first.start)
    }
    self.cut(to: common)
    if self.entries.isEmpty, common == truncation.resume {
      self = EpochTrail(truncation.resumeEpoch, before: common)
    }
    return common
  }

  /// Forgets what lies at or above `offset`.
  mutating func cut(to offset: Offset) {
    self.entries.removeAll { $0.start >= offset }
    self.end = min(self.end, offset)
  }
}
