// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQMetadata
import MemQModel
import MemQStore
import MemQSystem

/// Clears away what is over: deleted topics' remains, finished and forsaken puts, nodes that are gone. Each step can be done twice,
/// so that it goes on wherever it was interrupted.
struct Housekeeper: Sendable {
  /// Puts looked at in one round; the next round goes on behind them.
  private static let uploadsPerRound = 1_000
  /// Object ids looked at in one round for bars that forbid nothing any more.
  private static let objectIDsPerRound = 1_000
  /// Deleted topics looked at in one round.
  private static let tombstonesPerRound = 1_000
  /// A node that was away for longer keeps what it holds of topics deleted meanwhile.
  private static let tombstoneAge = Duration.seconds(90 * 86_400)

  private let instance: MetadataInstance
  private let runner: CommandRunner

  init(_ instance: MetadataInstance) {
    self.instance = instance
    self.runner = instance.runner
  }

  func run() async {
    do {
      try await self.clearGraves()
      try await self.forgetNodes()
      try await self.sweepForsaken()
      try await self.sweepFinished()
      try await self.sweepBars()
      try await self.sweepTombstones()
    } catch {
      guard error.code != .cancelled, !Task.isCancelled else { return }
      self.instance.logger.warning("Housekeeping broke off", metadata: ["error": "\(error)"])
    }
    self.measure()
  }

  private func measure() {
    let metrics = self.instance.metrics
    self.instance.cell.read { state in
      metrics.nodes.record(state.nodes.count)
      metrics.topics.record(state.topics.count)
      metrics.partitions.record(state.partitions.count)
      metrics.leaderlessPartitions.record(state.partitions.values.count { $0.value.leader == nil })
      metrics.damagedReplicas.record(
        state.partitions.values.reduce(0) { $0 + $1.value.damaged.count })
      metrics.failedVolumes.record(
        state.nodes.values.reduce(0) { sum, node in
          sum + (node.value.state == .gone ? 0 : node.value.volumes.count { $0.state == .failed })
        })
    }
  }

  // MARK: Deleted topics

  private func clearGraves() async throws(MemQError) {
    while let grave = self.instance.cell.read({ $0.graves.first?.value.value }) {
      try await self.clear(grave.id)
      self.instance.logger.info(
        "A deleted topic is cleared away",
        metadata: ["topic": "\(grave.name)", "topic.id": "\(grave.id)"])
    }
  }

  private func clear(_ topic: TopicID) async throws(MemQError) {
    while try await self.runner.run("clear-partitions", { $0.clearPartitions(of: topic) }) {}
    for group in self.instance.cell.read({ $0.groups.keys }) {
      try await self.clear(KeyRange(prefix: .offsets(group, topic)))
    }
    try await self.clearFiles(KeyRange(prefix: .files(topic)))
    try await self.clearFiles(KeyRange(prefix: .fileVersions(topic)))
    for shelf in [UploadShelf.active, .quarantined] {
      try await self.forEachUpload(on: shelf) { upload throws(MemQError) in
        guard upload.value.topic == topic else { return }
        try await self.abandon(upload, reason: "the topic was deleted")
      }
    }
    try await self.runner.run("close-grave") { $0.closeGrave(topic) }
  }

  /// Deletes all keys of a range.
  private func clear(_ range: KeyRange) async throws(MemQError) {
    while true {
      let page = try await self.instance.store.range(range, limit: clearingKeysPerTransaction)
      guard !page.entries.isEmpty else { return }
      try await self.runner.run("clear-keys") { $0.clear(page.entries.map(\.key)) }
    }
  }

  private func clearFiles(_ range: KeyRange) async throws(MemQError) {
    let now = self.instance.clock.wall
    while true {
      let page = try await self.instance.store.range(range, limit: 50)
      guard !page.entries.isEmpty else { return }
      var files: [(StoreKey, FileRecord)] = []
      for entry in page.entries { files.append((entry.key, try FileRecord(entry))) }
      let found = files
      try await self.runner.run("clear-files") { $0.clearFiles(found, at: now) }
    }
  }

