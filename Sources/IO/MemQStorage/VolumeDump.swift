// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import MemQLog
public import MemQModel
import MemQSystem

/// Reads a volume without owning it: `memq log dump`. Blocks: not on the cooperative pool.
public struct VolumeDump: Sendable {
  public let header: VolumeHeader
  private let disk: FolderDisk
  private let isStopped: Bool
  private let slots: [SegmentSlot]

  /// - Parameter requireStopped: takes the volume's lock for as long as the dump lives; otherwise a volume in use is read as it stands,
  ///   without writing anything.
  /// - Throws: `.dataFolderInUse`, `.logCorrupt` when the volume file is missing or damaged, `.volumeFailed`.
  public init(path: String, requireStopped: Bool) throws(MemQError) {
    self.disk = FolderDisk(path: path)
    self.isStopped = requireStopped
    guard Files.isFolder(path) else {
      throw MemQError(.invalidArgument, "there is no such folder", subject: path)
    }
    if requireStopped { try self.disk.acquire() }
    do throws(FileError) {
      self.slots = try self.disk.slots(removesUnfinished: false)
      guard let bytes = try self.disk.volumeFile() else {
        throw FileError(.open, path: path + "/volume", number: ENOENT)
      }
      self.header = try Result { () throws(MemQError) in try VolumeHeader(decoding: bytes) }
        .mapError { _ in FileError(.read, path: path + "/volume", number: EBADMSG) }.get()
    } catch {
      throw error.memqError(
        error.isNotFound || error.number == EBADMSG ? .logCorrupt : .volumeFailed)
    }
  }

  private var source: DiskSource {
    DiskSource(slots: self.slots, files: SegmentFiles(disk: self.disk))
  }

  /// The segments in the log's order, read through and verified. The last one's `damage` is simply where it ends.
  ///
  /// - Throws: `.volumeFailed` when the disk can't be read.
  public func segments() throws(MemQError) -> [SegmentInspection] {
    var inspections: [SegmentInspection] = []
    try self.walk { (inspection) in
      inspections.append(inspection)
    } body: { _, _ in
      true
    }
    return inspections
  }

  /// Calls `body` with each frame that holds, in the log's order, until it says false.
  ///
  /// - Parameter partition: only its frames; nil: every frame.
  public func forEachFrame(
    partition: TopicPartition? = nil, body: (FrameDescription) -> Bool
  ) throws(MemQError) {
    try self.walk { _ in
    } body: { frame, _ in
      guard partition == nil || frame.header.partition == partition else { return true }
      return body(frame)
    }
  }

  private func walk(
    _ inspected: (SegmentInspection) -> Void,
    body: (FrameDescription, UnsafeRawBufferPointer) -> Bool
  ) throws(MemQError) {
    var source = self.source
    var headers: [(slot: SegmentSlot, header: SegmentHeader)] = []
    for slot in self.slots {
      guard let header = try SegmentInspector.header(slot, from: &source), header.kind != .freed,
        header.volume == self.header.identity.volume
      else { continue }
      headers.append((slot, header))
    }
    headers.sort { $0.header.sequence < $1.header.sequence }
    var goesOn = true
    for (index, entry) in headers.enumerated() where goesOn {
      // Where the next segment says this one ends; what stands after is no part of the log.
      let next =
        headers[(index + 1)...].first { $0.header.kind == .hot }?.header.previousEnd ?? .start
      let end = next.segment == entry.header.sequence ? next.position : nil
      let inspection = try SegmentInspector.inspect(entry.slot, end: end, from: &source) {
        frame, bytes in
        goesOn = goesOn && body(frame, bytes)
        return goesOn
      }
      inspected(inspection)
    }
  }

  /// The partitions as an open would recover them, without opening.
  ///
  /// - Throws: `.logCorrupt` with the place. A volume in use may move under the read: it is read up to three times.
  public func partitions() throws(MemQError) -> [RecoveredPartition] {
    var attempts = self.isStopped ? 1 : 3
    while true {
      attempts -= 1
      var source = self.source
      do throws(MemQError) {
        return try VolumeRecovery.run(
          self.header.identity, from: &source, durableEnd: self.header.durableEnd
        ).partitions
      } catch {
        guard attempts > 0, error.code == .logCorrupt else { throw error }
      }
    }
  }
}
