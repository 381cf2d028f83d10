// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQStore
import MemQSystem

/// Writes everything the store holds into the object store, at intervals. One instance does, the one that decides.
///
/// Entries are read in pages, each of its own revision; the changes since the first page are written behind them. Both together are the
/// store at the revision of the last change, however long the reading took, and memory is a part and those changes.
struct SnapshotWriter: Sendable {
  private static let entriesPerPage = 1_000
  private static let partBytesMax = 4 << 20
  private static let changesWait: Duration = .seconds(30)
  /// Pauses are so many times what the last one took: a large store is written less often.
  private static let pauseFactor = 50

  let instance: MetadataInstance
  let snapshots: SnapshotStore
  let interval: Duration

  private var clock: any MemQClock { self.instance.clock }
  private var store: any MetadataStore { self.instance.store }

  /// Until cancelled.
  func run() async {
    let configuration = self.instance.configuration
    var written = Revision.zero
    while !Task.isCancelled {
      let began = self.clock.monotonic
      if !self.instance.authority.isSuspended, self.store.revision > written {
        do {
          let manifest = try await self.write()
          written = manifest.revision
          self.instance.metrics.snapshots.increment()
          self.instance.logger.debug(
            "Metadata snapshot written",
            metadata: [
              "revision": "\(manifest.revision)", "parts": "\(manifest.parts.count)",
              "bytes": "\(manifest.parts.reduce(0) { $0 + $1.byteCount })",
            ])
          try await self.snapshots.keep(configuration.snapshotsKept, of: manifest.cluster.id)
        } catch {
          guard error.code != .cancelled, !Task.isCancelled else { return }
          self.instance.logger.warning(
            "Could not write a metadata snapshot", metadata: ["error": "\(error)"])
        }
      }
      let took = self.clock.monotonic - began
      try? await Task.sleep(for: max(self.interval, took * Self.pauseFactor))
    }
  }

  /// - Returns: what stands in the object store now.
  func write() async throws(MemQError) -> SnapshotManifest {
    guard let cluster = self.instance.cell.read({ $0.cluster?.value }) else {
      throw MemQError(.unavailable, "metadata is not loaded yet")
    }
    let at = self.clock.wall
    let begun = try await self.store.range(.all, limit: 1).revision
    let watch = try self.store.watch(.all, after: begun)
    let name = SnapshotName(cluster: cluster.id, incarnation: cluster.incarnation, begun: begun)
    var parts = try await self.writeEntries(name)
    let end = try await self.mark(begun)
    for changes in try await self.changes(watch, through: end) {
      parts.append(try await self.put(.changes, changes, name, parts.count))
    }
    let manifest = SnapshotManifest(
      cluster: cluster, begun: begun, revision: end, createdAt: at, parts: parts)
    _ = try await self.snapshots.put(manifest.encoded, try name.manifest())
    return manifest
  }

  private func put(
    _ kind: SnapshotPart.Kind, _ changes: [StoreChange], _ name: SnapshotName, _ number: Int
  ) async throws(MemQError) -> SnapshotManifest.Part {
    try await self.snapshots.put(SnapshotPart(kind, changes).encoded, try name.part(number))
  }

  private func writeEntries(
    _ name: SnapshotName
  ) async throws(MemQError) -> [SnapshotManifest.Part] {
    var parts: [SnapshotManifest.Part] = []
    var pending = ChangeGathering(bytesMax: Self.partBytesMax)
    var rest = KeyRange.all
    while true {
      let page = try await self.store.range(rest, limit: Self.entriesPerPage)
      for entry in page.entries {
        let change = StoreChange(key: entry.key, value: entry.value, revision: entry.revision)
        guard let full = pending.add(change) else { continue }
        parts.append(try await self.put(.entries, full, name, parts.count))
      }
      guard page.hasMore, let last = page.entries.last else { break }
      rest = rest.after(last.key)
    }
    parts.append(try await self.put(.entries, pending.changes, name, parts.count))
    return parts
  }

  /// A change behind everything that was read: where it is, the changes are complete. Not every store tells so otherwise.
  private func mark(_ begun: Revision) async throws(MemQError) -> Revision {
    let key = StoreKey.snapshotMark
    let record = CounterRecord(next: begun.rawValue)
    return try await self.instance.runner.run(
      "mark-snapshot", reading: { (_: Int) throws(MemQError) in }
    ) { (_: MetadataState, _: Void) throws(MemQError) in
      Plan([Transaction([], [.put(key, record.encoded(for: key))])], outcome: ())
    }.revision
  }

  /// Those of the watch up to `end`, in parts.
  private func changes(
    _ watch: any StoreWatch, through end: Revision
  ) async throws(MemQError) -> [[StoreChange]] {
    let work = Task { () -> Result<[[StoreChange]], MemQError> in
      do throws(MemQError) {
        var full: [[StoreChange]] = []
        var pending = ChangeGathering(bytesMax: Self.partBytesMax)
        while true {
          let batch = try await watch.next()
          for change in batch.changes {
            if let part = pending.add(change) { full.append(part) }
          }
          guard batch.through < end else { return .success(full + [pending.changes]) }
        }
      } catch {
        return .failure(error)
      }
    }
    let timer = Task {
      try await Task.sleep(for: Self.changesWait)
      work.cancel()
    }
    defer { timer.cancel() }
    return try await withTaskCancellationHandler {
      await work.value
    } onCancel: {
      work.cancel()
    }.get()
  }
}

/// Changes until they are worth an object.
private struct ChangeGathering {
  let bytesMax: Int
  private(set) var changes: [StoreChange] = []
  private var bytes = 0

  init(bytesMax: Int) { self.bytesMax = bytesMax }

  /// - Returns: all gathered, when they are many enough.
  mutating func add(_ change: StoreChange) -> [StoreChange]? {
    self.changes.append(change)
    self.bytes += change.key.bytes.count + (change.value?.count ?? 0) + 32
    guard self.bytes >= self.bytesMax else { return nil }
    defer {
      self.changes = []
      self.bytes = 0
    }
    return self.changes
  }
}
