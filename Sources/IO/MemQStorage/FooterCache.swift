// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog

/// Footers of sealed segments, least recently used first out.
struct FooterCache {
  private var footers: [SegmentSequence: Footer] = [:]
  private var order: [SegmentSequence] = []
  private let bytesMax: Int
  private var bytes = 0

  init(bytesMax: Int) { self.bytesMax = bytesMax }

  mutating func footer(_ segment: SegmentSequence) -> Footer? {
    guard let footer = self.footers[segment] else { return nil }
    if self.order.last != segment {
      self.order.removeAll { $0 == segment }
      self.order.append(segment)
    }
    return footer
  }

  mutating func insert(_ footer: Footer, for segment: SegmentSequence) {
    guard self.footers[segment] == nil else { return }
    self.footers[segment] = footer
    self.order.append(segment)
    self.bytes += footer.memoryBytes
    while self.bytes > self.bytesMax, self.order.count > 1 {
      self.bytes -= self.footers.removeValue(forKey: self.order.removeFirst())!.memoryBytes
    }
  }
}
