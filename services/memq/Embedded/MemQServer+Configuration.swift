// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import MemQIngestService
import MemQMetadata
import MemQMetadataService
import MemQModel
import MemQRebalancerService
import MemQReplicationService
public import MemQRuntime
import MemQScannerService
import MemQUploaderService

extension MemQServer {
  /// All flags of `memq serve`: its own, and those of the six services that make sense in one process.
  public static let table = ConfigurationTable(
    program: "memq serve",
    summary: "Runs MemQ: all six services in this process, on one data folder.",
    keys: MemQServer.ownKeys + MemQServer.metadataKeys + ReplicationNode.Configuration.keys
      + UploaderNode.Configuration.keys + ScannerNode.Configuration.keys
      + IngestNode.Configuration.keys + RebalancerNode.Configuration.keys + CommonKeys.process)

  private static let ownKeys: [ConfigurationKey] =
    [
      CommonKeys.data("Folder for everything this server keeps; made when it is missing."),
      CommonKeys.listen(default: "127.0.0.1:\(CommonKeys.port(of: .ingest))"),
      CommonKeys.adminListen,
      CommonKeys.advertise,
      CommonKeys.rack,
      ConfigurationKey(
        "objects", .path,
        "The object store: a folder, or s3://BUCKET/PREFIX; by default the folder objects in the data folder."
      ),
      ConfigurationKey(
        "scratch", .path,
        "Folder for bodies while they are scanned, emptied at the start; by default scratch in the data folder."
      ),
    ] + CommonKeys.connections + CommonKeys.tls + CommonKeys.objectStore

  /// A node in metadata's own process cannot be lost apart from it: a pause of the whole process must not fence it.
  private static let metadataKeys = MetadataNode.Configuration.keys.map { key in
    key.name == "session.timeout" ? key.with(default: "15s") : key
  }

  /// Runs `memq serve` (and `memq config`) until told to stop.
  ///
  /// - Parameter arguments: without `memq serve`; those of `memq config` with the word `config` in front.
  /// - Returns: the exit status: 0 ended as told, 1 could not start, 2 the configuration is wrong.
  public static func main(_ arguments: [String]) async -> Int32 {
    await ServiceProcess.main(self.table, service: "serve", arguments: arguments) {
      context throws(MemQError) in MemQServer(context)
    }
  }
}
