// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQAPI
import MemQMetadata
import MemQModel
import MemQRPC
import MemQRuntime
import MemQSystem
import NIOPosix
import SwiftProtobuf
import Synchronization
import Testing

@testable import MemQRebalancerService

/// A cluster that does what it is told, or refuses.
private final class FakeCluster: RebalancerCluster {
  private struct State {
    var image: ClusterImage
    var refusals = 0
    var transfers: [String] = []
    /// Held transfers wait here until the test lets them go.
    var isHolding = false
    var held: [CheckedContinuation<Void, Never>] = []
    var isAwaited: [CheckedContinuation<Void, Never>] = []
    /// The task of a held transfer was cancelled.
    var isCancelled = false
    var awaitsCancellation: [CheckedContinuation<Void, Never>] = []
  }

  private let state: Mutex<State>

  init(_ image: ClusterImage) { self.state = Mutex(State(image: image)) }

  var image: ClusterImage { self.state.withLock { $0.image } }
  var transfers: [String] { self.state.withLock { $0.transfers } }

  func refuse(_ count: Int) { self.state.withLock { $0.refusals = count } }
  func hold() { self.state.withLock { $0.isHolding = true } }
  func change(_ body: (inout ClusterImage) -> Void) { self.state.withLock { body(&$0.image) } }

  func letGo() {
    let held = self.state.withLock { state in
      state.isHolding = false
      defer { state.held = [] }
      return state.held
    }
    for continuation in held { continuation.resume() }
  }

  /// Returns once a transfer is held.
  func waitsForTransfer() async {
    await withCheckedContinuation { continuation in
      let isHeld = self.state.withLock { state in
        if state.held.isEmpty { state.isAwaited.append(continuation) }
        return !state.held.isEmpty
      }
      if isHeld { continuation.resume() }
    }
  }

  /// Returns once the task of a held transfer is cancelled.
  func waitsForCancellation() async {
    await withCheckedContinuation { continuation in
      let isCancelled = self.state.withLock { state in
        if !state.isCancelled { state.awaitsCancellation.append(continuation) }
        return state.isCancelled
      }
      if isCancelled { continuation.resume() }
    }
  }

  private func waitWhileHeld() async {
    await withCheckedContinuation { continuation in
      let (goes, awaited) = self.state.withLock { state in
        guard state.isHolding else { return (true, state.isAwaited) }
        state.held.append(continuation)
        defer { state.isAwaited = [] }
        return (false, state.isAwaited)
      }
      for waiter in awaited { waiter.resume() }
      if goes { continuation.resume() }
    }
  }

  func transferLeadership(
    of partition: TopicPartition, to node: NodeID, timeout: Duration
  ) async throws(MemQError) {
    await withTaskCancellationHandler {
      await self.waitWhileHeld()
    } onCancel: {
      let waiters = self.state.withLock { state in
        state.isCancelled = true
        defer { state.awaitsCancellation = [] }
        return state.awaitsCancellation
      }
      for waiter in waiters { waiter.resume() }
    }
    try self.state.withLock { (state) throws(MemQError) in
      state.transfers.append("\(partition.partition)->\(node)")
      if state.refusals > 0 {
        state.refusals -= 1
        throw MemQError(.unavailable, "refused")
      }
      state.image.partitions[partition]?.leader = node
    }
  }

  func waitForImage(
    timeout: Duration, _ until: @Sendable (ClusterImage) -> Bool
  ) async throws(MemQError) -> ClusterImage {
    let image = self.image
    guard until(image) else { throw MemQError(.deadlineExceeded, "the image did not change") }
    return image
  }
}

private let topicID = TopicID(UniqueID(high: 1, low: 1))

