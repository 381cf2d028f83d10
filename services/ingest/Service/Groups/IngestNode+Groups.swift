// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQSystem
import SwiftProtobuf
import Synchronization

extension IngestNode {
  /// How long metadata may take to tell where a described group's partitions end.
  private static let marksWait: Duration = .seconds(3)
  /// What a held heartbeat may take beyond its wait.
  private static let heartbeatSlack: Duration = .seconds(10)
  /// A client that only cancelled its heartbeat has so long to send the next one.
  private static let cancelledHeartbeatGrace: Duration = .seconds(1)

  func registerGroups(on router: inout RPCRouter) {
    router.handle(IngestMethods.joinGroup) { request, context in
      try GroupRules.check(name: request.group)
      try GroupRules.check(sessionTimeout: request.sessionTimeoutMs)
      var join = request
      join.host = Self.host(of: context.peer)
      let longest = Duration.seconds(10)
      return try await self.clusterView.metadata.call(
        MetadataMethods.joinGroup, join, timeout: min(context.remaining ?? longest, longest))
    }
    router.intercept(HeartbeatEnd.interceptor)
    router.handle(IngestMethods.heartbeatGroup) { request, context in
      try GroupRules.check(name: request.group)
      return try await self.heartbeat(request, context)
    }
    self.passOn(IngestMethods.leaveGroup, to: MetadataMethods.leaveGroup, on: &router) {
      request throws(MemQError) in try GroupRules.check(name: request.group)
    }
    self.passOn(IngestMethods.commitOffsets, to: MetadataMethods.commitOffsets, on: &router) {
      request throws(MemQError) in
      try GroupRules.check(name: request.group)
      try GroupRules.check(offsets: request.offsets)
    }
    self.passOn(IngestMethods.fetchOffsets, to: MetadataMethods.fetchOffsets, on: &router) {
      request throws(MemQError) in try GroupRules.check(name: request.group)
    }
    self.passOn(IngestMethods.listGroups, to: MetadataMethods.listGroups, on: &router) { _ in }
    router.handle(IngestMethods.describeGroup) { request, context in
      try GroupRules.check(name: request.group)
      let longest = Duration.seconds(10)
      let group = try await self.clusterView.metadata.call(
        MetadataMethods.describeGroup, request, timeout: min(context.remaining ?? longest, longest))
      return await self.withMarks(group)
    }
    self.passOn(IngestMethods.deleteGroup, to: MetadataMethods.deleteGroup, on: &router) {
      request throws(MemQError) in try GroupRules.check(name: request.group)
    }
  }

  /// `127.0.0.1:5000` and `[::1]:5000` without the port; others as they are.
  static func host(of peer: String) -> String {
    guard let colon = peer.lastIndex(of: ":"), Int(peer[peer.index(after: colon)...]) != nil else {
      return peer
    }
    return String(peer[..<colon])
  }

  // MARK: Heartbeats

  /// Passes a heartbeat on, and waits with its client. When the client's connection breaks meanwhile, metadata hears of it: the
  /// member's partitions need not wait for its session to run out.
  private func heartbeat(
    _ request: Memq_V1_HeartbeatGroupRequest, _ context: RPCContext
  ) async throws(MemQError) -> Memq_V1_HeartbeatGroupResponse {
    let remaining = context.remaining
    var passed = request
    passed.brokeOff = false
    passed.waitMaxMs = min(max(passed.waitMaxMs, 0), GroupRules.heartbeatWaitMaxMilliseconds)
    let mayWait = self.heldHeartbeats.enter()
    if !mayWait || self.service.isDraining { passed.waitMaxMs = 0 }
    defer { self.heldHeartbeats.leave() }
    let longest = Duration.milliseconds(Int64(passed.waitMaxMs)) + Self.heartbeatSlack
    let metadata = self.clusterView.metadata
    let call = Task { [passed] in
      await Result { () async throws(MemQError) in
        try await metadata.call(
          MetadataMethods.heartbeatGroup, passed, timeout: min(remaining ?? longest, longest))
      }
    }
    let id = self.heldHeartbeats.add(call.cancel)
    defer { self.heldHeartbeats.remove(id) }
    let result = await withTaskCancellationHandler {
      await call.value
    } onCancel: {
      call.cancel()
    }
    if Task.isCancelled, !self.service.isDraining {
      var notice = passed
      notice.brokeOff = true
      Task { [notice] in
        // Clients cancel a held heartbeat when they have something to tell. Behind a proxy a dead one's calls are cancelled, too; one that
        // lives has sent another heartbeat then, and the notice is void.
        if context[HeartbeatEnd.self]?.isConnectionLost != true {
          try? await Task.sleep(for: Self.cancelledHeartbeatGrace)
        }
        // When it does not arrive, the session runs out.
        _ = try? await metadata.call(
          MetadataMethods.heartbeatGroup, notice, timeout: .seconds(5))
      }
    }
    if case .failure = result, self.service.isDraining {
      throw MemQError(.shuttingDown, "this ingest is shutting down; go to another one")
    }
    return try result.get()
  }

