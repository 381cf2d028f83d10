// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import CoreMetrics
import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQStore
import MemQSystem
import SwiftProtobuf

/// One instance's part in choosing the controller: whoever writes the controller's key when there is none is it, as long as the lease
/// lives under which the key stands.
struct Election: Sendable {
  private let instance: MetadataInstance
  private let node: MetadataNode
  private let own: NodeUUID
  private let ttl: Duration

  init(_ instance: MetadataInstance, _ node: MetadataNode, own: NodeUUID) {
    self.instance = instance
    self.node = node
    self.own = own
    self.ttl = node.configuration.controllerLease
  }

  private var clock: any MemQClock { self.instance.clock }
  private var logger: Logger { self.instance.logger }
  private var authority: Authority { self.instance.authority }
  private var store: any MetadataStore { self.instance.store }

  /// Until cancelled, or this instance is of no use any more.
  func run() async {
    while !Task.isCancelled, !self.authority.isRetired {
      await self.standBy()
      guard !Task.isCancelled, !self.authority.isRetired else { return }
      do {
        try await self.stand()
      } catch {
        guard error.code != .cancelled, !Task.isCancelled else { return }
        self.logger.warning("Could not become the controller", metadata: ["error": "\(error)"])
        try? await Task.sleep(for: .milliseconds(200))
      }
    }
  }

  // MARK: Another one decides

  /// Keeps this instance's row in the cluster, until there is no controller.
  private func standBy() async {
    let membership = Task { await StandbyMembership(self.instance, self.node, own: self.own).run() }
    while !Task.isCancelled, !self.authority.isRetired,
      self.instance.cell.read({ $0.controller }) != nil
    {
      await self.authority.changed.wait(atMost: .seconds(1))
    }
    membership.cancel()
    await membership.value
  }

  // MARK: This one decides

  private func stand() async throws(MemQError) {
    let asked = self.clock.monotonic
    let lease = try await self.store.grantLease(self.ttl)
    let record = ControllerRecord(uuid: self.own, address: self.instance.configuration.address)
    let key = StoreKey.controller
    let verdict: CommitVerdict
    do throws(MemQError) {
      verdict = try await self.store.commit([
        Transaction([.absent(key)], [.put(key, record.encoded(for: key), lease: lease)])
      ])[0]
    } catch {
      await self.giveBack(lease)
      throw error
    }
    switch verdict {
    case .committed(let revision):
      await self.reign(revision, lease, until: asked + self.ttl)
      self.authority.stepDown()
      await self.giveBack(lease)
    case .conflict(let revision):
      await self.giveBack(lease)
      // Who was faster is on its way into the state.
      await self.instance.cell.applied(revision, atMost: .milliseconds(500))
    case .skipped: preconditionFailure("a single transaction is not skipped")
    }
  }

  private func giveBack(_ lease: StoreLeaseID) async {
    let store = self.store
    // Also when this task is cancelled: the next one need not wait for the lease's end then.
    await Task.detached { try? await store.revokeLease(lease) }.value
  }

  /// Decides until the key is not its own any more, or it is cancelled.
  private func reign(
    _ revision: Revision, _ lease: StoreLeaseID, until: MonotonicInstant
  ) async {
    self.authority.enter(.revision(.controller, revision), until: until)
    await withTaskGroup(of: Void.self) { tasks in
      tasks.addTask { await self.renew(lease) }
      tasks.addTask { await self.waitForLoss(of: revision) }
      tasks.addTask { await self.decide(from: revision) }
      await tasks.next()
      self.authority.stepDown()
      self.instance.metrics.isController.record(0)
      tasks.cancelAll()
    }
    self.logger.notice("This metadata instance is not the controller any more")
  }

  /// Ends when the lease has ended. While the store is away it goes on trying: nobody else becomes the controller then.
  private func renew(_ lease: StoreLeaseID) async {
    while !Task.isCancelled {
      try? await Task.sleep(for: self.ttl / 4)
      let asked = self.clock.monotonic
      do {
        try await self.store.renewLease(lease)
        self.authority.extend(until: asked + self.ttl)
      } catch {
        guard error.code == .leaseLost else { continue }
        return
      }
    }
  }

