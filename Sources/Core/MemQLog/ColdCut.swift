// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// What cold segments have of a log and lost to a truncate: it never counts again, whatever is carried or released later.
struct ColdCut: Hashable, Sendable {
  /// The youngest segment it applies to, with all older ones.
  var through: SegmentSequence
  /// What they have at or above is dead.
  var end: Offset
}

extension [ColdCut] {
  /// Rising in both: a cut makes earlier ones that reach no lower superfluous.
  mutating func cut(_ through: SegmentSequence, to end: Offset) {
    while let last = self.last, last.end >= end { self.removeLast() }
    if let last = self.last, last.through >= through { return }
    self.append(ColdCut(through: through, end: end))
  }

  /// Where what a segment has of the log ends to count, exclusive.
  func end(in segment: SegmentSequence) -> Offset? {
    self.first { $0.through >= segment }?.end
  }

  /// Keeps those that apply to a segment that is there: no more than there are cold segments.
  mutating func prune(cold: [SegmentSequence]) {
    guard !self.isEmpty else { return }
    var kept: [ColdCut] = []
    var next = 0
    for cut in self {
      let first = next
      while next < cold.count, cold[next] <= cut.through { next += 1 }
      if next > first { kept.append(cut) }
    }
    self = kept
  }
}
