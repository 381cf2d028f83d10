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

  /// Runs until its task is cancelled.
  func run() async {
    while !Task.isCancelled {
      do {
        try await Task.sleep(for: self.context.configuration.finisherInterval)
      } catch {
        return
      }
      do throws(MemQError) {
        try await self.finishIdle()
        try await self.expireOpen()
      } catch {
        self.logger.debug("Finisher waits", metadata: ["error": "\(error)"])
      }
    }
  }

  /// One look at puts whose bytes are all there.
  func finishIdle() async throws(MemQError) {
    let idle = try await self.context.uploads.list(
      [.sealed, .judged, .publishing], idle: Self.idleMin, limit: Self.pagePuts)
    await self.each(idle) { await self.finish($0) }
  }

  /// One look at open puts that nobody has touched for the expiry time.
  func expireOpen() async throws(MemQError) {
    let expired = try await self.context.uploads.list(
      [.open], idle: self.context.configuration.uploadExpiry, limit: Self.pagePuts)
    await self.each(expired) { upload in
      guard self.mayTake(upload), let id = UploadID(bytes: upload.uploadID),
        (try? self.context.active.begin(id)) != nil
      else { return }
      defer { self.context.active.end(id) }
      await self.context.driver.abandon(upload, reason: "nobody finished it in time")
      self.context.metrics.finished("expired")
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
