// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel

/// One change of one partition.
public struct PlacementMove: Hashable, Sendable {
  public enum Kind: Sendable {
    /// Another in-sync replica leads.
    case leadership
    /// A replica goes to another node, or comes to one when it is missing.
    case replica
  }

  public let kind: Kind
  public let partition: TopicPartition
  /// The topic's name.
  public let topic: String
  /// Nil: from nobody.
  public let from: NodeID?
  public let to: NodeID
  /// The goal it serves.
  public let goal: String
  /// Why, a sentence.
  public let reason: String
}

/// One node now and after the plan.
public struct PlacementBalance: Hashable, Sendable {
  public let node: NodeID
  public let leaders: Int
  public let replicas: Int
  public let leadersAfter: Int
  public let replicasAfter: Int
}

/// What to do, why, and how it will look then.
public struct PlacementPlan: Hashable, Sendable {
  /// In the order they are to be made.
  public var moves: [PlacementMove] = []
  public var balance: [PlacementBalance] = []
  /// What the plan cannot mend, a sentence each.
  public var unmet: [String] = []
}

/// What a plan may do.
public struct PlacementRules: Hashable, Sendable {
  /// False: moves of replicas are planned and shown, but leaderships are spread, and the balance is predicted, as if
  /// they did not happen.
  public var executesReplicaMoves: Bool

  public init(executesReplicaMoves: Bool) { self.executesReplicaMoves = executesReplicaMoves }
}

/// One thing a good placement has. Proposes as few moves as it can and keeps what the goals before it reached.
protocol PlacementGoal {
  /// As shown to people: "leader spread".
  var name: String { get }

  /// Changes `state` to what it will be after the moves it adds.
  func apply(to state: inout PlacementSnapshot, _ plan: inout PlacementPlan)
}

/// Snapshot → plan. The same snapshot gives the same plan on every machine.
public enum PlacementPlanner {
  public static func plan(
    _ snapshot: PlacementSnapshot, _ rules: PlacementRules
  ) -> PlacementPlan {
    var plan = PlacementPlan()
    var replicas = snapshot
    let replicaGoals: [any PlacementGoal] = [RackSafetyGoal(), ReplicaCountGoal()]
    for goal in replicaGoals { goal.apply(to: &replicas, &plan) }
    var final = rules.executesReplicaMoves ? replicas : snapshot
    LeaderSpreadGoal().apply(to: &final, &plan)
    plan.balance = self.balance(snapshot, final)
    return plan
  }

  private static func balance(
    _ before: PlacementSnapshot, _ after: PlacementSnapshot
  ) -> [PlacementBalance] {
    let (leaders, replicas) = (before.leaderCounts, before.replicaCounts)
    let (leadersAfter, replicasAfter) = (after.leaderCounts, after.replicaCounts)
    return before.nodes.map { node in
      PlacementBalance(
        node: node.id, leaders: leaders[node.id] ?? 0, replicas: replicas[node.id] ?? 0,
        leadersAfter: leadersAfter[node.id] ?? 0, replicasAfter: replicasAfter[node.id] ?? 0)
    }
  }
}
