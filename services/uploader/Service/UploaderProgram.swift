// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQMetadata
import MemQModel
public import MemQRuntime

extension UploaderNode: ServiceNode {}

/// `memq-uploader`: an uploader as a process of its own.
public enum UploaderProgram {
  public static let table = ConfigurationTable(
    program: "memq-uploader",
    summary: "Moves committed records into large objects, and file bodies into the object store.",
    keys: CommonKeys.node(.uploader) + [CommonKeys.objects] + CommonKeys.objectStore
      + UploaderNode.Configuration.keys + CommonKeys.process)

  /// - Parameter arguments: without the program's name.
  /// - Returns: the exit status.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "uploader", arguments: arguments) {
      context throws(MemQError) in
      let loaded = context.configuration
      let configuration = try UploaderNode.Configuration(loaded, objects: loaded.text("objects"))
      return NodeProcess(.uploader, context) { parts throws(MemQError) in
        try UploaderNode(
          configuration: configuration, cluster: parts.session, pool: parts.pool,
          clock: context.clock, logger: context.logger)
      }
    }
  }
}
