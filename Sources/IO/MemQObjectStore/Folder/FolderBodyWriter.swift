// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQModel
import NIOCore

/// One body on its way into a folder store. Its bytes stand under `.partial/body/` until `finish` renames them.
///
/// When the object is whole already (the answer to `finish` was lost), bytes sent again are compared with it: a whole
/// object never changes.
actor FolderBodyWriter: ObjectBodyWriter {
  private enum Target {
    case partial(OpenFile)
    case whole(OpenFile, byteCount: Int64)
    case closed
  }

  /// A writer that lives holds its body for longer.
  private static let lockWaitMax: Duration = .seconds(1)

  nonisolated let key: ObjectKey
  private let store: FolderObjectStore
  private var target: Target
  private(set) var byteCount: Int64
  private(set) var durableByteCount: Int64

  private init(_ key: ObjectKey, _ store: FolderObjectStore, _ target: Target, at offset: Int64) {
    self.key = key
    self.store = store
    self.target = target
    self.byteCount = offset
    switch target {
    case .whole(_, let byteCount): self.durableByteCount = byteCount
    case .partial, .closed: self.durableByteCount = offset
    }
  }

  static func open(
    _ key: ObjectKey, from offset: Int64, in store: FolderObjectStore, deadline: Deadline
  ) async throws(MemQError) -> FolderBodyWriter {
    guard offset >= 0 else {
      throw MemQError(.invalidArgument, "an offset is not negative", limit: 0, actual: offset)
    }
    let target = try await Self.openTarget(key, in: store, deadline: deadline)
    let there: Int64
    switch target {
    case .whole(_, let byteCount): there = byteCount
    case .partial(let file):
      there = try await store.threads.run(deadline) { () throws(MemQError) in
        let byteCount = try file.status().byteCount
        if byteCount > offset { try file.truncate(to: offset) }
        return byteCount
      }
    case .closed: preconditionFailure("a target is open")
    }
    guard offset <= there else {
      throw MemQError(
        .uploadOffsetMismatch, "the store has fewer bytes of this body", subject: key.text,
        limit: offset, actual: there)
    }
    return FolderBodyWriter(key, store, target, at: offset)
  }

  /// Who went away a moment ago may hold the body until its last call to the disk is done: that is waited for.
  private static func openTarget(
    _ key: ObjectKey, in store: FolderObjectStore, deadline: Deadline
  ) async throws(MemQError) -> Target {
    let giveUp = ContinuousClock.now + Self.lockWaitMax
    while true {
      do throws(MemQError) {
        return try await store.threads.run(deadline) { () throws(MemQError) in
          do throws(MemQError) {
            return try Self.openTarget(key, store)
          } catch {
            throw error.inWrite
          }
        }
      } catch {
        guard error.code == .uploadInProgress, .now < giveUp,
          (try? await Task.sleep(for: .milliseconds(20))) != nil
        else { throw error }
      }
    }
  }

  /// Blocking.
  private static func openTarget(
    _ key: ObjectKey, _ store: FolderObjectStore
  ) throws(MemQError) -> Target {
    let path = store.bodyPath(key)
    let parent = key.text.split(separator: "/").dropLast().joined(separator: "/")
    if let whole = try Self.whole(key, store) { return whole }
    try Folders.make(".partial/body/" + parent, below: store.root)
    let file = try OpenFile(path, O_RDWR | O_CREAT)
    guard try file.tryLock(), try file.status().isLinked else {
      throw MemQError(
        .uploadInProgress, "another writer holds this body; try again", subject: key.text)
    }
    // Finished by its writer between our first look and the lock: the file just made is empty.
    if let whole = try Self.whole(key, store) {
      _ = try Folders.unlink(path)
      return whole
    }
    try Folders.sync(store.root + "/.partial/body/" + parent)
    return .partial(file)
  }

  private static func whole(
    _ key: ObjectKey, _ store: FolderObjectStore
  ) throws(MemQError) -> Target? {
    do {
      let file = try OpenFile(store.path(key), O_RDONLY)
      return .whole(file, byteCount: try file.status().byteCount)
    } catch {
      guard error.code == .objectNotFound else { throw error }
      return nil
    }
  }

  func write(_ bytes: [ByteBuffer], timeout: Duration) async throws(MemQError) {
    let count = bytes.reduce(0) { $0 + Int64($1.readableBytes) }
    let position = self.byteCount
    let deadline = Deadline(in: timeout)
    switch self.target {
    case .partial(let file):
      try await self.store.threads.run(deadline) { () throws(MemQError) in
        try file.write(bytes, at: position)
      }
    case .whole(let file, let there):
      let key = self.key.text
      try await self.store.threads.run(deadline) { () throws(MemQError) in
        try Self.compare(bytes, with: file, at: position, there, key)
      }
    case .closed: throw self.isClosed
    }
    self.byteCount = position + count
  }

  /// Blocking.
  private static func compare(
    _ bytes: [ByteBuffer], with file: OpenFile, at position: Int64, _ there: Int64, _ key: String
  ) throws(MemQError) {
    var position = position
    for piece in bytes {
      let end = position + Int64(piece.readableBytes)
      guard end <= there, try file.read(at: position, count: piece.readableBytes) == piece else {
        throw MemQError(
          .digestMismatch, "the body is whole already, and these bytes differ from it",
          subject: key, limit: there, actual: end)
      }
      position = end
    }
  }

  func sync(timeout: Duration) async throws(MemQError) {
    switch self.target {
    case .partial(let file):
      let end = self.byteCount
      self.store.meter.count(.part, bytes: end - self.durableByteCount)
      try await self.store.threads.run(Deadline(in: timeout)) { () throws(MemQError) in
        try file.sync()
      }
      self.durableByteCount = end
    case .whole: return
    case .closed: throw self.isClosed
    }
  }

  func finish(byteCount: Int64, timeout: Duration) async throws(MemQError) {
    switch self.target {
    case .partial(let file):
      try ObjectStoreLimits.check(byteCount, is: self.byteCount, of: self.key)
      self.store.meter.count(.completeBody)
      let (store, key) = (self.store, self.key)
      try await store.threads.run(Deadline(in: timeout)) { () throws(MemQError) in
        try file.sync()
        guard try file.status().isLinked else {
          throw MemQError(.uploadAbandoned, "the body was deleted meanwhile", subject: key.text)
        }
        do throws(MemQError) { try store.publish(file.path, as: key) } catch { throw error.inWrite }
      }
      self.durableByteCount = byteCount
      self.target = .whole(file, byteCount: byteCount)
    case .whole(_, let there): try ObjectStoreLimits.check(byteCount, is: there, of: self.key)
    case .closed: throw self.isClosed
    }
  }

  func close() {
    self.target = .closed
  }

  private var isClosed: MemQError {
    MemQError(.cancelled, "the body's writer is closed", subject: self.key.text)
  }
}
