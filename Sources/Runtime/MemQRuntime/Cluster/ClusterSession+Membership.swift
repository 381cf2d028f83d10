// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQSystem
import SwiftProtobuf

// Registration, heartbeats and the watch: what keeps a node a member.
extension ClusterSession {
  // MARK: Registration

  func registerFirst(until deadline: MonotonicInstant) async throws(MemQError) {
    var backoff = Backoff(self.configuration.backoff)
    while true {
      do {
        return try await self.register()
      } catch {
        let left = deadline - self.clock.monotonic
        switch error.code {
        case .wrongCluster, .limitReached, .invalidArgument, .staleImage, .cancelled: throw error
        default: break
        }
        guard left > .zero, !Task.isCancelled else {
          throw MemQError(
            .unavailable, "no metadata instance took the registration in time: \(error)",
            subject: self.configuration.metadataAddresses.joined(separator: ","))
        }
        try? await Task.sleep(for: min(backoff.next(), left))
      }
    }
  }

  private func register() async throws(MemQError) {
    let configuration = self.configuration
    let (volumes, version) = self.volumes
    let request = Memq_V1_RegisterNodeRequest.with {
      $0.nodeUuid = configuration.nodeUUID.wire
      $0.service = configuration.service.wire
      $0.address = configuration.address
      $0.adminAddress = configuration.adminAddress
      $0.rack = configuration.rack
      $0.pid = Int64(getpid())
      $0.volumes = volumes.map(\.wire)
      $0.host = configuration.host
      if let cluster = self.knownClusterID { $0.clusterID = cluster.wire }
      if let seen = self.seen { $0.seen = seen.wire }
    }
    let address = self.controllerAddress
    let answer: Memq_V1_RegisterNodeResponse
    do throws(MemQError) {
      answer = try await self.pool.channel(address, lane: .control).call(
        MetadataMethods.registerNode, request, timeout: configuration.callTimeout)
    } catch {
      self.failed(address)
      throw error
    }
    self.answered(address)
    let registration = Registration(
      nodeID: NodeID(answer.nodeID), nodeEpoch: NodeEpoch(answer.nodeEpoch),
      clusterID: try ClusterID(wire: answer.clusterID, "cluster_id"),
      incarnation: Incarnation(answer.incarnation),
      heartbeatInterval: .milliseconds(Int64(max(answer.heartbeatIntervalMs, 10))))
    self.registered(registration, volumes: version)
    self.logger.info(
      "Registered with the cluster",
      metadata: [
        "node.id": "\(registration.nodeID)", "node.epoch": "\(registration.nodeEpoch)",
        "cluster.id": "\(registration.clusterID)", "metadata": "\(address)",
      ])
  }

  func deregister() async {
    guard self.isRegistered else { return }
    let registration = self.registration
    self.lostRegistration()
    do {
      _ = try await self.metadata.call(
        MetadataMethods.deregisterNode,
        .with {
          $0.nodeID = registration.nodeID.rawValue
          $0.nodeEpoch = registration.nodeEpoch.rawValue
        }, timeout: self.configuration.goodbyeTimeout)
      self.logger.info("Left the cluster", metadata: ["node.id": "\(registration.nodeID)"])
    } catch {
      self.logger.warning(
        "Could not say goodbye to the cluster; it will notice the silence",
        metadata: ["node.id": "\(registration.nodeID)", "error": "\(error)"])
    }
  }

  // MARK: The session

  /// Until cancelled: registers when needed, then heartbeats and watches until the cluster has fenced this node.
  func keepUp() async {
    var backoff = Backoff(self.configuration.backoff)
    while !Task.isCancelled {
      let began = self.clock.monotonic
      do {
        if !self.isRegistered { try await self.register() }
        try await self.attend()
      } catch {
        guard !Task.isCancelled else { return }
        self.broke(error)
      }
      if self.clock.monotonic - began > self.configuration.backoff.upperBound { backoff.reset() }
      try? await Task.sleep(for: backoff.next())
    }
  }

  private func broke(_ error: MemQError) {
    guard Self.isFenced(error) else {
      self.logger.warning(
        "Could not register with the cluster",
        metadata: ["metadata": "\(self.controllerAddress)", "error": "\(error)"])
      return
    }
    self.lostRegistration()
    self.logger.warning(
      "The cluster has fenced this node; it registers again", metadata: ["error": "\(error)"])
  }

  private static func isFenced(_ error: MemQError) -> Bool {
    switch error.code {
    case .nodeFenced, .nodeUnknown, .staleNodeEpoch: true
    default: false
    }
  }

  /// Heartbeats and the watch, each on the instance that is right for it, until this node has to register again.
  private func attend() async throws(MemQError) {
    do {
      try await withThrowingTaskGroup(of: Void.self) { tasks in
        tasks.addTask {
          try await self.keep(on: { $0.controllerAddress }) { try await self.heartbeat(at: $0) }
        }
        tasks.addTask {
          try await self.keep(on: { $0.metadataAddress }) { try await self.watch(at: $0) }
        }
        tasks.addTask {
          try await self.keep(on: { $0.controllerAddress }) { _ in try await self.tellVolumes() }
        }
        defer { tasks.cancelAll() }
        try await tasks.next()
      }
    } catch {
      throw MemQError(anyRPC: error)
    }
    throw MemQError(.unavailable, "metadata ended the session")
  }

