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
  /// What the passes of a group have seen since its first object.
  private var retentions: SortedMap<Int32, ObjectRetention> = [:]
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
    let isLast = !page.hasMore && page.objects.count == objects.count
    self.cursors[group] = isLast ? nil : objects.last?.sequence
    var retention = after == 0 ? ObjectRetention() : self.retentions[group] ?? ObjectRetention()
    self.retentions[group] = nil
    // Asked for after the list: what is missing in them now was deleted after those objects were announced.
    if !objects.isEmpty { try await self.leases.renewNow().get() }
    let logStarts = await self.logStarts(owner)
    guard await self.leases.owner(of: group) === owner else { return }
    for object in objects {
      guard let footer = try await self.footer(of: object) else { continue }
      if CollectionPlanner.isDead(footer, logStarts) {
        try await self.delete(object)
      } else {
        retention.add(footer, announcedAt: object.announcedAt)
      }
    }
    if isLast {
      try await self.applyRetention(retention)
    } else {
      self.retentions[group] = retention
    }
  }

  /// Asks leaders to let their logs begin where retention lets them; the objects below go in a later pass.
  private func applyRetention(_ retention: ObjectRetention) async throws(MemQError) {
    let image = self.context.cluster.image
    let now = self.context.clock.wall.milliseconds
    func settings(_ partition: TopicPartition) -> TopicSettings? {
      image.topics[partition.topic]?.settings
    }
    let sized = retention.partitions.filter { settings($0)?.retentionBytes != nil }
    let watch = LeaderWatch(cluster: self.context.cluster, timeout: .seconds(5))
    let reports = sized.isEmpty ? [:] : await watch.reports(of: sized).reports
    var starts: [(partition: TopicPartition, offset: Offset)] = []
    for partition in retention.partitions {
      guard let settings = settings(partition), let known = image.partitions[partition] else {
        continue
      }
      let report = reports[partition]
      let waiting = report.map { max(0, $0.highWatermark - known.uploadedOffset) } ?? 0
      let limits = ObjectRetention.Limits(
        expiresBefore: settings.retention.map { Timestamp(milliseconds: now - $0.milliseconds) },
        bytes: report == nil ? nil : settings.retentionBytes,
        bytesNotUploaded: waiting * (report?.bytesPerRecord ?? 0))
      if let start = retention.start(of: partition, limits), start > known.logStart {
        starts.append((partition, start))
      }
    }
    try await watch.deleteRecords(starts)
  }

  private func logStarts(_ owner: GroupUploader) async -> SortedMap<TopicPartition, Offset?> {
    let image = self.context.cluster.image
    var starts: SortedMap<TopicPartition, Offset?> = [:]
    for partition in await owner.positions.keys {
      starts[partition] = .some(image.partitions[partition]?.logStart)
    }
    return starts
  }

  private func footer(of object: ObjectRef) async throws(MemQError) -> ObjectFooter? {
    do throws(MemQError) {
      return try await self.context.reader.footer(of: object)
    } catch {
      switch error.code {
      // Without its index nobody knows whether it is needed: it stays in the list, and readers are told of the damage.
      case .objectNotFound, .objectCorrupt, .feature: return nil
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
    // Metadata was restored: what it does not know of may have been announced before, and its records may be nowhere else.
    guard self.context.cluster.image.incarnation == Incarnation(1) else { return }
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
