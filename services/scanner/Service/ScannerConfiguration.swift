// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQObjectStore
import MemQRuntime

extension ScannerNode {
  /// What one scanner is told at its start.
  public struct Configuration: Sendable {
    /// Where bodies are read from.
    public var objects: ObjectStoreConfiguration
    /// Folder for bodies while they are scanned; emptied at the start.
    public var scratchFolder: String
    /// Bytes of all bodies on scratch disk at a time. 8 GiB: four of the largest.
    public var scratchBytesMax: Int64 = 8 << 30
    /// Bytes that ride along, of scans that run or wait. A copy for the engine is as large again, for those that run.
    public var memoryBytesMax: Int64 = 256 << 20
    /// Folder of YARA rules (`*.yar`, `*.yara`); nil: the built-in rule alone.
    public var rulesFolder: String?
    /// How often the folder is looked at.
    public var rulesReloadInterval: Duration = .seconds(10)
    /// Scans at a time, one thread each.
    public var scansMax = 2
    /// Scans that may wait for a thread or for scratch disk.
    public var queueMax = 1_024
    /// Longest time an engine may take for one thing.
    public var scanTimeout: Duration = .seconds(120)

    public init(objects: ObjectStoreConfiguration, scratchFolder: String) {
      self.objects = objects
      self.scratchFolder = scratchFolder
    }

    /// - Throws: `.configurationInvalid` naming the key.
    public func validate() throws(MemQError) {
      try self.objects.validate()
      guard !self.scratchFolder.isEmpty else {
        throw MemQError(
          .configurationInvalid, "the scanner needs a scratch folder", subject: "scratch")
      }
      try ValueRange.check("scan.scratch.bytes.max", self.scratchBytesMax, 1 << 20...1 << 50)
      // At least two of the largest messages.
      try ValueRange.check("scan.memory.bytes.max", self.memoryBytesMax, 32 << 20...1 << 40)
      try ValueRange.check("scan.max", self.scansMax, 1...256)
      try ValueRange.check("scan.queue.max", self.queueMax, 1...1_000_000)
      try ValueRange.check("scan.timeout", self.scanTimeout.milliseconds, 1_000...3_600_000)
      try ValueRange.check(
        "scan.rules.reload", self.rulesReloadInterval.milliseconds, 100...3_600_000)
    }
  }
}
