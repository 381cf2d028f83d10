// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQAPI
public import MemQModel
import MemQRPC
import MemQRecords
import MemQSystem
public import NIOCore

extension FileClient {
  /// A part of a file, in bytes.
  public struct ByteRange: Hashable, Sendable {
    public var offset: Int64
    /// Nil: to the end.
    public var length: Int64?

    public init(offset: Int64 = 0, length: Int64? = nil) {
      self.offset = offset
      self.length = length
    }

    public static let whole = ByteRange()
  }

  /// Hands out a file's bytes in order. A broken get goes on where it stood, on the same version.
  ///
  /// Every chunk is checked by its CRC-32C before `body` sees it; a whole file by its SHA-256 at the end, so bytes that were handed
  /// out count only when this returns.
  ///
  /// - Parameters:
  ///   - version: nil: the latest.
  ///   - resumeTimeout: how long to go on without a byte.
  ///   - stallTimeout: how long to wait for a server that says nothing before another stream is tried; nil: half of `resumeTimeout`.
  /// - Throws: `.fileNotFound`, `.topicNotFound`, `.rangeInvalid`, `.digestMismatch`, `.unavailable` and the like after `resumeTimeout`;
  ///   what `body` throws.
  @discardableResult
  public func get(
    _ topic: String, _ name: String, version: Int64? = nil, range: ByteRange = .whole,
    resumeTimeout: Duration = .seconds(120),
    stallTimeout: Duration? = nil,
    body: (ByteBuffer) async throws(MemQError) -> Void
  ) async throws(MemQError) -> FileInfo {
    try await self.servers.reach()
    var get = FileGet(topic: topic, name: name, version: version, range: range)
    var backoff = Backoff()
    var lastMove = ContinuousClock.now
    while true {
      let (address, channel) = self.servers.channel(.bodies)
      let before = get.position
      do throws(MemQError) {
        try await get.stream(
          from: channel, StallWatch(stallTimeout: stallTimeout, resumeTimeout: resumeTimeout), body)
        return try get.finish()
      } catch {
        guard error.isRetriable || error.code == .chunkChecksumMismatch, !Task.isCancelled else {
          throw Servers.naming(error, address)
        }
        if get.position > before {
          lastMove = .now
          backoff.reset()
        }
        let end = lastMove + resumeTimeout
        guard ContinuousClock.now < end else { throw Servers.naming(error, address) }
        if Servers.isAbsence(error) { self.servers.failed(address) }
        try await backoff.wait(until: end)
      }
    }
  }

  /// Gets a file to disk: it stands under `path` whole and checked, or not at all.
  ///
  /// - Parameter progress: called with the bytes written so far and the size, of the range.
  /// - Throws: as `get`; `.invalidArgument` when `path` cannot be written.
  @discardableResult
  public func get(
    _ topic: String, _ name: String, version: Int64? = nil, range: ByteRange = .whole,
    toFile path: String, resumeTimeout: Duration = .seconds(120),
    progress: (@Sendable (Int64) -> Void)? = nil
  ) async throws(MemQError) -> FileInfo {
    let suffix = String(SystemEntropy().next(), radix: 36)
    let temporary = Self.sibling(of: path, "memq-\(suffix)")
    let file = try await self.onDisk { () throws(FileError) in try File(temporary, .createNew) }
    var written: Int64 = 0
    do throws(MemQError) {
      let info = try await self.get(
        topic, name, version: version, range: range, resumeTimeout: resumeTimeout
      ) { bytes throws(MemQError) in
        let at = written
        try await self.onDisk { () throws(FileError) in
          let result = bytes.withUnsafeReadableBytes { bytes in
            Result { () throws(FileError) in try file.write(bytes, at: at) }
          }
          try result.get()
        }
        written += Int64(bytes.readableBytes)
        progress?(written)
      }
      try await self.onDisk { () throws(FileError) in try Self.place(file, at: path) }
      return info
    } catch {
      try? await self.onDisk { () throws(FileError) in _ = unlink(temporary) }
      throw error
    }
  }

  /// A hidden name beside `path`, so that the rename stays within one file system.
  private static func sibling(of path: String, _ suffix: String) -> String {
    let parts = path.split(separator: "/", omittingEmptySubsequences: false)
    let folder = parts.dropLast().joined(separator: "/")
    let name = ".\(suffix)"
    return parts.count == 1 ? name : "\(folder)/\(name)"
  }

