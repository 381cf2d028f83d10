// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
public import MemQRuntime

/// `memq-rebalancer`: the rebalancer as a process of its own.
public enum RebalancerProgram {
  public static let table = ConfigurationTable(
    program: "memq-rebalancer",
    summary: "Plans moves of leaders and replicas with reasons, and makes them when asked to.",
    keys: CommonKeys.node(.rebalancer) + RebalancerNode.Configuration.keys + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "rebalancer", arguments: arguments) {
      context throws(MemQError) in
      let configuration = try RebalancerNode.Configuration(context.configuration)
      return NodeProcess(.rebalancer, context) { parts throws(MemQError) in
        try RebalancerNode(
          configuration: configuration, cluster: parts.session, pool: parts.pool,
          clock: context.clock, logger: context.logger)
      }
    }
  }
}
