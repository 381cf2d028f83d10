// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
public import MemQMetadata
public import MemQModel
import MemQSystem
import Synchronization

/// How far a node has seen its cluster's metadata. Nothing older is taken: a store that was restored from an older copy would give out
/// leader epochs and offsets a second time.
public struct SeenMetadata: Hashable, Sendable {
  public var incarnation: Incarnation
  public var incarnationID: UniqueID
  public var revision: Revision

  public init(incarnation: Incarnation, incarnationID: UniqueID, revision: Revision) {
    self.incarnation = incarnation
    self.incarnationID = incarnationID
    self.revision = revision
  }

  public init(_ image: ClusterImage) {
    self.init(
      incarnation: image.incarnation, incarnationID: image.incarnationID, revision: image.revision)
  }

  /// Whether `next` may follow: a higher incarnation, or the same one at this revision or a later one.
  ///
  /// - Throws: `.staleImage`.
  public func check(_ next: SeenMetadata) throws(MemQError) {
    let isOlder =
      next.incarnation == self.incarnation
      ? next.incarnationID != self.incarnationID || next.revision < self.revision
      : next.incarnation < self.incarnation
    guard isOlder else { return }
    throw MemQError(
      .staleImage,
      "metadata is older than what this node has seen of it: an older copy was restored",
      subject: "incarnation \(next.incarnation), seen \(self.incarnation)",
      limit: self.revision.rawValue, actual: next.revision.rawValue)
  }
}

/// Keeps across restarts what a node has seen of metadata: metadata-seen.json of its data folder (docs/formats/data-folder.md).
public final class MetadataMemory: Sendable {
  /// Revisions of one incarnation are written so often at most: what was seen since the last time may be forgotten by a crash.
  static let interval = Duration.seconds(10)

  private struct State {
    var seen: SeenMetadata?
    var written: SeenMetadata?
    var writtenAt = MonotonicInstant.zero
    /// A revision is being written.
    var isWriting = false
  }

  private let folder: String
  private let state: Mutex<State>
  private let threads = DiskThreads(name: "memq-seen", count: 1)

  /// - Throws: `.corruptMessage` for a damaged file, `.unavailable` when it can't be read.
  public init(in folder: DataFolder) throws(MemQError) {
    self.folder = folder.path
    let seen = try SeenFile.read(in: folder.path)
    self.state = Mutex(State(seen: seen, written: seen))
  }

  deinit { self.threads.stop() }

  /// Nil: nothing yet.
  public var seen: SeenMetadata? { self.state.withLock { $0.seen } }

  /// Call before what is seen is acted on. A new incarnation is durable on return. A revision is written from time to time and is not
  /// waited for: a disk that hangs must not keep the node from its metadata.
  ///
  /// - Parameter onFailure: told when a revision can't be written.
  /// - Returns: the writing of a revision, when one began.
  /// - Throws: `.unavailable` when a new incarnation can't be written.
  @discardableResult
  func saw(
    _ seen: SeenMetadata, at now: MonotonicInstant,
    onFailure: @escaping @Sendable (MemQError) -> Void
  ) async throws(MemQError) -> Task<Void, Never>? {
    let isNew = self.state.withLock { state in
      state.seen = seen
      return state.written?.incarnation != seen.incarnation
    }
    if isNew { try await self.write(at: now) }
    let isDue = self.state.withLock { state in
      guard !state.isWriting, now - state.writtenAt >= Self.interval else { return false }
      state.isWriting = true
      return true
    }
    guard isDue else { return nil }
    return Task {
      do throws(MemQError) {
        try await self.write(at: now)
      } catch {
        onFailure(error)
      }
      self.state.withLock { $0.isWriting = false }
    }
  }

  /// Makes all that was seen durable.
  ///
  /// - Throws: `.unavailable` when the file can't be written.
  func write(at now: MonotonicInstant) async throws(MemQError) {
    // Also where it fails: not each image is to try again on a full disk.
    self.state.withLock { $0.writtenAt = now }
    // Looked up on the one thread that writes: an earlier one never comes after a later one.
    try await self.threads.run { () throws(MemQError) in
      let due = self.state.withLock { $0.seen == $0.written ? nil : $0.seen }
      guard let due else { return }
      try SeenFile.write(due, in: self.folder)
      self.state.withLock { $0.written = due }
    }
  }
}

/// metadata-seen.json
enum SeenFile {
  static let name = "metadata-seen.json"

  static func text(_ seen: SeenMetadata) -> String {
    let facts =
      "\"incarnation\":\(seen.incarnation.rawValue),\"incarnation_id\":\"\(seen.incarnationID)\",\"revision\":\(seen.revision.rawValue)"
    let check = hexText(Array(SHA256.digest(of: Array(facts.utf8)).prefix(8)))
    return "{\"format\":\"memq-metadata-seen\",\"version\":0,\(facts),\"check\":\"\(check)\"}\n"
  }

  static func read(in folder: String) throws(MemQError) -> SeenMetadata? {
    let path = "\(folder)/\(Self.name)"
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else {
      if errno == ENOENT { return nil }
      throw FileSystem.failed("cannot be read", path)
    }
    defer { close(file) }
    let text = FileSystem.text(of: file)
    // The file is written by us only, so its text for the facts it names must be the file's whole text.
    guard let incarnation = Self.number("incarnation", in: text),
      let revision = Self.number("revision", in: text),
      let id = Self.value("incarnation_id", in: text).flatMap({
        UniqueID($0.dropFirst().prefix(36))
      }
      )
    else { throw Self.damaged(path) }
    let seen = SeenMetadata(
      incarnation: Incarnation(incarnation), incarnationID: id, revision: Revision(revision))
    guard Self.text(seen) == text else { throw Self.damaged(path) }
    return seen
  }

  static func write(_ seen: SeenMetadata, in folder: String) throws(MemQError) {
    try FileSystem.writeDurably(Self.text(seen), to: Self.name, in: folder)
  }

  private static func value(_ name: String, in text: String) -> Substring? {
    text.firstRange(of: "\"\(name)\":").map { text[$0.upperBound...] }
  }

  private static func number(_ name: String, in text: String) -> Int64? {
    self.value(name, in: text).flatMap { Int64($0.prefix { $0 != "," }) }
  }

  private static func damaged(_ path: String) -> MemQError {
    MemQError(
      .corruptMessage,
      "what this node has seen of metadata is damaged, or of another version: delete the file once metadata is known to be the newest there is",
      subject: path)
  }
}