/// Two nodes with all replicas; node 1 leads everything.
private func lopsided(partitions: Int32) throws -> ClusterImage {
  var image = ClusterImage(
    clusterID: ClusterID(UniqueID(high: 9, low: 9)), incarnation: Incarnation(1),
    incarnationID: UniqueID(high: 2, low: 2), revision: Revision(1))
  for id in [1, 2] as [Int32] {
    image.nodes[NodeID(id)] = NodeImage(
      id: NodeID(id), uuid: NodeUUID(UniqueID(high: 3, low: UInt64(id))), service: .replication,
      address: "n\(id):1", epoch: NodeEpoch(1), state: .ready)
  }
  image.put(
    try TopicImage(
      id: topicID, name: "events", partitionCount: Int(partitions), replicationFactor: 2,
      given: [:], createdAt: Timestamp(milliseconds: 0)))
  for index in 0..<partitions {
    let id = TopicPartition(topicID, PartitionIndex(index))
    let volumes = [1, 2].map { ReplicaID(NodeID($0), VolumeID(UniqueID(high: 4, low: UInt64($0)))) }
    image.partitions[id] = PartitionImage(
      id: id, leader: NodeID(1), leaderEpoch: LeaderEpoch(1), epoch: PartitionEpoch(1),
      replicas: volumes, inSync: [NodeID(1), NodeID(2)], uploadGroup: 0)
  }
  return image
}

private struct Bed {
  let cluster: FakeCluster
  let node: RebalancerNode
  let channel: RPCInProcessChannel

  init(_ image: ClusterImage, failuresMax: Int = 5) async throws {
    self.cluster = FakeCluster(image)
    var configuration = RebalancerNode.Configuration()
    configuration.movePause = .zero
    configuration.failuresMax = failuresMax
    self.node = try RebalancerNode(
      configuration: configuration, view: self.cluster, session: nil, clock: SystemClock(),
      logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    var router = RPCRouter()
    self.node.register(on: &router)
    self.channel = RPCInProcessChannel(router: router, group: MultiThreadedEventLoopGroup.singleton)
    try await self.node.start()
  }

  func status() async throws -> Memq_V1_PlanStatusResponse {
    try await self.channel.call(RebalancerMethods.status, .init(), timeout: .seconds(60))
  }

  func start() async throws -> Memq_V1_StartPlanResponse {
    try await self.channel.call(RebalancerMethods.start, .init(), timeout: .seconds(60))
  }

  func cancel(_ id: Int64 = 0) async throws -> Memq_V1_PlanStatusResponse {
    try await self.channel.call(
      RebalancerMethods.cancel, .with { $0.planID = id }, timeout: .seconds(60))
  }

  /// The plan's end; polls, bounded.
  func ended() async throws -> Memq_V1_PlanStatusResponse {
    for _ in 0..<1_000 {
      let status = try await self.status()
      if status.state != "running" { return status }
      try await Task.sleep(for: .milliseconds(10))
    }
    throw MemQError(.deadlineExceeded, "the plan does not end")
  }
}

@Suite struct RebalancerTests {
  @Test func `a dry run shows moves with reasons and the balance, and moves nothing`() async throws
  {
    let bed = try await Bed(lopsided(partitions: 4))
    let plan = try await bed.channel.call(RebalancerMethods.plan, .init(), timeout: .seconds(60))
    #expect(plan.moves.count == 2)
    #expect(plan.moves.allSatisfy { $0.kind == .leadership && $0.state == "planned" })
    #expect(plan.moves.allSatisfy { $0.topic == "events" && $0.goal == "leader spread" })
    #expect(plan.moves.allSatisfy { !$0.reason.isEmpty && $0.fromNode == 1 && $0.toNode == 2 })
    #expect(plan.balance.map(\.leaders) == [4, 0])
    #expect(plan.balance.map(\.leadersAfter) == [2, 2])
    #expect(bed.cluster.transfers.isEmpty)
    #expect(try await bed.status().state == "idle")
  }

  @Test func `a plan is made move by move, and afterwards there is nothing to do`() async throws {
    let bed = try await Bed(lopsided(partitions: 6))
    let started = try await bed.start()
    #expect(started.moves.count == 3)
    let status = try await bed.ended()
    #expect(status.planID == started.planID)
    #expect(status.state == "done")
    #expect(status.moves.allSatisfy { $0.state == "done" })
    #expect(bed.cluster.transfers == ["0->2", "1->2", "2->2"])
    let again = try await bed.channel.call(RebalancerMethods.plan, .init(), timeout: .seconds(60))
    #expect(again.moves.isEmpty)
  }

