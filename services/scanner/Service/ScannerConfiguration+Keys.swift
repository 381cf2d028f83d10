// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQObjectStore
public import MemQRuntime

extension ScannerNode.Configuration {
  /// Keys of a scanner beyond those every node has.
  public static let keys: [ConfigurationKey] = [
    ConfigurationKey(
      "rules", .path,
      "Folder of YARA rules (*.yar, *.yara), looked at again while it runs; the built-in EICAR rule is always there."
    ),
    ConfigurationKey(
      "scan.max", .integer(1...256), default: "2", "Scans at a time, one thread each."),
    ConfigurationKey(
      "scan.queue.max", .integer(1...1_000_000), default: "1024",
      "Scans that may wait for a thread or for scratch disk; beyond, they are refused and retried."),
    ConfigurationKey(
      "scan.timeout", .duration, default: "120s",
      "Longest time an engine may take for one thing; beyond, it counts as not scanned."),
    ConfigurationKey(
      "scan.scratch.bytes.max", .size, default: "8GiB",
      "Bytes of all bodies on scratch disk at a time."),
    ConfigurationKey(
      "scan.memory.bytes.max", .size, default: "256MiB",
      "Bytes of inline files and records that are scanned or wait for it; beyond, they are refused and retried."
    ),
    ConfigurationKey(
      "scan.rules.reload", .duration, default: "10s", "How often the rules folder is looked at."),
  ]

  /// - Throws: `.configurationInvalid` naming the key.
  public init(
    _ loaded: LoadedConfiguration, objects: String, scratch: String, rules: String?
  ) throws(MemQError) {
    self.init(
      objects: try ObjectStoreConfiguration(loaded, objects: objects),
      scratchFolder: scratch)
    self.rulesFolder = rules
    self.scansMax = loaded.integer("scan.max")
    self.queueMax = loaded.integer("scan.queue.max")
    self.scanTimeout = loaded.duration("scan.timeout")
    self.scratchBytesMax = loaded.bytes("scan.scratch.bytes.max")
    self.memoryBytesMax = loaded.bytes("scan.memory.bytes.max")
    self.rulesReloadInterval = loaded.duration("scan.rules.reload")
    try self.validate()
  }
}