  /// With the permissions any new file of this process gets.
  private static func place(_ file: File, at path: String) throws(FileError) {
    let mask = umask(0)
    umask(mask)
    guard fchmod(file.descriptor, 0o666 & ~mask) == 0 else {
      throw FileError(.status, path: file.path, number: errno)
    }
    guard rename(file.path, path) == 0 else {
      throw FileError(.rename, path: path, number: errno)
    }
  }

  private func onDisk<R: Sendable>(
    _ body: @escaping @Sendable () throws(FileError) -> R
  ) async throws(MemQError) -> R {
    try await self.threads.run { () throws(MemQError) in
      do throws(FileError) {
        return try body()
      } catch {
        throw error.memqError(.invalidArgument)
      }
    }
  }
}

/// Where one get stands.
struct FileGet {
  let topic: String
  let name: String
  let range: FileClient.ByteRange
  private var version: Int64?
  private var info: FileInfo?
  /// Place of the next byte in the file.
  private(set) var position: Int64
  private var hash = SHA256()

  init(topic: String, name: String, version: Int64?, range: FileClient.ByteRange) {
    self.topic = topic
    self.name = name
    self.version = version
    self.range = range
    self.position = range.offset
  }

  /// One past the last byte wanted; nil before the first answer.
  private var end: Int64? {
    self.info.map { info in
      self.range.length.map { min(info.size, self.range.offset + $0) } ?? info.size
    }
  }

  private func request() -> Memq_V1_GetRequest {
    var request = Memq_V1_GetRequest()
    request.topic = self.topic
    request.name = self.name
    request.version = self.version ?? 0
    request.offset = self.position
    request.length = self.end.map { $0 - self.position } ?? self.range.length ?? 0
    return request
  }

  /// One stream, from where the get stands.
  mutating func stream(
    from channel: any RPCChannel, _ watch: StallWatch,
    _ body: (ByteBuffer) async throws(MemQError) -> Void
  ) async throws(MemQError) {
    if let end = self.end, end == self.position { return }
    let stream = try await channel.open(
      FileMethods.get, RPCCallOptions(), requests: .plain, responses: .hot)
    let watching = watch.run { stream.cancel() }
    defer { watching.cancel() }
    try await stream.send(self.request())
    try await stream.halfClose()
    while let part = try await watch.wait(
      for: { () throws(MemQError) in try await stream.responses.next() })
    {
      if part.header.hasFile { try self.learn(FileInfo(part.header.file)) }
      guard !part.payload.isEmpty else { continue }
      try await self.take(part, body)
    }
    guard let end = self.end, self.position == end else {
      throw MemQError(
        .unavailable, "the server ended the get before the file's end", subject: self.name)
    }
  }

  private mutating func learn(_ info: FileInfo) throws(MemQError) {
    if let known = self.info, known.version != info.version || known.sha256 != info.sha256 {
      throw MemQError(.fileNotFound, "this version is gone", subject: self.name)
    }
    self.info = info
    self.version = info.version
  }

  private mutating func take(
    _ part: Hot<Memq_V1_GetResponse>, _ body: (ByteBuffer) async throws(MemQError) -> Void
  ) async throws(MemQError) {
    guard let end = self.end, part.header.offset == self.position,
      self.position + Int64(part.payload.byteCount) <= end
    else {
      throw MemQError(
        .corruptMessage, "the server sent bytes of another place", subject: self.name,
        limit: self.position, actual: part.header.offset)
    }
    var crc = CRC32C()
    for slice in part.payload.slices { slice.withUnsafeReadableBytes { crc.update($0) } }
    guard crc.value == part.header.crc32C else {
      throw MemQError(
        .chunkChecksumMismatch, "a chunk was damaged on its way", subject: self.name,
        limit: Int64(part.header.crc32C), actual: Int64(crc.value))
    }
    for slice in part.payload.slices {
      slice.withUnsafeReadableBytes { self.hash.update($0) }
      try await body(slice)
    }
    self.position += Int64(part.payload.byteCount)
  }

  /// - Throws: `.digestMismatch`.
  func finish() throws(MemQError) -> FileInfo {
    guard let info = self.info else {
      throw MemQError(
        .corruptMessage, "the server did not say which file it sent", subject: self.name)
    }
    if self.range == .whole && self.hash.digest() != info.sha256 {
      throw MemQError(
        .digestMismatch,
        "the bytes have SHA-256 \(hexText(self.hash.digest())), the record says \(hexText(info.sha256))",
        subject: self.name)
    }
    return info
  }
}
