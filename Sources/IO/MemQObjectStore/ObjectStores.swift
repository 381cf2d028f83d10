// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQSystem

/// Which object store, as ingest, uploader and scanner are told alike.
public struct ObjectStoreConfiguration: Hashable, Sendable {
  public enum Place: Hashable, Sendable {
    /// A folder on this machine (or one that all machines mount), made when it is missing; threads for its file work.
    case folder(String, threads: Int)
    case s3(S3Configuration)
  }

  public var place: Place

  public init(_ place: Place) { self.place = place }

  public init(folder: String, threads: Int = 4) {
    self.init(.folder(folder, threads: threads))
  }

  public func validate() throws(MemQError) {
    switch self.place {
    case .s3(let configuration): try configuration.validate()
    case .folder(let folder, let threads):
      guard !folder.isEmpty else {
        throw MemQError(
          .configurationInvalid, "the object store needs a folder", subject: "objects")
      }
      guard (1...64).contains(threads) else {
        throw MemQError(
          .configurationInvalid, "the object store needs 1-64 threads", subject: "object.threads",
          limit: 64, actual: Int64(threads))
      }
    }
  }
}

public enum ObjectStores {
  /// Opens the store. A folder is made, and leftovers of crashed writers are cleared, before it returns; a bucket is asked for
  /// a page, so that what is configured wrong is told at once.
  ///
  /// - Throws: `.configurationInvalid`, `.objectStoreUnavailable`.
  public static func make(
    _ configuration: ObjectStoreConfiguration, clock: any MemQClock = SystemClock(), logger: Logger
  ) async throws(MemQError) -> any ObjectStore {
    try configuration.validate()
    switch configuration.place {
    case .folder(let folder, let threads):
      return try await FolderObjectStore.open(
        folder, threads: threads, clock: clock, logger: logger)
    case .s3(let bucket):
      return try await S3ObjectStore.open(bucket, clock: clock, logger: logger)
    }
  }
}
