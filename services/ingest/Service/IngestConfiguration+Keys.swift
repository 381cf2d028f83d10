// Part of MemQ. SPDX-License-Identifier: Apache-2.0

public import MemQModel
import MemQObjectStore
public import MemQRuntime

extension IngestNode.Configuration {
  /// Keys of an ingest beyond those every node has.
  public static let keys: [ConfigurationKey] = [
    ConfigurationKey(
      "produce.stream.bytes.max", .size, default: "16MiB",
      "Bytes of one produce stream that may wait for their leaders; 1MiB to 1GiB."),
    ConfigurationKey(
      "produce.bytes.max", .size, default: "256MiB",
      "Bytes of all produce streams together that may wait; beyond, producers are slowed down."),
    ConfigurationKey(
      "produce.timeout", .duration, default: "30s",
      "Deadline of a produce request that names none; at most 300s."),
    ConfigurationKey(
      "produce.checks.records", .flag, default: "true",
      "Walk the records of encoded batches before taking them; false trusts producers and saves processor time."
    ),
    ConfigurationKey(
      "fetch.reads.max", .integer(1...1_000), default: "16",
      "Partitions of one fetch that are read at a time."),
    ConfigurationKey(
      "file.puts.max", .integer(1...100_000), default: "1024",
      "File puts at a time; each may hold up to 2 MiB of memory."),
    ConfigurationKey(
      "file.silence.max", .duration, default: "60s",
      "A put whose client sends nothing for so long is ended; the client may go on later."),
    ConfigurationKey(
      "file.upload.expiry", .duration, default: "1d",
      "A put that nobody finishes is given up after this time."),
    ConfigurationKey(
      "file.finisher.interval", .duration, default: "2s",
      "How often puts that nobody drives any more are looked for and finished."),
    ConfigurationKey(
      "file.finisher.puts.max", .integer(1...1_000), default: "16",
      "Such puts finished at a time."),
    ConfigurationKey(
      "scan.requests.max", .integer(1...10_000), default: "64",
      "Scans this ingest asks for at a time, records and files together."),
    ConfigurationKey(
      "scan.bytes.timeout", .duration, default: "30s",
      "How long an ingest waits for the verdict on something small."),
    ConfigurationKey(
      "scan.body.timeout", .duration, default: "600s",
      "How long an ingest waits for the verdict on a file's body."),
  ]

  /// - Throws: `.configurationInvalid` naming the key.
  public init(_ loaded: LoadedConfiguration, objects: String) throws(MemQError) {
    self.init(
      objects: try ObjectStoreConfiguration(loaded, objects: objects))
    self.checksRecords = loaded.flag("produce.checks.records")
    self.finisherPutsMax = loaded.integer("file.finisher.puts.max")
    self.scansMax = loaded.integer("scan.requests.max")
    self.streamBytesMax = Int(loaded.bytes("produce.stream.bytes.max"))
    self.produceBytesMax = Int(loaded.bytes("produce.bytes.max"))
    self.produceTimeout = loaded.duration("produce.timeout")
    self.fetchReadsMax = loaded.integer("fetch.reads.max")
    self.putsMax = loaded.integer("file.puts.max")
    self.putSilenceMax = loaded.duration("file.silence.max")
    self.uploadExpiry = loaded.duration("file.upload.expiry")
    self.finisherInterval = loaded.duration("file.finisher.interval")
    self.scanBytesTimeout = loaded.duration("scan.bytes.timeout")
    self.scanBodyTimeout = loaded.duration("scan.body.timeout")
    try self.validate()
  }
}
