// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Logging
import MemQMetadata
import MemQModel
import MemQRPC
import MemQPlacement
import MemQSystem

/// Owns the running plan. One runs at a time; its moves are made one after another.
actor PlanDesk {
  /// Leadership only, until replicas can be moved.
  static let rules = PlacementRules(executesReplicaMoves: false)

  private let cluster: any RebalancerCluster
  private let configuration: RebalancerNode.Configuration
  private let clock: any MemQClock
  private let logger: Logger
  private let metrics = RebalancerMetrics()
  private var run: PlanRun?
  private var task: Task<Void, Never>?
  private var isClosed = false

  init(
    _ cluster: any RebalancerCluster, _ configuration: RebalancerNode.Configuration,
    clock: any MemQClock, logger: Logger
  ) {
    self.cluster = cluster
    self.configuration = configuration
    self.clock = clock
    self.logger = logger
  }

  // MARK: Calls

  /// The plan for now.
  nonisolated func plan() -> PlacementPlan {
    PlacementPlanner.plan(PlacementSnapshot(self.cluster.image), Self.rules)
  }

  /// The running or last plan.
  var current: PlanRun? { self.run }

  /// Begins the plan for now.
  ///
  /// - Throws: `.planRunning`, `.shuttingDown`.
  func start() throws(MemQError) -> PlanRun {
    guard !self.isClosed else {
      throw MemQError(.shuttingDown, "this rebalancer is shutting down")
    }
    if let run = self.run, run.state == .running {
      throw MemQError(
        .planRunning, "a plan is running: wait for it or cancel it", subject: "plan \(run.id)")
    }
    // Rises from start to start of the process, too, so that a plan's number is not met twice.
    let id = max(self.clock.wall.milliseconds, (self.run?.id ?? 0) + 1)
    let run = PlanRun(id: id, self.plan())
    self.run = run
    self.logger.notice(
      "A plan begins", metadata: ["plan.id": "\(id)", "moves": "\(run.steps.count)"])
    self.task = RPCScope.beyondCall {
      Task { await self.execute() }
    }
    return run
  }

  /// Stops after the move in hand.
  ///
  /// - Parameter id: 0: the running one.
  /// - Throws: `.planNotFound`.
  func cancel(_ id: Int64) throws(MemQError) -> PlanRun {
    guard let run = self.run, id == 0 ? run.state == .running : run.id == id else {
      throw MemQError(
        .planNotFound, id == 0 ? "no plan is running" : "no such plan here",
        subject: id == 0 ? "" : "plan \(id)")
    }
    if run.state == .running { self.run?.isCancelling = true }
    return self.run ?? run
  }

  /// Cancels, and waits for the move in hand.
  func close() async {
    self.isClosed = true
    self.run?.isCancelling = true
    self.task?.cancel()
    await self.task?.value
  }

  // MARK: Execution

  private func execute() async {
    while let (index, move) = self.run?.next(failuresMax: self.configuration.failuresMax) {
      let outcome = await self.make(move)
      self.run?.ended(index, outcome)
      self.metrics.moved(outcome)
      self.logger.info(
        "A move ended",
        metadata: [
          "partition": "\(move.topic)/\(move.partition.partition)", "node.to": "\(move.to)",
          "outcome": "\(outcome.text)",
        ])
      // Cancelled: the next turn finds out.
      try? await Task.sleep(for: self.configuration.movePause)
    }
    if let run = self.run {
      self.logger.notice(
        "A plan ended", metadata: ["plan.id": "\(run.id)", "state": "\(run.state.rawValue)"])
    }
  }

  /// Asks, then waits until the image shows it. What changed since the plan was made is looked at first.
  private func make(_ move: PlacementMove) async -> MoveOutcome {
    guard let partition = self.cluster.image.partitions[move.partition] else {
      return .skipped("the partition is gone")
    }
    guard partition.leader == move.from else {
      let leader = partition.leader.map { "node \($0) leads" } ?? "nobody leads"
      return .skipped("\(leader) now")
    }
    guard partition.inSync.contains(move.to) else {
      return .skipped("node \(move.to) is not in sync now")
    }
    let timeout = self.configuration.moveTimeout
    let end = self.clock.monotonic + timeout
    do throws(MemQError) {
      try await self.cluster.transferLeadership(of: move.partition, to: move.to, timeout: timeout)
      _ = try await self.cluster.waitForImage(timeout: max(end - self.clock.monotonic, .zero)) {
        $0.partitions[move.partition]?.leader == move.to
          || $0.partitions[move.partition] == nil
      }
      return .done
    } catch {
      return .failed(error)
    }
  }
}
