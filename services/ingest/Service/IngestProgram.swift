// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
public import MemQRuntime

extension IngestNode: ServiceNode {}

/// `memq-ingest`: the public door as a process of its own.
public enum IngestProgram {
  public static let table = ConfigurationTable(
    program: "memq-ingest",
    summary: "The public door of a MemQ cluster: produce, fetch, files, groups.",
    keys: CommonKeys.node(.ingest) + [CommonKeys.objects] + CommonKeys.objectStore
      + IngestNode.Configuration.keys
      + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "ingest", arguments: arguments) {
      context throws(MemQError) in
      let configuration = try IngestNode.Configuration(
        context.configuration, objects: context.configuration.text("objects"))
      return NodeProcess(.ingest, context) { parts throws(MemQError) in
        try IngestNode(
          configuration: configuration, cluster: parts.session, pool: parts.pool,
          clock: context.clock, logger: context.logger)
      }
    }
  }
}