  /// Runs `body` on the instance that `place` names, again whenever it breaks off or another one is right.
  private func keep(
    on place: @Sendable (ClusterSession) -> String,
    _ body: @Sendable (String) async throws -> Void
  ) async throws {
    var backoff = Backoff(self.configuration.backoff)
    while true {
      let address = place(self)
      let began = self.clock.monotonic
      do {
        try await body(address)
        // Another instance is right; one that left nothing to be said would be asked without end.
        if place(self) != address { continue }
        throw MemQError(.unavailable, "metadata ended the session")
      } catch {
        try Task.checkCancellation()
        let error = MemQError(anyRPC: error)
        if Self.isFenced(error) { throw error }
        self.logger.warning(
          "Lost the connection to metadata",
          metadata: ["metadata": "\(address)", "error": "\(error)"])
        self.failed(address)
      }
      if self.clock.monotonic - began > self.configuration.backoff.upperBound { backoff.reset() }
      try await Task.sleep(for: backoff.next())
    }
  }

  /// Until the stream breaks, or another instance decides.
  private func heartbeat(at address: String) async throws {
    let registration = self.registration
    let stream = try await self.pool.channel(address, lane: .control).open(
      MetadataMethods.heartbeat)
    let heard = LastHeard(self.clock.monotonic)
    let beats = self.newBeats()
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      tasks.addTask {
        while let answer = try await stream.responses.next() {
          heard.set(self.clock.monotonic)
          self.answered(address)
          self.heard(of: answer.revision)
        }
        throw MemQError(.unavailable, "metadata ended the heartbeat stream")
      }
      tasks.addTask {
        while true {
          try await Task.sleep(for: registration.heartbeatInterval)
          self.beat()
        }
      }
      tasks.addTask {
        self.beat()
        for await _ in beats {
          guard self.controllerAddress == address else { return }
          try self.checkSilence(heard.instant, of: address)
          try await stream.send(self.signOfLife(registration))
        }
      }
      defer { tasks.cancelAll() }
      try await tasks.next()
    }
  }

  /// Tells where the volumes stand whenever that changes; an instance that does not take it is left for another.
  private func tellVolumes() async throws {
    let registration = self.registration
    for await _ in self.newVolumeNews() {
      while let (volumes, version) = self.untoldVolumes {
        _ = try await self.metadata.call(
          MetadataMethods.reportVolumes,
          .with {
            $0.nodeID = registration.nodeID.rawValue
            $0.nodeEpoch = registration.nodeEpoch.rawValue
            $0.volumes = volumes.map(\.wire)
          }, timeout: self.configuration.callTimeout)
        self.toldVolumes(version)
      }
    }
  }

  private func checkSilence(
    _ heard: MonotonicInstant, of address: String
  ) throws(MemQError) {
    let silence = self.clock.monotonic - heard
    guard silence <= self.configuration.silenceMax else {
      if self.configuration.metadataAddresses.count > 1 {
        // Calls that wait for its answer had better ask another instance.
        self.pool.drop(address, lane: .control)
      }
      throw MemQError(
        .unavailable, "metadata does not answer heartbeats (limit and actual in ms)",
        limit: self.configuration.silenceMax.milliseconds, actual: silence.milliseconds)
    }
  }

  private func signOfLife(_ registration: Registration) -> Memq_V1_HeartbeatRequest {
    .with {
      $0.nodeID = registration.nodeID.rawValue
      $0.nodeEpoch = registration.nodeEpoch.rawValue
      $0.state = self.nodeState.wire
      $0.revision = self.cell.image?.revision.rawValue ?? 0
    }
  }

  // MARK: The image

  /// Until the stream breaks, or another instance is in use.
  private func watch(at address: String) async throws {
    let known = self.cell.image
    let updates = try await self.pool.channel(address, lane: .control).stream(
      MetadataMethods.watchImage,
      .with {
        $0.fromRevision = known?.revision.rawValue ?? 0
        $0.incarnation = known?.incarnation.rawValue ?? 0
      })
    try await withThrowingTaskGroup(of: Void.self) { tasks in
      tasks.addTask {
        var assembly = ImageAssembly()
        while let update = try await updates.next() {
          guard update.full || assembly.isUnfinished else {
            await self.take(try Self.changed(self.cell.image, update))
            continue
          }
          guard let whole = try assembly.take(update) else { continue }
          try self.seen?.check(SeenMetadata(whole))
          await self.take(try Self.replaced(self.cell.image, whole))
        }
      }
      if self.configuration.metadataAddresses.count > 1 {
        // An instance that stands still says nothing: it is left when the heartbeats have found another.
        tasks.addTask {
          while self.metadataAddress == address { try await Task.sleep(for: .milliseconds(100)) }
        }
      }
      defer { tasks.cancelAll() }
      try await tasks.next()
    }
  }

  /// What was seen is remembered before anybody acts on it.
  private func take(_ image: ClusterImage) async {
    await self.remember { memory throws(MemQError) in
      try await memory.saw(SeenMetadata(image), at: self.clock.monotonic) { self.forgot($0) }
    }
    self.cell.set(image)
  }

  /// The image after a change.
  ///
  /// - Throws: `.staleImage` for one of an older image than `known`.
  private static func changed(
    _ known: ClusterImage?, _ update: Memq_V1_ImageUpdate
  ) throws(MemQError) -> ClusterImage {
    guard var image = known else {
      throw MemQError(.staleImage, "metadata sent a change of an image that is not known")
    }
    try image.apply(update)
    return image
  }

  /// A whole image in the place of the one that is known.
  ///
  /// - Throws: `.wrongCluster` for another cluster's.
  static func replaced(
    _ known: ClusterImage?, _ next: ClusterImage
  ) throws(MemQError) -> ClusterImage {
    guard let image = known else { return next }
    guard next.clusterID == image.clusterID else {
      throw MemQError(
        .wrongCluster, "metadata belongs to cluster \(next.clusterID), this node to another",
        subject: "\(image.clusterID)")
    }
    return next
  }
}
