// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation
import MemQSimulation

struct Mutations: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Switches off one safety rule after the other and tells how many seeds notice.",
    discussion: """
      Each row stops at the first seed that breaks a rule of safety; a cluster that merely stands still doesn't count. Exits
      with 1 when a rule's loss goes unnoticed.
      """)

  enum Output: String, CaseIterable, ExpressibleByArgument {
    case text, json
  }

  struct Row: Encodable {
    var name: String
    var rule: String
    var caught: Bool
    /// The first seed from 1 on that notices; nil: none does.
    var seeds_needed: UInt64?
    /// What it breaks.
    var by: String?

    // A key that is there for every row.
    func encode(to encoder: any Encoder) throws {
      var container = encoder.container(keyedBy: CodingKeys.self)
      try container.encode(self.name, forKey: .name)
      try container.encode(self.rule, forKey: .rule)
      try container.encode(self.caught, forKey: .caught)
      try container.encode(self.seeds_needed, forKey: .seeds_needed)
      try container.encode(self.by, forKey: .by)
    }

    enum CodingKeys: CodingKey {
      case name, rule, caught, seeds_needed, by
    }
  }

  @Option(help: "Seeds to try for each, from 1 on.")
  var seeds: UInt64 = 2_000

  @Option(name: .shortAndLong, help: "text or json (one array).")
  var output = Output.text

  @Argument(help: "Only these (default: all).")
  var names: [Mutation] = []

  @OptionGroup var jobs: JobOptions

  func run() async throws {
    var rows: [Row] = []
    for mutation in self.names.isEmpty ? Mutation.all : self.names {
      var options = SimulationOptions()
      options.mutation = mutation
      let campaign = Campaign(options: options, jobs: self.jobs.count)
      let violation = await campaign.firstCatch(within: self.seeds)
      let row = Row(
        name: mutation.name, rule: mutation.rule, caught: violation != nil,
        seeds_needed: violation?.seed, by: violation?.rule)
      rows.append(row)
      if self.output == .text {
        FileHandle.standardOutput.write(Data((Self.text(row) + "\n").utf8))
      }
    }
    if self.output == .json {
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
      print(String(decoding: try encoder.encode(rows), as: UTF8.self))
    }
    if rows.contains(where: { !$0.caught }) { throw ExitCode.failure }
  }

  private static func text(_ row: Row) -> String {
    guard let seeds = row.seeds_needed, let by = row.by else {
      return "\(row.name): NOT NOTICED (\(row.rule))"
    }
    return "\(row.name): seed \(seeds), \(by) (\(row.rule))"
  }
}
