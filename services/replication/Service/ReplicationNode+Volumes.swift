// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQLog
import MemQMetadata
import MemQModel
import MemQReplication
import MemQRuntime
import MemQStorage
import MemQSystem
import Synchronization

/// A volume of this node that could not be opened.
struct ClosedVolume: Sendable {
  let id: VolumeID
  let path: String
  let error: MemQError
}

extension ReplicationNode {
  /// How often an opening that takes long says in the log how far it is.
  private static let progressInterval: Duration = .seconds(5)

  /// Opens all volumes at once: each has a disk of its own.
  ///
  /// - Throws: where the settings are wrong, or not one volume can be opened.
  func openVolumes() async throws(MemQError) -> (open: [Volume], closed: [ClosedVolume]) {
    let prepared = try await self.prepared()
    let image = self.cluster.image
    var results = [Result<Volume, MemQError>?](
      repeating: nil, count: self.configuration.volumes.count)
    await withTaskGroup(of: (Int, Result<Volume, MemQError>).self) { group in
      for (index, settings) in self.configuration.volumes.enumerated() {
        var configuration = Volume.Configuration(
          path: settings.path, clusterID: self.cluster.clusterID,
          incarnation: image.incarnation, incarnationID: image.incarnationID)
        configuration.volumeID = prepared.volumeIDs[index]
        configuration.segmentBytes = self.configuration.segmentBytes
        configuration.writes = self.configuration.writes
        configuration.capacityBytes = settings.capacityBytes
        configuration.carryBytesPerSecond = self.configuration.cleanBytesPerSecond
        let wanted = configuration
        group.addTask { (index, await self.open(wanted)) }
      }
      for await (index, result) in group { results[index] = result }
    }
    var open: [Volume] = []
    var closed: [ClosedVolume] = []
    for (index, result) in results.enumerated() {
      switch result! {
      case .success(let volume): open.append(volume)
      case .failure(let error):
        closed.append(
          ClosedVolume(
            id: prepared.volumeIDs[index], path: self.configuration.volumes[index].path,
            error: error))
      }
    }
    let fatal = closed.first { !$0.error.isOfOneDisk } ?? (open.isEmpty ? closed.first : nil)
    do throws(MemQError) {
      if let fatal { throw fatal.error }
      // Now they are made: an empty folder under one's path will be another volume.
      _ = try await self.prepared()
    } catch {
      for volume in open { await volume.close() }
      throw error
    }
    for volume in closed {
      self.logger.error(
        "A volume can't be opened and is out of use until the node restarts; the others serve",
        metadata: [
          "volume": "\(volume.id)", "path": "\(volume.path)", "error": "\(volume.error)",
        ])
    }
    return (open, closed)
  }

  private func open(_ configuration: Volume.Configuration) async -> Result<Volume, MemQError> {
    let progress = OpeningProgress(configuration.path, self)
    progress.show(nil)
    defer { self.noteOpening(configuration.path, nil) }
    do throws(MemQError) {
      return .success(
        try await Volume.open(configuration, logger: self.logger) { progress.show($0) })
    } catch {
      return .failure(error)
    }
  }

  /// Where an open found that whole partitions may be lost with all that named them, the first image tells which: one that is counted on
  /// here and is not here is damaged from its first record on. Opened empty, it would pass for all that was committed.
  func compare(_ desired: [TopicPartition: DesiredPartition]) {
    for volume in self.allVolumes.map(\.volume)
    where volume.unnamedLosses.contains(.partitions) {
      let held = Set(volume.recoveredPartitions().map(\.partition))
      let missing = desired.values.filter {
        $0.member.id.volume == volume.id && $0.isTrusted && !held.contains($0.id)
      }
      let id = volume.id
      for wanted in missing {
        self.logger.error(
          "A partition is lost with what named it",
          metadata: ["partition": "\(wanted.name)", "volume": "\(id)"])
        let lost = volume.noteMissing(wanted.id, from: wanted.firstOffset)
        self.shard(of: wanted.id)?.mailbox.post(.run { $0.lost(lost, on: id) })
      }
      guard missing.isEmpty else { continue }
      let logger = self.logger
      Task {
        do throws(MemQError) {
          try await volume.settleUnnamedPartitions()
        } catch {
          // The next start looks again.
          logger.warning(
            "Could not note that no partition is lost",
            metadata: ["volume": "\(id)", "error": "\(error)"])
        }
      }
    }
    self.countDamaged()
  }

  /// For `/readyz`.
  static func text(opening: [String: String]) -> String {
    guard !opening.isEmpty else { return "being opened" }
    return opening.sorted { $0.key < $1.key }.map { "opening \($0.key): \($0.value)" }
      .joined(separator: "; ")
  }

  /// A text for people, in metadata's records and everybody's image.
  private static let problemBytesMax = 300

  /// Tells the cluster where the volumes stand.
  func tellVolumes() {
    var volumes = self.allVolumes.map { open in
      VolumeImage(
        open.volume.id, open.problem == nil ? .fit : .failed,
        capacityBytes: open.volume.capacityBytes,
        problem: String(
          decoding: (open.problem ?? "").utf8.prefix(Self.problemBytesMax), as: UTF8.self))
    }
    volumes += self.closedVolumes.map { closed in
      VolumeImage(
        closed.id, .failed,
        problem: String(
          decoding: "\(closed.error)".utf8.prefix(Self.problemBytesMax), as: UTF8.self))
    }
    self.cluster.setVolumes(volumes)
  }

  /// Tells `/metrics` how many partitions are damaged.
  func countDamaged() {
    let count = self.allVolumes.reduce(0) { $0 + $1.volume.damagedPartitions.count }
    self.metrics.setDamagedPartitions(count)
  }

  /// Says how far one volume is, to `/readyz` at once and to the log now and then.
  private final class OpeningProgress: Sendable {
    private let path: String
    private let node: ReplicationNode
    private let start: MonotonicInstant
    private let lastLogged: Mutex<MonotonicInstant>

    init(_ path: String, _ node: ReplicationNode) {
      self.path = path
      self.node = node
      self.start = node.clock.monotonic
      self.lastLogged = Mutex(self.start)
    }

    func show(_ progress: RecoveryProgress?) {
      let now = self.node.clock.monotonic
      let seconds = (now - self.start).milliseconds / 1_000
      let segments = progress.map { "\($0.segmentsDone) of \($0.segmentsTotal) segments, " } ?? ""
      self.node.noteOpening(self.path, "\(segments)\(seconds) s")
      let isDue = self.lastLogged.withLock { last in
        guard now - last >= ReplicationNode.progressInterval else { return false }
        last = now
        return true
      }
      guard isDue, let progress else { return }
      self.node.logger.notice(
        "A volume is being opened",
        metadata: [
          "path": "\(self.path)", "segments.read": "\(progress.segmentsDone)",
          "segments": "\(progress.segmentsTotal)", "seconds": "\(seconds)",
        ])
    }
  }
}

extension MemQError {
  /// Concerns this volume alone; anything else is a mistake of the settings.
  fileprivate var isOfOneDisk: Bool {
    [.logCorrupt, .volumeFailed, .volumeFull].contains(self.code)
  }
}
