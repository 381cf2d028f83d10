// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel

/// A frame that was accepted and waits for its place.
struct PendingFrame: Sendable {
  enum Content: Sendable {
    case batch(VolumeCore.BatchAppend, PayloadID)
    case epochStart(EpochStart)
    case truncate(Offset, [EpochStart])
    case logStart(Offset)
    case open(LogState)
    case drop
    case snapshot(PartitionLog.Snapshot)
    /// The placed snapshot once more, if it still stands in this segment, which is about to go.
    case snapshotCarry(SegmentSequence)
    /// A durable cold segment becomes part of the log. Of no partition.
    case coldSegment(CarryResult)
    /// What is uploaded of these, which is why this segment goes. Of no partition.
    case positions(SegmentSequence, [LogReference])
  }

  let content: Content
  let log: LogReference
  /// The request that is done once this frame is durable.
  let request: RequestID?
  /// Bytes in the segment, counting its index entry: what admission and room reckon with.
  let cost: Int

  static let overhead = FrameHeader.byteCount + Footer.runBytes
}

/// First in, first out, without moving what waits.
struct FrameQueue: Sendable {
  private var frames: [PendingFrame] = []
  private var head = 0

  var isEmpty: Bool { self.head == self.frames.count }
  var count: Int { self.frames.count - self.head }
  var cost = 0

  subscript(_ index: Int) -> PendingFrame { self.frames[self.head + index] }

  mutating func append(_ frame: PendingFrame) {
    self.frames.append(frame)
    self.cost += frame.cost
  }

  /// Removes and returns the first `count`.
  mutating func removeFirst(_ count: Int) -> [PendingFrame] {
    let taken = Array(self.frames[self.head..<(self.head + count)])
    self.head += count
    for frame in taken { self.cost -= frame.cost }
    if self.head == self.frames.count {
      self.frames.removeAll(keepingCapacity: self.frames.count <= 65_536)
      self.head = 0
    } else if self.head > 4096, self.head > self.frames.count / 2 {
      self.frames.removeFirst(self.head)
      self.head = 0
    }
    return taken
  }
}
