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
      + [CommonKeys.data("Folder of the SQLite database; this process's own.")]
      + MetadataNode.Configuration.keys + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "metadata", arguments: arguments) { context in
      NodeProcess(.metadata, context, hasFolder: true) { parts throws(MemQError) in
        var configuration = try MetadataNode.Configuration(
          context.configuration, dataFolder: context.configuration.text("data"),
          address: parts.address)
        configuration.adminAddress = parts.adminAddress
        return MetadataNode(
          configuration: configuration, clock: context.clock, entropy: context.entropy,
          logger: context.logger,
          refusesConnections: { [pool = parts.pool] in
            await pool.refusesConnections($0, timeout: $1)
          })
      }
    }
  }
}
