// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQModel
import MemQRecords
import MemQSystem
import NIOCore

/// Objects as files of a folder: written beside it, made durable, then renamed, so that a name never leads to half an
/// object whatever crashes when.
///
/// What is being written stands under `.partial/`: `put/` for objects (cleared at the next open once nobody holds their
/// lock), `body/` for bodies, which stay for their resume. Several processes may use one folder.
final class FolderObjectStore: ObjectStore {
  /// Bytes gathered for one write: amortises the hop to a thread.
  private static let writeBytes = 4 << 20

  let name: String
  let root: String
  let meter = RequestMeter(store: "folder")
  let threads: FileThreads
  private let entropy: any Entropy
  private let logger: Logger

  private init(_ folder: String, threads: Int, logger: Logger) {
    var root = folder
    while root.count > 1, root.hasSuffix("/") { root.removeLast() }
    self.root = root
    self.name = "folder \(root)"
    self.threads = FileThreads(count: threads, subject: root)
    self.entropy = SystemEntropy()
    self.logger = logger
  }

  static func open(
    _ folder: String, threads: Int, clock: any MemQClock, logger: Logger
  ) async throws(MemQError) -> FolderObjectStore {
    let store = FolderObjectStore(folder, threads: threads, logger: logger)
    let root = store.root
    do {
      let cleared = try await store.threads.run(Deadline(in: .seconds(60))) {
        () throws(MemQError) -> Int in
        try Folders.makeAll(root)
        try Folders.make(".partial/put", below: root)
        try Folders.make(".partial/body", below: root)
        return try store.clearLeftovers()
      }
      if cleared > 0 {
        logger.info(
          "Unfinished objects of an earlier process cleared",
          metadata: ["object.store": "\(store.name)", "count": "\(cleared)"])
      }
      return store
    } catch {
      await store.threads.close()
      throw error.inWrite
    }
  }

  var requests: ObjectStoreRequests { self.meter.requests }

  func path(_ key: ObjectKey) -> String { self.root + "/" + key.text }
  func bodyPath(_ key: ObjectKey) -> String { self.root + "/.partial/body/" + key.text }

  /// Removes put files that no living writer holds. Blocking.
  private func clearLeftovers() throws(MemQError) -> Int {
    var cleared = 0
    let folder = self.root + "/.partial/put"
    for entry in try Folders.entries(folder) where !entry.isFolder {
      let path = folder + "/" + entry.name
      do {
        guard try OpenFile(path, O_RDWR).tryLock() else { continue }
        if try Folders.unlink(path) { cleared += 1 }
      } catch {
        // Its writer finished, or another process cleared it, between our two looks.
        guard error.code == .objectNotFound else { throw error }
      }
    }
    return cleared
  }

  // MARK: Whole objects

  func put(
    _ key: ObjectKey, _ source: ObjectSource, crc32c: UInt32, timeout: Duration
  ) async throws(MemQError) {
    self.meter.count(.put, bytes: source.byteCount)
    let deadline = Deadline(in: timeout)
    let temporary =
      self.root + "/.partial/put/"
      + UniqueID(random: self.entropy.next(), self.entropy.next())
      .description
    do {
      let file = try await self.threads.run(deadline) { () throws(MemQError) in
        try Self.createLocked(temporary)
      }
      try await self.fill(file, from: source, crc32c, deadline)
      try await self.threads.run(deadline) { () throws(MemQError) in
        try file.sync()
        try self.publish(temporary, as: key)
      }
    } catch {
      self.meter.failed(.put)
      // Best effort: what stays is cleared at the next open.
      try? await self.threads.run(Deadline(in: .seconds(5))) { () throws(MemQError) in
        _ = try Folders.unlink(temporary)
        try Folders.make(".partial/put", below: self.root)
      }
      throw error.inWrite
    }
  }

  private static func createLocked(_ path: String) throws(MemQError) -> OpenFile {
    let file = try OpenFile(path, O_RDWR | O_CREAT | O_EXCL)
    guard try file.tryLock(), try file.status().isLinked else {
      throw MemQError(
        .objectStoreUnavailable, "the file was cleared by another process", subject: path)
    }
    return file
  }

