// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQObjectStore
import MemQPacking
import MemQRPC
import MemQRuntime
import MemQSystem
import SwiftProtobuf

/// Deletes from the store what nobody can read any more: objects of deleted topics and past their retention, objects
/// that were never announced, bodies that no file names.
///
/// The list's entry goes first, then the bytes: after a crash in between they are bytes that nobody announced, and the
/// search for those finds them. One pass looks at a bounded number of objects and goes on there the next time.
actor Collector {
  /// Objects looked at in one pass and group: their footers are one request each.
  private static let objectsPerPass = 1_000
  /// Objects of one group that are compared with the list: their ids are in memory for it.
  private static let idsMax = 1_000_000
  /// Bodies asked for at a time.
  private static let bodiesPerPage = 100

  private let context: UploaderContext
  private let leases: LeaseKeeper
  /// Where the next pass of a group goes on.
  private var cursors: SortedMap<Int32, Int64> = [:]
  /// When a group was searched for orphans last.
  private var searched: SortedMap<Int32, MonotonicInstant> = [:]

  init(context: UploaderContext, leases: LeaseKeeper) {
    self.context = context
    self.leases = leases
  }

  func run() async {
    while (try? await Task.sleep(for: self.context.configuration.collectInterval)) != nil {
      for owner in await self.leases.owners where !Task.isCancelled {
        await self.attempt("objects") { () async throws(MemQError) in
          try await self.collectObjects(owner)
        }
        await self.attempt("orphans") { () async throws(MemQError) in
          try await self.collectOrphans(owner)
        }
      }
      if self.isFirstUploader {
        await self.attempt("bodies") { () async throws(MemQError) in
          try await self.collectBodies()
        }
      }
    }
  }

  private func attempt(_ what: String, _ body: () async throws(MemQError) -> Void) async {
    do throws(MemQError) {
      try await body()
    } catch {
      guard !Task.isCancelled else { return }
      self.context.metrics.failed(.collect)
      self.context.logger.warning(
        "A pass of the collector failed; the next one goes on",
        metadata: ["collect": "\(what)", "error": "\(error)"])
    }
  }

  // MARK: Objects

  private func collectObjects(_ owner: GroupUploader) async throws(MemQError) {
    let (group, cluster) = (owner.group, self.context.cluster)
    let after = self.cursors[group] ?? 0
    let page = try await ObjectList.page(group, after: after, cluster.metadata)
    let objects = page.objects.prefix(Self.objectsPerPass)
    self.cursors[group] =
      page.hasMore || page.objects.count > objects.count ? objects.last?.sequence : nil
    guard !objects.isEmpty else { return }
    // Asked for after the list: what is missing in them now was deleted after those objects were announced.
    try await self.leases.renewNow().get()
    let standings = await self.standings(owner)
    guard await self.leases.owner(of: group) === owner else { return }
    for object in objects {
      if try await self.isDead(object, standings) { try await self.delete(object) }
    }
  }

  private func standings(
    _ owner: GroupUploader
  ) async -> SortedMap<TopicPartition, CollectionPlanner.Standing> {
    let partitions = await owner.positions.keys
    let watch = LeaderWatch(cluster: self.context.cluster, timeout: .seconds(5))
    let (reports, _) = await watch.reports(of: partitions)
    let image = self.context.cluster.image
    let now = self.context.clock.wall.milliseconds
    var standings: SortedMap<TopicPartition, CollectionPlanner.Standing> = [:]
    for partition in partitions {
      let retention = image.topics[partition.topic]?.settings.retention
      standings[partition] = CollectionPlanner.Standing(
        logStart: reports[partition]?.logStart,
        expiresBefore: retention.map { Timestamp(milliseconds: now - $0.milliseconds) })
    }
    return standings
  }

  private func isDead(
    _ object: ObjectRef, _ standings: SortedMap<TopicPartition, CollectionPlanner.Standing>
  ) async throws(MemQError) -> Bool {
    do throws(MemQError) {
      return CollectionPlanner.isDead(try await self.context.reader.footer(of: object), standings)
    } catch {
      switch error.code {
      // Without its index nobody knows whether it is needed: it stays in the list, and readers are told of the damage.
      case .objectNotFound, .objectCorrupt, .feature: return false
      default: throw error
      }
    }
  }

  private func delete(_ object: ObjectRef) async throws(MemQError) {
    _ = try await self.context.cluster.metadata.call(
      MetadataMethods.removeObject,
      .with {
        $0.objectID = object.id.wire
        $0.groupID = object.groupID
        $0.sequence = object.sequence
      }, timeout: .seconds(10))
    try await self.context.store.delete(
      try ObjectKey(object.key), timeout: self.context.configuration.storeTimeout)
    self.context.metrics.collected(.object)
    self.context.logger.info(
      "Object collected", metadata: ["object.key": "\(object.key)", "bytes": "\(object.byteCount)"])
  }

  // MARK: Orphans

  private func collectOrphans(_ owner: GroupUploader) async throws(MemQError) {
    let group = owner.group
    let now = self.context.clock.monotonic
    if let last = self.searched[group], now - last < self.context.configuration.orphanInterval {
      return
    }
    // The store first: what is announced between the two looks is in the second.
    let stored = try await Orphans.stored(group, self.context)
    guard stored.count <= Self.idsMax else {
      throw MemQError(
        .limitReached, "too many objects to search for orphans", subject: "upload group \(group)",
        limit: Int64(Self.idsMax), actual: Int64(stored.count))
    }
    var suspects = Set(stored)
    var after: Int64 = 0
    while !suspects.isEmpty {
      let page = try await ObjectList.page(group, after: after, self.context.cluster.metadata)
      for object in page.objects { suspects.remove(object.id) }
      guard page.hasMore, let last = page.objects.last else { break }
      after = last.sequence
    }
    for id in stored where suspects.contains(id) {
      guard await self.leases.owner(of: group) === owner else { return }
      guard await owner.inFlight != id else { continue }
      if try await Orphans.remove(id, group: group, self.context) {
        self.context.metrics.collected(.orphan)
        self.context.logger.info(
          "Object that was never announced collected",
          metadata: ["object": "\(id)", "upload.group": "\(group)"])
      }
    }
    self.searched[group] = now
  }

  // MARK: Bodies

  /// One uploader deletes dropped bodies; two would only do it twice.
  private var isFirstUploader: Bool {
    self.context.cluster.image.liveNodes(.uploader).first?.id == self.context.cluster.nodeID
  }

  /// A body that can't be deleted now stays in the list for the next pass and holds up no other.
  private func collectBodies() async throws(MemQError) {
    var failure: MemQError?
    var after = ""
    while !Task.isCancelled {
      let from = after
      let response = try await self.context.cluster.metadata.call(
        MetadataMethods.listDroppingBodies,
        .with {
          $0.limit = Int32(Self.bodiesPerPage)
          $0.after = from
        }, timeout: .seconds(10))
      for text in response.bodyKeys where !Task.isCancelled {
        do throws(MemQError) { try await self.collectBody(text) } catch { failure = error }
      }
      guard response.bodyKeys.count == Self.bodiesPerPage, let last = response.bodyKeys.last else {
        break
      }
      after = last
    }
    if let failure { throw failure }
  }

  private func collectBody(_ text: String) async throws(MemQError) {
    try await self.context.store.delete(
      try BodyWrites.bodyKey(text), timeout: self.context.configuration.storeTimeout)
    _ = try await self.context.cluster.metadata.call(
      MetadataMethods.forgetBody, .with { $0.bodyKey = text }, timeout: .seconds(10))
    self.context.metrics.collected(.body)
  }
}
