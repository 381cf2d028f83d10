// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQLog
import MemQModel
import MemQSystem

/// Segment files in which some blocks can't be read: those read as damage, so that the rest can be told.
struct TolerantSource: SegmentSource {
  /// A disk on which more blocks fail is dead as a whole: each failed read may take seconds.
  private static let failedBlocksMax = 256
  /// What an unreadable block reads as: nothing that a header or padding could be.
  private static let filling: UInt8 = 0xDB

  let slots: [SegmentSlot]
  let files: SegmentFiles
  /// Nil: what the process can't do for now is said at once.
  let patience: TransientPatience?
  /// The blocks that failed, with why.
  private(set) var failed: [(slot: SegmentSlot, position: Int64, error: FileError)] = []

  init(slots: [SegmentSlot], files: SegmentFiles, patience: TransientPatience? = nil) {
    self.slots = slots
    self.files = files
    self.patience = patience
  }

  mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    do throws(FileError) {
      let count = try self.count(slot, at: position, into: bytes)
      if count < bytes.count { self.fill(bytes, from: count) }
    } catch {
      guard error.isUnreadable else { throw error.volumeError }
      try self.readBlocks(slot, at: position, into: bytes)
    }
  }

  private func count(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(FileError) -> Int {
    guard let patience = self.patience else {
      return try self.files.file(slot).read(into: bytes, at: position)
    }
    return try patience.run { () throws(FileError) in
      try self.files.file(slot).read(into: bytes, at: position)
    }
  }

  private func fill(_ bytes: UnsafeMutableRawBufferPointer, from offset: Int) {
    UnsafeMutableRawBufferPointer(rebasing: bytes[offset...])
      .initializeMemory(as: UInt8.self, repeating: Self.filling)
  }

  /// Block by block: one bad sector must not take what stands around it along.
  private mutating func readBlocks(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    var offset = 0
    while offset < bytes.count {
      let at = position + Int64(offset)
      let rest = LogFormat.blockBytes - Int(at % Int64(LogFormat.blockBytes))
      let end = min(bytes.count, offset + rest)
      let part = UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<end])
      do throws(FileError) {
        let count = try self.count(slot, at: at, into: part)
        if count < part.count { self.fill(part, from: count) }
      } catch {
        guard !error.isTransient else { throw error.volumeError }
        let block = at - at % Int64(LogFormat.blockBytes)
        if !self.failed.contains(where: { $0.slot == slot && $0.position == block }) {
          self.failed.append((slot, block, error))
        }
        guard self.failed.count <= Self.failedBlocksMax else {
          throw error.memqError(.volumeFailed)
        }
        self.fill(part, from: 0)
      }
      offset = end
    }
  }
}
