// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import MemQModel
import MemQSystem
import Synchronization

/// A process's own folder: made when missing, held by one process at a time, and for ever of one cluster.
///
/// `lock` is locked with flock(2) while the process lives (the kernel lets go whatever way it ends) and holds its pid for
/// error texts. `cluster.json` says which cluster the folder belongs to; see docs/formats/data-folder.md.
public final class DataFolder: Sendable {
  public let path: String
  private let lock: Int32
  private let state: Mutex<ClusterID?>

  private init(path: String, lock: Int32, clusterID: ClusterID?) {
    self.path = path
    self.lock = lock
    self.state = Mutex(clusterID)
  }

  deinit { Glibc.close(self.lock) }

  /// The cluster the folder belongs to; nil while it is new.
  public var clusterID: ClusterID? { self.state.withLock { $0 } }

  /// Makes the folder (and those above it) and takes its lock.
  ///
  /// - Throws: `.dataFolderInUse` naming the other process when known, `.unavailable` when the system refuses,
  ///   `.corruptMessage` for a cluster.json that is not ours.
  public static func open(_ path: String) throws(MemQError) -> DataFolder {
    try FileSystem.makeFolder(path)
    let lockPath = path + "/lock"
    let lock = Glibc.open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
    guard lock >= 0 else { throw FileSystem.failed("cannot be opened", lockPath) }
    guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
      let isHeld = errno == EWOULDBLOCK
      defer { Glibc.close(lock) }
      guard isHeld else { throw FileSystem.failed("cannot be locked", lockPath) }
      let holder = FileSystem.text(of: lock).split(separator: "\n").first
      throw MemQError(
        .dataFolderInUse,
        "another process\(holder.map { " (pid \($0))" } ?? "") has this data folder: stop it, or choose another folder",
        subject: path)
    }
    FileSystem.replaceText(of: lock, with: "\(getpid())\n")
    do throws(MemQError) {
      let clusterID = try ClusterFile.read(in: path)
      return DataFolder(path: path, lock: lock, clusterID: clusterID)
    } catch {
      Glibc.close(lock)
      throw error
    }
  }

  /// Makes the folder this cluster's for ever; durable on return.
  ///
  /// - Throws: `.wrongCluster` when it is another's.
  public func bind(to clusterID: ClusterID) throws(MemQError) {
    let current = self.clusterID
    if current == clusterID { return }
    if let current {
      throw MemQError(
        .wrongCluster,
        "the data folder belongs to cluster \(current), and the metadata service to \(clusterID): use the folder of this cluster, or an empty one",
        subject: self.path)
    }
    try ClusterFile.write(clusterID, in: self.path)
    self.state.withLock { $0 = clusterID }
  }

  /// `path/name`.
  public func path(_ name: String) -> String { "\(self.path)/\(name)" }
}

/// cluster.json: which cluster a folder belongs to.
enum ClusterFile {
  static let name = "cluster.json"

  static func text(_ clusterID: ClusterID) -> String {
    "{\"format\":\"memq-cluster\",\"version\":0,\"cluster_id\":\"\(clusterID)\",\"check\":\"\(Self.check(clusterID))\"}\n"
  }

  /// The first 8 bytes of the id's SHA-256 in hex: a copied or mistyped id is found.
  private static func check(_ clusterID: ClusterID) -> String {
    hexText(Array(SHA256.digest(of: Array(clusterID.description.utf8)).prefix(8)))
  }

  static func read(in folder: String) throws(MemQError) -> ClusterID? {
    let path = "\(folder)/\(Self.name)"
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else {
      if errno == ENOENT { return nil }
      throw FileSystem.failed("cannot be read", path)
    }
    defer { close(file) }
    let text = FileSystem.text(of: file)
    let key = "\"cluster_id\":\""
    // The file is written by us only, so its text for the id it names must be the file's whole text.
    guard let at = text.firstRange(of: key),
      let id = ClusterID(text[at.upperBound...].prefix(36)), Self.text(id) == text
    else {
      throw MemQError(
        .corruptMessage, "not a cluster file of this version, or damaged: restore it from a copy",
        subject: path)
    }
    return id
  }

  static func write(_ clusterID: ClusterID, in folder: String) throws(MemQError) {
    try FileSystem.writeDurably(Self.text(clusterID), to: Self.name, in: folder)
  }
}

extension DataFolder {
  /// Whether a folder stands at `path`.
  public static func isFolder(_ path: String) -> Bool {
    let folder = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard folder >= 0 else { return false }
    Glibc.close(folder)
    return true
  }
}
