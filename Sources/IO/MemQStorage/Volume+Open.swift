// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQLog
public import MemQModel
package import MemQSystem

extension Volume {
  /// Opens a volume, or makes it in an empty folder. Blocking work runs on threads of the volume's own.
  ///
  /// - Parameter recoveryProgress: called on such a thread, per segment.
  /// A volume whose disk has no room for another segment opens all the same: it serves what it holds, refuses writes as
  /// `.volumeFull`, and goes on once there is room.
  ///
  /// Damage below what was durable stays with the partitions that lost something by it, where these can be told
  /// (`damagedPartitions`); the others are whole.
  ///
  /// A process that is out of descriptors or memory is waited for, for up to a minute.
  ///
  /// - Throws: `.configurationInvalid`, `.dataFolderInUse`, `.wrongCluster`, `.logCorrupt` with the place, `.volumeFailed`; retriable
  ///   `.resourceExhausted` when descriptors or memory did not come back;
  ///   `.volumeFull` when there is no room for its very first segment.
  public static func open(
    _ configuration: Configuration, logger: Logger,
    recoveryProgress: @escaping @Sendable (RecoveryProgress) -> Void = { _ in }
  ) async throws(MemQError) -> Volume {
    try await self.open(
      configuration, disk: FolderDisk(path: configuration.path, writes: configuration.writes),
      logger: logger,
      recoveryProgress: recoveryProgress)
  }

  /// As above, on files of the caller's: how tests inject failures, and show what goes wrong without syncs.
  package static func open(
    _ configuration: Configuration, disk: any VolumeDisk, clock: any MemQClock = SystemClock(),
    logger: Logger, recoveryProgress: @escaping @Sendable (RecoveryProgress) -> Void = { _ in }
  ) async throws(MemQError) -> Volume {
    try configuration.validate()
    let readers = DiskThreads(name: "memq-read", count: configuration.readThreads)
    let opening = Opening(
      configuration: configuration, disk: disk, clock: clock, logger: logger,
      progress: recoveryProgress)
    let volume = try await readers.run { () throws(MemQError) in try opening.run(readers) }
    let failure: MemQError? = await withCheckedContinuation { continuation in
      volume.engine.start { continuation.resume(returning: $0) }
    }
    if let failure {
      await volume.abandon()
      throw failure
    }
    guard volume.stats.log.durable != .start else {
      let available = volume.engine.availableBytes()
      await volume.abandon()
      throw MemQError(
        .volumeFull,
        "the disk has no room for a first segment: free some, or make segment.bytes smaller",
        subject: configuration.path, limit: available,
        actual: volume.engine.identity.segmentBytes)
    }
    if !volume.engine.monitor.withLock({ $0.core.hasActiveSegment }) {
      logger.warning(
        "The disk has no room for another segment; the volume is read-only until there is",
        metadata: ["volume": "\(volume.id)", "path": "\(configuration.path)"])
    }
    do throws(MemQError) {
      try await readers.run { () throws(MemQError) in try opening.noteLog() }
    } catch {
      await volume.abandon()
      throw error
    }
    return volume
  }
}

/// The steps of an open, on a thread that may block.
private struct Opening: Sendable {
  let configuration: Volume.Configuration
  let disk: any VolumeDisk
  let clock: any MemQClock
  let logger: Logger
  let progress: @Sendable (RecoveryProgress) -> Void

  func run(_ readers: DiskThreads) throws(MemQError) -> Volume {
    try self.patiently { () throws(MemQError) in try self.disk.acquire() }
    do throws(MemQError) {
      return try self.open(readers)
    } catch {
      self.disk.release()
      throw error
    }
  }

