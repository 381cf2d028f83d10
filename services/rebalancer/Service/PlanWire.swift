// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQAPI
import MemQModel
import MemQPlacement
import MemQRuntime
import SwiftProtobuf

// Plans as memq.v1 messages.

extension PlacementPlan {
  var wire: Memq_V1_PlanResponse {
    .with {
      $0.moves = PlanRun.steps(of: self).map(\.wire)
      $0.balance = self.balance.map(\.wire)
      $0.unmet = self.unmet + self.unmetMoves
    }
  }

  /// Moves that are right and that nobody makes.
  private var unmetMoves: [String] {
    self.moves.filter { $0.kind == .replica }.map { move in
      let from = move.from.map { " from node \($0)" } ?? ""
      return
        "\(move.topic)/\(move.partition.partition): a replica should go\(from) to node \(move.to) (\(move.goal)), but \(PlanRun.notOffered)"
    }
  }
}

extension PlacementBalance {
  var wire: Memq_V1_NodeBalance {
    .with {
      $0.nodeID = self.node.rawValue
      $0.leaders = Int32(clamping: self.leaders)
      $0.replicas = Int32(clamping: self.replicas)
      $0.leadersAfter = Int32(clamping: self.leadersAfter)
      $0.replicasAfter = Int32(clamping: self.replicasAfter)
    }
  }
}

extension PlanRun.Step {
  var wire: Memq_V1_Move {
    .with {
      $0.kind = self.move.kind == .leadership ? .leadership : .replica
      $0.topic = self.move.topic
      $0.topicPartition = self.move.partition.wire
      $0.fromNode = self.move.from?.rawValue ?? 0
      $0.toNode = self.move.to.rawValue
      $0.goal = self.move.goal
      $0.reason = self.move.reason
      $0.state = self.state
    }
  }
}

extension PlanRun? {
  var wire: Memq_V1_PlanStatusResponse {
    guard let run = self else { return .with { $0.state = "idle" } }
    return .with {
      $0.planID = run.id
      $0.state = run.state.rawValue
      $0.moves = run.steps.map(\.wire)
    }
  }
}
