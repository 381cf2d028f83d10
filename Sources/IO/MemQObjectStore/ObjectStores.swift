// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQSystem

/// Which object store, as ingest, uploader and scanner are told alike.
public struct ObjectStoreConfiguration: Hashable, Sendable {
  /// A folder on this machine (or one that all machines mount). Made when it is missing.
  public var folder: String
  /// Threads for the folder's file work.
  public var threads: Int

  public init(folder: String, threads: Int = 4) {
    self.folder = folder
    self.threads = threads
  }

  public func validate() throws(MemQError) {
    guard !self.folder.isEmpty else {
      throw MemQError(
        .configurationInvalid, "the object store needs a folder", subject: "objects.folder")
    }
    guard (1...64).contains(self.threads) else {
      throw MemQError(
        .configurationInvalid, "the object store needs 1-64 threads", subject: "objects.threads",
        limit: 64, actual: Int64(self.threads))
    }
  }
}

public enum ObjectStores {
  /// Opens the store; the folder is made, and leftovers of crashed writers are cleared, before it returns.
  ///
  /// - Throws: `.configurationInvalid`, `.objectStoreUnavailable`.
  public static func make(
    _ configuration: ObjectStoreConfiguration, clock: any MemQClock = SystemClock(), logger: Logger
  ) async throws(MemQError) -> any ObjectStore {
    try configuration.validate()
    return try await FolderObjectStore.open(configuration, clock: clock, logger: logger)
  }
}
