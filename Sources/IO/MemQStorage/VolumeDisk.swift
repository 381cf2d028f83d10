// Part of MemQ. SPDX-License-Identifier: Apache-2.0

package import MemQLog
package import MemQModel
package import MemQSystem

/// The files of one volume. Production has one implementation; tests bring disks that lie, fail or fill up.
///
/// Every call blocks and runs on the volume's own threads.
package protocol VolumeDisk: Sendable {
  /// Makes the folder and takes its lock, which goes with the process.
  ///
  /// - Throws: `.dataFolderInUse`, `.volumeFailed`; retriable `.resourceExhausted`.
  func acquire() throws(MemQError)
  func release()
  /// The volume file; nil when there is none.
  func volumeFile() throws(FileError) -> [UInt8]?
  /// Replaces the volume file, as a whole and durably.
  func replaceVolumeFile(_ bytes: [UInt8]) throws(FileError)
  /// The segment files, in order; files that were never finished are removed.
  func slots() throws(FileError) -> [SegmentSlot]
  func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile
  /// Makes a segment file of that size, its space reserved, its name durable.
  func allocate(_ slot: SegmentSlot, byteCount: Int64) throws(FileError)
  /// What the file system still gives.
  func availableBytes() throws(FileError) -> Int64
}

/// One open segment file.
package protocol SegmentFile: AnyObject, Sendable {
  func byteCount() throws(FileError) -> Int64
  /// Writes all pieces from `position` on; may change the pieces.
  func write(
    gathered pieces: UnsafeMutableBufferPointer<FilePiece>, at position: Int64) throws(FileError)
  /// Opens what writes need beyond this; they do so themselves where it was not done.
  func prepareToWrite() throws(FileError)
  /// fdatasync.
  func syncData() throws(FileError)
  @discardableResult
  func read(into bytes: UnsafeMutableRawBufferPointer, at position: Int64) throws(FileError) -> Int
  /// Makes the next reads ask the disk.
  func dropCache()
  /// Whether the kernel is to read further than it is asked to. A hint.
  func advise(readsAhead: Bool)
}

extension SegmentFile {
  package func prepareToWrite() throws(FileError) {}
  package func advise(readsAhead: Bool) {}
}

extension File: SegmentFile {}

/// A volume in a folder: `volume`, `lock`, `segment-00000000` and so on.
package final class FolderDisk: VolumeDisk {
  private let path: String
  private let lock = Monitor<File?>(nil)

  /// Nil: writes go through the page cache.
  private let staging: StagingBuffers?

  package init(path: String, writes: Volume.WritePath = .cached) {
    self.path = path
    self.staging = writes == .direct ? StagingBuffers() : nil
  }

  private var volumePath: String { self.path + "/volume" }

  func segmentPath(_ slot: SegmentSlot) -> String { self.path(slot) }

  private func path(_ slot: SegmentSlot) -> String {
    let digits = String(slot.rawValue)
    return self.path + "/" + Self.prefix + String(repeating: "0", count: max(0, 8 - digits.count))
      + digits
  }

  private static let prefix = "segment-"
  private static let unfinished = ".new"

  package func acquire() throws(MemQError) {
    do throws(FileError) {
      try Files.makeFolder(self.path)
      let file = try File(self.path + "/lock", .create)
      try file.lock()
      self.lock.withLock { $0 = file }
    } catch {
      guard error.operation == .lock, error.isLockedElsewhere else { throw error.volumeError }
      throw MemQError(
        .dataFolderInUse, "another process has this volume open; stop it or choose another folder",
        subject: self.path)
    }
    guard self.staging != nil else { return }
    do throws(FileError) {
      _ = try DirectDescriptor(self.path + "/lock")
    } catch {
      self.release()
      if error.isTransient { throw error.volumeError }
      throw MemQError(
        .configurationInvalid,
        "the file system takes no direct writes (\(error)): write through the page cache here",
        subject: self.path)
    }
  }

  package func release() { self.lock.withLock { $0 = nil } }

  package func volumeFile() throws(FileError) -> [UInt8]? {
    try Files.contents(self.volumePath, byteCountMax: 4_096)
  }

  package func replaceVolumeFile(_ bytes: [UInt8]) throws(FileError) {
    try Files.replace(self.volumePath, with: bytes)
  }

  package func slots() throws(FileError) -> [SegmentSlot] {
    try self.slots(removesUnfinished: true)
  }

  package func slots(removesUnfinished: Bool) throws(FileError) -> [SegmentSlot] {
    var slots: [SegmentSlot] = []
    for name in try Files.list(self.path) where name.hasPrefix(Self.prefix) {
      if name.hasSuffix(Self.unfinished) {
        if removesUnfinished { try Files.remove(self.path + "/" + name) }
      } else if let number = UInt32(name.dropFirst(Self.prefix.count)) {
        slots.append(SegmentSlot(number))
      }
    }
    return slots.sorted()
  }

  package func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    guard let staging else { return try File(self.path(slot), .readWrite) }
    return try DirectFile(self.path(slot), staging)
  }

  package func allocate(_ slot: SegmentSlot, byteCount: Int64) throws(FileError) {
    let final = self.path(slot)
    let temporary = final + Self.unfinished
    try Files.remove(temporary)
    do throws(FileError) {
      let file = try File(temporary, .createNew)
      try file.allocate(byteCount)
      try file.sync()
      try Files.rename(temporary, to: final)
      try Files.syncFolder(self.path)
    } catch {
      // The reason is the error above; what could not be removed is removed at the next start.
      try? Files.remove(temporary)
      throw error
    }
  }

  package func availableBytes() throws(FileError) -> Int64 { try Files.availableBytes(self.path) }
}