  private func waitForLoss(of revision: Revision) async {
    await self.instance.cell.applied(revision)
    while !Task.isCancelled, !self.authority.isStandby,
      self.instance.cell.read({ $0.controller?.revision }) == revision
    {
      await self.authority.changed.wait(atMost: .seconds(1))
    }
  }

  /// Puts itself in the picture, then judges, clears away, and keeps the store's history short.
  private func decide(from revision: Revision) async {
    await self.instance.cell.applied(revision)
    let controller: Controller
    do {
      let own = try await self.instance.enter(self.node, as: self.own)
      controller = self.node.controller(own.id, self.instance)
      try await controller.begin()
    } catch {
      self.logger.warning("Could not take over", metadata: ["error": "\(error)"])
      return
    }
    guard !Task.isCancelled else { return }
    self.authority.decide(controller)
    self.instance.metrics.isController.record(1)
    self.logger.notice(
      "This metadata instance is the controller", metadata: ["revision": "\(revision)"])
    await withTaskGroup(of: Void.self) { tasks in
      tasks.addTask { await self.instance.judge(controller) }
      tasks.addTask { await self.instance.judge(controller.groups) }
      tasks.addTask { await self.instance.clean(controller) }
      tasks.addTask { await self.forgetHistory() }
      tasks.addTask { await self.instance.writeSnapshots() }
    }
    // Members that wait go to whoever decides next.
    await controller.groups.close()
  }

  /// Changes older than the interval are forgotten; a watch that is so far behind reads anew.
  private func forgetHistory() async {
    guard let interval = self.instance.configuration.historyInterval else { return }
    while !Task.isCancelled {
      let mark = self.store.revision
      try? await Task.sleep(for: interval)
      guard !Task.isCancelled, !self.authority.isSuspended else { continue }
      do {
        try await self.store.compact(through: mark)
      } catch {
        self.logger.warning(
          "The store's history could not be shortened", metadata: ["error": "\(error)"])
      }
    }
  }
}

/// A standing-by instance's row in the cluster: it registers with the controller and says that it lives, as every other node.
private struct StandbyMembership {
  private let instance: MetadataInstance
  private let node: MetadataNode
  private let own: NodeUUID

  init(_ instance: MetadataInstance, _ node: MetadataNode, own: NodeUUID) {
    self.instance = instance
    self.node = node
    self.own = own
  }

  func run() async {
    while !Task.isCancelled {
      do {
        try await self.attend()
      } catch {
        self.instance.logger.debug(
          "No session with the controller", metadata: ["error": "\(error)"])
      }
      try? await Task.sleep(for: .milliseconds(200))
    }
  }

  private func attend() async throws {
    guard let known = self.instance.cell.read({ $0.controller?.value }), known.uuid != self.own
    else { return }
    let channel = self.node.connect(known.address)
    let registration = self.node.registration(self.own)
    let answer = try await channel.call(
      MetadataMethods.registerNode,
      .with {
        $0.nodeUuid = registration.uuid.wire
        $0.service = registration.service.wire
        $0.address = registration.address
        $0.adminAddress = registration.adminAddress
        $0.rack = registration.rack
        $0.host = registration.host
        $0.pid = registration.pid
      }, timeout: .seconds(2))
    let stream = try await channel.open(MetadataMethods.heartbeat)
    let interval = Duration.milliseconds(Int64(max(answer.heartbeatIntervalMs, 10)))
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      tasks.addTask { while try await stream.responses.next() != nil {} }
      tasks.addTask {
        while true {
          try await stream.send(
            .with {
              $0.nodeID = answer.nodeID
              $0.nodeEpoch = answer.nodeEpoch
              $0.state = NodeState.ready.wire
            })
          try await Task.sleep(for: interval)
        }
      }
      defer { tasks.cancelAll() }
      try await tasks.next()
    }
  }
}
