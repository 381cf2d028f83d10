// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
@testable import MemQMetadataService
import MemQModel
import MemQStore
import Testing

/// A state loaded anew, as after a compaction of the store's history.
@Suite struct ImageFeedTests {
  private static func entries(of cluster: PureCluster) -> [StoredEntry] {
    cluster.entries.values.filter { $0.key.hasPrefix(.memory) }
  }

  private static func whole(
    _ feed: ImageFeed, after revision: Revision?
  ) async throws -> (ClusterImage, Revision) {
    guard case .whole(let image, let after) = try await feed.next(after: revision) else {
      throw MemQError(.internalError, "a change, not the whole image")
    }
    return (image, after)
  }

  @Test func `a watcher of a state loaded anew gets the whole image once, and then what changes`()
    async throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    let cell = StateCell(limits: MetadataLimits())
    // The store has gone on by what is no part of the image: the offsets of groups.
    let read = Revision(cluster.revision.rawValue + 40)
    try cell.reload(Self.entries(of: cluster), at: read)
    let feed = ImageFeed(cell: cell, at: .zero)
    feed.reset(to: read)
    let (image, after) = try await Self.whole(feed, after: cluster.revision)
    #expect(image == cluster.state.image && after == read)
    // A node whose image stays behind what it is told gives its watch up.
    #expect(feed.latest == image.revision)

    cluster.revision = read
    try cluster.makeTopic("t")
    let delta = try #require(
      try cell.apply(
        WatchBatch(
          changes: Self.entries(of: cluster).filter { $0.revision > read }.map {
            StoreChange(key: $0.key, value: $0.value, revision: $0.revision)
          }, through: cluster.revision)))
    feed.append(delta, of: try #require(cell.read { $0.image }))
    guard case .change(let update) = try await feed.next(after: after) else {
      Issue.record("the whole image a second time")
      return
    }
    #expect(update.revision == cluster.revision.rawValue && feed.latest == cluster.revision)
  }

  @Test func `an image loaded anew is no older than before, and all in it is looked at`()
    throws
  {
    var cluster = try PureCluster()
    try cluster.joinReplicas(3)
    try cluster.makeTopic("t", partitions: 4, replicas: 3)
    let cell = StateCell(limits: MetadataLimits())
    try cell.reload(Self.entries(of: cluster), at: cluster.revision)
    let settled = cell.read { $0.settlementRevision }
    let seen = cell.read { $0.revision }
    // What changed last was deleted since: no entry tells of it.
    let entries = Self.entries(of: cluster).filter { $0.revision < seen }
    #expect(!entries.isEmpty && entries.count < Self.entries(of: cluster).count)
    try cell.reload(entries, at: seen.next)
    #expect(cell.read { $0.revision } == seen && cell.read { $0.image?.revision } == seen)
    #expect(cell.read { $0.settlementRevision } > settled)
  }
}
