// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
public import MemQRuntime

extension ReplicationNode: ServiceNode {}

/// `memq-replication`: a storage node as a process of its own.
public enum ReplicationProgram {
  public static let table = ConfigurationTable(
    program: "memq-replication",
    summary: "Keeps partitions on SSD: leaders and followers, durable before they acknowledge.",
    keys: CommonKeys.node(.replication)
      + [CommonKeys.data("This process's own folder; the SSD log lies in volume below it.")]
      + ReplicationNode.Configuration.keys + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "replication", arguments: arguments) {
      context throws(MemQError) in
      let data = context.configuration.text("data")
      let configuration = try ReplicationNode.Configuration(
        context.configuration, dataPath: data, volumes: ["\(data)/volume"])
      return NodeProcess(
        .replication, context, hasFolder: true,
        identify: { _ throws(MemQError) in
          let prepared = try ReplicationNode.prepare(configuration)
          return NodeProcess.Identity(
            uuid: prepared.nodeUUID, volumes: prepared.volumeIDs, clusterID: prepared.clusterID)
        },
        makeNode: { parts in
          ReplicationNode(
            configuration: configuration, cluster: parts.session, pool: parts.pool,
            clock: context.clock, logger: context.logger)
        })
    }
  }
}
