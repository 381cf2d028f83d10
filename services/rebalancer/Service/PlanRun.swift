// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQModel
import MemQPlacement

/// How far a plan is. A value; its owner is the rebalancer's desk.
struct PlanRun: Sendable {
  enum State: String, Sendable {
    case running, cancelled, done
  }

  struct Step: Sendable {
    let move: PlacementMove
    /// "planned", "done", "failed: …", "skipped: …".
    var state = "planned"
  }

  /// Why a replica's move is only shown.
  static let notOffered = "this version moves leadership only"

  let id: Int64
  private(set) var state = State.running
  private(set) var steps: [Step]
  /// Set by a cancel; the move in hand still ends.
  var isCancelling = false
  private var failuresInRow = 0

  init(id: Int64, _ plan: PlacementPlan) {
    self.id = id
    self.steps = Self.steps(of: plan)
  }

  static func steps(of plan: PlacementPlan) -> [Step] {
    plan.moves.map { move in
      switch move.kind {
      case .leadership: Step(move: move)
      case .replica: Step(move: move, state: "skipped: \(Self.notOffered)")
      }
    }
  }

  /// The next move to make, or nil: the plan is over, its state says how.
  mutating func next(failuresMax: Int) -> (index: Int, move: PlacementMove)? {
    guard self.state == .running else { return nil }
    if self.failuresInRow >= failuresMax {
      self.skipRest("skipped: \(self.failuresInRow) moves in a row have failed")
    } else if self.isCancelling {
      self.skipRest("skipped: the plan was cancelled")
      self.state = .cancelled
      return nil
    }
    guard let index = self.steps.firstIndex(where: { $0.state == "planned" }) else {
      self.state = .done
      return nil
    }
    return (index, self.steps[index].move)
  }

  mutating func ended(_ index: Int, _ outcome: MoveOutcome) {
    self.steps[index].state = outcome.text
    switch outcome {
    case .failed: self.failuresInRow += 1
    case .done, .skipped: self.failuresInRow = 0
    }
  }

  private mutating func skipRest(_ why: String) {
    for index in self.steps.indices where self.steps[index].state == "planned" {
      self.steps[index].state = why
    }
  }
}

/// How a move ended.
enum MoveOutcome: Sendable, Hashable {
  case done
  /// No longer wanted, or no longer possible: the cluster has changed since the plan.
  case skipped(String)
  case failed(MemQError)

  var text: String {
    switch self {
    case .done: "done"
    case .skipped(let why): "skipped: \(why)"
    case .failed(let error): "failed: \(error)"
    }
  }
}
