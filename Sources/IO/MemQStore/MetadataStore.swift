// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQMetadata
public import MemQModel

/// Entries of a range, in key order.
public struct StoreReading: Hashable, Sendable {
  public var entries: [StoredEntry]
  /// True when the limit cut the reading short.
  public var hasMore: Bool
  /// The store's revision when it was read.
  public var revision: Revision

  public init(entries: [StoredEntry], hasMore: Bool, revision: Revision) {
    self.entries = entries
    self.hasMore = hasMore
    self.revision = revision
  }
}

/// Where metadata is kept: ordered keys, transactions by compare-and-set, watches, leases. Small on purpose, so that several
/// stores offer the very same; one conformance suite runs on each of them.
///
/// All of it is linearizable: what a call has answered, each later call sees.
public protocol MetadataStore: AnyObject, Sendable {
  /// The entries of up to 126 keys, nil for those that do not exist; all of one revision.
  func get(_ keys: [StoreKey]) async throws(MemQError) -> [StoredEntry?]

  /// Entries of a range, at most `limit`; all of one revision. Large ones are read in pages underneath.
  func range(_ range: KeyRange, limit: Int) async throws(MemQError) -> StoreReading

  /// Runs transactions in order, each by itself; the first conflict skips the rest. Answers when they are durable. Who waits at
  /// the same time shares one sync.
  ///
  /// - Throws: `.transactionTooLarge` (nothing was done); `.unavailable` when the store has failed, can't be reached or is closed and
  ///   nothing was done, `.outcomeUnknown` when it failed on the way. Of a list, earlier ones may have been done.
  func commit(_ transactions: [Transaction]) async throws(MemQError) -> [CommitVerdict]

  /// Changes of the range after a revision, in order, whole transactions at a time. A store that is away for a while ends no watch.
  ///
  /// - Throws: `.revisionCompacted`, here or at the first `next()`, when those of the next revision are not kept any more: read, then
  ///   watch from there.
  func watch(_ range: KeyRange, after revision: Revision) throws(MemQError) -> any StoreWatch

  /// Forgets the history up to a revision, inclusive. Watches that are not past it end with `.revisionCompacted`.
  func compact(through revision: Revision) async throws(MemQError)

  /// The latest durable revision that this store has seen.
  var revision: Revision { get }

  /// A lease that ends `ttl` after it was last renewed; keys put under it are deleted then.
  func grantLease(_ ttl: Duration) async throws(MemQError) -> StoreLeaseID
  /// - Throws: `.leaseLost` when it has ended.
  func renewLease(_ id: StoreLeaseID) async throws(MemQError)
  /// Ends a lease now. Nothing happens when it has ended.
  func revokeLease(_ id: StoreLeaseID) async throws(MemQError)
  /// Deletes the keys of leases that ran out. Stores that do so by themselves do nothing here.
  func expireLeases() async throws(MemQError)

  /// Finishes what was begun; later calls fail with `.unavailable`.
  func close() async
}

/// What a watch has seen: the changes of its range up to a revision.
public struct WatchBatch: Hashable, Sendable {
  /// Empty when the store moved on without touching the range; not every store tells that at once.
  public var changes: [StoreChange]
  public var through: Revision

  public init(changes: [StoreChange], through: Revision) {
    self.changes = changes
    self.through = through
  }
}

/// Changes as they come. One consumer.
public protocol StoreWatch: Sendable {
  /// What came next; waits until the store moves on.
  ///
  /// - Throws: `.revisionCompacted` when the consumer is too slow and history is gone; `.cancelled`; `.unavailable` when the store
  ///   is closed.
  func next() async throws(MemQError) -> WatchBatch
}

/// Limits of stores.
public enum StoreLimits {
  public static let keysPerGetMax = 126
  /// History kept for watches: about a minute of busy metadata.
  public static let historyChangesMax = 65_536
  public static let historyBytesMax = 64 << 20
}
