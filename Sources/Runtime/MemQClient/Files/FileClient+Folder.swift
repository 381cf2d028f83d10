// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQSystem
import Synchronization

extension FileClient {
  /// What became of one entry of a folder.
  public enum FolderEvent: Sendable {
    case published(FileInfo)
    /// Refused or failed; the others go on.
    case failed(name: String, MemQError)
    /// A symbolic link, or something that is not a file.
    case skipped(name: String, why: String)
  }

  /// The sum of a folder's put.
  public struct FolderSummary: Hashable, Sendable {
    public var published = 0
    public var publishedBytes: Int64 = 0
    /// Refused by a verdict: infected, or not scanned.
    public var refused = 0
    public var failed = 0
    public var skipped = 0

    public init() {}
  }

  /// Puts every regular file below a folder under its path relative to it, behind `prefix`. Symbolic links are skipped. A file that fails
  /// does not stop the others.
  ///
  /// - Parameters:
  ///   - concurrency: puts at once, from 1 to 256. Small files wait for syncs, not for bytes: 32 share them, and hold up to 64 MiB.
  ///   - event: called once per entry, from several tasks, each of which goes on when it returns.
  /// - Throws: `.invalidArgument` when the folder cannot be read, `.topicNotFound`, `.unavailable`, `.cancelled`.
  public func putFolder(
    _ folder: String, to topic: String, prefix: String = "", concurrency: Int = 32,
    options: PutOptions = PutOptions(), event: @escaping @Sendable (FolderEvent) async -> Void
  ) async throws(MemQError) -> FolderSummary {
    precondition((1...256).contains(concurrency))
    let walk = try await self.threads.run { () throws(MemQError) in try FolderWalk(folder) }
    let run = FolderRun(files: self, walk: walk, topic: topic, prefix: prefix, options: options)
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<concurrency { group.addTask { await run.work(event) } }
    }
    return try run.finish()
  }
}

/// The workers of one folder's put.
private final class FolderRun: Sendable {
  private let files: FileClient
  private let walk: FolderWalk
  private let topic: String
  private let prefix: String
  private let options: FileClient.PutOptions
  private let state = Mutex((sum: FileClient.FolderSummary(), fatal: MemQError?.none))

  init(
    files: FileClient, walk: FolderWalk, topic: String, prefix: String,
    options: FileClient.PutOptions
  ) {
    self.files = files
    self.walk = walk
    self.topic = topic
    self.prefix = prefix
    self.options = options
  }

  /// Takes entries until there are none, or none can succeed.
  func work(_ event: @Sendable (FileClient.FolderEvent) async -> Void) async {
    while !Task.isCancelled, self.state.withLock({ $0.fatal == nil }) {
      let walk = self.walk
      guard let entry = try? await self.files.threads.run({ () throws(MemQError) in walk.next() })
      else { return }
      let done = await self.handle(entry)
      self.state.withLock { state in
        state.sum.count(done)
        if state.fatal == nil { state.fatal = Self.fatal(done) }
      }
      await event(done)
    }
  }

  private func handle(_ entry: FolderWalk.Entry) async -> FileClient.FolderEvent {
    switch entry {
    case .skipped(let name, let why): return .skipped(name: self.prefix + name, why: why)
    case .failed(let name, let error): return .failed(name: self.prefix + name, error)
    case .file(let path, let name):
      let full = self.prefix + name
      do throws(MemQError) {
        return .published(
          try await self.files.put(path, to: self.topic, as: full, options: self.options))
      } catch {
        return .failed(name: full, error)
      }
    }
  }

  /// Errors that every further file would meet, too.
  private static func fatal(_ event: FileClient.FolderEvent) -> MemQError? {
    guard case .failed(_, let error) = event else { return nil }
    switch error.code {
    case .topicNotFound, .topicDeleted, .unavailable, .cancelled, .unimplemented: return error
    default: return nil
    }
  }

  func finish() throws(MemQError) -> FileClient.FolderSummary {
    let (sum, fatal) = self.state.withLock { $0 }
    if let fatal { throw fatal }
    if Task.isCancelled { throw MemQError(.cancelled, "the put was cancelled") }
    return sum
  }
}

extension FileClient.FolderSummary {
  public mutating func count(_ event: FileClient.FolderEvent) {
    switch event {
    case .published(let info):
      self.published += 1
      self.publishedBytes += info.size
    case .failed(_, let error) where error.isVerdict: self.refused += 1
    case .failed: self.failed += 1
    case .skipped: self.skipped += 1
    }
  }
}

extension MemQError {
  /// A scan's verdict refused it.
  public var isVerdict: Bool { self.code == .infected || self.code == .notScanned }
}
