// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQStore
import MemQSystem

/// Fills an empty store from a snapshot. The cluster's record comes last; until then a mark says that the store is half full, and no
/// instance takes it for a store.
struct SnapshotRestore {
  /// Means: of the only cluster that the object store has snapshots of.
  static let newest = "newest"
  private static let operationsPerTransaction = 100
  private static let bytesPerTransaction = 512 << 10
  private static let transactionsPerCommit = 8

  let snapshots: SnapshotStore
  let store: any MetadataStore
  let entropy: any Entropy
  let logger: Logger

  /// - Parameter wanted: a cluster's id, or `newest`.
  /// - Returns: false, and nothing happens, when the store has a cluster already.
  /// - Throws: `.objectNotFound` when there is no whole snapshot, `.invalidArgument` when there are those of several clusters.
  func run(_ wanted: String) async throws(MemQError) -> Bool {
    guard try await self.store.get([.cluster])[0] == nil else {
      self.logger.notice(
        "Nothing is restored: the store has a cluster", metadata: ["restore": "\(wanted)"])
      return false
    }
    let manifest = try await self.find(wanted)
    self.logger.notice(
      "Restores metadata",
      metadata: [
        "snapshot": "\(SnapshotName(manifest).folder)", "created": "\(manifest.createdAt)",
        "revision": "\(manifest.revision)",
      ])
    try await self.clear()
    let restoration = Restoration(
      of: manifest.cluster, incarnationID: self.entropy.identifier(ClusterID.self).value)
    let count = try await self.fill(manifest, restoration)
    let key = StoreKey.cluster
    let verdicts = try await self.store.commit([
      Transaction(
        [.absent(key), .exists(.restoring)],
        [.put(key, restoration.cluster.encoded(for: key)), .delete(.restoring)])
    ])
    guard case .committed = verdicts[0] else { throw Self.notAlone }
    self.logger.notice(
      "Metadata is restored",
      metadata: [
        "entries": "\(count)", "cluster.id": "\(restoration.cluster.id)",
        "incarnation": "\(restoration.cluster.incarnation)",
      ])
    return true
  }

  private static let notAlone = MemQError(
    .revisionConflict, "another instance wrote to the store while it was restored")

  // MARK: Which

  /// The newest whose parts are all there and whole.
  private func find(_ wanted: String) async throws(MemQError) -> SnapshotManifest {
    let found = try await self.snapshots.list(SnapshotName.prefix).whole
    var clusters: [ClusterID] = []
    for name in found where !clusters.contains(name.cluster) { clusters.append(name.cluster) }
    guard wanted != Self.newest || clusters.count <= 1 else {
      throw MemQError(
        .invalidArgument,
        "there are snapshots of several clusters, name one: "
          + clusters.map(\.description).joined(separator: ", "), subject: "restore")
    }
    let fitting = found.filter { wanted == Self.newest || $0.cluster.description == wanted }
    for name in fitting.sorted(by: >) {
      do {
        let manifest = try await self.snapshots.manifest(of: name)
        for number in manifest.parts.indices {
          _ = try await self.snapshots.part(number, of: manifest)
        }
        return manifest
      } catch {
        switch error.code {
        case .objectNotFound, .objectCorrupt, .corruptMessage, .rangeInvalid:
          self.logger.error(
            "A snapshot is damaged; the one before it is tried",
            metadata: ["snapshot": "\(name.folder)", "error": "\(error)"])
        default: throw error
        }
      }
    }
    throw MemQError(
      .objectNotFound, "the object store has no whole snapshot of metadata", subject: "restore")
  }

  // MARK: Filling

  /// What an earlier attempt left, which may have been of another snapshot.
  private func clear() async throws(MemQError) {
    try await self.commit([Transaction([.absent(.cluster)], [.put(.restoring, [])])])
    while true {
      let page = try await self.store.range(.all, limit: Self.operationsPerTransaction)
      let keys = page.entries.map(\.key).filter { $0 != .restoring }
      guard !keys.isEmpty else { return }
      try await self.commit([Transaction([.absent(.cluster)], keys.map { .delete($0) })])
    }
  }

  private func fill(
    _ manifest: SnapshotManifest, _ restoration: Restoration
  ) async throws(MemQError) -> Int {
    // Parts of changes stand behind those of entries; the last change of a key holds.
    var later: SortedMap<StoreKey, StoreChange> = [:]
    for number in manifest.parts.indices.reversed() {
      let part = try await self.snapshots.part(number, of: manifest)
      guard part.kind == .changes else { break }
      for change in part.changes
      where later[change.key].map({ $0.revision <= change.revision }) ?? true {
        later[change.key] = change
      }
    }
    var filling = Filling()
    for number in manifest.parts.indices {
      let part = try await self.snapshots.part(number, of: manifest)
      guard part.kind == .entries else { break }
      for entry in part.changes where later[entry.key] == nil {
        try await self.put(entry, restoration, &filling)
      }
    }
    for change in later.values { try await self.put(change, restoration, &filling) }
    try await self.commit(filling.takeAll())
    return filling.count
  }

  private func put(
    _ change: StoreChange, _ restoration: Restoration, _ filling: inout Filling
  ) async throws(MemQError) {
    guard change.key != .cluster, let value = change.value,
      let restored = try restoration.restored(change.key, value)
    else { return }
    filling.add(change.key, restored)
    if filling.transactions.count >= Self.transactionsPerCommit {
      try await self.commit(filling.takeFull())
    }
  }

  private func commit(_ transactions: [Transaction]) async throws(MemQError) {
    guard !transactions.isEmpty else { return }
    for verdict in try await self.store.commit(transactions) {
      guard case .committed = verdict else { throw Self.notAlone }
    }
  }

  /// Puts, in transactions that stores take.
  private struct Filling {
    private(set) var transactions: [Transaction] = []
    private(set) var count = 0
    private var open = Transaction([.exists(.restoring)])
    private var bytes = 0

    mutating func add(_ key: StoreKey, _ value: [UInt8]) {
      let size = key.bytes.count + value.count
      if self.open.operations.count >= operationsPerTransaction
        || self.bytes + size > bytesPerTransaction
      {
        self.close()
      }
      self.open.put(key, value)
      self.bytes += size
      self.count += 1
    }

    private mutating func close() {
      guard !self.open.isEmpty else { return }
      self.transactions.append(self.open)
      self.open = Transaction([.exists(.restoring)])
      self.bytes = 0
    }

    mutating func takeFull() -> [Transaction] {
      defer { self.transactions = [] }
      return self.transactions
    }

    mutating func takeAll() -> [Transaction] {
      self.close()
      return self.takeFull()
    }
  }
}
