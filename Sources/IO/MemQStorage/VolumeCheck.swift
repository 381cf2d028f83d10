// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
public import MemQLog
public import MemQModel
import MemQSystem

/// Reads a stopped volume through, and mends what can be mended: `memq log verify` and `repair`. Blocks: not on the cooperative
/// pool.
public final class VolumeCheck: Sendable {
  public let path: String
  /// Whose volume it is. Where the volume file is damaged, what the segments say.
  public let header: VolumeHeader
  /// The volume file does not hold.
  public let isVolumeFileDamaged: Bool
  private let disk: FolderDisk

  /// Takes the volume's lock until `close`.
  ///
  /// - Throws: `.invalidArgument` without such a folder, `.dataFolderInUse`, `.logCorrupt` when nothing says whose volume it is,
  ///   `.volumeFailed` when the disk can't be read.
  public init(path: String) throws(MemQError) {
    guard Files.isFolder(path) else {
      throw MemQError(.invalidArgument, "there is no such folder", subject: path)
    }
    guard Files.exists(path + "/lock") else {
      throw MemQError(.invalidArgument, "holds no volume", subject: path)
    }
    self.path = path
    self.disk = FolderDisk(path: path)
    try self.disk.acquire()
    do throws(MemQError) {
      (self.header, self.isVolumeFileDamaged) = try Self.header(self.disk, path)
    } catch {
      self.disk.release()
      throw error
    }
  }

  /// Gives the lock back.
  public func close() { self.disk.release() }

  private static func header(
    _ disk: FolderDisk, _ path: String
  ) throws(MemQError) -> (VolumeHeader, isDamaged: Bool) {
    let bytes = try Self.blocking { () throws(FileError) in try disk.volumeFile() }
    if let bytes, let header = try? VolumeHeader(decoding: bytes) { return (header, false) }
    let slots = try Self.blocking { () throws(FileError) in
      try disk.slots(removesUnfinished: false)
    }
    var source = TolerantSource(slots: slots, files: SegmentFiles(disk: disk))
    var youngest: SegmentHeader?
    for slot in slots {
      guard let header = try SegmentInspector.header(slot, from: &source),
        header.sequence > youngest?.sequence ?? .none
      else { continue }
      youngest = header
    }
    guard let youngest else {
      throw MemQError(
        .logCorrupt,
        "the volume file is damaged or missing, and no segment says whose volume this is: repair this replica from another one",
        subject: path)
    }
    let identity = VolumeIdentity(
      cluster: youngest.cluster, volume: youngest.volume, segmentBytes: youngest.segmentBytes,
      openCount: youngest.openCount)
    // Of the cluster's incarnation nothing is known any more: any may open it.
    let header = VolumeHeader(
      identity: identity, incarnation: .zero, incarnationID: .zero, hasLog: true,
      created: youngest.writeTime)
    return (header, true)
  }

  private static func blocking<R>(_ body: () throws(FileError) -> R) throws(MemQError) -> R {
    do throws(FileError) {
      return try body()
    } catch {
      throw error.memqError(.volumeFailed)
    }
  }

  // MARK: - Verify

  /// - Parameter progress: bytes read, and bytes there are to read.
  /// - Throws: `.volumeFailed` when the disk fails as a whole; damage is what this returns.
  public func verify(
    progress: (_ done: Int64, _ total: Int64) -> Void = { _, _ in }
  ) throws(MemQError) -> VolumeVerification {
    let slots = try Self.blocking { () throws(FileError) in
      try self.disk.slots(removesUnfinished: false)
    }
    let files = SegmentFiles(disk: self.disk)
    // What the disk holds counts, not what the page cache remembers.
    for slot in slots {
      try Self.blocking { () throws(FileError) in try files.file(slot).dropCache() }
    }
    var source = TolerantSource(slots: slots, files: files)
    return try VolumeVerification.run(
      self.header.identity, from: &source, unnamed: self.header.unnamed,
      durableEnd: self.header.durableEnd, progress: progress)
  }

  // MARK: - Repair