  private func open(_ readers: DiskThreads) throws(MemQError) -> Volume {
    let (header, isFresh) = try self.header()
    let files = SegmentFiles(disk: self.disk)
    let recovered = try self.recover(header, files)
    var next = header
    next.identity.openCount += 1
    next.incarnation = self.configuration.incarnation
    next.incarnationID = self.configuration.incarnationID
    next.unnamed = recovered.unnamed
    next.durableEnd = recovered.end
    try self.write(next)
    let core = VolumeCore(
      header.identity, self.configuration.log(segmentBytes: header.identity.segmentBytes),
      recovered: recovered)
    let engine = VolumeEngine(
      core: core, disk: self.disk, files: files, configuration: self.configuration,
      clock: self.clock, logger: self.logger)
    for found in recovered.partitions {
      guard let error = found.damage else { continue }
      engine.monitor.withLock {
        $0.damaged[found.partition] = Volume.DamagedPartition(
          partition: found.partition, from: found.damagedFrom ?? found.end, error: error,
          isKnownSinceOpen: true)
      }
    }
    return Volume(
      engine: engine, readers: readers, configuration: self.configuration, recovered: recovered,
      isFresh: isFresh)
  }

  /// The volume file, made when the folder is empty.
  private func header() throws(MemQError) -> (VolumeHeader, isFresh: Bool) {
    let bytes = try self.blocking { () throws(FileError) in try self.disk.volumeFile() }
    guard let bytes else { return (try self.make(), true) }
    let header: VolumeHeader
    do throws(MemQError) {
      header = try VolumeHeader(decoding: bytes)
    } catch {
      throw MemQError(.logCorrupt, error.message, subject: self.configuration.path + "/volume")
    }
    try self.check(header)
    return (header, false)
  }

  private func make() throws(MemQError) -> VolumeHeader {
    let slots = try self.blocking { () throws(FileError) in try self.disk.slots() }
    guard slots.isEmpty else {
      throw MemQError(
        .logCorrupt,
        "the folder has segment files and no volume file; repair this replica from another one",
        subject: self.configuration.path)
    }
    let identity = VolumeIdentity(
      cluster: self.configuration.clusterID,
      volume: self.configuration.volumeID ?? SystemEntropy().identifier(),
      segmentBytes: self.configuration.segmentBytes)
    let header = VolumeHeader(
      identity: identity, incarnation: self.configuration.incarnation,
      incarnationID: self.configuration.incarnationID, hasLog: false, created: self.clock.wall)
    try self.write(header)
    return header
  }

  private func check(_ header: VolumeHeader) throws(MemQError) {
    guard header.identity.cluster == self.configuration.clusterID else {
      throw MemQError(
        .wrongCluster,
        "the volume belongs to cluster \(header.identity.cluster), not \(self.configuration.clusterID)",
        subject: self.configuration.path)
    }
    let ours = (self.configuration.incarnation, self.configuration.incarnationID)
    guard ours.0 > header.incarnation || ours == (header.incarnation, header.incarnationID) else {
      throw MemQError(
        .wrongCluster,
        "the volume was opened by incarnation \(header.incarnation) (\(header.incarnationID)) of the cluster",
        subject: self.configuration.path, limit: header.incarnation.rawValue,
        actual: ours.0.rawValue)
    }
  }

  private func write(_ header: VolumeHeader) throws(MemQError) {
    try self.blocking { () throws(FileError) in try self.disk.replaceVolumeFile(header.encoded()) }
  }

  private func recover(
    _ header: VolumeHeader, _ files: SegmentFiles
  ) throws(MemQError) -> RecoveredVolume {
    let slots = try self.blocking { () throws(FileError) in try self.disk.slots() }
    try self.settle(slots, files, header.identity.segmentBytes)
    var source = TolerantSource(slots: slots, files: files, patience: self.patience)
    self.progress(RecoveryProgress(segmentsDone: 0, segmentsTotal: slots.count))
    let recovered = try VolumeRecovery.run(
      header.identity, from: &source,
      salvage: self.configuration.acceptsLoss ? .acceptLoss : .isolate, unnamed: header.unnamed,
      durableEnd: header.durableEnd, progress: self.progress)
    self.log(recovered.damages, source.failed, of: header)
    guard !header.hasLog || !recovered.isEmpty else {
      throw MemQError(
        .logCorrupt,
        "no segment is left of a log that was there; repair this replica from another one",
        subject: self.configuration.path)
    }
    self.logger.info(
      "The volume is recovered",
      metadata: [
        "volume": "\(header.identity.volume)", "path": "\(self.configuration.path)",
        "partitions": "\(recovered.partitions.count)", "end": "\(recovered.end)",
        "clean": "\(recovered.cleanShutdown)", "discarded": "\(recovered.discardedGroups)",
        "segments.read.through": "\(recovered.segmentsReadThrough)",
      ])
    return recovered
  }

