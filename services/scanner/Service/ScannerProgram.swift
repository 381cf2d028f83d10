// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
public import MemQRuntime

extension ScannerNode: ServiceNode {}

/// `memq-scanner`: a scanner as a process of its own.
public enum ScannerProgram {
  public static let table = ConfigurationTable(
    program: "memq-scanner",
    summary: "Judges what topics with a scan policy take: bytes in, verdict out.",
    keys: CommonKeys.node(.scanner) + [CommonKeys.objects] + CommonKeys.objectStore + [
      ConfigurationKey(
        "scratch", .path, isRequired: true,
        "Folder for bodies while they are scanned; emptied at the start.")
    ] + ScannerNode.Configuration.keys + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "scanner", arguments: arguments) {
      context throws(MemQError) in
      let loaded = context.configuration
      let configuration = try ScannerNode.Configuration(
        loaded, objects: loaded.text("objects"), scratch: loaded.text("scratch"),
        rules: loaded.optionalText("rules"))
      return NodeProcess(.scanner, context) { parts throws(MemQError) in
        try ScannerNode(
          configuration: configuration, cluster: parts.session, pool: parts.pool,
          clock: context.clock, logger: context.logger)
      }
    }
  }
}
