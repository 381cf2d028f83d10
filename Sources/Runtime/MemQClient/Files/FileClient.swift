// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
public import MemQModel
import MemQRPC
import MemQSystem

/// Files of topics: put, get, list, stat, delete. Bodies stream in constant memory, whatever their size.
public struct FileClient: Sendable {
  /// How a put behaves.
  public struct PutOptions: Sendable {
    /// Media type, for readers.
    public var contentType = ""
    /// Free attributes, up to 64 of up to 1,024 bytes.
    public var attributes: [String: String] = [:]
    /// A broken put goes on under its upload id until nothing moved for so long.
    public var resumeTimeout: Duration = .seconds(120)
    /// How long to wait for a server that does not move before another stream is tried; nil: half of `resumeTimeout`.
    public var stallTimeout: Duration?
    /// How long to wait for the verdict and the publication after the last byte.
    public var publishTimeout: Duration = .seconds(60)

    public init() {}
  }

  let servers: Servers
  let threads: DiskThreads
  let timeout: Duration
  let logger: Logger

  /// Puts one file from disk. It is visible when this returns.
  ///
  /// - Parameters:
  ///   - name: its name in the topic, 1–1,024 bytes of UTF-8; "/" separates folders.
  ///   - progress: called with the bytes sent so far; may go back when a broken put is resumed.
  /// - Throws: `.topicNotFound`, `.fileNameInvalid`, `.fileTooLarge`, `.fileIncomplete` (it changed while it was read), `.infected` with the
  ///   signature, `.notScanned`, `.scanHeld` (it is published by itself later), `.unavailable` and the like after `resumeTimeout`.
  @discardableResult
  public func put(
    _ path: String, to topic: String, as name: String, options: PutOptions = PutOptions(),
    progress: (@Sendable (Int64) -> Void)? = nil
  ) async throws(MemQError) -> FileInfo {
    let source = try await DiskSource.open(path, self.threads)
    var put = FilePut(
      source: source, topic: topic, name: name, options: options, servers: self.servers,
      logger: self.logger, progress: progress)
    return try await put.run()
  }

  /// Puts one file from memory.
  @discardableResult
  public func put(
    bytes: [UInt8], to topic: String, as name: String, options: PutOptions = PutOptions()
  ) async throws(MemQError) -> FileInfo {
    var put = FilePut(
      source: BytesSource(bytes), topic: topic, name: name, options: options,
      servers: self.servers, logger: self.logger, progress: nil)
    return try await put.run()
  }

  /// - Parameter version: nil: the latest.
  /// - Throws: `.fileNotFound`, `.topicNotFound`.
  public func stat(
    _ topic: String, _ name: String, version: Int64? = nil
  ) async throws(MemQError) -> FileInfo {
    var request = Memq_V1_StatRequest()
    request.topic = topic
    request.name = name
    request.version = version ?? 0
    return FileInfo(
      try await self.servers.call(
        FileMethods.stat, request, timeout: self.timeout, retryFor: Admin.readRetry))
  }

  /// Hands out all files of a topic by name, in pages; the latest version of each.
  ///
  /// - Throws: `.topicNotFound`; what `page` throws.
  public func list(
    _ topic: String, prefix: String = "", page: ([FileInfo]) async throws(MemQError) -> Void
  ) async throws(MemQError) {
    try await self.servers.reach()
    var request = Memq_V1_ListRequest()
    request.topic = topic
    request.prefix = prefix
    let (address, channel) = self.servers.channel(.control)
    do {
      let pages = try await channel.stream(FileMethods.list, request)
      while let response = try await pages.next() {
        try await page(response.files.map(FileInfo.init))
      }
    } catch {
      throw Servers.naming(error, address)
    }
  }

  /// Deletes a file, all versions of it: its record first, then its body.
  ///
  /// - Throws: `.fileNotFound`, `.topicNotFound`.
  public func delete(_ topic: String, _ name: String) async throws(MemQError) {
    var request = Memq_V1_DeleteRequest()
    request.topic = topic
    request.name = name
    _ = try await self.servers.call(FileMethods.delete, request, timeout: self.timeout)
  }
}

extension MemQClient {
  /// - Parameter threads: for blocking file calls, shared by all puts and gets of the value returned.
  public func files(threads: Int = 4) -> FileClient {
    FileClient(
      servers: self.servers, threads: DiskThreads(name: "memq-file", count: threads),
      timeout: self.configuration.requestTimeout, logger: self.logger)
  }
}
