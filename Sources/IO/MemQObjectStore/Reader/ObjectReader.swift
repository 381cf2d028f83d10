// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
public import MemQModel
public import MemQPacking
public import NIOCore

/// Batches read from an object.
public struct ColdRead: Sendable {
  /// Whole record batches v2, one after another, from the one that holds the offset asked for.
  public var batches: ByteBuffer
  /// First offset of the first batch; may lie below the offset asked for.
  public var baseOffset: Offset
  /// Offset to go on with.
  public var nextOffset: Offset
  /// Leader epoch of the record before it.
  public var lastEpoch: LeaderEpoch
}

/// Lists a group's objects by sequence after `afterSequence`: MetadataService.ListObjects, as its caller reaches it.
public typealias ObjectLister =
  @Sendable (_ group: Int32, _ afterSequence: Int64) async throws(MemQError) -> (
    objects: [ObjectRef], hasMore: Bool
  )

/// A partition's uploaded offset as its caller knows it; nil: unknown.
public typealias UploadedOffsets = @Sendable (TopicPartition) -> Offset?

/// The cold half of every partition's log: the same batches under the same offsets, from objects.
///
/// Footers are read once and folded into an index by group; bytes are read in spans of whole blocks (8 MiB), checked
/// against their CRC-32C, and kept in a bounded cache. Many readers of one span cause one request. Use it for offsets
/// below the partition's uploaded offset.
public final class ObjectReader: Sendable {
  public struct Configuration: Hashable, Sendable {
    /// Bytes of spans kept in memory.
    public var spanCacheBytes = 128 << 20
    /// Bytes of one ranged read, at least one block (1 MiB).
    public var spanBytes = 8 << 20
    /// Bytes of footers kept in memory.
    public var footerCacheBytes = 64 << 20
    /// Requests to the store at a time.
    public var requestsMax = 16
    /// One request to the store.
    public var requestTimeout: Duration = .seconds(30)
    public init() {}
  }

  private let core: ObjectReaderCore

  /// - Parameter uploaded: tells offsets that an unreadable object may hold from those that no object can hold yet.
  public init(
    store: any ObjectStore, configuration: Configuration = Configuration(), logger: Logger,
    uploaded: @escaping UploadedOffsets = { _ in nil }, lister: @escaping ObjectLister
  ) {
    self.core = ObjectReaderCore(
      store: store, configuration: configuration, logger: logger, uploaded: uploaded,
      lister: lister)
  }

  /// Batches from the one that holds `offset` on, at least one, up to `maxBytes`, all of one run.
  ///
  /// - Parameter group: the partition's upload group.
  /// - Throws: `.offsetOutOfRange` when no object holds the offset (below the log start, or not uploaded);
  ///   `.objectCorrupt`, `.objectStoreUnavailable`, and what the lister throws.
  public func read(
    _ partition: TopicPartition, group: Int32, from offset: Offset, maxBytes: Int
  ) async throws(MemQError) -> ColdRead {
    try await self.core.read(partition, group: group, from: offset, maxBytes: maxBytes)
  }

  /// Whether a reader that goes on at `offset`, and that read the record before it in epoch `lastEpoch`, has read what the objects do not hold
  /// there: it read records that were lost before others were uploaded under their offsets. Nil when they agree, or when no object
  /// holds the record before the offset.
  ///
  /// Costs nothing but a look into a footer that is mostly there; only where they part more footers are read, as many as a binary search takes.
  ///
  /// - Parameters:
  ///   - logStart: the first offset that exists; nobody goes on below it.
  /// - Throws: as `read`, without `.offsetOutOfRange`.
  public func truncation(
    _ partition: TopicPartition, group: Int32, forReaderAt offset: Offset, lastEpoch: LeaderEpoch,
    logStart: Offset
  ) async throws(MemQError) -> LogTruncation? {
    try await self.core.truncation(
      partition, group: group, forReaderAt: offset, lastEpoch: lastEpoch, logStart: logStart)
  }

  /// The first offset whose batch has a record of this timestamp or a later one; nil when no object has.
  public func offset(
    _ partition: TopicPartition, group: Int32, atOrAfter timestamp: Timestamp
  ) async throws(MemQError) -> Offset? {
    try await self.core.offset(partition, group: group, atOrAfter: timestamp)
  }

  /// An object's index, from the cache or by one ranged read.
  public func footer(of object: ObjectRef) async throws(MemQError) -> ObjectFooter {
    try await self.core.footer(of: object)
  }
}
