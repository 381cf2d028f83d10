// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQRuntime
import MemQMetadata
import MemQModel
import MemQSystem

extension MetadataNode: ServiceNode {}

/// `memq-metadata`: the metadata service as a process of its own.
public enum MetadataProgram {
  public static let table = ConfigurationTable(
    program: "memq-metadata",
    summary: "Keeps the state of a MemQ cluster: topics, leaders, leases, file states, groups.",
    keys: CommonKeys.node(.metadata)
      + [
        CommonKeys.data(
          "Folder of the SQLite database; this process's own. Not needed with etcd.endpoints.",
          isRequired: false)
      ]
      + MetadataNode.Configuration.keys + [MetadataNode.Configuration.objects]
      + CommonKeys.objectStore + MetadataNode.Configuration.etcdKeys + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "metadata", arguments: arguments) { context in
      NodeProcess(.metadata, context, hasFolder: context.configuration.has("data")) {
        parts throws(MemQError) in
        let loaded = context.configuration
        guard loaded.has("data") != loaded.has("etcd.endpoints") else {
          throw MemQError(
            .configurationInvalid, "metadata is kept in a folder or in etcd: exactly one is named",
            subject: "data, etcd.endpoints")
        }
        var configuration = try MetadataNode.Configuration(
          loaded, dataFolder: loaded.optionalText("data") ?? "", address: parts.address,
          objects: loaded.optionalText("objects"))
        configuration.adminAddress = parts.adminAddress
        let pool = parts.pool
        let etcd = try configuration.etcd(loaded, logger: context.logger)
        return MetadataNode(
          configuration: configuration, clock: context.clock, entropy: context.entropy,
          logger: context.logger,
          refusesConnections: { await pool.refusesConnections($0, timeout: $1) },
          onFailure: { context.failure.fail($0) },
          shared: etcd.map {
            .etcd(
              $0, group: context.loops, entropy: context.entropy, logger: context.logger,
              connect: { pool.channel($0, lane: .control) })
          })
      }
    }
  }
}
