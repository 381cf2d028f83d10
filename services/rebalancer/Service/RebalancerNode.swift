// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import Logging
import MemQAPI
import MemQMetadata
public import MemQModel
import MemQPlacement
public import MemQRPC
public import MemQRuntime
public import MemQSystem
import SwiftProtobuf
import Synchronization

/// Looks at the cluster, plans moves with their reasons, and makes them slowly when asked to. Never moves by itself.
public final class RebalancerNode: ServiceNode {
  private enum Phase: Sendable {
    case new
    case running(PlanDesk)
    case ended
  }

  public let configuration: Configuration
  private let cluster: any RebalancerCluster
  private let session: ClusterSession?
  private let clock: any MemQClock
  private let logger: Logger
  private let phase = Mutex(Phase.new)

  /// - Throws: `.configurationInvalid`.
  public convenience init(
    configuration: Configuration, cluster: ClusterSession, pool: ChannelPool,
    clock: any MemQClock, logger: Logger
  ) throws(MemQError) {
    try self.init(
      configuration: configuration, view: cluster, session: cluster, clock: clock, logger: logger)
  }

  init(
    configuration: Configuration, view: any RebalancerCluster, session: ClusterSession?,
    clock: any MemQClock, logger: Logger
  ) throws(MemQError) {
    try configuration.validate()
    self.configuration = configuration
    self.cluster = view
    self.session = session
    self.clock = clock
    self.logger = logger
  }

  // MARK: Life

  public func start() async throws(MemQError) {
    let desk = PlanDesk(self.cluster, self.configuration, clock: self.clock, logger: self.logger)
    self.phase.withLock { $0 = .running(desk) }
    self.session?.setState(.ready)
    self.logger.info("Rebalancer ready")
  }

  public var readiness: [(check: String, problem: String?)] {
    switch self.phase.withLock({ $0 }) {
    case .new: [("rebalancer", "not started")]
    case .running: [("rebalancer", nil)]
    case .ended: [("rebalancer", "shutting down")]
    }
  }

  /// Ends the running plan after the move in hand, or without it when that takes too long.
  public func drain(deadline: Duration) async {
    let phase = self.phase.withLock { phase in
      defer { phase = .ended }
      return phase
    }
    guard case .running(let desk) = phase else { return }
    self.session?.setState(.draining)
    await desk.close()
  }

  // MARK: Calls

  public func register(on router: inout RPCRouter) {
    router.handle(RebalancerMethods.plan) { _, _ in try self.desk().plan().wire }
    router.handle(RebalancerMethods.start) { _, _ in
      let run = try await self.desk().start()
      return .with {
        $0.planID = run.id
        $0.moves = run.steps.map(\.wire)
      }
    }
    router.handle(RebalancerMethods.status) { _, _ in try await self.desk().current.wire }
    router.handle(RebalancerMethods.cancel) { request, _ in
      Optional(try await self.desk().cancel(request.planID)).wire
    }
  }

  /// - Throws: `.unavailable` before the start, `.shuttingDown` after the end.
  private func desk() throws(MemQError) -> PlanDesk {
    switch self.phase.withLock({ $0 }) {
    case .new: throw MemQError(.unavailable, "this rebalancer is starting")
    case .running(let desk): return desk
    case .ended: throw MemQError(.shuttingDown, "this rebalancer is shutting down")
    }
  }
}