  private func sweepTombstones() async throws(MemQError) {
    let oldest = self.instance.clock.wall.milliseconds - Self.tombstoneAge.milliseconds
    let range = KeyRange(prefix: .tombstones)
    let rest = self.instance.uploads.tombstoneSweep.map { range.after($0) } ?? range
    let page = try await self.instance.store.range(rest, limit: Self.tombstonesPerRound)
    var due: [StoreKey] = []
    for entry in page.entries where try GraveRecord(entry).deletedAt.milliseconds < oldest {
      due.append(entry.key)
    }
    self.instance.uploads.tombstoneSweep = page.hasMore ? page.entries.last?.key : nil
    guard !due.isEmpty else { return }
    let found = due
    try await self.runner.run("clear-keys") { $0.clear(found) }
  }

  // MARK: Puts

  private func forEachUpload(
    on shelf: UploadShelf, _ body: (Versioned<UploadRecord>) async throws(MemQError) -> Void
  ) async throws(MemQError) {
    var rest = KeyRange(prefix: shelf.prefix)
    while true {
      let page = try await self.instance.store.range(rest, limit: Self.uploadsPerRound)
      for entry in page.entries { try await body(try Versioned<UploadRecord>(entry)) }
      guard page.hasMore, let last = page.entries.last else { return }
      rest = rest.after(last.key)
    }
  }

  private func abandon(
    _ upload: Versioned<UploadRecord>, reason: String
  ) async throws(MemQError) {
    let now = self.instance.clock.wall
    let id = upload.value.id
    self.instance.uploads.forget(id)
    let reading = UploadReading(self.instance)
    _ = try await self.runner.run(
      "abandon-upload",
      reading: { attempt throws(MemQError) in
        attempt == 0 ? upload : try await reading.stored(id)
      }
    ) { state, known throws(MemQError) in
      guard let known else { return Plan(outcome: upload.value) }
      return state.abandon(known, reason: reason, at: now)
    }
  }

  /// Open puts that got no bytes for long.
  private func sweepForsaken() async throws(MemQError) {
    let oldest =
      self.instance.clock.wall.milliseconds
      - self.instance.configuration.uploadIdleMax.milliseconds
    try await self.forEachUpload(on: .active) { upload throws(MemQError) in
      guard upload.value.state == .open, upload.value.updatedAt.milliseconds < oldest else {
        return
      }
      try await self.abandon(upload, reason: "no bytes came for too long")
    }
  }

  /// Finished puts that nobody will ask for any more.
  private func sweepFinished() async throws(MemQError) {
    let oldest =
      self.instance.clock.wall.milliseconds
      - self.instance.configuration.uploadMemory.milliseconds
    let sweep = self.instance.uploads.finishedSweep
    let range = KeyRange(prefix: .doneUploads)
    let rest = sweep.map { range.after($0) } ?? range
    let page = try await self.instance.store.range(rest, limit: Self.uploadsPerRound)
    var due: [UploadID] = []
    for entry in page.entries {
      let upload = try UploadRecord(entry)
      if upload.updatedAt.milliseconds < oldest { due.append(upload.id) }
    }
    self.instance.uploads.finishedSweep = page.hasMore ? page.entries.last?.key : nil
    let found = due
    try await self.runner.run("forget-uploads") { $0.forgetUploads(found) }
  }

  // MARK: Bars

  /// Bars whose lease has passed on since: who barred the object could not take the bar away then.
  private func sweepBars() async throws(MemQError) {
    let range = KeyRange(prefix: .objectIDs)
    let rest = self.instance.uploads.barSweep.map { range.after($0) } ?? range
    let page = try await self.instance.store.range(rest, limit: Self.objectIDsPerRound)
    var bars: [(ObjectID, ObjectIDRecord)] = []
    for entry in page.entries {
      let record = try ObjectIDRecord(entry)
      if record.isBarred, let id = StoreKey.objectID(in: entry.key) { bars.append((id, record)) }
    }
    self.instance.uploads.barSweep = page.hasMore ? page.entries.last?.key : nil
    while !bars.isEmpty {
      let some = Array(bars.prefix(clearingKeysPerTransaction))
      bars.removeFirst(some.count)
      try await self.runner.run("remove-bars") { $0.removeBars(some) }
    }
  }

  // MARK: Nodes

  private func forgetNodes() async throws(MemQError) {
    for id in try await self.instance.controller.forgottenNodes() {
      try await self.runner.run("forget-node") { $0.forget(id) }
    }
  }
}