  @Test func `one plan runs at a time, and a cancel lets the move in hand end`() async throws {
    let bed = try await Bed(lopsided(partitions: 6))
    bed.cluster.hold()
    let started = try await bed.start()
    await bed.cluster.waitsForTransfer()
    let second = await #expect(throws: MemQError.self) { try await bed.start() }
    #expect(second?.code == .planRunning)
    let wrong = await #expect(throws: MemQError.self) { try await bed.cancel(started.planID + 1) }
    #expect(wrong?.code == .planNotFound)
    #expect(try await bed.cancel().state == "running")
    bed.cluster.letGo()
    let status = try await bed.ended()
    #expect(status.state == "cancelled")
    #expect(
      status.moves.map(\.state)
        == ["done", "skipped: the plan was cancelled", "skipped: the plan was cancelled"])
    let none = await #expect(throws: MemQError.self) { try await bed.cancel() }
    #expect(none?.code == .planNotFound)
    #expect(try await bed.start().planID > started.planID)
  }

  @Test
  func `what has changed since the plan is skipped, and a failed move does not stop the others`()
    async throws
  {
    let bed = try await Bed(lopsided(partitions: 6))
    bed.cluster.hold()
    bed.cluster.refuse(1)
    _ = try await bed.start()
    await bed.cluster.waitsForTransfer()
    bed.cluster.change {
      $0.partitions[TopicPartition(topicID, PartitionIndex(1))]?.inSync = [NodeID(1)]
    }
    bed.cluster.letGo()
    let states = try await bed.ended().moves.map(\.state)
    #expect(states[0].hasPrefix("failed: refused"))
    #expect(states[1] == "skipped: node 2 is not in sync now")
    #expect(states[2] == "done")
  }

  @Test func `too many failures in a row end a plan`() async throws {
    let bed = try await Bed(lopsided(partitions: 10), failuresMax: 2)
    bed.cluster.refuse(100)
    _ = try await bed.start()
    let status = try await bed.ended()
    #expect(status.state == "done")
    #expect(bed.cluster.transfers.count == 2)
    #expect(status.moves.last?.state == "skipped: 2 moves in a row have failed")
  }

  @Test func `moves of replicas are shown, said to be unmet, and not made`() async throws {
    var image = try lopsided(partitions: 1)
    image.nodes[NodeID(1)]?.rack = "a"
    image.nodes[NodeID(2)]?.rack = "a"
    image.nodes[NodeID(3)] = NodeImage(
      id: NodeID(3), uuid: NodeUUID(UniqueID(high: 3, low: 3)), service: .replication,
      address: "n3:1", rack: "b", epoch: NodeEpoch(1), state: .ready)
    let bed = try await Bed(image)
    let plan = try await bed.channel.call(RebalancerMethods.plan, .init(), timeout: .seconds(60))
    #expect(plan.moves.map(\.kind) == [.replica])
    #expect(plan.moves[0].state == "skipped: this version moves leadership only")
    #expect(
      plan.unmet == [
        "events/0: a replica should go from node 2 to node 3 (rack safety), but this version moves leadership only"
      ])
    _ = try await bed.start()
    #expect(try await bed.ended().state == "done")
    #expect(bed.cluster.transfers.isEmpty)
  }

  @Test func `a drain ends the plan after the move in hand, and later calls are refused`()
    async throws
  {
    let bed = try await Bed(lopsided(partitions: 8))
    bed.cluster.hold()
    _ = try await bed.start()
    await bed.cluster.waitsForTransfer()
    async let drained: Void = bed.node.drain(deadline: .seconds(5))
    await bed.cluster.waitsForCancellation()
    bed.cluster.letGo()
    await drained
    #expect(bed.cluster.transfers.count == 1)
    let late = await #expect(throws: MemQError.self) { try await bed.status() }
    #expect(late?.code == .shuttingDown)
    #expect(bed.node.readiness.first?.problem == "shutting down")
  }
}
