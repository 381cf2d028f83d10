// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQRecords
import NIOCore

/// A snapshot in the object store, by its keys.
struct SnapshotName: Hashable, Comparable {
  static let prefix = "meta/"

  var cluster: ClusterID
  var incarnation: Incarnation
  /// Where its reading began.
  var begun: Revision

  var folder: String {
    Self.folder(of: self.cluster) + Self.digits(self.incarnation.rawValue) + "-"
      + Self.digits(self.begun.rawValue) + "/"
  }
  static func folder(of cluster: ClusterID) -> String { "\(Self.prefix)\(cluster)/" }
  static let manifestName = "manifest"

  /// As many for all, so that the order of the keys is theirs.
  private static func digits(_ number: Int64) -> String {
    let text = String(number)
    return String(repeating: "0", count: max(0, 19 - text.count)) + text
  }

  func manifest() throws(MemQError) -> ObjectKey {
    try ObjectKey(self.folder + Self.manifestName)
  }
  func part(_ number: Int) throws(MemQError) -> ObjectKey {
    try ObjectKey("\(self.folder)part-\(1_000_000 + number)")
  }

  init(_ manifest: SnapshotManifest) {
    self.cluster = manifest.cluster.id
    self.incarnation = manifest.cluster.incarnation
    self.begun = manifest.begun
  }

  init(cluster: ClusterID, incarnation: Incarnation, begun: Revision) {
    self.cluster = cluster
    self.incarnation = incarnation
    self.begun = begun
  }

  /// Of the key of a part or a manifest; nil: it is none.
  init?(of key: ObjectKey) {
    let parts = key.text.split(separator: "/")
    guard parts.count == 4, parts[0] == "meta" else { return nil }
    let numbers = parts[2].split(separator: "-")
    guard let id = UniqueID(String(parts[1])), numbers.count == 2,
      let incarnation = Int64(numbers[0]), let begun = Int64(numbers[1])
    else { return nil }
    self.init(
      cluster: ClusterID(id), incarnation: Incarnation(incarnation), begun: Revision(begun))
  }

  static func < (a: Self, b: Self) -> Bool { a.folder < b.folder }
}

/// The snapshots of an object store.
struct SnapshotStore: Sendable {
  static let timeout: Duration = .seconds(60)
  private static let listed = 1_000

  let objects: any ObjectStore

  func put(_ bytes: [UInt8], _ key: ObjectKey) async throws(MemQError) -> SnapshotManifest.Part {
    let crc32c = CRC32C.checksum(bytes)
    try await self.objects.put(
      key, ObjectSource(slices: [ByteBuffer(bytes: bytes)]), crc32c: crc32c, timeout: Self.timeout)
    return SnapshotManifest.Part(byteCount: Int64(bytes.count), crc32c: crc32c)
  }

  func manifest(of name: SnapshotName) async throws(MemQError) -> SnapshotManifest {
    let key = try name.manifest()
    let head = try await self.objects.head(key, timeout: Self.timeout)
    return try SnapshotManifest(try await self.bytes(key, head.byteCount))
  }

  func part(
    _ number: Int, of manifest: SnapshotManifest
  ) async throws(MemQError) -> SnapshotPart {
    let stated = manifest.parts[number]
    let bytes = try await self.bytes(
      try SnapshotName(manifest).part(number), stated.byteCount)
    guard CRC32C.checksum(bytes) == stated.crc32c else {
      throw MemQError(
        .objectCorrupt, "a part of a metadata snapshot is not the one its manifest names",
        subject: "\(SnapshotName(manifest).folder)\(number)")
    }
    return try SnapshotPart(bytes)
  }

  private func bytes(_ key: ObjectKey, _ count: Int64) async throws(MemQError) -> [UInt8] {
    let buffer = try await self.objects.get(key, range: 0..<count, timeout: Self.timeout)
    return Array(buffer.readableBytesView)
  }

  /// Everything of snapshots under a prefix: those that are whole, oldest first, and all keys by snapshot.
  func list(
    _ prefix: String
  ) async throws(MemQError) -> (whole: [SnapshotName], keys: SortedMap<SnapshotName, [ObjectKey]>) {
    var keys: SortedMap<SnapshotName, [ObjectKey]> = [:]
    var after: ObjectKey?
    while true {
      let page = try await self.objects.list(
        prefix: prefix, after: after, limit: Self.listed, timeout: Self.timeout)
      for object in page.objects {
        if let name = SnapshotName(of: object.key) { keys[name, default: []].append(object.key) }
      }
      guard page.hasMore, let last = page.objects.last else { break }
      after = last.key
    }
    var whole: [SnapshotName] = []
    for (name, found) in keys {
      let manifest = try name.manifest()
      if found.contains(manifest) { whole.append(name) }
    }
    return (whole, keys)
  }

  /// Deletes all but the newest snapshots of a cluster, and what was left of those that broke off before them. A manifest goes first: what
  /// is left after a crash is no snapshot.
  func keep(_ count: Int, of cluster: ClusterID) async throws(MemQError) {
    let (whole, keys) = try await self.list(SnapshotName.folder(of: cluster))
    guard let oldest = whole.suffix(max(1, count)).first else { return }
    for (name, found) in keys where name < oldest {
      let manifest = try name.manifest()
      try await self.objects.delete(manifest, timeout: Self.timeout)
      for key in found where key != manifest {
        try await self.objects.delete(key, timeout: Self.timeout)
      }
    }
  }
}