/// Open segment files, few enough for any descriptor limit; the least recently used is closed first.
final class SegmentFiles: Sendable {
  private struct State {
    var files: [SegmentSlot: any SegmentFile] = [:]
    var order: [SegmentSlot] = []
    /// The open files of the slot that was written last: the first is that of writes, and each sync goes by one. They stay open
    /// however many files are read.
    var lanes: [any SegmentFile] = []
    var laneSlot: SegmentSlot?

    /// A file of its own, not kept here. Where the process has no descriptor left, those that were kept for reads are given up.
    mutating func open(
      _ slot: SegmentSlot, on disk: any VolumeDisk
    ) throws(FileError) -> any SegmentFile {
      do throws(FileError) {
        return try disk.file(slot)
      } catch {
        try self.giveUpReads(for: error)
        return try disk.file(slot)
      }
    }

    /// Has a file open all that its writes need.
    mutating func prepare(_ file: any SegmentFile) throws(FileError) {
      do throws(FileError) {
        try file.prepareToWrite()
      } catch {
        try self.giveUpReads(for: error)
        try file.prepareToWrite()
      }
    }

    private mutating func giveUpReads(for error: FileError) throws(FileError) {
      guard error.isTransient, !self.files.isEmpty else { throw error }
      (self.files, self.order) = ([:], [])
    }
  }

  /// 256 of the usual limit of 1,024 descriptors.
  private static let openMax = 256
  private let disk: any VolumeDisk
  private let state = Monitor(State())

  init(disk: any VolumeDisk) { self.disk = disk }

  func file(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    let disk = self.disk
    return try self.state.withLock { (state) throws(FileError) in
      if let file = state.files[slot] {
        if state.order.last != slot {
          state.order.removeAll { $0 == slot }
          state.order.append(slot)
        }
        return file
      }
      let file = try state.open(slot, on: disk)
      state.files[slot] = file
      state.order.append(slot)
      if state.order.count > Self.openMax { state.files[state.order.removeFirst()] = nil }
      return file
    }
  }

  /// The open file that the slot's groups are written by. Opens all that its syncs go by, where they are not.
  func writer(_ slot: SegmentSlot) throws(FileError) -> any SegmentFile {
    let disk = self.disk
    return try self.state.withLock { (state) throws(FileError) in
      if state.laneSlot == slot { return state.lanes[0] }
      var lanes: [any SegmentFile] = []
      for _ in 0..<SyncLanes.count { lanes.append(try state.open(slot, on: disk)) }
      try state.prepare(lanes[0])
      (state.lanes, state.laneSlot) = (lanes, slot)
      return lanes[0]
    }
  }

  /// The open file of a lane of the slot that was written last.
  func file(_ slot: SegmentSlot, lane: Int) throws(FileError) -> any SegmentFile {
    let file = self.state.withLock { $0.laneSlot == slot ? $0.lanes[lane] : nil }
    // The log has gone on to the next segment: another sync has made everything here durable.
    guard let file else { return try self.file(slot) }
    return file
  }

  func closeAll() { self.state.withLock { $0 = State() } }
}

/// Segment files as recovery reads them.
struct DiskSource: SegmentSource {
  let slots: [SegmentSlot]
  let files: SegmentFiles

  mutating func read(
    _ slot: SegmentSlot, at position: Int64, into bytes: UnsafeMutableRawBufferPointer
  ) throws(MemQError) {
    do throws(FileError) {
      let count = try self.files.file(slot).read(into: bytes, at: position)
      guard count < bytes.count else { return }
    } catch {
      throw error.volumeError
    }
    throw MemQError(
      .logCorrupt,
      "segment file \(slot) ends before its size; repair this replica from another one",
      subject: "segment file \(slot) position \(position)")
  }
}
