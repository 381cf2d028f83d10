// Part of MemQ. SPDX-License-Identifier: Apache-2.0

/// Where the parts of a file body end: the grain of durability and of resuming.
///
/// Small at first, so that little is sent again after a break; larger later, so that 5 TiB fit into the 10,000 parts an
/// object store allows: 16 MiB × 1,000, 64 MiB × 2,000, then 1 GiB (140 GiB + 7,000 GiB).
enum PartSchedule {
  static let steps: [(bytes: Int64, count: Int64)] = [
    (16 << 20, 1_000), (64 << 20, 2_000), (1 << 30, 7_000),
  ]

  /// The end of the part that holds the byte at `offset`.
  static func end(ofPartAt offset: Int64) -> Int64 {
    precondition(offset >= 0)
    var start: Int64 = 0
    for (bytes, count) in self.steps {
      let stepEnd = start + bytes * count
      if offset < stepEnd { return start + ((offset - start) / bytes + 1) * bytes }
      start = stepEnd
    }
    let last = self.steps[self.steps.count - 1].bytes
    return start + ((offset - start) / last + 1) * last
  }

  /// Number of parts of a body; one for an empty one.
  static func count(size: Int64) -> Int64 {
    var start: Int64 = 0
    var parts: Int64 = 0
    for (bytes, count) in self.steps {
      let stepEnd = start + bytes * count
      guard size > stepEnd else { return max(1, parts + (size - start + bytes - 1) / bytes) }
      parts += count
      start = stepEnd
    }
    let last = self.steps[self.steps.count - 1].bytes
    return parts + (size - start + last - 1) / last
  }
}