  /// Makes anew what can be made without losing a record: the volume file, footers and trailers.
  ///
  /// - Returns: what was done, a line each.
  /// - Throws: `.volumeFailed`.
  public func rebuild(_ found: VolumeVerification) throws(MemQError) -> [String] {
    var done: [String] = []
    if self.isVolumeFileDamaged {
      var header = self.header
      header.identity.openCount = max(header.identity.openCount, found.openCount)
      let bytes = header.encoded()
      try Self.blocking { () throws(FileError) in try self.disk.replaceVolumeFile(bytes) }
      done.append("volume file written anew")
    }
    let slots = found.segments.map(\.slot)
    let files = SegmentFiles(disk: self.disk)
    var source = TolerantSource(slots: slots, files: files)
    for segment in found.segments where segment.footer == .damaged {
      guard let rebuilt = try RebuiltFooter.make(segment.slot, end: segment.end, from: &source)
      else { continue }
      for write in rebuilt.writes {
        try Self.blocking { () throws(FileError) in
          let file = try File(self.disk.segmentPath(segment.slot), .readWrite)
          try Self.write(write.bytes, at: write.position, into: file)
          try file.syncData()
        }
      }
      done.append("segment \(segment.sequence) (file \(segment.slot)): footer written anew")
    }
    return done
  }

  private static func write(
    _ bytes: [UInt8], at position: Int64, into file: File
  ) throws(FileError) {
    let result = bytes.withUnsafeBytes { bytes in
      Result { () throws(FileError) in try file.write(bytes, at: position) }
    }
    try result.get()
  }

  /// Cuts each damaged partition where it stops being whole: what stands behind is lost on this volume. Each cut is one durable
  /// frame at the log's end, so that what is interrupted is simply done again. Gives the lock back.
  ///
  /// - Returns: what was done, a line each.
  /// - Throws: as `Volume.open`; `.invalidArgument`, with nothing changed, when not all records of a partition were read: what
  ///   nobody looked at is not damaged.
  public func cut(_ found: VolumeVerification) async throws(MemQError) -> [String] {
    for partition in found.partitions {
      guard let segment = partition.unreadSegment else { continue }
      throw MemQError(
        .invalidArgument, "segment \(segment) holds records of it and was not read: nothing is cut",
        subject: "\(partition.partition)")
    }
    var configuration = Volume.Configuration(
      path: self.path, clusterID: self.header.identity.cluster,
      incarnation: self.header.incarnation, incarnationID: self.header.incarnationID)
    configuration.acceptsLoss = true
    self.close()
    let volume = try await Volume.open(
      configuration, logger: Logger(label: "memq.repair") { _ in SwiftLogNoOpLogHandler() })
    do throws(MemQError) {
      let done = try await Self.cut(volume, found)
      await volume.close()
      return done + (try self.settle(volume.unnamedLosses))
    } catch {
      await volume.close()
      throw error
    }
  }

  /// What nothing names is given up with the rest.
  private func settle(_ unnamed: UnnamedLosses) throws(MemQError) -> [String] {
    guard !unnamed.isEmpty else { return [] }
    try self.disk.acquire()
    defer { self.disk.release() }
    try self.disk.changeVolumeFile(self.path) { $0.unnamed = [] }
    return unnamed.contains(.partitions)
      ? ["partitions that are gone with what named them begin anew when they are wanted"] : []
  }

  private static func cut(
    _ volume: Volume, _ found: VolumeVerification
  ) async throws(MemQError) -> [String] {
    var from: [TopicPartition: Offset] = [:]
    for partition in found.partitions {
      if let damaged = partition.damagedFrom { from[partition.partition] = damaged }
    }
    for damaged in volume.damagedPartitions {
      from[damaged.partition] = min(from[damaged.partition] ?? .max, damaged.from)
    }
    var done: [String] = []
    for (partition, offset) in from.sorted(by: { $0.key < $1.key }) {
      guard let state = volume.state(of: partition) else { continue }
      let end = min(max(offset, state.logStart), state.end)
      let result: Result<Void, MemQError> = await withCheckedContinuation { continuation in
        volume.truncate(partition, to: end) { continuation.resume(returning: $0) }
      }
      try result.get()
      done.append("\(partition) ends at offset \(end) now")
    }
    // From here on an open needs them no longer.
    volume.engine.send(.forgetMissingSegments)
    return done
  }
}
