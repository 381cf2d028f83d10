// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQLog
import MemQModel
import MemQSystem
import NIOCore
import Synchronization

/// What the disk did since the open.
struct DiskMeasures {
  var syncs: UInt64 = 0
  var syncTotal: Duration = .zero
  var syncMax: Duration = .zero
}

/// Which of the open files that syncs go by are in use.
struct SyncLanes {
  static let count = VolumeCore.syncsMax
  private var isTaken = [Bool](repeating: false, count: Self.count)

  mutating func take() -> Int {
    guard let lane = self.isTaken.firstIndex(of: false) else {
      preconditionFailure("more syncs than lanes")
    }
    self.isTaken[lane] = true
    return lane
  }

  mutating func give(_ lane: Int) { self.isTaken[lane] = false }
}

extension VolumeEngine {
  func perform(_ job: DiskJob) {
    switch job {
    case .write(let group, let batches): self.write(group, batches)
    case .sync(let slot, let group, let lane): self.sync(slot, group, lane)
    case .allocate(let slot): self.allocate(slot)
    case .retire(let slot, let block): self.retire(slot, block)
    }
  }

  private func write(_ group: GroupWrite, _ batches: [StoredBatch]) {
    do throws(FileError) {
      try self.patiently { () throws(FileError) in
        // All open before what they are to tell of.
        try GatheredWrite.run(group, batches, into: try self.files.writer(group.slot))
      }
      self.metrics.written(group.byteCount)
      self.updateThenTake {
        $0.core.handle(.written(group.number), at: $1, wall: $2, into: &$0.effects)
      }
    } catch {
      self.fail(error)
    }
  }

  private func sync(_ slot: SegmentSlot, _ group: GroupNumber, _ lane: Int) {
    let start = self.clock.monotonic
    self.reading.syncsUnderWay.wrappingAdd(1, ordering: .relaxed)
    defer {
      self.reading.lastSyncAt.store(self.clock.monotonic.nanoseconds, ordering: .relaxed)
      self.reading.syncsUnderWay.wrappingSubtract(1, ordering: .relaxed)
    }
    do throws(FileError) {
      try self.patiently { () throws(FileError) in
        try self.files.file(slot, lane: lane).syncData()
      }
    } catch {
      return self.fail(error)
    }
    let took = self.clock.monotonic - start
    self.metrics.synced(took)
    self.updateThenTake { state, now, wall in
      state.lanes.give(lane)
      state.measures.syncs += 1
      state.measures.syncTotal += took
      state.measures.syncMax = max(state.measures.syncMax, took)
      state.core.handle(.synced(group), at: now, wall: wall, into: &state.effects)
    }
  }

  /// Writes or syncs once the file can be opened.
  func patiently(_ body: () throws(FileError) -> Void) throws(FileError) {
    let patience = TransientPatience(
      clock: self.clock, logger: self.logger, volume: "\(self.identity.volume)")
    try patience.run(isEnded: { self.monitor.withLock { $0.isAbandoned } }, body)
  }

  private func fail(_ error: FileError) {
    self.send(.diskFailed(error.memqError(.volumeFailed)))
  }

  private func allocate(_ slot: SegmentSlot) {
    var isMade = false
    do throws(FileError) {
      try self.disk.allocate(slot, byteCount: self.identity.segmentBytes)
      isMade = true
    } catch {
      // Time helps against nothing else.
      guard error.isNoSpace || error.isTransient else { return self.fail(error) }
      self.logger.warning(
        "No segment file could be made",
        metadata: ["volume": "\(self.identity.volume)", "error": "\(error)"])
    }
    let available = self.availableBytes()
    self.send(
      isMade
        ? .slotAllocated(slot, availableBytes: available)
        : .slotUnavailable(slot, availableBytes: available))
  }

  /// 0 when the file system does not say: then only segments there are count.
  func availableBytes() -> Int64 {
    do throws(FileError) {
      return try self.disk.availableBytes()
    } catch {
      self.logger.warning(
        "The file system does not tell its room",
        metadata: ["volume": "\(self.identity.volume)", "error": "\(error)"])
      return 0
    }
  }

  private func retire(_ slot: SegmentSlot, _ block: [UInt8]) {
    do throws(FileError) {
      try self.patiently { () throws(FileError) in
        let file = try self.files.file(slot)
        try file.write(block, at: 0)
        try file.syncData()
      }
      self.send(.retired(slot))
    } catch {
      self.fail(error)
    }
  }
}

/// One group as one gathered write per part.
enum GatheredWrite {
  private static let zeros = [UInt8](repeating: 0, count: LogFormat.blockBytes)

  static func run(
    _ group: GroupWrite, _ batches: [StoredBatch], into file: any SegmentFile
  ) throws(FileError) {
    var pieces: [FilePiece] = []
    pieces.reserveCapacity(group.parts[0].pieces.count + batches.count)
    var owners: [Unmanaged<AnyObject>] = []
    defer { for owner in owners { owner.release() } }
    var next = 0
    let result = group.headerBytes.withUnsafeBytes { header in
      Self.zeros.withUnsafeBytes { zeros in
        Result { () throws(FileError) in
          for part in group.parts {
            pieces.removeAll(keepingCapacity: true)
            for piece in part.pieces {
              switch piece {
              case .bytes(let range): pieces.append(Self.piece(header, range))
              case .zeros(let count): pieces.append(Self.piece(zeros, 0..<count))
              case .payload:
                for slice in batches[next].slices { pieces.append(Self.piece(slice, &owners)) }
                next += 1
              }
            }
            try Self.write(&pieces, at: part.position, into: file)
          }
        }
      }
    }
    try result.get()
  }

  private static func write(
    _ pieces: inout [FilePiece], at position: Int64, into file: any SegmentFile
  ) throws(FileError) {
    let result = pieces.withUnsafeMutableBufferPointer { pieces in
      Result { () throws(FileError) in try file.write(gathered: pieces, at: position) }
    }
    try result.get()
  }

  private static func piece(_ bytes: UnsafeRawBufferPointer, _ range: Range<Int>) -> FilePiece {
    FilePiece(bytes.baseAddress! + range.lowerBound, count: range.count)
  }

  /// The slice's bytes in place; their storage is retained until the write is done.
  private static func piece(
    _ slice: ByteBuffer, _ owners: inout [Unmanaged<AnyObject>]
  ) -> FilePiece {
    slice.withUnsafeReadableBytesWithStorageManagement { bytes, owner in
      _ = owner.retain()
      owners.append(owner)
      return FilePiece(bytes.baseAddress, count: bytes.count)
    }
  }
}