  private func fill(
    _ file: OpenFile, from source: ObjectSource, _ crc32c: UInt32, _ deadline: Deadline
  ) async throws(MemQError) {
    let next = source.open()
    var position: Int64 = 0
    var crc: UInt32 = 0
    var isAtEnd = false
    while !isAtEnd {
      var pieces: [ByteBuffer] = []
      var count = 0
      while count < Self.writeBytes {
        guard let piece = try await next() else {
          isAtEnd = true
          break
        }
        pieces.append(piece)
        count += piece.readableBytes
      }
      let (gathered, at, seed) = (pieces, position, crc)
      crc = try await self.threads.run(deadline) { () throws(MemQError) in
        try file.write(gathered, at: at)
        return gathered.reduce(seed) { crc, piece in
          piece.withUnsafeReadableBytes { CRC32C.checksum($0, seed: crc) }
        }
      }
      position += Int64(count)
    }
    guard position == source.byteCount else {
      throw MemQError(
        .objectCorrupt, "the object's bytes are not as many as announced",
        limit: source.byteCount, actual: position)
    }
    guard crc == crc32c else {
      throw MemQError(
        .objectCorrupt, "the object's CRC-32C is not what was announced", limit: Int64(crc32c),
        actual: Int64(crc))
    }
  }

  /// Renames a durable file to its key; durable when it returns. Blocking.
  func publish(_ from: String, as key: ObjectKey) throws(MemQError) {
    let parent = key.text.split(separator: "/").dropLast().joined(separator: "/")
    try Folders.make(parent, below: self.root)
    try Folders.rename(from, self.path(key))
    try Folders.sync(parent.isEmpty ? self.root : self.root + "/" + parent)
  }

  func get(
    _ key: ObjectKey, range: Range<Int64>, timeout: Duration
  ) async throws(MemQError) -> ByteBuffer {
    try ObjectStoreLimits.check(range, of: key)
    self.meter.count(.get, bytes: Int64(range.count))
    let path = self.path(key)
    return try await self.metered(.get) { () async throws(MemQError) in
      try await self.threads.run(Deadline(in: timeout)) { () throws(MemQError) in
        let file = try OpenFile(path, O_RDONLY)
        let byteCount = try file.status().byteCount
        guard range.upperBound <= byteCount else {
          throw MemQError(
            .rangeInvalid, "the range ends beyond the object", subject: key.text,
            limit: byteCount, actual: range.upperBound)
        }
        return try file.read(at: range.lowerBound, count: range.count)
      }
    }
  }

  func head(_ key: ObjectKey, timeout: Duration) async throws(MemQError) -> ObjectHead {
    self.meter.count(.head)
    let path = self.path(key)
    return try await self.metered(.head) { () async throws(MemQError) in
      try await self.threads.run(Deadline(in: timeout)) { () throws(MemQError) in
        ObjectHead(key: key, byteCount: try OpenFile(path, O_RDONLY).status().byteCount)
      }
    }
  }

  func delete(_ key: ObjectKey, timeout: Duration) async throws(MemQError) {
    self.meter.count(.delete)
    let (path, body) = (self.path(key), self.bodyPath(key))
    try await self.metered(.delete) { () async throws(MemQError) in
      try await self.threads.run(Deadline(in: timeout)) { () throws(MemQError) in
        for path in [path, body] where try Folders.unlink(path) {
          let parent = path.split(separator: "/", omittingEmptySubsequences: false).dropLast()
          try Folders.sync(parent.joined(separator: "/"))
        }
      }
    }
  }

  func list(
    prefix: String, after: ObjectKey?, limit: Int, timeout: Duration
  ) async throws(MemQError) -> ObjectListing {
    try ObjectStoreLimits.checkList(prefix: prefix, limit: limit)
    self.meter.count(.list)
    let root = self.root
    return try await self.metered(.list) { () async throws(MemQError) in
      try await self.threads.run(Deadline(in: timeout)) { () throws(MemQError) in
        var walk = FolderWalk(root: root, prefix: prefix, after: after?.text, limit: limit)
        return try walk.run()
      }
    }
  }

  // MARK: Bodies

  func openBody(
    _ key: ObjectKey, from offset: Int64, timeout: Duration
  ) async throws(MemQError) -> any ObjectBodyWriter {
    if offset == 0 { self.meter.count(.createBody) }
    return try await FolderBodyWriter.open(
      key, from: offset, in: self, deadline: Deadline(in: timeout))
  }

  func close() async {
    await self.threads.close()
  }

  private func metered<T: Sendable>(
    _ kind: RequestMeter.Kind, _ body: () async throws(MemQError) -> T
  ) async throws(MemQError) -> T {
    do {
      return try await body()
    } catch {
      if error.code == .objectStoreUnavailable { self.meter.failed(kind) }
      throw error
    }
  }
}

extension MemQError {
  /// A folder that is missing, or has a file in its place, is an environment that may heal: what is written is not
  /// "not found".
  var inWrite: MemQError {
    guard self.code == .objectNotFound else { return self }
    return MemQError(
      .objectStoreUnavailable, "a folder of the object store is missing or not a folder",
      subject: self.subject)
  }
}
