// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRuntime
import MemQSystem

/// Takes puts further that nobody drives: held ones, released ones, those whose ingest died, and open ones that expired.
struct Finisher: Sendable {
  /// A put that was changed more recently than this has a driver, or gets one.
  static let idleMin: Duration = .seconds(2)
  static let pagePuts = 100

  let context: PutContext
  let logger: Logger

  /// Runs until its task is cancelled. Puts that need no scanner any more are looked at by themselves: those that are held,
  /// or wait long for a scan, keep none of them waiting.
  func run() async {
    await withTaskGroup(of: Void.self) { group in
      group.addTask {
        await self.repeated { () async throws(MemQError) in
          try await self.finishIdle([.judged, .publishing])
        }
      }
      group.addTask {
        await self.repeated { () async throws(MemQError) in try await self.finishIdle([.sealed]) }
      }
      group.addTask {
        await self.repeated { () async throws(MemQError) in try await self.expireOpen() }
      }
    }
  }

  private func repeated(_ look: @Sendable () async throws(MemQError) -> Void) async {
    while !Task.isCancelled {
      do {
        try await Task.sleep(for: self.context.configuration.finisherInterval)
      } catch {
        return
      }
      do throws(MemQError) {
        try await look()
      } catch {
        self.logger.debug("Finisher waits", metadata: ["error": "\(error)"])
      }
    }
  }

  /// One look at all puts of these states whose bytes are all there.
  func finishIdle(_ states: [Memq_V1_UploadState]) async throws(MemQError) {
    try await self.each(states, idle: Self.idleMin) { await self.finish($0) }
  }

  /// One look at open puts that nobody has touched for the expiry time.
  func expireOpen() async throws(MemQError) {
    try await self.each([.open], idle: self.context.configuration.uploadExpiry) { upload in
      guard self.mayTake(upload), let id = UploadID(bytes: upload.uploadID),
        (try? self.context.active.begin(id)) != nil
      else { return }
      defer { self.context.active.end(id) }
      await self.context.driver.abandon(upload, reason: "nobody finished it in time")
      self.context.metrics.finished("expired")
    }
  }

  /// Page by page, oldest change first: what stays as it is stands before the others for ever.
  private func each(
    _ states: [Memq_V1_UploadState], idle: Duration,
    _ body: @escaping @Sendable (Memq_V1_UploadRecord) async -> Void
  ) async throws(MemQError) {
    var last: Memq_V1_UploadRecord?
    while !Task.isCancelled {
      let page = try await self.context.uploads.list(
        states, idle: idle, after: last, limit: Self.pagePuts)
      await self.each(page.uploads, body)
      guard page.hasMore else { return }
      last = page.uploads.last
    }
  }

  private func each(
    _ uploads: [Memq_V1_UploadRecord],
    _ body: @escaping @Sendable (Memq_V1_UploadRecord) async -> Void
  ) async {
    let atOnce = self.context.configuration.finisherPutsMax
    await withTaskGroup(of: Void.self) { group in
      for (index, upload) in uploads.enumerated() {
        if index >= atOnce { await group.next() }
        group.addTask { await body(upload) }
      }
    }
  }

  private func mayTake(_ upload: Memq_V1_UploadRecord) -> Bool {
    let image = self.context.cluster.image
    let idle = Duration.milliseconds(
      max(0, self.context.service.clock.wall.milliseconds - upload.updatedAtMs))
    return UploadOwnership.mayTake(
      driver: upload.driver == 0 ? nil : NodeID(upload.driver), me: self.context.cluster.nodeID,
      isDrivenHere: false, idle: idle, isLive: { image.nodes[$0]?.state.isLive == true })
  }

  private func finish(_ upload: Memq_V1_UploadRecord) async {
    guard self.mayTake(upload), let id = UploadID(bytes: upload.uploadID),
      (try? self.context.active.begin(id)) != nil
    else { return }
    defer { self.context.active.end(id) }
    do throws(MemQError) {
      _ = try await self.context.driver.drive(upload)
      self.context.metrics.finished("published")
      self.logger.info(
        "Put finished on behalf of its client",
        metadata: ["upload": "\(upload.label)", "file": "\(upload.name)"])
    } catch {
      switch error.code {
      case .infected, .notScanned: self.context.metrics.finished("quarantined")
      case .topicDeleted:
        await self.context.driver.abandon(upload, reason: error.message)
        self.context.metrics.finished("abandoned")
      default: self.context.metrics.finished("held")
      }
      self.logger.debug(
        "Put stays as it is",
        metadata: ["upload": "\(upload.label)", "error": "\(error)"])
    }
  }
}
