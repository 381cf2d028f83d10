// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import MemQClient
import MemQModel

struct RebalanceCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rebalance", abstract: "Plan and make moves that spread leaders and replicas.",
    subcommands: [
      RebalancePlanCommand.self, RebalanceStart.self, RebalanceStatusCommand.self,
      RebalanceCancel.self,
    ])
}

private func table(_ moves: [PlanMove]) -> String {
  guard !moves.isEmpty else { return "nothing to move\n" }
  var table = TextTable("MOVE", "TOPIC", ">PARTITION", ">FROM", ">TO", "GOAL", "STATE", "REASON")
  for move in moves {
    table.add(
      move.kind, move.topic, "\(move.partition)", move.from.map { "\($0)" } ?? "", "\(move.to)",
      move.goal, move.state, move.reason)
  }
  return table.text
}

struct RebalancePlanCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "plan", abstract: "Show what would move, with reasons; moves nothing.")

  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let plan = try await self.server.withClient { try await $0.admin.plan() }
    var balance = TextTable(">NODE", ">LEADERS", ">AFTER", ">REPLICAS", ">AFTER")
    for row in plan.balance {
      balance.add(
        "\(row.node)", "\(row.leaders)", "\(row.leadersAfter)", "\(row.replicas)",
        "\(row.replicasAfter)")
    }
    try await self.output.show(
      Self.json(plan),
      table(plan.moves) + (plan.balance.isEmpty ? "" : "\n" + balance.text)
        + plan.unmet.map { "cannot be mended: \($0)\n" }.joined())
  }

  private static func json(_ plan: RebalancePlan) -> JSON {
    [
      "moves": .array(plan.moves.map(\.json)),
      "balance": .array(
        plan.balance.map {
          [
            "node": .number($0.node.rawValue), "leaders": .number($0.leaders),
            "replicas": .number($0.replicas), "leaders_after": .number($0.leadersAfter),
            "replicas_after": .number($0.replicasAfter),
          ]
        }),
      "unmet": .strings(plan.unmet),
    ]
  }
}

extension RebalanceStatus {
  fileprivate var json: JSON {
    [
      "plan_id": .number(self.planID), "state": .string(self.state),
      "moves": .array(self.moves.map(\.json)),
    ]
  }

  fileprivate var text: String {
    self.planID == 0
      ? "there has been no plan\n" : "plan \(self.planID): \(self.state)\n" + table(self.moves)
  }
}

struct RebalanceStart: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "start", abstract: "Make the moves of the plan for now, one after another.")

  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let status = try await self.server.withClient { try await $0.admin.startPlan() }
    try await self.output.show(status.json, status.text)
  }
}

struct RebalanceStatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show the running or the last plan.")

  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let status = try await self.server.withClient { try await $0.admin.planStatus() }
    try await self.output.show(status.json, status.text)
  }
}

struct RebalanceCancel: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cancel", abstract: "Stop after the move in hand.")

  @Argument(help: "The plan's number; default: the running one.")
  var plan: Int64?
  @OptionGroup var server: ServerOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let status = try await self.server.withClient { try await $0.admin.cancelPlan(self.plan) }
    try await self.output.show(status.json, status.text)
  }
}