  // MARK: Describing

  /// Adds where partitions end, as far as their leaders tell in time, and those that members read without a commit.
  private func withMarks(_ group: Memq_V1_GroupDescription) async -> Memq_V1_GroupDescription {
    var group = group
    let committed = Set(group.offsets.map(\.topicPartition))
    for partition in group.members.flatMap(\.assigned) where !committed.contains(partition) {
      group.offsets.append(
        .with {
          $0.topicPartition = partition
          $0.offset = -1
        })
    }
    guard let running = try? self.whileRunning() else { return group }
    let image = self.clusterView.image
    let call = OffsetsCall(reader: running.reader, cluster: self.clusterView)
    var wanted: [TopicID: [Int32]] = [:]
    for offset in group.offsets {
      guard let id = try? TopicPartition(offset.topicPartition),
        let topic = image.topics[id.topic], Int(id.partition.rawValue) < topic.partitionCount
      else { continue }
      wanted[id.topic, default: []].append(id.partition.rawValue)
    }
    let asked = wanted
    let marks = await withTaskGroup(of: [Memq_V1_PartitionOffset]?.self) { tasks in
      for (id, partitions) in asked {
        guard let topic = image.topics[id] else { continue }
        tasks.addTask {
          let request = Memq_V1_OffsetsRequest.with {
            $0.topic = topic.name
            $0.partitions = partitions
            $0.spec = .latest
          }
          return (try? await call.run(request, topic))?.offsets ?? []
        }
      }
      tasks.addTask {
        try? await Task.sleep(for: Self.marksWait)
        return nil
      }
      var found: [Memq_V1_TopicPartition: Int64] = [:]
      var left = asked.count
      while left > 0, let answers = await tasks.next(), let answers {
        for answer in answers where !answer.hasError {
          found[answer.topicPartition] = answer.offset
        }
        left -= 1
      }
      tasks.cancelAll()
      return found
    }
    for index in group.offsets.indices {
      if let mark = marks[group.offsets[index].topicPartition] {
        group.offsets[index].highWatermark = mark
      }
    }
    return group
  }
}

/// Heartbeats that wait at metadata through this ingest.
final class HeldHeartbeats: Sendable {
  /// They share a connection to metadata with other calls, whose streams are 1,000.
  private static let countMax = 500

  private struct State {
    var count = 0
    var next = 0
    var cancels: [Int: @Sendable () -> Void] = [:]
  }

  private let state = Mutex(State())

  /// False: there are too many; this one is not to wait. Each is followed by `leave`.
  func enter() -> Bool {
    self.state.withLock { state in
      state.count += 1
      return state.count <= Self.countMax
    }
  }

  func leave() { self.state.withLock { $0.count -= 1 } }

  func add(_ cancel: @escaping @Sendable () -> Void) -> Int {
    self.state.withLock { state in
      state.next += 1
      state.cancels[state.next] = cancel
      return state.next
    }
  }

  func remove(_ id: Int) { self.state.withLock { $0.cancels[id] = nil } }

  /// Ends all of them: their clients are to go to another ingest.
  func cancelAll() {
    for cancel in self.state.withLock({ Array($0.cancels.values) }) { cancel() }
  }
}
