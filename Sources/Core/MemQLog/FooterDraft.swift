// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// The footer of the segment that is written, kept as its frames get their places: in the order of these, each part encoded. So a
/// segment's end puts bytes in order and visits none of ten thousand logs, each of which would be a few cache misses.
///
/// Knows batches alone. A truncate, or a drop, in the segment ends the draft; the footer is then made from the spans.
struct FooterDraft: Sendable {
  /// An entry's head without its number of runs.
  private static let headBytes = Footer.entryBytes - 8

  /// False: made from the spans instead.
  private(set) var isWhole = false
  private var heads: [UInt8] = []
  private var logs: [LogID] = []
  /// By the log's place: which head is its own.
  private var headAt: [UInt32] = []
  private var runs: [UInt8] = []
  /// By run: whose it is.
  private var headOf: [UInt32] = []

  /// A segment begins. What memory the one before took is there for it.
  mutating func begin() {
    self.heads.removeAll(keepingCapacity: true)
    self.logs.removeAll(keepingCapacity: true)
    self.runs.removeAll(keepingCapacity: true)
    self.headOf.removeAll(keepingCapacity: true)
    self.isWhole = true
  }

  mutating func end() { self.isWhole = false }

  /// The log has its first batch in the segment.
  mutating func open(_ log: LogID, at place: Int, _ partition: TopicPartition, base: Offset) {
    guard self.isWhole else { return }
    while self.headAt.count <= place { self.headAt.append(0) }
    self.headAt[place] = UInt32(self.logs.count)
    self.logs.append(log)
    self.heads.reserve(more: Self.headBytes)
    self.heads.store(log.rawValue)
    self.heads.store(partition.topic.value.high)
    self.heads.store(partition.topic.value.low)
    self.heads.store(partition.partition.rawValue)
    self.heads.store(UInt32(0))
    self.heads.store(Int64(0))
    self.heads.store(base.rawValue)
  }

  /// The log's last run is this one now: a new one, or the last of all, which became longer.
  mutating func set(_ run: RunEntry, of place: Int, isNew: Bool) {
    guard self.isWhole else { return }
    if isNew {
      self.headOf.append(self.headAt[place])
    } else {
      self.runs.removeLast(Footer.runBytes)
    }
    self.runs.reserve(more: Footer.runBytes)
    Footer.encode(run, into: &self.runs)
  }

  /// As `Footer.encoded`.
  func encoded() -> [[UInt8]] {
    let count = self.logs.count
    // Where each head's runs begin among all runs once these are in the order of heads.
    var starts = [Int](repeating: 0, count: count + 1)
    for head in self.headOf { starts[Int(head) + 1] += 1 }
    for head in 0..<count { starts[head + 1] += starts[head] }
    var next = starts
    var order = [Int](repeating: 0, count: self.headOf.count)
    for (run, head) in self.headOf.enumerated() {
      order[next[Int(head)]] = run
      next[Int(head)] += 1
    }
    let byLog = (0..<count).sorted { self.logs[$0] < self.logs[$1] }
    let bytes = count * Footer.entryBytes + self.runs.count
    var parts = Footer.Parts(reserving: bytes)
    self.heads.withUnsafeBytes { heads in
      self.runs.withUnsafeBytes { runs in
        for head in byLog {
          let own = order[starts[head]..<starts[head + 1]]
          let start = head * Self.headBytes
          parts.add(runs: own.count) { taken, writer in
            writer.append(contentsOf: heads.part(start..<(start + Self.headBytes)))
            writer.store(UInt64(taken.count))
            for index in taken {
              let at = own[own.startIndex + index] * Footer.runBytes
              writer.append(contentsOf: runs.part(at..<(at + Footer.runBytes)))
            }
          }
        }
      }
    }
    return parts.all
  }
}

extension Footer {
  /// Payloads of footer frames, each below `partBytes`.
  struct Parts {
    private var done: [[UInt8]] = []
    private var bytes: [UInt8] = []
    private var left: Int

    init(reserving bytes: Int) {
      self.left = bytes
      self.reserve()
    }

    private mutating func reserve() {
      self.bytes = []
      self.bytes.reserveCapacity(min(self.left, Footer.partBytes))
    }

    /// Adds an entry, in pieces where it does not fit: `body` adds a head and these of its runs.
    mutating func add(runs: Int, _ body: (Range<Int>, inout [UInt8]) -> Void) {
      var next = 0
      repeat {
        if self.bytes.count + Footer.entryBytes + Footer.runBytes > Footer.partBytes {
          self.left = max(0, self.left - self.bytes.count)
          self.done.append(self.bytes)
          self.reserve()
        }
        let room = (Footer.partBytes - self.bytes.count - Footer.entryBytes) / Footer.runBytes
        let taken = next..<min(next + room, runs)
        next = taken.upperBound
        body(taken, &self.bytes)
      } while next < runs
    }

    /// At least one.
    var all: [[UInt8]] { self.done + [self.bytes] }
  }
}
