// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
public import MemQObjectStore
import MemQRuntime

extension IngestNode {
  /// What one ingest is told at its start.
  public struct Configuration: Sendable {
    /// Where bodies and uploaded records are read from.
    public var objects: ObjectStoreConfiguration

    /// Bytes of one produce stream that may wait for their leaders. 16 MiB: two of the largest batches.
    public var streamBytesMax = 16 << 20
    /// Bytes of all produce streams together.
    public var produceBytesMax = 256 << 20
    /// Deadline of a produce request that names none.
    public var produceTimeout: Duration = .seconds(30)
    /// Longest deadline of a produce request; longer ones are cut to it.
    public var produceTimeoutMax: Duration = .seconds(300)
    /// Walk the records of encoded batches before taking them.
    public var checksRecords = true

    /// Partitions of one fetch that are read at a time.
    public var fetchReadsMax = 16

    /// File puts at a time; each may hold up to 2 MiB.
    public var putsMax = 1_024
    /// A put's client that sends nothing for so long has gone.
    public var putSilenceMax: Duration = .seconds(60)
    /// Puts that nobody finished are given up after this time.
    public var uploadExpiry: Duration = .seconds(24 * 3600)
    /// How often puts that nobody drives are looked for.
    public var finisherInterval: Duration = .seconds(2)
    /// Such puts in work at a time.
    public var finisherPutsMax = 16

    /// Scans this ingest asks for at a time, records and files together.
    public var scansMax = 64
    /// One scan of bytes that ride along.
    public var scanBytesTimeout: Duration = .seconds(30)
    /// One scan of a body: up to 2 GiB through a scratch disk.
    public var scanBodyTimeout: Duration = .seconds(600)
    /// How long a put whose bytes are all there waits for a scanner when none is there, before it is held: a scanner that is
    /// restarted is back within.
    public var scannerPatience: Duration = .seconds(15)

    public init(objects: ObjectStoreConfiguration) { self.objects = objects }

    /// - Throws: `.configurationInvalid` naming the key.
    public func validate() throws(MemQError) {
      try self.objects.validate()
      try ValueRange.check("produce.stream.bytes.max", self.streamBytesMax, 1 << 20...1 << 30)
      try ValueRange.check("produce.bytes.max", self.produceBytesMax, 16 << 20...64 << 30)
      try ValueRange.check("fetch.reads.max", self.fetchReadsMax, 1...1_000)
      try ValueRange.check("file.puts.max", self.putsMax, 1...100_000)
      try ValueRange.check("file.finisher.puts.max", self.finisherPutsMax, 1...1_000)
      try ValueRange.check("scan.requests.max", self.scansMax, 1...10_000)
      try ValueRange.check(
        "produce.timeout", self.produceTimeout, .milliseconds(1) ... .seconds(300))
      try ValueRange.check("file.silence.max", self.putSilenceMax, .seconds(1) ... .seconds(3600))
      try ValueRange.check(
        "file.upload.expiry", self.uploadExpiry, .seconds(60) ... .seconds(30 * 24 * 3600))
      try ValueRange.check(
        "file.finisher.interval", self.finisherInterval, .milliseconds(100) ... .seconds(60))
      try ValueRange.check(
        "scan.bytes.timeout", self.scanBytesTimeout, .milliseconds(100) ... .seconds(600))
      try ValueRange.check(
        "scan.body.timeout", self.scanBodyTimeout, .seconds(1) ... .seconds(7200))
    }
  }
}

typealias IngestConfiguration = IngestNode.Configuration