  private func log(
    _ damages: [MemQError],
    _ unreadable: [(slot: SegmentSlot, position: Int64, error: FileError)], of header: VolumeHeader
  ) {
    let volume = "\(header.identity.volume)"
    for failed in unreadable {
      self.logger.error(
        "A block can't be read",
        metadata: [
          "volume": "\(volume)", "segment.file": "\(failed.slot)",
          "position": "\(failed.position)", "error": "\(failed.error)",
        ])
    }
    for damage in damages {
      self.logger.error(
        "The log is damaged", metadata: ["volume": "\(volume)", "error": "\(damage)"])
    }
  }

  /// Makes durable what a killed process left in the page cache, then drops the cache: recovery sees what is on the disk.
  private func settle(
    _ slots: [SegmentSlot], _ files: SegmentFiles, _ segmentBytes: Int64
  ) throws(MemQError) {
    for slot in slots {
      let count = try self.blocking { () throws(FileError) in
        let file = try files.file(slot)
        try file.syncData()
        file.dropCache()
        return try file.byteCount()
      }
      guard count == segmentBytes else {
        throw MemQError(
          .logCorrupt, "a segment file has another size; repair this replica from another one",
          subject: "segment file \(slot) in \(self.configuration.path)", limit: segmentBytes,
          actual: count)
      }
    }
  }

  /// States that there is a log now, so that its loss is noticed.
  func noteLog() throws(MemQError) {
    try self.patiently { () throws(MemQError) in
      try self.disk.changeVolumeFile(self.configuration.path) { $0.hasLog = true }
    }
  }

  private var patience: TransientPatience {
    TransientPatience(clock: self.clock, logger: self.logger, volume: self.configuration.path)
  }

  private func patiently(_ body: () throws(MemQError) -> Void) throws(MemQError) {
    try self.patience.run(while: { (error: MemQError) in error.code == .resourceExhausted }, body)
  }

  private func blocking<R>(_ body: () throws(FileError) -> R) throws(MemQError) -> R {
    try self.patience.open(body)
  }
}

extension VolumeDisk {
  /// Replaces the volume file where `body` changes what it says. Blocks.
  func changeVolumeFile(
    _ path: String, _ body: (inout VolumeHeader) -> Void
  ) throws(MemQError) {
    let bytes: [UInt8]?
    do throws(FileError) {
      bytes = try self.volumeFile()
    } catch {
      throw error.volumeError
    }
    guard let bytes else {
      throw MemQError(.volumeFailed, "the volume file is gone", subject: path + "/volume")
    }
    let before = try VolumeHeader(decoding: bytes)
    var header = before
    body(&header)
    guard header != before else { return }
    do throws(FileError) {
      try self.replaceVolumeFile(header.encoded())
    } catch {
      throw error.volumeError
    }
  }
}

extension VolumeEngine {
  /// Starts the threads and the core; `body` is called once the log takes groups, or with why it can't.
  fileprivate func start(_ body: @escaping @Sendable (MemQError?) -> Void) {
    self.startThreads()
    let available = self.availableBytes()
    self.update { state, now, wall in
      state.whenStarted = body
      state.core.handle(
        .room(availableBytes: available), at: now, wall: wall, into: &state.effects)
      state.core.start(at: now, wall: wall, into: &state.effects)
    }
  }
}
