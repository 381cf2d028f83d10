// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// How long syncs take, and so when the next may begin beside one that is under way, and when to write until then.
///
/// What comes while a sync is under way waits for the next. With one at a time that is half of a sync in the mean, with two that take
/// turns a quarter. That is of use only where the disk does two in about the time of one: where a second one makes them a third
/// longer, there is one at a time again, and the second is tried anew after a while.
struct SyncPace: Sendable {
  private struct Sync {
    let group: GroupNumber
    let begunAt: MonotonicInstant
    var isAlone: Bool
  }

  /// Of the last 32 or so. One that takes ten times as long, which every disk has now and then, counts as twice the others.
  private struct Mean {
    var count = 0
    var value = Duration.zero

    mutating func add(_ took: Duration) {
      let counts = self.count < 4 ? took : min(took, self.value * 2)
      self.count = min(self.count + 1, 32)
      self.value += (counts - self.value) / self.count
    }
  }

  /// Syncs alone after two at a time were of no use.
  private static let alonePause = 256
  /// So many beside each other, then so many alone: what one takes alone may have changed.
  private static let besideMax = 8_192
  private static let aloneProbe = 16

  /// The last few.
  private var takes: Duration = .zero
  private var alone = Mean()
  private var beside = Mean()
  private var besideCount = 0
  /// So many more begin alone.
  private var aloneLeft = 0
  private var underWay: [Sync] = []
  private var nextAt = MonotonicInstant.zero
  /// When the second may begin; nil: not beside the one under way, or there are two.
  private(set) var besideAt: MonotonicInstant?
  /// Then what waits is written: halfway to the next sync, then at half of what is left, down to a sixteenth of a sync's time.
  private(set) var writeAt: MonotonicInstant?

  /// - Parameter floor: a shorter sync is over before anything done beside it would have helped.
  mutating func begin(_ group: GroupNumber, at now: MonotonicInstant, floor: Duration) {
    let isAlone = self.underWay.isEmpty
    for index in self.underWay.indices { self.underWay[index].isAlone = false }
    self.underWay.append(Sync(group: group, begunAt: now, isAlone: isAlone))
    let overlaps = self.aloneLeft == 0 && self.alone.value >= floor
    if isAlone, self.aloneLeft > 0 { self.aloneLeft -= 1 }
    self.nextAt = now + (overlaps ? self.takes / 2 : self.takes)
    self.besideAt = overlaps ? self.nextAt : nil
    self.writeAt = self.takes < floor ? nil : now + (self.nextAt - now) / 2
  }

  mutating func writes(at now: MonotonicInstant) {
    guard self.writeAt != nil else { return }
    let half = (self.nextAt - now) / 2
    self.writeAt = half < self.takes / 16 ? nil : now + half
  }

  mutating func end(_ group: GroupNumber, at now: MonotonicInstant) {
    guard let index = self.underWay.firstIndex(where: { $0.group == group }) else { return }
    let sync = self.underWay.remove(at: index)
    let took = now - sync.begunAt
    self.takes = self.takes == .zero ? took : (self.takes * 3 + took) / 4
    if self.underWay.isEmpty { (self.besideAt, self.writeAt) = (nil, nil) }
    guard !sync.isAlone else { return self.alone.add(took) }
    self.beside.add(took)
    self.besideCount += 1
    if self.beside.count >= 16, self.beside.value > self.alone.value * 4 / 3 {
      (self.aloneLeft, self.beside, self.besideCount) = (Self.alonePause, Mean(), 0)
    } else if self.besideCount >= Self.besideMax {
      (self.aloneLeft, self.alone, self.besideCount) = (Self.aloneProbe, Mean(), 0)
    }
  }
}
