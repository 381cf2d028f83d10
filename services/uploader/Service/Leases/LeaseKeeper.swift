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
import Metrics
import SwiftProtobuf

/// Owns this uploader's leases: asks for them, renews them at a third of their time, and tells each group's owner.
///
/// A lease runs from the moment its request was sent: metadata counts from when it came, which is later.
actor LeaseKeeper {
  private struct Held {
    let owner: GroupUploader
    let epoch: LeaseEpoch
    var validUntil: MonotonicInstant
  }

  private let context: UploaderContext
  private var held: SortedMap<Int32, Held> = [:]
  private var renewAt = MonotonicInstant.zero
  private var askedAt = MonotonicInstant.zero
  private var renewal: Task<Outcome<Void>, Never>?
  private var backoff: JitteredBackoff
  private(set) var problem: String? = "no leases were asked for yet"
  private var isEnded = false

  init(context: UploaderContext) {
    self.context = context
    self.backoff = JitteredBackoff(max: .seconds(5), entropy: context.entropy)
  }

  /// The owners of the groups held, by group.
  var owners: [GroupUploader] { self.held.values.map(\.owner) }

  func owner(of group: Int32) -> GroupUploader? { self.held[group]?.owner }

  /// Keeps the leases up until the task is cancelled.
  func run() async {
    while !Task.isCancelled {
      let now = self.context.clock.monotonic
      await self.dropExpired(now)
      if now >= self.renewAt || self.seesFreeGroup(now) { _ = await self.renewNow() }
      let wait = min(self.renewAt - self.context.clock.monotonic, .milliseconds(200))
      guard (try? await Task.sleep(for: max(wait, .milliseconds(10)))) != nil else { return }
    }
  }

  /// A group that nobody holds, seen in the image: asked for once a second at most.
  private func seesFreeGroup(_ now: MonotonicInstant) -> Bool {
    guard self.held.count < self.context.configuration.groupsMax,
      now - self.askedAt >= .seconds(1)
    else { return false }
    return self.context.cluster.image.uploadGroups.values.contains { $0.holder == nil }
  }

  /// Asks metadata now. Callers at the same time share one request.
  func renewNow() async -> Outcome<Void> {
    if let renewal = self.renewal { return await renewal.value }
    // Shared: the deadline of the call that asked first is not that of the others.
    let task = RPCScope.beyondCall {
      Task {
        let result = await Outcome { () async throws(MemQError) in try await self.renew() }
        self.renewal = nil
        return result
      }
    }
    self.renewal = task
    return await task.value
  }

  private func renew() async throws(MemQError) {
    guard !self.isEnded else { throw MemQError(.shuttingDown, "this uploader is shutting down") }
    let cluster = self.context.cluster
    let sent = self.context.clock.monotonic
    self.askedAt = sent
    do throws(MemQError) {
      let response = try await cluster.metadata.call(
        MetadataMethods.acquireUploadLeases,
        .with {
          $0.nodeID = cluster.nodeID.rawValue
          $0.nodeEpoch = cluster.nodeEpoch.rawValue
          $0.held = self.held.keys
          $0.moreMax = Int32(max(0, self.context.configuration.groupsMax - self.held.count))
        }, timeout: .seconds(5))
      guard !self.isEnded else { return }
      let ttl: Duration = .milliseconds(response.ttlMs)
      await self.take(response.leases, validUntil: sent + ttl)
      self.renewAt = sent + ttl / 3
      self.problem = nil
      self.backoff.reset()
    } catch {
      self.context.metrics.failed(.lease)
      self.renewAt = self.context.clock.monotonic + self.backoff.next()
      if self.problem == nil {
        self.context.logger.warning(
          "Upload leases can't be renewed", metadata: ["error": "\(error)"])
      }
      self.problem = "metadata gives no upload leases: \(error)"
      throw error
    }
    self.context.metrics.leases.record(self.held.count)
  }

  private func take(_ leases: [Memq_V1_UploadLease], validUntil: MonotonicInstant) async {
    var renewed: SortedMap<Int32, Held> = [:]
    var owners: [(GroupUploader, [UploadPacker.Position])] = []
    var lost = self.held
    for lease in leases {
      let epoch = LeaseEpoch(lease.leaseEpoch)
      let owner: GroupUploader
      if let old = self.held[lease.groupID], old.epoch == epoch {
        owner = old.owner
        lost[lease.groupID] = nil
      } else {
        owner = GroupUploader(group: lease.groupID, leaseEpoch: epoch, context: self.context)
        self.context.logger.info(
          "Upload lease taken",
          metadata: ["upload.group": "\(lease.groupID)", "lease.epoch": "\(epoch)"])
      }
      renewed[lease.groupID] = Held(owner: owner, epoch: epoch, validUntil: validUntil)
      owners.append((owner, lease.positions.compactMap { try? UploadPacker.Position($0) }))
    }
    self.held = renewed
    for old in lost.values { await self.tellLost(old) }
    for (owner, positions) in owners { await owner.leased(positions) }
  }

  private func dropExpired(_ now: MonotonicInstant) async {
    for (group, lease) in self.held where lease.validUntil <= now {
      self.held[group] = nil
      await self.tellLost(lease)
    }
  }

  private func tellLost(_ lease: Held) async {
    self.context.logger.notice(
      "Upload lease lost",
      metadata: ["upload.group": "\(lease.owner.group)", "lease.epoch": "\(lease.epoch)"])
    await lease.owner.lost()
  }

  /// Lets objects under way end, and gives the leases back.
  func drain(deadline: Duration) async {
    self.isEnded = true
    // Metadata that does not answer holds up nobody who waits for it.
    self.renewal?.cancel()
    let owners = self.owners
    let groups = self.held.keys
    await withTaskGroup(of: Void.self) { tasks in
      tasks.addTask { try? await Task.sleep(for: deadline) }
      tasks.addTask {
        await withTaskGroup(of: Void.self) { drains in
          for owner in owners { drains.addTask { await owner.drain() } }
        }
      }
      await tasks.next()
      for owner in owners { await owner.lost() }
      tasks.cancelAll()
    }
    self.held = [:]
    guard !groups.isEmpty else { return }
    let cluster = self.context.cluster
    do throws(MemQError) {
      _ = try await cluster.metadata.call(
        MetadataMethods.acquireUploadLeases,
        .with {
          $0.nodeID = cluster.nodeID.rawValue
          $0.nodeEpoch = cluster.nodeEpoch.rawValue
          $0.release = groups
        }, timeout: .seconds(1))
    } catch {
      self.context.logger.warning(
        "Upload leases were not given back; they run out", metadata: ["error": "\(error)"])
    }
  }
}
